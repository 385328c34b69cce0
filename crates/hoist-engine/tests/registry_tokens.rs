//! Tokens: expired, refused, aged and traded, at a registry of our own that counts requests.

mod registry_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use hoist_engine::registry::Client;
use hoist_format::digest::Digest;
use registry_support::*;

fn blob() -> (Vec<u8>, Digest) {
    let blob = pattern(1000);
    let digest = Digest::of(&blob);
    (blob, digest)
}

/// A registry and its token service: tokens `t1`, `t2`... of which the registry takes `valid`.
/// `refusal` is what it says to all others.
async fn token_registry(valid: Arc<AtomicUsize>, refusal: u16, token: &'static str) -> BadServer {
    let (blob, _) = blob();
    let issued = AtomicUsize::new(0);
    BadServer::start(move |seen| {
        if seen.path.starts_with("/token") {
            assert_eq!(seen.header("authorization"), "Basic c29tZW9uZTpzM2NyZXQ=");
            assert!(
                seen.path.contains("scope=repository%3Ateam%2Fapp%3Apull")
                    && seen.path.contains("service=test")
            );
            let number = issued.fetch_add(1, SeqCst) + 1;
            let body = token.replace("N", &number.to_string());
            return reply(200, &[], body.as_bytes());
        }
        let want = format!("Bearer t{}", valid.load(SeqCst));
        if seen.header("authorization") != want {
            let host = seen.header("host");
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:team/app:pull\""
            );
            return match refusal {
                _ if seen.header("authorization").is_empty() => {
                    reply(401, &[("www-authenticate", &challenge)], b"")
                }
                401 => reply(401, &[("www-authenticate", &challenge)], b""),
                // No word on where tokens come from.
                other => reply(other % 1000, &[], b""),
            };
        }
        part(seen, &blob)
    })
    .await
}

/// An hour is left of each token.
const HOUR: &str = r#"{"token": "tN", "expires_in": 3600}"#;

#[tokio::test]
async fn a_token_that_is_refused_in_mid_use_is_renewed_once_and_the_request_replayed() {
    for refusal in [401, 403, 1401] {
        refused_in_mid_use(refusal).await;
    }
}

async fn refused_in_mid_use(refusal: u16) {
    let valid = Arc::new(AtomicUsize::new(1));
    let server = token_registry(valid.clone(), refusal, HOUR).await;
    let client = Client::new(with_password(&server.host));
    let (blob, digest) = blob();
    for _ in 0..3 {
        assert_eq!(all(&client, &server.repo(), &digest, 10..20).await.unwrap(), blob[10..20]);
    }
    assert_eq!((server.count("/token"), server.count("/v2/")), (1, 4));
    valid.store(2, SeqCst);
    // Many at once: the token is fetched once for all of them.
    let (client, repo) = (&client, &server.repo());
    let asks = (0..8).map(|_| all(client, repo, &digest, 10..20));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer.unwrap(), blob[10..20]);
    }
    assert_eq!(server.count("/token"), 2, "{refusal}");
    // Tokens that never suffice end in an error, not in a loop.
    valid.store(99, SeqCst);
    let error = all(client, repo, &digest, 10..20).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert_eq!(server.count("/token"), 3, "{refusal}");
    let requests = server.count("/v2/");
    all(client, repo, &digest, 10..20).await.unwrap_err();
    assert_eq!(server.count("/v2/"), requests + 2, "{refusal}: one replay");
}

/// Without a token that could have expired, a 403 is a plain no.
#[tokio::test]
async fn a_refusal_without_a_token_is_not_asked_again() {
    let open = BadServer::start(|_| reply(403, &[], b"")).await;
    let client = Client::new(with_password(&open.host));
    let (_, digest) = blob();
    let error = all(&client, &open.repo(), &digest, 0..1).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert_eq!(open.log().len(), 1);

    let basic = BadServer::start(|seen| match seen.header("authorization") {
        "" => reply(401, &[("www-authenticate", "Basic realm=\"x\"")], b""),
        _ => reply(403, &[], b""),
    })
    .await;
    let client = Client::new(with_password(&basic.host));
    let error = all(&client, &basic.repo(), &digest, 0..1).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert_eq!(basic.log().len(), 2);
}

#[tokio::test]
async fn an_expired_token_is_renewed_without_trying_it() {
    let valid = Arc::new(AtomicUsize::new(1));
    let server = token_registry(valid.clone(), 401, r#"{"token": "tN", "expires_in": 0}"#).await;
    let client = Client::new(with_password(&server.host));
    let (_, digest) = blob();
    // With a life of nothing, the replay of the 401 already takes the second token.
    valid.store(2, SeqCst);
    all(&client, &server.repo(), &digest, 0..1).await.unwrap();
    valid.store(3, SeqCst);
    all(&client, &server.repo(), &digest, 0..1).await.unwrap();
    assert_eq!((server.count("/token"), server.count("/v2/")), (3, 3));
}

/// Docker's and containerd's exchange of a refresh token (distribution's OAuth2 spec).
#[tokio::test]
async fn an_identity_token_is_traded_by_post() {
    let (data, digest) = blob();
    let server = BadServer::start(move |seen| {
        let host = seen.header("host");
        if seen.path == "/oauth/token" {
            assert_eq!((seen.method.as_str(), seen.header("authorization")), ("POST", ""));
            assert_eq!(seen.header("content-type"), "application/x-www-form-urlencoded");
            let wanted = [
                "grant_type=refresh_token",
                "refresh_token=r%26f%3Dsh",
                "service=test",
                "client_id=hoist",
                "scope=repository%3Ateam%2Fapp%3Apull",
            ];
            let fields: Vec<_> = seen.body.split('&').collect();
            return match wanted.iter().all(|field| fields.contains(field)) {
                true => reply(200, &[], br#"{"access_token": "short", "expires_in": 300}"#),
                false => {
                    reply(401, &[], br#"{"errors": [{"code": "UNAUTHORIZED", "message": "bad token"}]}"#)
                }
            };
        }
        if seen.header("authorization") == "Bearer short" {
            return part(seen, &data);
        }
        let challenge = format!("Bearer realm=\"http://{host}/oauth/token\",service=\"test\"");
        reply(401, &[("www-authenticate", &challenge)], b"")
    })
    .await;
    let with = |token: &str| {
        let mut config = config();
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = serde_json::json!({"auths": {&server.host: {"identitytoken": token}}}).to_string();
        std::fs::write(file.path(), text).unwrap();
        config.credentials.files = vec![file.path().to_owned()];
        (Client::new(config), file)
    };
    let (client, _file) = with("r&f=sh");
    for _ in 0..3 {
        all(&client, &server.repo(), &digest, 0..9).await.unwrap();
    }
    assert_eq!((server.count("/oauth"), server.count("/v2/")), (1, 4));
    let (client, _file) = with("hunter2");
    let error = all(&client, &server.repo(), &digest, 0..9).await.unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(error.is_unauthorized() && said.contains("bad token") && !said.contains("hunter2"), "{said}");
    assert!(said.contains(&format!("docker login {}", server.host)), "{said}");
}

/// A token service beyond the registry's protection gets no password.
#[tokio::test]
async fn passwords_are_not_sent_where_anybody_listens() {
    let server = BadServer::start(|_| {
        let challenge = "Bearer realm=\"ftp://auth.example/token\",service=\"test\"";
        reply(401, &[("www-authenticate", challenge)], b"")
    })
    .await;
    let client = Client::new(with_password(&server.host));
    let (_, digest) = blob();
    let error = all(&client, &server.repo(), &digest, 0..1).await.unwrap_err();
    assert!(error.to_string().contains("not protected by https"), "{error}");
    assert_eq!(server.log().len(), 1);
}

//! The client against servers that fail, lie and stall.

mod registry_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use hoist_engine::registry::{Client, RegistryError};
use hoist_format::digest::Digest;
use registry_support::*;

const LENGTH: usize = 300_000;

fn blob() -> (Vec<u8>, Digest) {
    let blob = pattern(LENGTH);
    let digest = Digest::of(&blob);
    (blob, digest)
}

/// A registry and its token service: tokens `t1`, `t2`... of which the registry takes `valid`.
async fn token_registry(valid: Arc<AtomicUsize>, expires_in: u64) -> BadServer {
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
            let body = format!("{{\"token\": \"t{number}\", \"expires_in\": {expires_in}}}");
            return reply(200, &[], body.as_bytes());
        }
        let want = format!("Bearer t{}", valid.load(SeqCst));
        if seen.header("authorization") != want {
            let host = seen.header("host");
            let challenge = format!(
                "Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:team/app:pull\""
            );
            return reply(401, &[("www-authenticate", &challenge)], b"");
        }
        part(seen, &blob)
    })
    .await
}

fn count(server: &BadServer, prefix: &str) -> usize {
    server.log().iter().filter(|seen| seen.path.starts_with(prefix)).count()
}

#[tokio::test]
async fn a_token_that_is_refused_in_mid_use_is_renewed_once_and_the_request_replayed() {
    let valid = Arc::new(AtomicUsize::new(1));
    let server = token_registry(valid.clone(), 3600).await;
    let client = Client::new(with_password(&server.host));
    let (blob, digest) = blob();
    for _ in 0..3 {
        assert_eq!(all(&client, &server.repo(), &digest, 10..20).await.unwrap(), blob[10..20]);
    }
    assert_eq!((count(&server, "/token"), count(&server, "/v2/")), (1, 4));
    valid.store(2, SeqCst);
    // Many at once: the token is fetched once for all of them.
    let (client, repo) = (&client, &server.repo());
    let asks = (0..8).map(|_| all(client, repo, &digest, 10..20));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer.unwrap(), blob[10..20]);
    }
    assert_eq!(count(&server, "/token"), 2);
    // Tokens that never suffice end in an error, not in a loop.
    valid.store(99, SeqCst);
    let error = all(client, repo, &digest, 10..20).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert_eq!(count(&server, "/token"), 3);
}

#[tokio::test]
async fn an_expired_token_is_renewed_without_trying_it() {
    let valid = Arc::new(AtomicUsize::new(1));
    let server = token_registry(valid.clone(), 0).await;
    let client = Client::new(with_password(&server.host));
    let (_, digest) = blob();
    // With a life of nothing, the replay of the 401 already takes the second token.
    valid.store(2, SeqCst);
    all(&client, &server.repo(), &digest, 0..1).await.unwrap();
    valid.store(3, SeqCst);
    all(&client, &server.repo(), &digest, 0..1).await.unwrap();
    assert_eq!((count(&server, "/token"), count(&server, "/v2/")), (3, 3));
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_and_an_expired_redirect_is_asked_anew() {
    let (data, digest) = blob();
    let epoch = Arc::new(AtomicUsize::new(1));
    let (now, body) = (epoch.clone(), data.clone());
    let cdn = BadServer::start(move |seen| {
        let signed = format!("/data?signature={}", now.load(SeqCst));
        if seen.path == signed { part(seen, &body) } else { reply(403, &[], b"expired") }
    })
    .await;
    let (now, target) = (epoch.clone(), cdn.host.clone());
    let registry = BadServer::start(move |seen| {
        if seen.header("authorization") != "Basic c29tZW9uZTpzM2NyZXQ=" {
            return reply(401, &[("www-authenticate", "Basic realm=\"x\"")], b"");
        }
        let to = format!("http://{target}/data?signature={}", now.load(SeqCst));
        reply(307, &[("location", &to)], b"")
    })
    .await;
    let client = Client::new(with_password(&registry.host));
    let repo = registry.repo();
    for at in [0, 1000, 2000] {
        let part = all(&client, &repo, &digest, at..at + 10).await.unwrap();
        assert_eq!(part, data[at as usize..at as usize + 10]);
    }
    assert_eq!(registry.log().len(), 2, "the redirect is remembered");
    epoch.store(2, SeqCst);
    assert_eq!(all(&client, &repo, &digest, 0..10).await.unwrap(), data[..10]);
    assert_eq!(registry.log().len(), 3, "asked anew once");
    for seen in cdn.log() {
        assert_eq!(seen.header("authorization"), "", "credentials left their host");
    }
    assert_eq!(client.stats().requests() as usize, registry.log().len() + cdn.log().len());
}

#[tokio::test]
async fn busy_and_broken_servers_are_asked_again() {
    let (data, digest) = blob();
    let body = data.clone();
    let server = BadServer::start(move |seen| match seen.number {
        0 => reply(429, &[("retry-after", "0")], b""),
        1 => reply(500, &[], b""),
        2 => reply(503, &[("retry-after", "0")], b""),
        _ => part(seen, &body),
    })
    .await;
    let client = Client::new(config());
    assert_eq!(all(&client, &server.repo(), &digest, 5..50).await.unwrap(), data[5..50]);
    assert_eq!((server.log().len(), client.stats().retries()), (4, 3));

    let dead = BadServer::start(|_| reply(502, &[], b"")).await;
    let error = client.blob(&dead.repo(), &digest, None).await.unwrap_err();
    assert!(error.retryable() && matches!(error, RegistryError::Status { status: 502, .. }), "{error}");
    assert_eq!(dead.log().len(), 4, "bounded");
}

#[tokio::test]
async fn short_bodies_are_continued_where_they_stopped() {
    let (data, digest) = blob();
    let body = data.clone();
    let server = BadServer::start(move |seen| {
        let (first, last) = seen.range().unwrap();
        // Promises everything, sends 100,000 bytes at most.
        let head = format!(
            "HTTP/1.1 206 X\r\ncontent-length: {}\r\ncontent-range: bytes {first}-{last}/{LENGTH}\r\n\r\n",
            last - first + 1
        );
        let end = (first + 100_000).min(last + 1);
        Reply::Raw([head.as_bytes(), &body[first..end]].concat())
    })
    .await;
    let client = Client::new(config());
    assert_eq!(all(&client, &server.repo(), &digest, 0..LENGTH as u64).await.unwrap(), data);
    let starts: Vec<_> = server.log().iter().map(|seen| seen.range().unwrap().0).collect();
    assert_eq!(starts, [0, 100_000, 200_000]);
}

#[tokio::test]
async fn parts_that_are_others_than_asked_for_are_never_delivered() {
    let (data, digest) = blob();
    for header in [
        "bytes 0-9/300000",
        "bytes 101-109/300000",
        "bytes 100-110/300000",
        "bytes 100-99/300000",
        "bytes 18446744073709551615-0/1",
        "bytes */300000",
        "",
        "nonsense",
    ] {
        let body = data.clone();
        let lying = BadServer::start(move |_| reply(206, &[("content-range", header)], &body[..10])).await;
        let client = Client::new(config());
        let error = all(&client, &lying.repo(), &digest, 100..110).await.unwrap_err();
        assert!(matches!(error, RegistryError::BadAnswer { .. }), "{header}: {error}");
        assert_eq!(lying.log().len(), 4, "{header}: tried again, but not for ever");
    }
    // A shorter part than asked for is a right answer: the rest is asked for.
    let body = data.clone();
    let thrifty = BadServer::start(move |seen| {
        let (first, last) = seen.range().unwrap();
        let last = last.min(first + 49_999);
        let range = format!("bytes {first}-{last}/{LENGTH}");
        reply(206, &[("content-range", &range)], &body[first..=last])
    })
    .await;
    let client = Client::new(config());
    assert_eq!(all(&client, &thrifty.repo(), &digest, 0..LENGTH as u64).await.unwrap(), data);
    assert_eq!(client.stats().retries(), 0);
}

#[tokio::test]
async fn servers_that_ignore_ranges() {
    let data = pattern(5 << 20);
    let digest = Digest::of(&data);
    let body = data.clone();
    let server = BadServer::start(move |_| reply(200, &[], &body)).await;
    let client = Client::new(config());
    let repo = server.repo();
    let whole = all(&client, &repo, &digest, 0..data.len() as u64).await.unwrap();
    assert!(whole == data && !client.ranges_ignored(&repo));
    assert!(all(&client, &repo, &digest, 1000..2000).await.unwrap() == data[1000..2000]);
    assert!(client.ranges_ignored(&repo));
    let error = all(&client, &repo, &digest, 4 << 20..5 << 20).await.unwrap_err();
    assert!(error.is_ranges_ignored(), "{error}");
    assert_eq!(server.log().len(), 2, "what is known is not asked again");
}

#[tokio::test]
async fn a_server_that_hangs_costs_no_more_than_the_time_limits() {
    let (data, digest) = blob();
    let mut config = config();
    config.timeouts.first_byte = Duration::from_millis(50);
    config.timeouts.idle = Duration::from_millis(50);
    config.retry.attempts = 3;
    let mute = BadServer::start(|_| Reply::Hang(Vec::new())).await;
    let client = Client::new(config.clone());
    let error = all(&client, &mute.repo(), &digest, 0..10).await.unwrap_err();
    assert!(matches!(error, RegistryError::TimedOut { what: "answer", .. }), "{error}");

    // Stalls in the middle, then serves the rest.
    let body = data.clone();
    let stalling = BadServer::start(move |seen| match part(seen, &body) {
        Reply::Raw(bytes) if seen.number == 0 => Reply::Hang(bytes[..bytes.len() - 3].to_vec()),
        whole => whole,
    })
    .await;
    config.timeouts.first_byte = Duration::from_secs(20);
    let client = Client::new(config);
    assert_eq!(all(&client, &stalling.repo(), &digest, 0..10).await.unwrap(), data[..10]);
    assert_eq!(stalling.log()[1].range(), Some((7, 9)));
}

#[tokio::test]
async fn content_with_another_digest_is_refused() {
    let server = BadServer::start(|_| reply(200, &[], b"other content")).await;
    let client = Client::new(config());
    let digest = Digest::of(b"content");
    let error = client.blob(&server.repo(), &digest, None).await.unwrap_err();
    assert!(matches!(error, RegistryError::DigestMismatch { expected, .. } if expected == digest), "{error}");
    let named = format!("{}@{digest}", server.repo()).parse().unwrap();
    assert!(matches!(client.manifest(&named).await, Err(RegistryError::DigestMismatch { .. })));

    let claim = Digest::of(b"content").to_string();
    let server = BadServer::start(move |_| reply(200, &[("docker-content-digest", &claim)], b"{}")).await;
    let named = format!("{}:tag", server.repo()).parse().unwrap();
    assert!(matches!(client.manifest(&named).await, Err(RegistryError::DigestMismatch { .. })));
}

#[tokio::test]
async fn endless_redirects_and_bodies_end() {
    let server = BadServer::start(|seen| reply(302, &[("location", &seen.path)], b"")).await;
    let mut config = config();
    config.retry.attempts = 1;
    let client = Client::new(config);
    let digest = Digest::of(b"x");
    assert!(client.blob(&server.repo(), &digest, None).await.is_err());
    assert_eq!(server.log().len(), 6);

    let head = b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n";
    let piece = [b"100000\r\n", &vec![b' '; 1 << 20][..], b"\r\n"].concat();
    let endless = [&head[..], &piece.repeat(6)].concat();
    let server = BadServer::start(move |_| Reply::Raw(endless.clone())).await;
    let named = format!("{}:tag", server.repo()).parse().unwrap();
    let error = client.manifest(&named).await.unwrap_err();
    assert!(error.to_string().contains("more than the 4194304 bytes"), "{error}");
}

#[tokio::test]
async fn mirrors_are_tried_in_order_with_ns_and_left_alone_when_dead() {
    let (data, digest) = blob();
    let body = data.clone();
    let mirror = BadServer::start(move |seen| {
        if seen.path.contains("manifests") { reply(404, &[], b"") } else { part(seen, &body) }
    })
    .await;
    let broken = BadServer::start(|_| reply(503, &[], b"")).await;
    let origin = BadServer::start(|_| reply(200, &[], b"{\"schemaVersion\":2}")).await;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images.example");
    std::fs::create_dir(&folder).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n\
         [host.\"http://{}\".header]\nx-key = \"k\"\n",
        origin.host, broken.host, mirror.host, mirror.host
    );
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let mut config = config();
    config.certs_dirs = vec![dir.path().to_owned()];
    let client = Client::new(config);
    let repo = hoist_engine::reference::Repo { host: "images.example".into(), name: "a/b".into() };
    for _ in 0..3 {
        assert_eq!(all(&client, &repo, &digest, 0..9).await.unwrap(), data[..9]);
    }
    assert_eq!((broken.log().len(), mirror.log().len(), origin.log().len()), (1, 3, 0));
    let seen = &mirror.log()[0];
    assert_eq!(seen.path, format!("/v2/a/b/blobs/{digest}?ns=images.example"));
    assert_eq!(seen.header("x-key"), "k");
    client.manifest(&"images.example/a/b:1".parse().unwrap()).await.unwrap();
    assert_eq!(origin.log().len(), 1, "what the mirror has not, the origin has");
}

#[tokio::test]
async fn referrers_by_the_api_with_pages() {
    let subject = Digest::of(b"image");
    let entry = |name: &str, kind: &str| {
        let digest = Digest::of(name.as_bytes());
        format!("{{\"mediaType\":\"m\",\"digest\":\"{digest}\",\"size\":1,\"artifactType\":\"{kind}\"}}")
    };
    let (one, two, other) = (entry("one", "k"), entry("two", "k"), entry("other", "q"));
    let foreign = "{\"digest\":\"sha512:00\",\"size\":1}";
    let server = BadServer::start(move |seen| {
        let index = |entries: &[&str]| format!("{{\"manifests\":[{}]}}", entries.join(",")).into_bytes();
        if seen.path.contains("page=2") {
            reply(200, &[], &index(&[&two]))
        } else if seen.path.contains("/referrers/") {
            let next = "</v2/team/app/referrers/x?page=2>; rel=\"next\"";
            reply(200, &[("link", next)], &index(&[&one, foreign, &other]))
        } else {
            reply(404, &[], b"")
        }
    })
    .await;
    let client = Client::new(config());
    let found = client.referrers(&server.repo(), &subject, Some("k")).await.unwrap();
    let found: Vec<_> = found.iter().map(|entry| entry.digest).collect();
    assert_eq!(found, [Digest::of(b"one"), Digest::of(b"two")]);
}

//! Several who know credentials: what one gave and a registry refused makes room for what another has.

mod registry_support;

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hoist_engine::reference::{Reference, Repo};
use hoist_engine::registry::{Client, Cluster, CredentialSource, Login, PullSecrets, Remembered};
use hoist_format::digest::Digest;
use hoist_testkit::https;
use registry_support::certificates::Certificates;
use registry_support::*;
use serde_json::json;

fn header(password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("someone:{password}")))
}

/// How a registry tells who may come in.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Its token service refuses.
    Tokens,
    /// Its token service gives everybody a token; it refuses those that are not enough.
    ScopedTokens,
    Passwords,
    /// As ECR has it: who shows a password that has expired is forbidden.
    Forbidding,
}

/// A registry that takes the password that `right` holds.
async fn registry(kind: Kind, right: Arc<Mutex<&'static str>>) -> BadServer {
    BadServer::start(move |seen| {
        let right = header(*right.lock().unwrap());
        let shown = seen.header("authorization");
        if seen.path.starts_with("/token") {
            let token = format!("{{\"token\": \"{}\"}}", shown.rsplit(' ').next().unwrap());
            let taken = kind == Kind::ScopedTokens || shown == right;
            return if taken { reply(200, &[], token.as_bytes()) } else { reply(401, &[], b"") };
        }
        let tokens = matches!(kind, Kind::Tokens | Kind::ScopedTokens);
        let wanted = if tokens { right.replace("Basic", "Bearer") } else { right };
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", seen.header("host"));
        let challenge = if tokens { realm.as_str() } else { "Basic realm=\"x\"" };
        match shown {
            shown if shown == wanted => part(seen, &pattern(1000)),
            "" => reply(401, &[("www-authenticate", challenge)], b""),
            _ if kind == Kind::Forbidding => reply(403, &[], b""),
            _ => reply(401, &[("www-authenticate", challenge)], b""),
        }
    })
    .await
}

fn client(sources: Vec<Arc<dyn CredentialSource>>) -> Client {
    let mut config = config();
    config.credentials.sources = sources;
    Client::new(config)
}

async fn read(client: &Client, repo: &Repo) -> Result<(), String> {
    let blob = pattern(1000);
    let read = all(client, repo, &Digest::of(&blob), 10..20).await.map_err(|error| error.to_string())?;
    assert_eq!(read, blob[10..20]);
    Ok(())
}

fn remembered(server: &BadServer, passwords: &[&str]) -> Arc<Remembered> {
    let remembered = Arc::new(Remembered::default());
    passwords.iter().for_each(|password| remember(&remembered, server, password));
    remembered
}

fn remember(remembered: &Remembered, server: &BadServer, password: &str) {
    let image: Reference = format!("{}:v1", server.repo()).parse().unwrap();
    let login =
        Login { username: Some("someone".into()), password: Some(password.into()), ..Login::default() };
    remembered.keep(&image, &login).unwrap();
}

#[tokio::test]
async fn what_is_refused_makes_room_for_what_another_knows() {
    for kind in [Kind::Tokens, Kind::ScopedTokens, Kind::Passwords, Kind::Forbidding] {
        let right = Arc::new(Mutex::new("right"));
        let server = registry(kind, right.clone()).await;
        let (first, second) = (remembered(&server, &["old", "older"]), remembered(&server, &["right"]));
        let client = client(vec![first.clone(), second]);
        read(&client, &server.repo()).await.unwrap();
        let before = server.log().len();
        read(&client, &server.repo()).await.unwrap();
        assert_eq!(server.log().len(), before + 1, "what was taken is shown first");
        // It has expired, and a new one is known by now.
        *right.lock().unwrap() = "new";
        read(&client, &server.repo()).await.unwrap_err();
        remember(&first, &server, "new");
        read(&client, &server.repo()).await.unwrap();
        // What was refused once may be right again.
        *right.lock().unwrap() = "older";
        read(&client, &server.repo()).await.unwrap();
    }
}

#[tokio::test]
async fn however_many_are_wrong_it_ends() {
    for kind in [Kind::Tokens, Kind::ScopedTokens, Kind::Passwords, Kind::Forbidding] {
        let server = registry(kind, Arc::new(Mutex::new("right"))).await;
        let sources =
            (0..20).map(|i| remembered(&server, &[&format!("hunter{i}")]) as Arc<dyn CredentialSource>);
        let client = client(sources.collect());
        let said = read(&client, &server.repo()).await.unwrap_err();
        assert!(said.contains("refused access") && !said.contains("hunter"), "{said}");
        assert!(server.log().len() <= 20, "{}", server.log().len());
    }
}

/// An API server with one secret a page, for whom the token opens it.
fn cluster(
    made: &Certificates,
    secrets: Arc<Mutex<Vec<serde_json::Value>>>,
) -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let answer = move |seen: &https::Asked| {
        log.lock().unwrap().push(seen.path.clone());
        if seen.authorization != "Bearer of-the-node" {
            return (401, "{}".to_owned());
        }
        assert!(
            seen.path.starts_with("/api/v1/secrets?fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson&")
        );
        let at = seen.path.split_once("&continue=").map_or(0, |(_, at)| at.parse::<usize>().unwrap());
        let secrets = secrets.lock().unwrap();
        let next = if at + 1 < secrets.len() { (at + 1).to_string() } else { String::new() };
        let items: Vec<_> = secrets.get(at).cloned().into_iter().collect();
        (200, json!({"kind": "SecretList", "metadata": {"continue": next}, "items": items}).to_string())
    };
    (https::start(&made.path("server.crt"), &made.path("server.key"), answer).unwrap(), asked)
}

fn kubeconfig(made: &Certificates, server: std::net::SocketAddr, token: &str) -> Cluster {
    let file = made.path("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         contexts:\n- name: here\n  context: {{cluster: c, user: u}}\n\
         clusters:\n- name: c\n  cluster:\n    server: https://{server}\n    certificate-authority: ca.crt\n\
         users:\n- name: u\n  user:\n    {token}\n"
    );
    std::fs::write(&file, text).unwrap();
    Cluster::Kubeconfig(file)
}

fn secret(host: &str, password: &str) -> serde_json::Value {
    let config = json!({"auths": {host: {"auth": BASE64.encode(format!("someone:{password}"))}}});
    json!({
        "metadata": {"name": host, "namespace": "default"},
        "data": {".dockerconfigjson": BASE64.encode(config.to_string())},
    })
}

fn of_cluster(cluster: &Cluster) -> Client {
    client(vec![Arc::new(PullSecrets::of(cluster).unwrap())])
}

#[tokio::test]
async fn a_cluster_s_pull_secrets_open_a_registry() {
    let made = Certificates::new("IP:127.0.0.1");
    let right = Arc::new(Mutex::new("right"));
    let server = registry(Kind::Tokens, right.clone()).await;
    let damaged = json!({"metadata": {"name": "bad"}, "data": {".dockerconfigjson": "hunter2!"}});
    let secrets = vec![secret("other.io", "hunter2"), damaged, secret(&server.host, "right")];
    let (address, asked) = cluster(&made, Arc::new(Mutex::new(secrets)));
    std::fs::write(made.path("token"), "of-the-node\n").unwrap();
    let client = of_cluster(&kubeconfig(&made, address, "tokenFile: token"));
    read(&client, &server.repo()).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 3, "a page each");
    // Listed so lately, they are not asked for again.
    *right.lock().unwrap() = "new";
    let other = Repo { name: "team/other".into(), ..server.repo() };
    read(&client, &other).await.unwrap_err();
    assert_eq!(asked.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_cluster_that_is_not_to_be_trusted_or_refuses_is_told_without_secrets() {
    let made = Certificates::new("IP:127.0.0.1");
    let server = registry(Kind::Tokens, Arc::new(Mutex::new("right"))).await;
    let (address, asked) = cluster(&made, Arc::new(Mutex::new(vec![secret(&server.host, "right")])));
    let refused = of_cluster(&kubeconfig(&made, address, "token: hunter2"));
    let said = read(&refused, &server.repo()).await.unwrap_err();
    assert!(said.contains("must be allowed to list secrets") && !said.contains("hunter2"), "{said}");
    made.authority("stranger");
    std::fs::copy(made.path("stranger.crt"), made.path("ca.crt")).unwrap();
    let before = asked.lock().unwrap().len();
    let stranger = of_cluster(&kubeconfig(&made, address, "token: of-the-node"));
    let said = read(&stranger, &server.repo()).await.unwrap_err();
    assert!(said.contains("asking https://127.0.0.1"), "{said}");
    assert_eq!(asked.lock().unwrap().len(), before);
}

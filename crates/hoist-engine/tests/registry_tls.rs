//! TLS as a real registry speaks it, with certificates that openssl made: what is trusted, and what is told when
//! something is not.

mod registry_support;

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use hoist_engine::reference::Repo;
use hoist_engine::registry::{Client, RegistryError};
use hoist_format::digest::Digest;
use registry_support::certificates::Certificates;
use registry_support::*;

/// Pushes, reads whole and in part.
async fn use_it(client: &Client, repo: &Repo) -> Result<(), RegistryError> {
    let data = Bytes::from(pattern(3_000_000));
    let digest = client.push_blob(repo, data.clone()).await?;
    assert!(client.blob(repo, &digest, None).await? == data);
    assert!(all(client, repo, &digest, 1000..2_000_000).await? == data[1000..2_000_000]);
    Ok(())
}

/// The error of a read that must fail at once, since no second try mends a certificate.
async fn refusal(client: &Client, repo: &Repo) -> String {
    let error = client.blob(repo, &Digest::of(b"x"), None).await.unwrap_err();
    assert!(error.is_user_failure() && !error.retryable(), "{error}");
    assert_eq!(client.stats().retries(), 0, "{error}");
    error.to_string()
}

/// The same of a refusal that comes after the handshake: whether its word arrives before the connection breaks depends
/// on who is faster, so that it may be no more than a guess.
async fn late_refusal(client: &Client, repo: &Repo) -> String {
    client.blob(repo, &Digest::of(b"x"), None).await.unwrap_err().to_string()
}

fn skopeo(host: &str, folder: &Path) -> bool {
    let image = format!("docker://{host}/a:absent");
    let mut command = Command::new("skopeo");
    command.args(["inspect", "--raw", "--cert-dir"]).arg(folder).arg(image);
    let said = String::from_utf8(command.output().expect("skopeo is needed").stderr).unwrap();
    assert!(said.contains("manifest unknown") || said.contains("tls:") || said.contains("x509:"), "{said}");
    said.contains("manifest unknown")
}

#[tokio::test]
async fn an_own_ca_is_trusted_wherever_it_is_named() {
    let made = Certificates::new("IP:127.0.0.1");
    let registry = made.registry(None);
    let (host, repo) = (&registry.host, registry.repo("a"));
    let hosts = |line: &str| ("hosts.toml", format!("server = \"https://{host}\"\n{line}\n").into_bytes());
    let mirror = |line: &str| {
        let text = format!("server = \"http://127.0.0.1:9\"\n[host.\"https://{host}\"]\n{line}\n");
        ("hosts.toml", text.into_bytes())
    };
    let ca = || ("ca.crt", made.read("ca.crt"));
    for files in [
        vec![ca()],
        vec![hosts("ca = \"ca.crt\""), ca()],
        vec![hosts(&format!("ca = [{:?}]", made.path("ca.crt")))],
        vec![mirror("ca = \"ca.crt\""), ca()],
        vec![hosts("skip_verify = true")],
    ] {
        use_it(&made.client(host, &files), &repo).await.unwrap();
    }
    // As containerd spells a port where names take no colon.
    let spelled = format!("127.0.0.1_{}_", host.rsplit(':').next().unwrap());
    use_it(&made.client(&spelled, &[ca()]), &repo).await.unwrap();
    // skopeo reads Docker's folders alike.
    made.client(host, &[ca()]);
    assert!(skopeo(host, &made.path("certs.d").join(host)));
}

#[tokio::test]
async fn an_unknown_ca_is_told_with_the_place_for_it() {
    let made = Certificates::new("IP:127.0.0.1");
    let registry = made.registry(None);
    let (host, repo) = (&registry.host, registry.repo("a"));
    made.authority("other");
    let said = refusal(&made.client(host, &[("ca.crt", made.read("other.crt"))]), &repo).await;
    assert!(said.contains("signed by a CA that is not trusted here"), "{said}");
    assert!(said.contains(&format!("ca.crt into /etc/containerd/certs.d/{host}")), "{said}");
    assert!(!skopeo(host, &made.path("certs.d").join(host)));
    // One server's settings are not another's.
    let text = format!(
        "server = \"https://{host}\"\n[host.\"https://127.0.0.1:9\"]\nca = \"ca.crt\"\nskip_verify = true\n"
    );
    let files = [("hosts.toml", text.into_bytes()), ("ca.crt", made.read("ca.crt"))];
    let said = refusal(&made.client(host, &files), &repo).await;
    assert!(said.contains("not trusted here"), "{said}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_told() {
    let made = Certificates::new("DNS:registry.example");
    let registry = made.registry(None);
    let said =
        refusal(&made.client(&registry.host, &[("ca.crt", made.read("ca.crt"))]), &registry.repo("a")).await;
    assert!(
        said.contains("registry.example") && said.contains("use a name that the certificate is for"),
        "{said}"
    );
}

#[tokio::test]
async fn a_ca_that_serves_itself_is_told() {
    let made = Certificates::new("IP:127.0.0.1");
    made.openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=self \
         -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.crt",
    );
    let registry = made.registry(None);
    let said =
        refusal(&made.client(&registry.host, &[("ca.crt", made.read("server.crt"))]), &registry.repo("a"))
            .await;
    assert!(said.contains("certificate of its own") || said.contains("ca.crt"), "{said}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_its_lack_told() {
    let made = Certificates::new("IP:127.0.0.1");
    made.authority("clients");
    made.signed("someone", "clients", "DNS:someone");
    made.authority("strangers");
    made.signed("stranger", "strangers", "DNS:stranger");
    let registry = made.registry(Some("clients"));
    let (host, repo) = (&registry.host, registry.repo("a"));
    let ca = || ("ca.crt", made.read("ca.crt"));
    let pair = |name: &str| {
        [
            ("client.cert", made.read(&format!("{name}.crt"))),
            ("client.key", made.read(&format!("{name}.key"))),
        ]
    };
    let [cert, key] = pair("someone");
    let both = ("both.pem", [made.read("someone.crt"), made.read("someone.key")].concat());
    let hosts = |client: &str| {
        let text = format!("server = \"https://{host}\"\nca = \"ca.crt\"\nclient = {client}\n");
        ("hosts.toml", text.into_bytes())
    };
    for files in [
        vec![ca(), cert.clone(), key.clone()],
        vec![ca(), hosts("[[\"client.cert\", \"client.key\"]]"), cert.clone(), key.clone()],
        vec![ca(), hosts("\"both.pem\""), both.clone()],
        vec![ca(), hosts("[\"both.pem\"]"), both.clone()],
        vec![ca(), hosts("[[\"both.pem\", \"\"]]"), both],
    ] {
        use_it(&made.client(host, &files), &repo).await.unwrap();
    }
    for _ in 0..5 {
        let said = late_refusal(&made.client(host, &[ca()]), &repo).await;
        assert!(said.contains("client certificate"), "{said}");
        assert!(
            said.contains(&format!("client.cert and client.key into /etc/containerd/certs.d/{host}")),
            "{said}"
        );
    }
    let [wrong, wrong_key] = pair("stranger");
    let said = late_refusal(&made.client(host, &[ca(), wrong, wrong_key.clone()]), &repo).await;
    assert!(said.contains("client certificate"), "{said}");
    // What cannot even be shown is told with its file.
    for (files, word) in [
        (vec![ca(), cert.clone()], "client.key"),
        (vec![ca(), cert.clone(), wrong_key], "client.cert and its key cannot be used"),
        (vec![ca(), cert, ("client.key", b"no key".to_vec())], "client.cert and its key"),
    ] {
        let said = refusal(&made.client(host, &files), &repo).await;
        assert!(said.contains(word), "{said}");
    }
}

#[tokio::test]
async fn files_and_servers_that_are_no_tls_are_told() {
    let made = Certificates::new("IP:127.0.0.1");
    let registry = made.registry(None);
    let (host, repo) = (&registry.host, registry.repo("a"));
    for content in [&b"no certificate"[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    {
        let said = refusal(&made.client(host, &[("ca.crt", content.to_vec())]), &repo).await;
        assert!(said.contains("ca.crt"), "{said}");
    }
    let text = format!("server = \"https://{host}\"\nca = \"absent.crt\"\n").into_bytes();
    let said = refusal(&made.client(host, &[("hosts.toml", text)]), &repo).await;
    assert!(said.contains("absent.crt"), "{said}");

    let plain = Registry::start();
    let said = refusal(&made.client(&plain.host, &[("ca.crt", made.read("ca.crt"))]), &plain.repo("a")).await;
    assert!(said.contains("--plain-http"), "{said}");
}

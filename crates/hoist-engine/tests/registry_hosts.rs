//! Mirrors by containerd's hosts.toml: their order, what each may be asked, and whom to ask when one fails or lies.

mod registry_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use hoist_engine::reference::Repo;
use hoist_engine::registry::{Client, ClientConfig, OCI_MANIFEST, RegistryError};
use hoist_format::digest::Digest;
use registry_support::*;

const LENGTH: usize = 300_000;

fn blob() -> (Vec<u8>, Digest) {
    let blob = pattern(LENGTH);
    let digest = Digest::of(&blob);
    (blob, digest)
}

/// A client that finds `text` as the hosts.toml of images.example.
fn client_of(text: &str) -> (Client, tempfile::TempDir) {
    let (config, dir) = config_of(text);
    (Client::new(config), dir)
}

fn config_of(text: &str) -> (ClientConfig, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images.example");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let mut config = config();
    config.certs_dirs = vec![dir.path().to_owned()];
    (config, dir)
}

fn repo() -> Repo {
    Repo { host: "images.example".into(), name: "a/b".into() }
}

/// `server` and mirrors, each with lines of its own.
fn hosts(server: &str, mirrors: &[(&str, &str)]) -> String {
    let mirrors = mirrors.iter().map(|(host, lines)| format!("[host.\"http://{host}\"]\n{lines}\n"));
    format!("server = \"http://{server}\"\n{}", mirrors.collect::<String>())
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
    let origin = BadServer::start(|_| reply(200, &[], b"{\"schemaVersion\":2,\"manifests\":[]}")).await;
    let header = format!("[host.\"http://{}\".header]\nx-key = \"k\"", mirror.host);
    let (client, _dir) = client_of(&hosts(&origin.host, &[(&broken.host, ""), (&mirror.host, &header)]));
    let repo = repo();
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
async fn an_overridden_path_is_used_as_it_is() {
    let (data, digest) = blob();
    let mirror = BadServer::start(move |seen| part(seen, &data)).await;
    let text = format!("[host.\"http://{}/api/v2/hub\"]\noverride_path = true\n", mirror.host);
    let (client, _dir) = client_of(&text);
    all(&client, &repo(), &digest, 0..9).await.unwrap();
    let text = format!("[host.\"http://{}/api\"]\n", mirror.host);
    let (client, _dir) = client_of(&text);
    all(&client, &repo(), &digest, 0..9).await.unwrap();
    let paths: Vec<_> = mirror.log().into_iter().map(|seen| seen.path).collect();
    let rest = format!("a/b/blobs/{digest}?ns=images.example");
    assert_eq!(paths, [format!("/api/v2/hub/{rest}"), format!("/api/v2/{rest}")]);
}

/// A mirror that may not resolve is not asked what a tag means; only who may is pushed to.
#[tokio::test]
async fn capabilities_are_kept_to() {
    let (_, digest) = blob();
    let manifest = b"{\"schemaVersion\":2,\"manifests\":[]}";
    let named = Digest::of(manifest);
    let answer = |seen: &Seen| match seen.method.as_str() {
        "PUT" => reply(201, &[], b""),
        _ => reply(200, &[], b"{\"schemaVersion\":2,\"manifests\":[]}"),
    };
    let (pull, origin) = (BadServer::start(answer).await, BadServer::start(answer).await);
    let text = hosts(&origin.host, &[(&pull.host, "capabilities = [\"pull\"]")]);
    let (client, _dir) = client_of(&text);
    client.manifest(&"images.example/a/b:tag".parse().unwrap()).await.unwrap();
    assert_eq!((pull.log().len(), origin.log().len()), (0, 1), "a tag");
    client.manifest(&format!("images.example/a/b@{named}").parse().unwrap()).await.unwrap();
    assert_eq!((pull.log().len(), origin.log().len()), (1, 1), "a digest");
    client.push_manifest(&repo(), Some("new"), OCI_MANIFEST, Bytes::from_static(manifest)).await.unwrap();
    assert_eq!((pull.log().len(), origin.log().len()), (1, 2), "a push");

    let text = format!("server = \"http://{}\"\ncapabilities = [\"resolve\"]\n", origin.host);
    let (client, _dir) = client_of(&text);
    let error = client.blob(&repo(), &digest, None).await.unwrap_err();
    assert!(error.is_user_failure() && error.to_string().contains("capability"), "{error}");
    assert_eq!(origin.log().len(), 2, "not asked for what it may not");
}

/// Down, empty, forbidding, hanging up, lying: whatever a mirror does, the registry itself has it.
#[tokio::test]
async fn what_a_mirror_has_not_right_the_next_server_has() {
    let content = b"{\"schemaVersion\":2,\"manifests\":[]}";
    let digest = Digest::of(content);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let lies = b"{\"schemaVersion\":3,\"manifests\":[]}";
    let bad = [
        BadServer::start(|_| reply(404, &[], b"")).await,
        BadServer::start(|_| reply(401, &[("www-authenticate", "Basic realm=\"x\"")], b"")).await,
        BadServer::start(|_| reply(403, &[], b"")).await,
        BadServer::start(|_| reply(500, &[], b"")).await,
        BadServer::start(|_| Reply::Raw(Vec::new())).await,
        BadServer::start(|_| Reply::Raw(b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{".to_vec())).await,
        BadServer::start(|_| reply(200, &[], lies)).await,
    ];
    let origin = BadServer::start(|_| reply(200, &[], content)).await;
    let all_bad: Vec<_> = bad.iter().map(|server| server.host.as_str()).chain([gone.as_str()]).collect();
    for mirror in &all_bad {
        let (client, _dir) = client_of(&hosts(&origin.host, &[(mirror, "")]));
        let named = format!("images.example/a/b@{digest}").parse().unwrap();
        assert_eq!(client.manifest(&named).await.unwrap().bytes, &content[..]);
        assert_eq!(client.blob(&repo(), &digest, None).await.unwrap(), &content[..]);
    }
    assert_eq!(origin.log().len(), 2 * all_bad.len());
    assert!(bad.iter().all(|server| (1..=2).contains(&server.log().len())), "once for each, or rested");
    let chain: Vec<_> = all_bad.iter().map(|host| (*host, "")).collect();
    let (client, _dir) = client_of(&hosts(&origin.host, &chain));
    assert_eq!(client.blob(&repo(), &digest, None).await.unwrap(), &content[..]);
    // The last one's error is what is told when none has it.
    let (client, _dir) = client_of(&hosts(&bad[0].host, &[(&bad[6].host, "")]));
    assert!(client.blob(&repo(), &digest, None).await.unwrap_err().is_not_found());
}

/// What is no manifest is not taken for what a tag means: the next server is asked, and the last one again, not for ever.
#[tokio::test]
async fn a_page_that_is_no_manifest_is_not_what_a_tag_means() {
    let content = b"{\"schemaVersion\":2,\"manifests\":[]}";
    let named = "images.example/a/b:tag".parse().unwrap();
    for page in ["<html>Log in</html>", "{}", "[]", "{\"schemaVersion\":2}", "{\"config\":{}}", ""] {
        let portal = BadServer::start(move |_| reply(200, &[], page.as_bytes())).await;
        let origin = BadServer::start(move |_| reply(200, &[], content)).await;
        let (client, _dir) = client_of(&hosts(&origin.host, &[(&portal.host, "")]));
        assert_eq!(client.manifest(&named).await.unwrap().bytes, &content[..], "{page}");
        assert_eq!((portal.log().len(), origin.log().len()), (1, 1), "{page}");
        let (client, _dir) = client_of(&hosts(&portal.host, &[]));
        let error = client.manifest(&named).await.unwrap_err();
        assert!(matches!(error, RegistryError::BadAnswer { .. }), "{page}: {error}");
        assert_eq!(portal.log().len(), 4, "{page}");
    }
}

/// Parts are verified by who knows their digests: told of a lie, the client asks the mirror no more for that blob.
#[tokio::test]
async fn a_mirror_that_lied_about_a_blob_is_not_asked_for_it_again() {
    let (data, digest) = blob();
    let truth = data.clone();
    let liar = BadServer::start(move |seen| part(seen, &vec![0; LENGTH])).await;
    let origin = BadServer::start(move |seen| part(seen, &truth)).await;
    let (client, _dir) = client_of(&hosts(&origin.host, &[(&liar.host, "")]));
    assert!(!client.lied(&repo(), &digest), "nobody has served it");
    assert_ne!(all(&client, &repo(), &digest, 0..9).await.unwrap(), data[..9]);
    assert!(client.lied(&repo(), &digest));
    for _ in 0..3 {
        assert_eq!(all(&client, &repo(), &digest, 0..9).await.unwrap(), data[..9]);
    }
    assert_eq!((liar.log().len(), origin.log().len()), (1, 3));
    assert!(!client.lied(&repo(), &digest), "there is nobody after the registry itself");
    assert_eq!(all(&client, &repo(), &digest, 0..9).await.unwrap(), data[..9]);
    all(&client, &repo(), &Digest::of(b"other"), 0..9).await.unwrap();
    assert_eq!(liar.log().len(), 2, "other blobs are");
}

/// The whole way: an image pulled through a mirror that has one layer wrong.
#[tokio::test]
async fn a_pull_takes_from_the_registry_what_the_mirror_has_wrong() {
    let registry = Registry::start();
    let pushed =
        push_layout(&Client::new(config()), &registry.repo("a/b"), &fixtures().join("gzip"), "v1").await;
    let blobs = fixtures().join("gzip/blobs/sha256");
    let manifest = std::fs::read(blobs.join(pushed.hex())).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let wrong = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let told = Arc::new(AtomicBool::new(false));
    let lied = told.clone();
    let mirror = BadServer::start(move |seen| {
        let name = seen.path.rsplit('/').next().unwrap().split('?').next().unwrap();
        let Ok(mut bytes) = std::fs::read(blobs.join(name.trim_start_matches("sha256:"))) else {
            return reply(404, &[], b"");
        };
        if name == wrong {
            told.store(true, SeqCst);
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        match seen.range() {
            Some(_) => part(seen, &bytes),
            None => reply(200, &[], &bytes),
        }
    })
    .await;
    let (_, dir) = config_of(&hosts(&registry.host, &[(&mirror.host, "")]));
    let store = tempfile::tempdir().unwrap();
    let mut settings = hoist_engine::Config::new(store.path().join("store"));
    settings.certs_dirs = vec![dir.path().to_owned()];
    let engine = hoist_engine::Engine::open(settings).unwrap();
    let image = engine.resolve("images.example/a/b:v1").await.unwrap();
    let pulled = engine.pull(&image, &hoist_engine::progress::Silent).await.unwrap();
    assert_eq!((pulled.digest, pulled.fetched_layers), (pushed, pulled.layers));
    assert!(lied.load(SeqCst), "no lie was told");
}

#[tokio::test]
async fn a_bad_file_is_told_with_its_path() {
    for text in
        ["server = 1", "[host.\"https://x\"]\nclient = [[\"a\", \"b\", \"c\"]]", "[host.\"http://u:p@x\"]"]
    {
        let (client, dir) = client_of(text);
        let error = client.blob(&repo(), &blob().1, None).await.unwrap_err();
        assert!(matches!(error, RegistryError::Config { .. }) && error.is_user_failure(), "{error}");
        let file = dir.path().join("images.example/hosts.toml");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
}

/// A mirror that hangs is not waited for: the registry is asked beside it, and then first; for parts and for documents.
#[tokio::test]
async fn a_mirror_that_hangs_is_passed_by_and_left_alone() {
    let data = pattern(1000);
    let digest = Digest::of(&data);
    for document in [false, true] {
        let body = data.clone();
        let mirror = BadServer::start(|_| Reply::Hang(Vec::new())).await;
        let origin = BadServer::start(move |seen| match seen.range() {
            Some(_) => part(seen, &body),
            None => reply(200, &[], &body),
        })
        .await;
        let (mut config, _dir) = config_of(&hosts(&origin.host, &[(&mirror.host, "")]));
        config.timeouts.first_byte = std::time::Duration::from_secs(1000);
        config.timeouts.second = std::time::Duration::from_millis(50);
        config.mirror_rest = std::time::Duration::from_secs(1000);
        let client = Client::new(config);
        for _ in 0..2 {
            let got = match document {
                true => client.blob(&repo(), &digest, Some(1000)).await.unwrap().to_vec(),
                false => all(&client, &repo(), &digest, 0..1000).await.unwrap(),
            };
            assert!(got == data);
        }
        // Where the registry's own answer is late, it is asked once more.
        assert_eq!(mirror.log().len(), 1, "{document}");
        assert!(origin.log().len() >= 2, "{document}");
    }
}

/// A mirror whose bodies break, however early, is not asked again and again: the registry has the rest.
#[tokio::test]
async fn what_a_mirror_breaks_off_comes_from_the_registry() {
    let (data, digest) = blob();
    for sent in [0, 1, 100_000] {
        let body = data.clone();
        let mirror = BadServer::start(move |seen| {
            let Reply::Raw(whole) = part(seen, &body) else { unreachable!() };
            let head = whole.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            Reply::Raw(whole[..head + sent].to_vec())
        })
        .await;
        let body = data.clone();
        let origin = BadServer::start(move |seen| part(seen, &body)).await;
        let (mut config, _dir) = config_of(&hosts(&origin.host, &[(&mirror.host, "")]));
        config.mirror_rest = std::time::Duration::from_secs(1000);
        let client = Client::new(config);
        for _ in 0..2 {
            assert!(all(&client, &repo(), &digest, 0..LENGTH as u64).await.unwrap() == data, "{sent}");
        }
        assert_eq!((mirror.log().len(), origin.log().len()), (1, 2), "{sent}");
        assert_eq!(origin.log()[0].range().unwrap().0, sent);
    }
}

/// A mirror was silent once and rests; what the registry then refuses, breaks off or has not, the mirror gives.
#[tokio::test]
async fn a_mirror_at_rest_is_asked_where_the_registry_fails() {
    let data = pattern(1000);
    let digest = Digest::of(&data);
    for trouble in ["500", "404", "hangs up", "breaks off"] {
        let (body, asked) = (data.clone(), AtomicUsize::new(0));
        let whole = move |seen: &Seen| match seen.range() {
            Some(_) => part(seen, &body),
            None if seen.path.contains("manifests") => {
                reply(200, &[], b"{\"schemaVersion\":2,\"manifests\":[]}")
            }
            None => reply(200, &[], &body),
        };
        let of_registry = whole.clone();
        let mirror = BadServer::start(move |seen| match asked.fetch_add(1, SeqCst) {
            0 => Reply::Hang(Vec::new()),
            _ => whole(seen),
        })
        .await;
        let ill = Arc::new(AtomicBool::new(false));
        let turns = ill.clone();
        let origin = BadServer::start(move |seen| match (turns.load(SeqCst), trouble) {
            (false, _) => of_registry(seen),
            (true, "500") => reply(500, &[], b""),
            (true, "404") => reply(404, &[], b""),
            (true, "hangs up") => Reply::Raw(Vec::new()),
            (true, _) => {
                let Reply::Raw(answer) = of_registry(seen) else { unreachable!() };
                Reply::Raw(answer[..answer.len() - 900].to_vec())
            }
        })
        .await;
        let (mut config, _dir) = config_of(&hosts(&origin.host, &[(&mirror.host, "")]));
        config.timeouts.first_byte = std::time::Duration::from_secs(1000);
        config.timeouts.second = std::time::Duration::from_millis(50);
        config.mirror_rest = std::time::Duration::from_secs(1000);
        let client = Client::new(config);
        let repo = repo();
        assert!(all(&client, &repo, &digest, 0..1000).await.unwrap() == data, "{trouble}");
        assert_eq!(mirror.log().len(), 1, "{trouble}");
        // Begun while the mirror rests and the registry is well.
        let mut begun = client.blob_range(&repo, &digest, 0..1000).await.unwrap();
        ill.store(true, SeqCst);
        let mut got = Vec::new();
        while let Some(piece) = begun.next().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        assert!(got == data, "{trouble}");
        for _ in 0..3 {
            let read = all(&client, &repo, &digest, 0..1000).await;
            assert!(read.unwrap_or_else(|error| panic!("{trouble}: {error}")) == data, "{trouble}");
        }
        assert_eq!(client.blob(&repo, &digest, Some(1000)).await.unwrap(), data, "{trouble}");
        if trouble != "breaks off" {
            assert_eq!(client.blob_size(&repo, &digest).await.unwrap(), 1000, "{trouble}");
        }
        let before = mirror.log().len();
        let tag = client.manifest(&"images.example/a/b:tag".parse().unwrap()).await;
        let none = trouble == "404";
        assert_eq!((tag.is_err(), mirror.log().len() == before), (none, none), "{trouble}: a tag");
    }
}

/// The same where the registry is silent, from the first byte or in the midst of a body; then the mirror comes first again.
#[tokio::test]
async fn a_mirror_at_rest_is_asked_where_the_registry_is_silent() {
    let data = pattern(1000);
    let digest = Digest::of(&data);
    for (sent, what) in
        [0, 200].into_iter().flat_map(|sent| ["part", "blob", "size", "tag"].map(|w| (sent, w)))
    {
        let ill = [Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false))];
        let manifest = b"{\"schemaVersion\":2,\"manifests\":[]}";
        let body = data.clone();
        let whole = move |seen: &Seen| match seen.range() {
            Some(_) => part(seen, &body),
            None if seen.path.contains("manifests") => reply(200, &[], manifest),
            None => reply(200, &[], &body),
        };
        let (well, is_ill) = (whole.clone(), ill[0].clone());
        let mirror = BadServer::start(move |seen| match is_ill.load(SeqCst) {
            true => reply(500, &[], b""),
            false => well(seen),
        })
        .await;
        let is_ill = ill[1].clone();
        let origin = BadServer::start(move |seen| match (is_ill.load(SeqCst), whole(seen)) {
            (true, Reply::Raw(answer)) => Reply::Hang(answer[..sent.min(answer.len() - 10)].to_vec()),
            (_, answer) => answer,
        })
        .await;
        let (mut config, _dir) = config_of(&hosts(&origin.host, &[(&mirror.host, "")]));
        config.timeouts.first_byte = std::time::Duration::from_secs(1000);
        config.timeouts.idle = std::time::Duration::from_secs(1000);
        // So long that a server which is well answers before.
        config.timeouts.second = std::time::Duration::from_millis(500);
        config.mirror_rest = std::time::Duration::from_secs(1000);
        let (client, repo) = (Client::new(config), repo());
        let read = async || match what {
            "part" => assert!(all(&client, &repo, &digest, 0..1000).await.unwrap() == data, "{sent}"),
            "blob" => assert!(client.blob(&repo, &digest, Some(1000)).await.unwrap() == data, "{sent}"),
            "size" => assert_eq!(client.blob_size(&repo, &digest).await.unwrap(), 1000, "{sent}"),
            _ => assert_eq!(
                client.manifest(&"images.example/a/b:tag".parse().unwrap()).await.unwrap().bytes,
                &manifest[..]
            ),
        };
        read().await;
        assert_eq!((mirror.log().len(), origin.log().len()), (1, 1), "{sent} {what}: it fails and rests");
        ill[0].store(false, SeqCst);
        read().await;
        assert_eq!(mirror.log().len(), 1, "{sent} {what}: at rest");
        ill[1].store(true, SeqCst);
        read().await;
        assert_eq!(mirror.log().len(), 2, "{sent} {what}: asked beside the silent registry");
        let before = origin.log().len();
        read().await;
        assert_eq!((mirror.log().len(), origin.log().len()), (3, before), "{sent} {what}: at rest no more");
    }
}

/// What is told is the registry's word, also where a mirror at rest is asked after it and is still not there.
#[tokio::test]
async fn a_mirror_that_stays_away_does_not_hide_what_the_registry_says() {
    let mirror = BadServer::start(|_| Reply::Raw(Vec::new())).await;
    let origin = BadServer::start(|_| reply(404, &[], b"")).await;
    let (mut config, _dir) = config_of(&hosts(&origin.host, &[(&mirror.host, "")]));
    config.mirror_rest = std::time::Duration::from_secs(1000);
    let client = Client::new(config);
    let digest = blob().1;
    for _ in 0..3 {
        assert!(all(&client, &repo(), &digest, 0..9).await.unwrap_err().is_not_found());
        assert!(client.blob(&repo(), &digest, None).await.unwrap_err().is_not_found());
        assert!(client.blob_size(&repo(), &digest).await.unwrap_err().is_not_found());
    }
    assert_eq!(origin.log().len(), 9);
}

/// A mirror at rest that still hangs is not waited for either: the registry is asked anew beside it.
#[tokio::test]
async fn a_mirror_that_still_hangs_does_not_hold_up_what_the_registry_gives_the_second_time() {
    let data = pattern(1000);
    let digest = Digest::of(&data);
    let mirror = BadServer::start(|_| Reply::Hang(Vec::new())).await;
    let (body, ill) = (data.clone(), Arc::new(AtomicBool::new(false)));
    let once = ill.clone();
    let origin = BadServer::start(move |seen| match (once.swap(false, SeqCst), seen.range()) {
        (true, _) => reply(500, &[], b""),
        (false, Some(_)) => part(seen, &body),
        (false, None) => reply(200, &[], &body),
    })
    .await;
    let (mut config, _dir) = config_of(&hosts(&origin.host, &[(&mirror.host, "")]));
    config.timeouts.first_byte = std::time::Duration::from_secs(1000);
    config.timeouts.second = std::time::Duration::from_millis(50);
    config.mirror_rest = std::time::Duration::from_secs(1000);
    let client = Client::new(config);
    assert!(all(&client, &repo(), &digest, 0..1000).await.unwrap() == data);
    ill.store(true, SeqCst);
    assert!(all(&client, &repo(), &digest, 0..1000).await.unwrap() == data);
    ill.store(true, SeqCst);
    assert_eq!(client.blob(&repo(), &digest, Some(1000)).await.unwrap(), data);
    assert_eq!(mirror.log().len(), 3);
}

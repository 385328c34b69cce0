//! What refers to an image: by the API and by its fallback, and nobody's entry lost.

mod registry_support;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hoist_engine::registry::{Client, OCI_MANIFEST, RegistryError};
use hoist_format::digest::Digest;
use registry_support::*;
use serde_json::{Value, json};

/// A manifest about `subject`.
fn referrer(subject: &Digest, kind: &str) -> Bytes {
    let empty = Digest::of(b"{}");
    let blob = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2});
    let subject = json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": 583});
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "config": blob,
        "layers": [blob], "subject": subject, "annotations": {"kind": kind}});
    Bytes::from(serde_json::to_vec(&manifest).unwrap())
}

#[tokio::test]
async fn referrers_stand_under_the_fallback_tag() {
    let registry = Registry::start();
    let client = Client::new(config());
    let repo = registry.repo("team/app");
    let digest = push_layout(&client, &repo, &fixtures().join("gzip"), "v1").await;
    assert_eq!(client.referrers(&repo, &digest, None).await.unwrap(), []);

    client.push_blob(&repo, Bytes::from_static(b"{}")).await.unwrap();
    let referrer = |kind: &str| referrer(&digest, kind);
    for kind in ["application/x.one", "application/x.two", "application/x.one"] {
        let pushed = client.push_referrer(&repo, referrer(kind)).await.unwrap();
        assert!(!pushed.subject_seen, "docker-registry 2.8 has no referrers API");
    }
    let fresh = Client::new(config());
    assert_eq!(fresh.referrers(&repo, &digest, None).await.unwrap().len(), 2);
    let two = fresh.referrers(&repo, &digest, Some("application/x.two")).await.unwrap();
    assert_eq!(two.len(), 1);
    assert_eq!(two[0].digest, Digest::of(&referrer("application/x.two")));
    assert_eq!(two[0].annotations["kind"], "application/x.two");
    // What is known of the server saves the request for its missing API.
    let before = fresh.stats().requests();
    fresh.referrers(&repo, &digest, None).await.unwrap();
    assert_eq!(fresh.stats().requests() - before, 1);
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

/// Pages after the first, told relative to the page itself and among other links; a filter that the server applied
/// or did not; and a next page at another server, which is not followed.
#[tokio::test]
async fn pages_and_filters_as_servers_have_them() {
    let subject = Digest::of(b"image");
    let entry = |name: &str, kind: &str| json!({"mediaType": "m", "digest": Digest::of(name.as_bytes()), "size": 1, "artifactType": kind});
    let pages = [
        vec![entry("one", "k+v"), entry("other", "q")],
        vec![entry("two", "k+v")],
        vec![entry("three", "k+v")],
    ];
    let bodies = pages.map(|page| json!({"manifests": page}).to_string());
    let server = BadServer::start(move |seen| {
        if !seen.path.contains("/referrers/") {
            return reply(404, &[], b"");
        }
        let applied = ("oci-filters-applied", "artifactType");
        match seen.path.split_once("last=").map(|(_, last)| last) {
            None => {
                assert!(seen.path.contains("?artifactType=k%2Bv"), "{}", seen.path);
                let links = "<?last=0>; rel=\"first\", <?n=1&last=1>; title=\"x\"; rel=\"next\"";
                reply(200, &[("link", links)], bodies[0].as_bytes())
            }
            Some("1") => reply(200, &[("link", "<?last=2>;rel=next"), applied], bodies[1].as_bytes()),
            Some("2") => reply(
                200,
                &[("link", "<http://elsewhere.example/?last=3>; rel=\"next\"")],
                bodies[2].as_bytes(),
            ),
            other => panic!("{other:?}"),
        }
    })
    .await;
    let client = Client::new(config());
    let found = client.referrers(&server.repo(), &subject, Some("k+v")).await.unwrap();
    let found: Vec<_> = found.iter().map(|entry| entry.digest).collect();
    assert_eq!(found, ["one", "two", "three"].map(|name| Digest::of(name.as_bytes())));
    assert_eq!(server.count("/v2/team/app/referrers/"), 3);
}

/// A server with the API needs no tag, and is not given one.
#[tokio::test]
async fn a_registry_that_takes_note_of_the_subject_gets_no_fallback_tag() {
    let subject = Digest::of(b"image");
    let said = subject.to_string();
    let server = BadServer::start(move |_| reply(201, &[("oci-subject", &said)], b"")).await;
    let pushed =
        Client::new(config()).push_referrer(&server.repo(), referrer(&subject, "k+v")).await.unwrap();
    assert!(pushed.subject_seen);
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn many_who_push_at_once_lose_nobody_s_entry() {
    let registry = Registry::start();
    let repo = registry.repo("team/app");
    let client = Client::new(config());
    let digest = push_layout(&client, &repo, &fixtures().join("gzip"), "v1").await;
    client.push_blob(&repo, Bytes::from_static(b"{}")).await.unwrap();
    let push = async |number: usize| {
        let client = Client::new(config());
        client.push_referrer(&repo, referrer(&digest, &format!("application/x.n{number}"))).await
    };
    for pushed in futures_util::future::join_all((0..6).map(push)).await {
        pushed.unwrap();
    }
    let found = Client::new(config()).referrers(&repo, &digest, None).await.unwrap();
    let mut kinds: Vec<_> = found.iter().filter_map(|entry| entry.artifact_type.clone()).collect();
    kinds.sort();
    assert_eq!(kinds, (0..6).map(|n| format!("application/x.n{n}")).collect::<Vec<_>>());
}

/// A registry of one tag, whose content another writer replaces just after the requests that are told.
struct OneTag {
    server: BadServer,
    tag: Arc<Mutex<Option<String>>>,
}

impl OneTag {
    async fn start(rival: impl Fn(usize, &mut Option<String>) + Send + Sync + 'static) -> Self {
        let tag = Arc::new(Mutex::new(None::<String>));
        let content = tag.clone();
        let server = BadServer::start(move |seen| {
            let mut content = content.lock().unwrap();
            let answer = match (seen.method.as_str(), &*content) {
                _ if seen.path.contains("manifests/sha256:") => reply(201, &[], b""),
                ("PUT", _) => {
                    *content = Some(seen.body.clone());
                    reply(201, &[], b"")
                }
                (_, Some(text)) => reply(200, &[], text.as_bytes()),
                (_, None) => reply(404, &[], b""),
            };
            rival(seen.number, &mut content);
            answer
        })
        .await;
        Self { server, tag }
    }

    fn kinds(&self) -> Vec<String> {
        let text = self.tag.lock().unwrap().clone().unwrap();
        let index: Value = serde_json::from_str(&text).unwrap();
        let entries = index["manifests"].as_array().unwrap().iter();
        entries.map(|entry| entry["artifactType"].as_str().unwrap().to_owned()).collect()
    }
}

fn index_of(kinds: &[&str]) -> String {
    let entry = |kind: &&str| json!({"mediaType": "m", "digest": Digest::of(kind.as_bytes()), "size": 1, "artifactType": kind, "x": 1});
    json!({"schemaVersion": 2, "manifests": kinds.iter().map(entry).collect::<Vec<_>>()}).to_string()
}

/// A rival who had read the list before we wrote writes it after our first look back (requests: the manifest, read,
/// write, look): what it threw away of ours and of others stands in the end, and its own too.
#[tokio::test]
async fn an_entry_that_a_rival_overwrote_is_added_again() {
    let subject = Digest::of(b"image");
    let registry = OneTag::start(|number, tag| match number {
        0 => *tag = Some(index_of(&["old"])),
        3 => *tag = Some(index_of(&["rival"])),
        _ => {}
    })
    .await;
    let client = Client::new(config());
    client.push_referrer(&registry.server.repo(), referrer(&subject, "ours")).await.unwrap();
    let mut kinds = registry.kinds();
    kinds.sort();
    assert_eq!(kinds, ["old", "ours", "rival"]);
    // Fields of others' entries that we do not know are kept.
    assert!(registry.tag.lock().unwrap().as_ref().unwrap().contains("\"x\":1"));
    let before = registry.server.log().len();
    client.push_referrer(&registry.server.repo(), referrer(&subject, "ours")).await.unwrap();
    assert_eq!(registry.server.log().len() - before, 2, "what is there is only looked at");
}

/// One who never stops overwriting leaves an error, not silence.
#[tokio::test]
async fn a_list_that_never_keeps_our_entry_is_an_error() {
    let subject = Digest::of(b"image");
    let registry = OneTag::start(|_, tag| *tag = Some(index_of(&["rival"]))).await;
    let client = Client::new(config());
    let error = client.push_referrer(&registry.server.repo(), referrer(&subject, "ours")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Contended { .. }), "{error}");
}

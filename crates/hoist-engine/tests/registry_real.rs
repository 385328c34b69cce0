//! The client against Debian's docker-registry, and layouts against the fixtures other tools made.

mod registry_support;

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use futures_util::StreamExt as _;
use hoist_engine::reference::Source;
use hoist_engine::registry::{Client, ImageSource, OCI_MANIFEST};
use hoist_format::digest::Digest;
use registry_support::*;
use serde_json::{Value, json};

fn reference(text: String) -> hoist_engine::reference::Reference {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_image_comes_back_as_it_was_pushed_and_as_skopeo_sees_it() {
    let registry = Registry::start();
    let client = Client::new(config());
    let repo = registry.repo("team/app");
    let dir = fixtures().join("gzip");
    let digest = push_layout(&client, &repo, &dir, "v1").await;

    let named = reference(format!("{repo}:v1"));
    let fetched = client.manifest(&named).await.unwrap();
    assert_eq!((fetched.digest, fetched.media_type.as_str()), (digest, OCI_MANIFEST));
    assert_eq!(client.manifest(&named.with_digest(digest)).await.unwrap().bytes, fetched.bytes);

    let seen = Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{repo}:v1")])
        .output()
        .expect("skopeo is needed");
    assert_eq!(seen.stdout, fetched.bytes, "{}", String::from_utf8_lossy(&seen.stderr));

    let manifest: Value = serde_json::from_slice(&fetched.bytes).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let digest: Digest = layer["digest"].as_str().unwrap().parse().unwrap();
        let file = std::fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap();
        let length = file.len() as u64;
        assert_eq!(client.blob(&repo, &digest, Some(length)).await.unwrap(), file);
        assert!(client.blob(&repo, &digest, Some(length - 1)).await.is_err());
        for range in [0..length, 0..1, length - 1..length, length / 3..length / 2, 5..5] {
            let part = all(&client, &repo, &digest, range.clone()).await.unwrap();
            assert_eq!(part, file[range.start as usize..range.end as usize], "{range:?}");
        }
        assert!(all(&client, &repo, &digest, 0..length + 1).await.is_err());
        assert!(!client.ranges_ignored(&repo));
    }
    let absent = reference(format!("{repo}:v2"));
    let error = client.manifest(&absent).await.unwrap_err();
    assert!(error.is_not_found() && !error.retryable(), "{error}");
    assert!(error.to_string().contains("team/app"), "{error}");
    assert!(client.stats().wire_bytes() > 0 && client.stats().requests() > 10);
}

#[tokio::test]
async fn a_range_costs_one_request() {
    let registry = Registry::start();
    let client = Client::new(config());
    let repo = registry.repo("a");
    let digest = client.push_blob(&repo, Bytes::from(pattern(100_000))).await.unwrap();
    let before = client.stats().requests();
    for at in 0..20 {
        all(&client, &repo, &digest, at * 5000..at * 5000 + 5000).await.unwrap();
    }
    assert_eq!(client.stats().requests() - before, 20, "one request for each range");
}

#[tokio::test]
async fn basic_auth() {
    let registry = Registry::with_htpasswd();
    let repo = registry.repo("team/app");
    let named = reference(format!("{repo}:v1"));
    let known = Client::new(with_password(&registry.host));
    push_layout(&known, &repo, &fixtures().join("gzip"), "v1").await;
    known.manifest(&named).await.unwrap();

    let error = Client::new(config()).manifest(&named).await.unwrap_err();
    assert!(error.is_unauthorized() && error.to_string().contains("log in"), "{error}");

    let mut wrong = with_password("other");
    let credentials = wrong.credentials.fixed.remove("other").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    // someone:wrong, then someone:s3cret
    for (auth, right) in [("c29tZW9uZTp3cm9uZw==", false), ("c29tZW9uZTpzM2NyZXQ=", true)] {
        let text = json!({"auths": {&registry.host: {"auth": auth}}}).to_string();
        std::fs::write(file.path(), text).unwrap();
        wrong.credentials.files = vec![file.path().to_owned()];
        let answer = Client::new(wrong.clone()).manifest(&named).await;
        assert_eq!(answer.is_ok(), right, "{answer:?}");
        assert!(right || answer.unwrap_err().is_unauthorized());
    }
    assert!(!format!("{credentials:?} {known:?}").contains("s3cret"));
}

#[tokio::test]
async fn layouts_read_like_registries_as_folder_and_as_tar() {
    let client = Client::new(config());
    let dir = fixtures().join("soci-v1");
    let tar = tempfile::NamedTempFile::with_suffix(".tar").unwrap();
    for start in [".", "blobs"] {
        let rest: &[&str] = if start == "." { &[] } else { &["index.json", "oci-layout"] };
        let mut command = Command::new("tar");
        command.arg("-C").arg(&dir).arg("-cf").arg(tar.path()).arg(start).args(rest);
        assert!(command.status().unwrap().success());
        read_layout(&client, tar.path(), &dir).await;
    }
    read_layout(&client, &dir, &dir).await;
    let missing =
        ImageSource::open(&client, &Source::Layout { path: "/nonexistent".into(), tag: None }).await;
    assert!(missing.is_err());
    // A cut tar file is refused.
    let whole = std::fs::read(tar.path()).unwrap();
    std::fs::write(tar.path(), &whole[..whole.len() / 2]).unwrap();
    let cut = Source::Layout { path: tar.path().to_owned(), tag: None };
    assert!(ImageSource::open(&client, &cut).await.is_err());
}

async fn read_layout(client: &Client, path: &Path, dir: &Path) {
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let digest_of = |at: usize| index["manifests"][at]["digest"].as_str().unwrap().to_owned();
    let tag = Some(digest_of(0));
    let source = Source::Layout { path: path.to_owned(), tag };
    let source = ImageSource::open(client, &source).await.unwrap();
    let image = source.manifest().await.unwrap();
    assert_eq!(image.digest.to_string(), digest_of(0));
    let referrers = source.referrers(&image.digest, None).await.unwrap();
    assert_eq!(referrers.len(), 1);
    assert_eq!(referrers[0].digest.to_string(), digest_of(1));

    let manifest: Value = serde_json::from_slice(&image.bytes).unwrap();
    let layer: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let file = std::fs::read(dir.join("blobs/sha256").join(layer.hex())).unwrap();
    let length = file.len() as u64;
    assert_eq!(source.blob(&layer, Some(length)).await.unwrap(), file);
    let parts: Vec<_> = source.blob_range(&layer, 7..length).await.unwrap().into_stream().collect().await;
    let parts: Vec<u8> = parts.into_iter().flat_map(|part| part.unwrap().to_vec()).collect();
    assert_eq!(parts, file[7..]);
    assert!(source.blob_range(&layer, 0..length + 1).await.is_err());
    assert!(source.blob(&Digest::of(b"absent"), None).await.unwrap_err().is_not_found());
}

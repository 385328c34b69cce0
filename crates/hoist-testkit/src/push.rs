//! Pushing an OCI layout with plain PUTs: every blob and manifest as it stands, whatever its media type.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::{self, Body};

/// What was pushed.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// The digest of the manifest that the tag names.
    pub digest: String,
    /// The digests of all entries of the layout's `index.json`, in order.
    pub entries: Vec<String>,
}

/// Pushes everything in an OCI layout to `host`/`repo` and names its first image `tag`.
///
/// Manifests are also found under their digests. Every file in `blobs/sha256` is pushed, referenced or not.
pub fn push_layout(host: &str, repo: &str, tag: &str, layout: &Path) -> Result<Pushed> {
    let index: Value = read_json(&layout.join("index.json"))?;
    let entries = descriptors(&index, "manifests");
    let Some(first) = entries.first() else { bail!("{}: index.json names no image", layout.display()) };
    let mut manifests = Vec::new();
    for (digest, media_type) in &entries {
        collect_manifests(layout, digest, media_type, &mut manifests)?;
    }
    let blobs = layout.join("blobs/sha256");
    let known: BTreeSet<&str> = manifests.iter().map(|(digest, _)| digest.as_str()).collect();
    for entry in std::fs::read_dir(&blobs).with_context(|| format!("listing {}", blobs.display()))? {
        let entry = entry?;
        let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
        if !known.contains(digest.as_str()) {
            push_blob(host, repo, &digest, &entry.path())?;
        }
    }
    // Children come before the indexes that name them.
    for (digest, media_type) in manifests.iter().rev() {
        push_manifest(host, repo, digest, media_type, &std::fs::read(blob_path(layout, digest))?)?;
    }
    push_manifest(host, repo, tag, &first.1, &std::fs::read(blob_path(layout, &first.0))?)?;
    Ok(Pushed { digest: first.0.clone(), entries: entries.into_iter().map(|(digest, _)| digest).collect() })
}

/// Uploads one blob, unless the registry has it.
pub fn push_blob(host: &str, repo: &str, digest: &str, file: &Path) -> Result<()> {
    if http::request(host, "HEAD", &format!("/v2/{repo}/blobs/{digest}"), &[], None)?.status == 200 {
        return Ok(());
    }
    let start = http::request(host, "POST", &format!("/v2/{repo}/blobs/uploads/"), &[], None)?;
    let location = start.header("location").context("the registry gave no upload location")?;
    let path = location.strip_prefix(&format!("http://{host}")).unwrap_or(location);
    let separator = if path.contains('?') { '&' } else { '?' };
    let mut from = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let length = from.metadata()?.len();
    let target = format!("{path}{separator}digest={digest}");
    let headers = [("content-type", "application/octet-stream")];
    let body = Body { from: &mut from, length };
    let done = http::request(host, "PUT", &target, &headers, Some(body))?;
    expect(done, 201, || format!("pushing blob {digest} to {repo}"))
}

/// Puts a manifest under a tag or its digest.
pub fn push_manifest(
    host: &str,
    repo: &str,
    reference: &str,
    media_type: &str,
    mut bytes: &[u8],
) -> Result<()> {
    let length = bytes.len() as u64;
    let path = format!("/v2/{repo}/manifests/{reference}");
    let body = Body { from: &mut bytes, length };
    let done = http::request(host, "PUT", &path, &[("content-type", media_type)], Some(body))?;
    expect(done, 201, || format!("pushing manifest {reference} to {repo}"))
}

fn expect(response: http::Response, status: u16, what: impl Fn() -> String) -> Result<()> {
    if response.status != status {
        bail!("{}: status {}: {}", what(), response.status, String::from_utf8_lossy(&response.body));
    }
    Ok(())
}

fn blob_path(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parsing {}", path.display()))
}

/// Digest and media type of each descriptor in a list.
fn descriptors(of: &Value, list: &str) -> Vec<(String, String)> {
    let text = |d: &Value, key: &str| d[key].as_str().unwrap_or_default().to_owned();
    let list = of[list].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|d| (text(d, "digest"), text(d, "mediaType"))).collect()
}

/// A manifest, then what it contains as an index, parents first.
fn collect_manifests(
    layout: &Path,
    digest: &str,
    media_type: &str,
    into: &mut Vec<(String, String)>,
) -> Result<()> {
    into.push((digest.to_owned(), media_type.to_owned()));
    if media_type.contains("index") || media_type.contains("manifest.list") {
        let children = descriptors(&read_json(&blob_path(layout, digest))?, "manifests");
        // A platform that was left out of the layout is left out here too.
        for (child, child_type) in children.iter().filter(|(d, _)| blob_path(layout, d).exists()) {
            collect_manifests(layout, child, child_type, into)?;
        }
    }
    Ok(())
}

//! The kit itself, held to the tools it stands on.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use hoist_testkit::http::{self, Response};
use hoist_testkit::layout::{Builder, Compression, MediaTypes};
use hoist_testkit::proxy::ProxyStats;
use hoist_testkit::{
    Exceptions, Fault, FaultKind, Proxy, ProxyOptions, Registry, When, compare_tree, containerd, diff,
    digest, fixtures_dir, process, push_layout, walk,
};

/// containerd's unpack of the gzip fixture is what expected.jsonl was written from: the walker must agree.
#[test]
fn containerd_unpack_of_the_fixtures_is_as_expected() -> Result<()> {
    let registry = Registry::start()?;
    let containerd = containerd::Daemon::start()?;
    for format in ["gzip", "zstd", "tar", "gzip-multimember"] {
        push_layout(
            &registry.host(),
            &format!("fixtures/{format}"),
            "latest",
            &fixtures_dir()?.join(format),
        )?;
        let view = containerd.unpack(&format!("{}/fixtures/{format}:latest", registry.host()))?;
        let differences = compare_tree(view.path(), &Exceptions::full())?;
        ensure!(differences.is_empty(), "{format}: {differences:#?}");
    }
    Ok(())
}

/// A comparison that sees nothing would pass everything.
#[test]
fn every_kind_of_change_is_seen() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path();
    std::fs::write(root.join("file"), "one")?;
    std::os::unix::fs::symlink("file", root.join("link"))?;
    std::fs::create_dir(root.join("sub"))?;
    let before = walk(root)?;
    ensure!(diff(&before, &walk(root)?).is_empty());
    std::fs::write(root.join("file"), "two")?;
    std::fs::hard_link(root.join("file"), root.join("second"))?;
    rustix::fs::lsetxattr(root.join("sub"), "user.a", b"b", rustix::fs::XattrFlags::empty())?;
    let seen = diff(&walk(root)?, &before).join("\n");
    for part in ["file: sha256", "file: mtime_ns", "second: should not be there", "sub: xattr user.a"] {
        ensure!(seen.contains(part), "{part:?} is not in {seen}");
    }
    Ok(())
}

/// skopeo copies what the builder wrote and the registry served, verifying every digest on the way.
#[test]
fn skopeo_accepts_built_images() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let tar = noise_tar(directory.path())?;
    let registry = Registry::start()?;
    let cases = [
        (MediaTypes::Oci, Compression::None),
        (MediaTypes::Oci, Compression::Gzip(9)),
        (MediaTypes::Oci, Compression::Pigz(1)),
        (MediaTypes::Oci, Compression::Zstd(3)),
        (MediaTypes::Docker, Compression::Gzip(6)),
    ];
    for (number, (media_types, compression)) in cases.into_iter().enumerate() {
        let built = Builder::new(directory.path().join(format!("layout-{number}")))?
            .media_types(media_types)
            .config("Cmd", serde_json::json!(["/bin/true"]))
            .layer(&tar, compression)?
            .write("latest")?;
        let pushed = push_layout(&registry.host(), "built", &format!("t{number}"), &built.directory)?;
        ensure!(pushed.digest == built.manifest);
        let from = format!("docker://{}/built:t{number}", registry.host());
        let to = format!("dir:{}", directory.path().join(format!("copy-{number}")).display());
        process::run(Command::new("skopeo").args(["copy", "--src-tls-verify=false", &from, &to]))?;
    }
    Ok(())
}

#[test]
fn the_proxy_counts_and_passes_bytes_unchanged() -> Result<()> {
    let (_registry, proxy, path, content) = served_blob()?;
    let whole = http::get(&proxy.host(), &path, &[])?;
    ensure!(whole.status == 200 && whole.body == content);
    let part = http::get(&proxy.host(), &path, &[("range", "bytes=10-19")])?;
    ensure!(part.status == 206 && part.body == content[10..20]);
    let wanted = ProxyStats {
        requests: 2,
        body_bytes: content.len() as u64 + 10,
        request_body_bytes: 0,
        connections: 2,
    };
    ensure!(proxy.stats() == wanted, "{:?}", proxy.stats());
    ensure!(proxy.log()[1].range.as_deref() == Some("bytes=10-19"));
    proxy.reset();
    ensure!(proxy.stats() == ProxyStats::default());
    Ok(())
}

#[test]
fn a_push_through_the_proxy_arrives() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::start(registry.address(), ProxyOptions::default())?;
    push_layout(&proxy.host(), "fixtures/gzip", "latest", &fixtures_dir()?.join("gzip"))?;
    let manifest = http::get(
        &registry.host(),
        "/v2/fixtures/gzip/manifests/latest",
        &[("accept", "application/vnd.oci.image.manifest.v1+json")],
    )?;
    ensure!(manifest.status == 200);
    ensure!(proxy.stats().request_body_bytes > 3_000_000);
    Ok(())
}

#[test]
fn each_fault_is_what_it_says() -> Result<()> {
    let (_registry, proxy, path, content) = served_blob()?;
    let ask = |kind: FaultKind| -> Result<Response> {
        proxy.clear_faults();
        proxy.inject(Fault::new("GET /v2/kit/blobs/", When::Nth(1), kind));
        http::get(&proxy.host(), &path, &[("range", "bytes=10-19")])
    };
    let right = &content[10..20];
    let unavailable = ask(FaultKind::Status(503, vec![("retry-after".into(), "1".into())]))?;
    ensure!(unavailable.status == 503 && unavailable.header("retry-after") == Some("1"));
    ensure!(ask(FaultKind::ShortBody(4))?.body == right[..4]);
    ensure!(format!("{:#}", ask(FaultKind::CloseAfter(4)).unwrap_err()).contains("after 4 of 10"));
    let flipped = ask(FaultKind::FlipBit(3))?.body;
    ensure!(flipped[3] == right[3] ^ 1 && flipped[..3] == right[..3] && flipped[4..] == right[4..]);
    let ignored = ask(FaultKind::IgnoreRange)?;
    ensure!(ignored.status == 200 && ignored.body == content);
    let wrong = ask(FaultKind::WrongContentRange)?;
    ensure!(wrong.header("content-range") == Some(format!("bytes 11-20/{}", content.len()).as_str()));
    let late = ask(FaultKind::Delay(Duration::from_millis(1)))?;
    ensure!(late.body == right);
    // The second request of the same kind meets no fault.
    ensure!(http::get(&proxy.host(), &path, &[])?.body == content);
    Ok(())
}

#[test]
fn a_limited_line_carries_everything() -> Result<()> {
    let (_registry, proxy, path, content) = served_blob()?;
    proxy.set_options(ProxyOptions { delay: Duration::from_millis(1), rate: Some(50_000_000) });
    ensure!(http::get(&proxy.host(), &path, &[])?.body == content);
    Ok(())
}

/// A registry with one blob, a proxy before it, the blob's path and its content.
fn served_blob() -> Result<(Registry, Proxy, String, Vec<u8>)> {
    let directory = tempfile::tempdir()?;
    let content = noise(1 << 20);
    let file = directory.path().join("blob");
    std::fs::write(&file, &content)?;
    let digest = digest::of_bytes(&content);
    let registry = Registry::start()?;
    hoist_testkit::push::push_blob(&registry.host(), "kit", &digest, &file)?;
    ensure!(std::fs::read(registry.blob_path(&digest))? == content);
    let proxy = Proxy::start(registry.address(), ProxyOptions::default())?;
    Ok((registry, proxy, format!("/v2/kit/blobs/{digest}"), content))
}

/// Bytes that no compressor shortens, the same every time (xorshift).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn noise_tar(directory: &Path) -> Result<std::path::PathBuf> {
    let tree = directory.join("tree");
    std::fs::create_dir(&tree)?;
    File::create(tree.join("noise"))?.write_all(&noise(300_000))?;
    let tar = directory.join("layer.tar");
    process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&tree).arg("."))?;
    Ok(tar)
}

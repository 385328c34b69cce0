//! A real Debian image, mounted lazily, against containerd's own unpack of it.

mod node;

use std::path::{Path, PathBuf};
use std::process::Command;

use hoist_testkit::containerd::Daemon;
use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{diff, process, walk};
use node::{Node, Published, count};
use serde_json::{Value, json};

/// The demo's image if it was built, else a minimal Debian of the test's own.
fn debian(dir: &Path) -> PathBuf {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/demo/image");
    if demo.join("index.json").exists() {
        return demo;
    }
    let (root, tar) = (dir.join("root"), dir.join("layer.tar"));
    let mirror = std::env::var("DEBIAN_MIRROR").unwrap_or("http://deb.debian.org/debian".into());
    let mut build = Command::new("debootstrap");
    process::run(build.args(["--variant=minbase", "bookworm"]).arg(&root).arg(mirror)).unwrap();
    let mut pack = Command::new("tar");
    pack.args(["--numeric-owner", "--sort=name", "--xattrs", "--xattrs-include=*", "-cf"]);
    process::run(pack.arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
    let builder = Builder::new(dir.join("layout")).unwrap();
    let builder = builder.layer(&tar, Compression::Gzip(6)).unwrap().config("Cmd", json!(["/bin/sh"]));
    builder.write("v1").unwrap().directory
}

#[test]
fn a_debian_image_is_what_containerd_unpacks_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::indexed(&debian(dir.path()));
    let containerd = Daemon::start().unwrap();
    let unpacked = containerd.unpack(&image.name).unwrap();
    let wanted = walk(unpacked.path()).unwrap();
    assert!(wanted.len() > 5000, "{} paths", wanted.len());
    image.proxy.reset();

    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    let mut found = walk(mount.root()).unwrap();
    // The root's own time is that of the unpacking.
    found.get_mut(&b"."[..]).unwrap().mtime_ns = wanted[&b"."[..]].mtime_ns;
    let differences = diff(&found, &wanted);
    assert_eq!(differences, [""; 0], "{} differences", differences.len());
    assert!(count(&mount.unmount(), "demand_stalls") > 0);

    // A start from nothing fetches little.
    image.proxy.reset();
    let node = Node::new();
    let stats = node.path("stats.json");
    let options = ["--rm", "--read-only", "--stats", stats.to_str().unwrap(), "-e", "WHO=you"];
    let script = "echo hello $WHO; id -u; touch /x 2>/dev/null || exit 7";
    let run = [&["run"], &options[..], &["-u", "nobody", &image.name, "sh", "-c", script]].concat();
    let output = node.hoist(&run).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", node::stderr(&output));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "hello you\n65534\n");
    let stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    let path = format!("/v2/{}/manifests/{}", node::REPO, image.digest);
    let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
    let manifest = hoist_testkit::http::get(&image.registry.host(), &path, &accept).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest.body).unwrap();
    let layers: u64 =
        manifest["layers"].as_array().unwrap().iter().map(|l| l["size"].as_u64().unwrap()).sum();
    assert!(count(&stats, "wire_bytes") < layers / 2, "{stats} of {layers}");
}

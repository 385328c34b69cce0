//! Images of several machines, and image layouts as folder and tar: skopeo makes and reads them too.

mod node;

use std::fs;
use std::path::Path;
use std::process::Command;

use hoist_testkit::layout::Compression;
use hoist_testkit::process;
use node::tree::Source;
use node::{Node, Published, count};
use serde_json::{Value, json};

/// A folder of blobs and one index of two images, for amd64 and for arm64 v8, inside the layout's own index.
struct TwoMachines {
    dir: tempfile::TempDir,
    amd64: Source,
    arm64: Source,
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

impl TwoMachines {
    fn new(index_type: &str) -> Self {
        let (amd64, arm64) = (Source::new(), Source::new());
        arm64.write("etc/motd", b"for another machine\n");
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        let mut manifests = Vec::new();
        for (source, platform) in [
            (&amd64, json!({"os": "linux", "architecture": "amd64"})),
            (&arm64, json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        ] {
            let built = source.layout(Compression::Gzip(1)).directory;
            process::run(Command::new("cp").arg("-rT").arg(&built).arg(&layout)).unwrap();
            let mut entry = read(&built.join("index.json"))["manifests"][0].clone();
            entry.as_object_mut().unwrap().remove("annotations");
            entry["platform"] = platform;
            manifests.push(entry);
        }
        // Attestations are entries of no machine.
        let mut attestation = manifests[1].clone();
        attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        manifests.insert(0, attestation);
        let index = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": manifests});
        let bytes = serde_json::to_vec(&index).unwrap();
        let digest = hoist_testkit::digest::of_bytes(&bytes);
        fs::write(layout.join("blobs/sha256").join(&digest[7..]), &bytes).unwrap();
        let top = json!({"schemaVersion": 2, "manifests": [{"mediaType": index_type, "digest": digest,
            "size": bytes.len(), "annotations": {"org.opencontainers.image.ref.name": "v1"}}]});
        fs::write(layout.join("index.json"), top.to_string()).unwrap();
        Self { dir, amd64, arm64 }
    }

    fn layout(&self) -> std::path::PathBuf {
        self.dir.path().join("layout")
    }

    fn sources(&self) -> [(&str, &Source); 2] {
        [("amd64", &self.amd64), ("arm64", &self.arm64)]
    }
}

/// Indexed machine by machine, and mounted so: each gets its own tree, lazily.
#[test]
fn an_image_for_several_machines_is_indexed_for_each() {
    for kind in [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        let two = TwoMachines::new(kind);
        let image = Published::plain(&two.layout());
        let mut pushed = Vec::new();
        for (machine, source) in two.sources() {
            let platform = format!("linux/{machine}");
            let said = Node::new().says(&["index", "--push", "--json", "--platform", &platform, &image.name]);
            let said: Value = serde_json::from_str(&said).unwrap();
            pushed.push(said["pushed"].as_str().unwrap().to_owned());
            let node = Node::new();
            let options = ["--platform", platform.as_str()];
            let told = node.says(&["inspect", "--json", "--platform", &platform, &image.name]);
            let told: Value = serde_json::from_str(&told).unwrap();
            let mut skopeo = Command::new("skopeo");
            skopeo.args(["inspect", "--tls-verify=false", "--override-arch", machine]);
            let seen = process::run(skopeo.arg(format!("docker://{}", image.name))).unwrap();
            let seen: Value = serde_json::from_str(&seen).unwrap();
            assert_eq!(told["layers"][0]["digest"], seen["Layers"][0], "{kind} {machine}");
            let mount = node.mount(&image.name, &options);
            source.assert_shown(mount.root());
            assert!(count(&mount.unmount(), "demand_stalls") > 0, "{kind} {machine}");
        }
        assert_ne!(pushed[0], pushed[1]);
        // By the digest of the index of all, too.
        let (repo, _) = image.name.rsplit_once(':').unwrap();
        let node = Node::new();
        let mount = node.mount(&format!("{repo}@{}", image.digest), &["--platform", "linux/arm64/v8"]);
        two.arm64.assert_shown(mount.root());
        assert!(count(&mount.unmount(), "demand_stalls") > 0);
        let said = Node::new().fails(&["pull", "--platform", "linux/s390x", &image.name]);
        assert!(said.contains("linux/s390x") && said.contains("linux/arm64"), "{said}");
        let said = Node::new().fails(&["pull", "--platform", "linux/arm64/v7", &image.name]);
        assert!(said.contains("linux/arm64/v7"), "{said}");
    }
}

/// Folder, tar of GNU tar and archive of skopeo; with one tag, several, and none.
#[test]
fn layouts_are_mounted_as_folder_and_as_tar() {
    let two = TwoMachines::new("application/vnd.oci.image.index.v1+json");
    let tar = two.dir.path().join("layout.tar");
    process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(two.layout()).arg(".")).unwrap();
    let node = Node::new();
    for path in [two.layout(), tar] {
        for (machine, source) in two.sources() {
            for tag in ["", ":v1"] {
                let name = format!("oci:{}{tag}", path.display());
                let mount = node.mount(&name, &["--platform", &format!("linux/{machine}")]);
                source.assert_shown(mount.root());
            }
        }
        let said = node.fails(&["pull", &format!("oci:{}:v2", path.display())]);
        assert!(said.contains("no tag v2") && said.contains("v1"), "{said}");
    }

    let one = Source::new();
    let image = Published::plain(&one.layout(Compression::Zstd(3)).directory);
    let archive = two.dir.path().join("archive.tar");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "-q", "--src-tls-verify=false", &format!("docker://{}", image.name)]);
    process::run(skopeo.arg(format!("oci-archive:{}:team/app:v9", archive.display()))).unwrap();
    for tag in ["", ":v9"] {
        let name = format!("oci:{}{tag}", archive.display());
        let told: Value = serde_json::from_str(&node.says(&["inspect", "--json", &name])).unwrap();
        assert_eq!(told["digest"], image.digest.as_str());
        let mount = Node::new();
        let mount = mount.mount(&name, &[]);
        one.assert_shown(mount.root());
    }
    // An index of a layout is made, and has no place to be pushed to.
    let name = format!("oci:{}", archive.display());
    let said: Value = serde_json::from_str(&Node::new().says(&["index", "--json", &name])).unwrap();
    assert!(said["tree_bytes"].as_u64().unwrap() > 0 && said["pushed"].is_null(), "{said}");
    let said = Node::new().fails(&["index", "--push", &name]);
    assert!(said.contains("push the image to a registry first"), "{said}");
    // Compressed archives are no layouts, and say so.
    process::run(Command::new("gzip").arg("-kf").arg(&archive)).unwrap();
    let said = node.fails(&["pull", &format!("oci:{}.gz", archive.display())]);
    assert!(said.contains("decompress it first"), "{said}");
}

/// An image is looked at where there is no store, and none is made for it.
#[test]
fn an_image_is_inspected_without_a_store() {
    let source = Source::small();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let output = node.hoist(&["inspect", "--json", &image.name]).output().unwrap();
    let said = node::stderr(&output);
    assert!(output.status.success() && said.starts_with("note: there is no store in "), "{said}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["lazy"], &told["digest"]), (&json!(true), &json!(image.digest)), "{told}");
    assert!(!node.store("").exists());
}

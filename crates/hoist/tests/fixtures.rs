//! The awkward image, as containerd unpacked it, through a real mount and a real registry.

mod node;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{
    Exceptions, Fault, FaultKind, ProxyOptions, When, compare_tree, fixtures_dir, process, walk,
};
use node::case::PATIENCE;
use node::{Mounted, Node, Published, count};
use serde_json::Value;

fn published(format: &str) -> Published {
    Published::indexed(&fixtures_dir().unwrap().join(format))
}

fn assert_right(mount: &Mounted) {
    let differences = compare_tree(mount.root(), &Exceptions::full()).unwrap();
    assert_eq!(differences, [""; 0], "{} differences", differences.len());
}

/// With both drivers. `metadata`, `one`: parts of the layers' bytes that mounting and listing, and reading one small file,
/// stay below.
fn is_right_lazily_and_pulled_and_without_a_registry(format: &str, metadata: u64, one: u64) {
    let image = published(format);
    for driver in ["erofs", "fuse"] {
        let lazy = Node::new().with_driver(driver);
        lazy.make_store();
        let told: Value = serde_json::from_str(&lazy.says(&["inspect", "--json", &image.name])).unwrap();
        let whole: u64 = told["layers"].as_array().unwrap().iter().map(|l| l["size"].as_u64().unwrap()).sum();
        image.proxy.reset();
        // A line that carries next to nothing while a read waits: little is read ahead.
        image.proxy.set_options(ProxyOptions { rate: Some(2_000_000), ..ProxyOptions::default() });
        let mount = lazy.mount(&image.name, &["--background", "off"]);
        assert!(hoist_testkit::reading::walk(mount.root()).unwrap().paths > 2000);
        let listed = image.proxy.stats().body_bytes;
        mount.read("many/d02/f1752").unwrap();
        let read = image.proxy.stats().body_bytes - listed;
        image.proxy.set_options(ProxyOptions::default());
        // And the table.
        let most = whole / one + (64 << 10);
        assert!(listed < whole / metadata && read < most, "{format}: {listed} + {read} of {whole}");
        assert_right(&mount);
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0, "{format} was not lazy: {stats}");
    }

    let pulled = Node::new();
    pulled.says(&["pull", &image.name]);
    image.proxy.reset();
    let by_digest = format!("{}@{}", image.name, image.digest);
    let mount = pulled.mount(&by_digest, &[]);
    assert_right(&mount);
    let stats = mount.unmount();
    assert_eq!((count(&stats, "requests"), image.proxy.stats().requests), (0, 0), "{stats}");
    let Published { proxy, registry, name, .. } = image;
    drop((proxy, registry));
    for driver in ["erofs", "fuse"] {
        assert_right(&pulled.mount(&name, &["--driver", driver]));
        assert_right(&pulled.mount(&by_digest, &["--driver", driver]));
    }
}

#[test]
fn plain_tar() {
    is_right_lazily_and_pulled_and_without_a_registry("tar", 50, 10);
}

#[test]
fn gzip() {
    is_right_lazily_and_pulled_and_without_a_registry("gzip", 10, 2);
}

#[test]
fn gzip_of_several_members() {
    is_right_lazily_and_pulled_and_without_a_registry("gzip-multimember", 10, 2);
}

/// Its layers are single frames: the first read of one brings all of it, and that is told.
#[test]
fn zstd() {
    is_right_lazily_and_pulled_and_without_a_registry("zstd", 10, 1);
    let image = published("zstd");
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    mount.read("many/d02/f1752").unwrap();
    // While a layer is not all here; the small one may be.
    let told: Value = serde_json::from_str(&node.says(&["inspect", "--json", &image.name])).unwrap();
    let why = told["why"].as_str().unwrap();
    assert!(told["lazy"] == false || why.contains("come whole at their first read"), "{told}");
}

/// What is fetched by a second mount of a store is kept from the first.
#[test]
fn what_was_fetched_stays() {
    let image = published("gzip");
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert_right(&mount);
    mount.unmount();
    image.proxy.reset();
    let mount = node.mount(&image.name, &[]);
    assert_right(&mount);
    let stats = mount.unmount();
    let blobs = image.proxy.log().iter().filter(|r| r.path.contains("/blobs/")).count();
    assert_eq!((blobs, count(&stats, "demand_bytes")), (0, 0), "{stats} {:?}", image.proxy.log());
}

/// Names cost the index's small part; a small file costs a small part of its layer.
#[test]
fn little_is_fetched_for_little() {
    for (format, most) in [("tar", 10), ("gzip", 2)] {
        let image = published(format);
        let layers: u64 = layer_sizes(&image);
        let node = Node::new();
        let mount = node.mount(&image.name, &[]);
        let names = hoist_testkit::reading::walk(mount.root()).unwrap();
        assert!(names.paths > 2000, "{names:?}");
        assert_eq!(requests_of_layers(&image), 0, "{format}: {:?}", image.proxy.log());
        let etc = walk(&mount.root().join("etc")).unwrap();
        assert!(etc.values().any(|entry| entry.kind == "reg"));
        let stats = mount.unmount();
        assert!(requests_of_layers(&image) > 0);
        let wire = count(&stats, "wire_bytes");
        assert!(wire < layers / most, "{format}: {wire} of {layers} bytes: {stats}");
    }
}

/// Who reads through one layer of an image is about to read the others.
#[test]
fn who_reads_through_a_layer_finds_the_next_one_here() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(dir.path().join("layout")).unwrap();
    for (i, length) in [(0, 40 << 20), (1, 6 << 20)] {
        let (root, tar) = (dir.path().join(format!("root{i}")), dir.path().join(format!("{i}.tar")));
        fs::create_dir(&root).unwrap();
        fs::write(root.join(format!("file{i}")), node::tree::noise(i + 1, length)).unwrap();
        process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(1)).unwrap();
    }
    let built = builder.write("v1").unwrap();
    let image = Published::indexed(&built.directory);
    let asked = |layer: usize| {
        let log = image.proxy.log();
        log.iter().filter(|asked| asked.path.contains(&built.layers[layer])).count()
    };
    image.proxy.reset();
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert_eq!(mount.read_at("file0", 0, 1 << 20).unwrap().len(), 1 << 20);
    assert!(asked(0) > 0 && asked(1) == 0, "{:?}", image.proxy.log());
    assert_eq!(mount.read("file0").unwrap().len(), 40 << 20);
    let is_verified = |layer: &Path| {
        let state = fs::read_to_string(layer.join("state.json")).unwrap_or_default();
        state.contains(r#""complete":true,"verified":true"#)
    };
    process::wait_until("both layers to be here", PATIENCE, || {
        Ok(node.layers().iter().all(|layer| is_verified(layer)))
    })
    .unwrap_or_else(|e| panic!("{e}{}", node.logs()));
    assert!(asked(1) > 0, "{:?}", image.proxy.log());
}

fn manifest(image: &Published) -> serde_json::Value {
    let path = format!("/v2/{}/manifests/{}", node::REPO, image.digest);
    let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
    let found = hoist_testkit::http::get(&image.registry.host(), &path, &accept).unwrap();
    serde_json::from_slice(&found.body).unwrap()
}

fn layer_sizes(image: &Published) -> u64 {
    manifest(image)["layers"].as_array().unwrap().iter().map(|l| l["size"].as_u64().unwrap()).sum()
}

fn requests_of_layers(image: &Published) -> usize {
    let manifest = manifest(image);
    let layers: Vec<_> = manifest["layers"].as_array().unwrap().iter().collect();
    let log = image.proxy.log();
    log.iter().filter(|r| layers.iter().any(|l| r.path.contains(l["digest"].as_str().unwrap()))).count()
}

/// A registry that lost our own tag, as one that was copied by another tool: the tag of referrers stays.
#[test]
fn an_index_is_found_among_the_referrers() {
    let image = published("gzip");
    let gone = FaultKind::Status(404, vec![]);
    image.proxy.inject(Fault::new(format!("manifests/{}", image.index_tag()), When::Always, gone));
    let node = Node::new();
    let told: serde_json::Value =
        serde_json::from_str(&node.says(&["inspect", "--json", &image.name])).unwrap();
    assert_eq!(told["lazy"], true, "{told}");
    let fallback = format!("/manifests/{}", image.digest.replace(':', "-"));
    assert!(image.proxy.log().iter().any(|r| r.path.ends_with(&fallback)), "{:?}", image.proxy.log());
    let mount = Node::mount(&node, &image.name, &[]);
    assert_right(&mount);
    let stats = mount.unmount();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
}

/// What nobody reads comes in the background, and then the mount needs nobody.
#[test]
fn the_rest_comes_in_the_background() {
    let image = published("gzip");
    let node = Node::new();
    let mount = node.mount(&image.name, &["--background", "on"]);
    assert_eq!(requests_of_layers(&image), 0, "a start comes first");
    let complete = || {
        let told: serde_json::Value =
            serde_json::from_str(&node.says(&["inspect", "--json", &image.name])).unwrap();
        told["layers"].as_array().unwrap().iter().all(|layer| layer["verified"] == true)
    };
    process::wait_until("all layers, verified", Duration::from_secs(120), || Ok(complete())).unwrap();
    drop(image.registry);
    assert_right(&mount);
    let stats = mount.unmount();
    assert_eq!(count(&stats, "demand_stalls"), 0, "{stats}");
}

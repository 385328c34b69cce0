//! Pods: a real containerd of each version with its CRI plugin and runc, hoist for all its images, configured as
//! `deploy/` says.

mod common;
mod kubelet;
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoist_testkit::containerd::{self, PODS, Version};
use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{Fault, FaultKind, When, diff, digest, process, walk};
use kubelet::Kubelet;
use node::tree::noise;
use node::{Published, REPO};
use serde_json::json;

/// Files that nothing reads at a start, bytes each.
const FILES: usize = 8;
const LENGTH: usize = 1 << 20;

/// A layer of programs, which is always the same, and one of files that are an image's own.
fn layout(dir: &Path, seed: u64) -> PathBuf {
    let (programs, data) = (dir.join("programs"), dir.join(format!("data-{seed}")));
    if !programs.exists() {
        common::make_rootfs(&programs);
    }
    fs::create_dir(&data).unwrap();
    for i in 0..FILES {
        fs::write(data.join(format!("data{i}")), content(seed, i)).unwrap();
    }
    let mut builder = Builder::new(dir.join(format!("layout-{seed}"))).unwrap();
    for root in [programs, data] {
        let tar = root.with_extension("tar");
        let mut pack = Command::new("tar");
        pack.args(["--sort=name", "--mtime=@1700000000", "-cf"]).arg(&tar).arg("-C").arg(&root).arg(".");
        process::run(&mut pack).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(6)).unwrap();
    }
    let builder = builder.config("Cmd", json!(["sleep", "1000000"])).config("Env", json!(["PATH=/bin"]));
    builder.write("v1").unwrap().directory
}

fn content(seed: u64, file: usize) -> Vec<u8> {
    noise(seed * 100 + file as u64 + 1, LENGTH)
}

/// Reads a file in a container, by whatever has to serve it now.
fn reads(kubelet: &Kubelet<'_>, container: &str, seed: u64, file: usize) {
    let command = format!("sha256sum </data{file}");
    let sum = kubelet.says(container, &["sh", "-c", &command]);
    let wanted = digest::of_bytes(&content(seed, file));
    assert_eq!(format!("sha256:{}", sum.trim_end_matches("  -\n")), wanted, "file {file}");
}

/// The test of a version: set up once, for one thing after another.
fn with_containerd(version: Version) {
    let dir = tempfile::tempdir().unwrap();
    let lazy = Published::indexed(&layout(dir.path(), 1));
    let plain = Published::plain(&layout(dir.path(), 2));
    let system = version.system().unwrap();
    let node = kubelet::node(&system);
    let mut kubelet = Kubelet::start(version, &system, &node, &lazy.name);
    a_pod_starts_before_its_image_is_here_and_outlives_every_part(&mut kubelet, &lazy);
    an_image_without_an_index_is_unpacked_beside_it(&kubelet, version, &lazy, &plain);
    kubelet::client::pulls_runs_and_removes(&kubelet, version, &lazy, &plain);
    what_is_deleted_leaves_nothing_and_can_come_back(&kubelet, &lazy, &plain);
    kubelet::trees::all_are_right(&kubelet);
    drop(kubelet);
    by_mirrors_alone_a_full_pull_has_all_and_a_lazy_one_reads_on(version, &plain, &lazy);
}

#[test]
fn many_pods_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::indexed(&layout(dir.path(), 1));
    let system = Version::V2.system().unwrap();
    let node = kubelet::node(&system);
    let kubelet = Kubelet::start(Version::V2, &system, &node, &image.name);
    kubelet::swarm::fetches_once(&kubelet, &image);
}

#[test]
fn containerd_1_6() {
    with_containerd(Version::V1_6);
}

#[test]
fn containerd_1_7() {
    with_containerd(Version::V1_7);
}

#[test]
fn containerd_2() {
    with_containerd(Version::V2);
}

#[test]
fn containerd_2_2() {
    with_containerd(Version::V2_2);
    layers_that_are_unpacked_side_by_side_make_the_right_tree();
}

/// Of an image that nobody can read lazily: each layer replaces, removes or hides what those below it have.
fn layers_that_are_unpacked_side_by_side_make_the_right_tree() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(dir.path().join("layout")).unwrap();
    for (i, files) in STACKED.into_iter().enumerate() {
        let root = dir.path().join(i.to_string());
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let tar = root.with_extension("tar");
        process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(6)).unwrap();
    }
    let image = Published::plain(&builder.write("v1").unwrap().directory);
    let reference = containerd::Daemon::start().unwrap();
    let wanted = reference.unpack(&image.name).unwrap();

    let version = Version::V2_2;
    let system = version.system().unwrap();
    let node = kubelet::node(&system);
    let kubelet = Kubelet::start(version, &system, &node, &image.name);
    kubelet.cri().pull(&image.name).unwrap_or_else(|e| panic!("{e}\n{}", kubelet.said()));
    assert_eq!(kubelet.prepared(), (0, STACKED.len()), "{}", kubelet.said());
    // None says what it stands on before it is committed.
    let said = kubelet.said();
    let left = said.lines().filter(|line| line.contains("\"remote-snapshot-prepared\":\"false\""));
    assert_eq!(left.filter(|line| line.contains("\"parent\":\"\"")).count(), STACKED.len(), "{said}");
    let found = kubelet.containerd.as_a_container(PODS, "hoist", &image.name).unwrap();
    let (mut found, wanted) = (walk(found.path()).unwrap(), walk(wanted.path()).unwrap());
    found.get_mut(&b"."[..]).unwrap().mtime_ns = wanted[&b"."[..]].mtime_ns;
    assert_eq!(diff(&found, &wanted), [""; 0]);
}

/// The files of layers, lowest first.
const STACKED: [&[(&str, &str)]; 4] = [
    &[("a/one", "1"), ("a/two", "2"), ("b/deep/er", "3"), ("c", "4")],
    &[("a/.wh.one", ""), ("a/three", "5"), ("d/new", "6")],
    &[("b/.wh..wh..opq", ""), ("b/only", "7"), (".wh.c", "")],
    &[("c/now-a-folder", "8"), ("a/one", "again"), ("d/.wh.new", "")],
];

fn a_pod_starts_before_its_image_is_here_and_outlives_every_part(
    kubelet: &mut Kubelet<'_>,
    image: &Published,
) {
    kubelet.cri().pull(&image.name).unwrap_or_else(|e| panic!("{e}\n{}", kubelet.said()));
    assert_eq!(kubelet.prepared(), (2, 0), "{}", kubelet.said());
    let first = kubelet.run("first", &image.name);
    assert_eq!(kubelet.says(&first.1, &["sh", "-c", "echo mine >/new; cat /new"]), "mine\n");
    assert!(image.proxy.stats().body_bytes < (FILES * LENGTH) as u64 / 2, "{:?}", image.proxy.stats());
    // The mount of the pause image is that of the container.
    assert_eq!(kubelet.mounted(), (1, 1));

    kubelet.kill_daemon();
    reads(kubelet, &first.1, 1, 0);
    kubelet.kill_fillers();
    reads(kubelet, &first.1, 1, 1);
    kubelet.start_daemon();
    kubelet.restart_containerd(false);
    reads(kubelet, &first.1, 1, 2);
    let second = kubelet.run("second", &image.name);
    kubelet.restart_containerd(true);
    reads(kubelet, &second.1, 1, 3);
    kubelet.end_daemon();
    reads(kubelet, &second.1, 1, 4);
    assert_eq!(kubelet.says(&first.1, &["cat", "/new"]), "mine\n");
    kubelet.kill_fillers();
    kubelet.start_daemon();
    let third = kubelet.run("third", &image.name);
    reads(kubelet, &third.1, 1, 5);
    assert_eq!(kubelet.mounted().0, 1);
    for pod in [first, second, third] {
        kubelet.remove(pod);
    }
}

/// What it unpacks side by side containerd has stand on nothing: so of an image whose layers came that way it keeps the
/// uppermost alone.
fn keeps_lower_layers(version: Version) -> bool {
    version != Version::V2_2
}

fn an_image_without_an_index_is_unpacked_beside_it(
    kubelet: &Kubelet<'_>,
    version: Version,
    lazy: &Published,
    plain: &Published,
) {
    let before = kubelet.prepared();
    kubelet.cri().pull(&plain.name).unwrap();
    // Its lower layer is one that the other image has.
    let left = if keeps_lower_layers(version) { 1 } else { 2 };
    assert_eq!(kubelet.prepared(), (before.0, before.1 + left), "{}", kubelet.said());
    let (pod, container) = kubelet.run("unpacked", &plain.name);
    let beside = kubelet.cri().start(&pod, "beside", &lazy.name, &["sleep", "1000000"]).unwrap();
    reads(kubelet, &container, 2, 0);
    reads(kubelet, &beside, 1, 6);
    kubelet.cri().remove(&beside).unwrap();
    kubelet.remove((pod, container));
}

fn what_is_deleted_leaves_nothing_and_can_come_back(
    kubelet: &Kubelet<'_>,
    image: &Published,
    other: &Published,
) {
    kubelet.cri().remove_image(&other.name).unwrap();
    kubelet.cri().remove_image(&image.name).unwrap();
    kubelet.wait_nothing_left();
    kubelet.cri().pull(&image.name).unwrap();
    let pod = kubelet.run("again", &image.name);
    assert_eq!(kubelet.says(&pod.1, &["id", "-u"]), "0\n");
    kubelet.remove(pod);
}

/// The registries of both images are reached by containerd's `hosts.toml` alone: by containerd for what it pulls, by hoist
/// for all that it reads.
fn by_mirrors_alone_a_full_pull_has_all_and_a_lazy_one_reads_on(
    version: Version,
    full: &Published,
    lazy: &Published,
) {
    let system = version.system().unwrap();
    let node = kubelet::node(&system);
    let certs = node.path("certs.d");
    for (host, image) in [("full.example", full), ("lazy.example", lazy)] {
        fs::create_dir_all(certs.join(host)).unwrap();
        // Nobody else is asked what the mirror has not.
        let mirror = format!("http://{}", image.proxy.host());
        let hosts =
            format!("server = {mirror:?}\n[host.{mirror:?}]\ncapabilities = [\"pull\", \"resolve\"]\n");
        fs::write(certs.join(host).join("hosts.toml"), hosts).unwrap();
    }
    let config = node.path("hoist.toml");
    let rule = "[[images]]\nregistry = \"lazy.example\"\nmode = \"lazy\"\n";
    let text = format!("certs_dirs = [{certs:?}]\ncontainerd_images = \"full\"\n{rule}");
    fs::write(&config, text).unwrap();
    let options = ["--config", config.to_str().unwrap()];
    let [named_full, named_lazy] = ["full", "lazy"].map(|name| format!("{name}.example/{REPO}:v1"));
    let mut kubelet = Kubelet::start_with(version, &system, &node, &named_full, &options);
    kubelet.cri().pull(&named_full).unwrap_or_else(|e| panic!("{e}\n{}", kubelet.said()));
    assert_eq!(kubelet.prepared(), (2, 0), "{}", kubelet.said());
    full.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, Vec::new())));
    let pod = kubelet.run("full", &named_full);
    for file in 0..FILES {
        reads(&kubelet, &pod.1, 2, file);
    }
    kubelet.remove(pod);
    full.proxy.clear_faults();

    kubelet.cri().pull(&named_lazy).unwrap_or_else(|e| panic!("{e}\n{}", kubelet.said()));
    // The lower layer is the other image's too.
    let more = if keeps_lower_layers(version) { 1 } else { 2 };
    assert_eq!(kubelet.prepared(), (2 + more, 0), "{}", kubelet.said());
    let pod = kubelet.run("lazy", &named_lazy);
    // What is read once may be fetched with more than that: of the versions each has one who reads.
    let by_successor = version.is_2();
    if by_successor {
        kubelet.kill_daemon();
    }
    lazy.proxy.reset();
    reads(&kubelet, &pod.1, 1, 0);
    assert!(lazy.proxy.stats().body_bytes > 0, "{}", kubelet.said());
    if by_successor {
        kubelet.start_daemon();
    }
    kubelet.remove(pod);
}

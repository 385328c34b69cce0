//! `hoist pull --containerd`: an image for those who run it by `ctr`, with a real containerd and runc.

mod common;
mod node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoist_format::digest::Digest;
use hoist_testkit::containerd::{DEFAULT, Daemon as Containerd};
use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{Fault, FaultKind, When, diff, fixtures_dir, process, walk, walk_overlay};
use node::daemon::Daemon;
use node::{Node, Published};
use serde_json::Value;

fn layout(dir: &Path) -> std::path::PathBuf {
    common::sleeper(dir, &[vec![("data0", content())]])
}

fn content() -> String {
    (0..20_000).map(|line| format!("line {line}\n")).collect()
}

/// What `sha256sum` says of it in a container: of long output `ctr run` loses the end on a busy machine.
fn digest_of_data() -> String {
    format!("{}  /data0\n", Digest::of(content().as_bytes()).hex())
}

struct Machine<'a> {
    // Dropped first: what it runs stands on the other's snapshots.
    containerd: Containerd,
    daemon: Daemon<'a>,
    node: &'a Node,
}

fn start(node: &Node) -> Machine<'_> {
    let socket = node.path("snapshotter.sock");
    let daemon = Daemon::start(node, &["--snapshotter-socket", socket.to_str().unwrap()]);
    Machine { containerd: Containerd::start_for_pods(&socket, "none").unwrap(), daemon, node }
}

impl Machine<'_> {
    fn pull(&self, image: &str, more: &[&str]) -> Value {
        let socket = self.containerd.socket();
        let fixed = ["pull", "--json", "--containerd", "--address", socket.to_str().unwrap(), image];
        serde_json::from_str(&self.node.says(&[&fixed[..], more].concat())).unwrap()
    }

    fn ctr(&self, args: &[&str]) -> String {
        self.containerd.ctr(args).unwrap_or_else(|e| panic!("{e}{}", self.daemon.said()))
    }

    /// Runs a program in the image to its end.
    fn run(&self, image: &str, command: &[&str]) -> String {
        self.ctr(&[&["run", "--rm", "--snapshotter", "hoist", image, &self.container()], command].concat())
    }

    /// runc's names are the whole machine's.
    fn container(&self) -> String {
        let folder = self.containerd.socket();
        folder.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// containerd removes what nothing names.
    fn collect_garbage(&self) {
        self.ctr(&["leases", "create", "--id", "done"]);
        self.ctr(&["leases", "rm", "--sync", "done"]);
    }
}

#[test]
fn an_image_is_recorded_and_runs_before_its_layers_are_here() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::indexed(&layout(dir.path()));
    let node = Node::new();
    let machine = start(&node);
    for _ in 0..2 {
        let pulled = machine.pull(&image.name, &[]);
        assert_eq!((&pulled["lazy"], &pulled["layers"]), (&Value::Bool(true), &2.into()), "{pulled:#}");
        assert_eq!(pulled["digest"], image.digest.as_str());
    }
    let layers = image.layers();
    let asked = image.proxy.log();
    assert!(asked.iter().all(|asked| layers.iter().all(|layer| !asked.path.contains(layer))), "{asked:?}");
    machine.collect_garbage();
    // What containerd has: the image by its name, its manifest and configuration, and a snapshot for each layer.
    let images = machine.ctr(&["images", "list"]);
    assert!(images.contains(&image.name) && images.contains(&image.digest), "{images}");
    assert_eq!(machine.ctr(&["content", "list", "--quiet"]).lines().count(), 2);
    let snapshots = machine.ctr(&["snapshots", "--snapshotter", "hoist", "list"]);
    assert_eq!(snapshots.matches("Committed").count(), 2, "{snapshots}");
    assert_eq!(machine.ctr(&["leases", "list", "--quiet"]), "");

    assert_eq!(machine.run(&image.name, &["sha256sum", "/data0"]), digest_of_data());
    machine.ctr(&["images", "rm", "--sync", &image.name]);
    process::wait_until("the image to be gone", std::time::Duration::from_secs(30), || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let layers = std::fs::read_dir(node.store("layers"))?.count();
        Ok(!mounts.contains(node.store("snapshotter/images").to_str().unwrap()) && layers == 0)
    })
    .unwrap_or_else(|e| panic!("{e}{}", machine.daemon.said()));
}

#[test]
fn what_is_pulled_whole_runs_without_its_registry() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    for (image, options) in
        [(Published::indexed(&layout), &["--full"][..]), (Published::plain(&layout), &[][..])]
    {
        let node = Node::new();
        let machine = start(&node);
        let named = [options, &["--namespace", "mine"]].concat();
        assert_eq!(machine.pull(&image.name, &named)["lazy"], false);
        image.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, Vec::new())));
        let run = ["--namespace", "mine", "run", "--rm", "--snapshotter", "hoist", &image.name];
        let said = machine.ctr(&[&run[..], &[&machine.container(), "sha256sum", "/data0"]].concat());
        assert_eq!(said, digest_of_data());
        assert!(!machine.ctr(&["images", "list"]).contains(&image.name));
    }
}

/// Layers of file systems have no digests of their parts.
#[test]
fn what_came_whole_is_not_called_lazy_and_is_counted() {
    let fixture = fixtures_dir().unwrap().join("erofs-raw");
    let image = Published::plain(&fixture);
    let size =
        |layer: &String| fs::metadata(fixture.join("blobs").join(layer.replace(':', "/"))).unwrap().len();
    let all: u64 = image.layers().iter().map(size).sum();
    let node = Node::new();
    let machine = start(&node);
    let counted = |pulled: &Value| pulled["stats"]["wire_bytes"].as_u64().unwrap();
    let first = machine.pull(&image.name, &[]);
    assert!(first["lazy"] == false && counted(&first) >= all, "{first:#}");
    let again = machine.pull(&image.name, &[]);
    assert!(again["lazy"] == false && counted(&again) < all, "{again:#}");
}

/// As many as containerd's overlayfs can stack.
const MANY: usize = 127;

/// Each layer adds a file and replaces another; some remove what one below them has.
fn stacked(dir: &Path) -> PathBuf {
    let mut builder = Builder::new(dir.join("layout")).unwrap();
    for i in 0..MANY {
        let root = dir.join(format!("root{i}"));
        if i == 0 {
            common::make_rootfs(&root);
        }
        fs::create_dir_all(root.join("each")).unwrap();
        fs::write(root.join(format!("each/{i}")), format!("of layer {i}")).unwrap();
        fs::write(root.join("over"), format!("{i}")).unwrap();
        if i % 7 == 6 {
            fs::write(root.join(format!("each/.wh.{}", i - 3)), "").unwrap();
        }
        if i == 100 {
            fs::create_dir(root.join("tmp")).unwrap();
            fs::write(root.join("tmp/.wh..wh..opq"), "").unwrap();
        }
        let tar = root.with_extension("tar");
        process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(1)).unwrap();
    }
    builder.config("Env", serde_json::json!(["PATH=/bin"])).write("v1").unwrap().directory
}

#[test]
fn an_image_of_127_layers_is_one_folder_to_its_container() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::indexed(&stacked(dir.path()));
    let reference = Containerd::start().unwrap();
    let wanted = walk_overlay(reference.unpack(&image.name).unwrap().path()).unwrap();
    let node = Node::new();
    let machine = start(&node);
    let pulled = machine.pull(&image.name, &[]);
    assert_eq!((&pulled["lazy"], &pulled["layers"]), (&Value::Bool(true), &MANY.into()), "{pulled:#}");

    let id = machine.container();
    let run = ["run", "--detach", "--snapshotter", "hoist", &image.name, &id, "sleep", "1000000"];
    machine.ctr(&run);
    let said = machine.ctr(&["tasks", "exec", "--exec-id", "look", &id, "cat", "/over", "/each/120"]);
    assert_eq!(said, "126of layer 120");
    let root = machine.containerd.rootfs(DEFAULT, &id);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = table.lines().find(|line| line.split(' ').nth(4) == root.to_str()).unwrap();
    let lower: Vec<_> =
        mount.split([' ', ',']).filter_map(|option| option.strip_prefix("lowerdir=")).collect();
    assert!(lower.len() == 1 && !lower[0].contains(':'), "{mount}");
    machine.ctr(&["tasks", "delete", "--force", &id]);
    machine.ctr(&["containers", "delete", &id]);

    // What one that nothing has run in yet sees.
    let snapshots = ["snapshots", "--snapshotter", "hoist"];
    let all = machine.ctr(&[&snapshots[..], &["list"]].concat());
    let all: Vec<Vec<&str>> = all.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let is_stood_on = |name: &str| all.iter().any(|words| words[1] == name);
    let top = all.iter().find(|words| !is_stood_on(words[0])).unwrap();
    let point = node.path("seen");
    fs::create_dir(&point).unwrap();
    let prepare = ["prepare", "--target", point.to_str().unwrap(), "seen", top[0]];
    let mount = machine.ctr(&[&snapshots[..], &prepare].concat());
    process::run(Command::new("sh").args(["-ec", &mount])).unwrap();
    let mut found = walk(&point).unwrap();
    process::run(Command::new("umount").arg(&point)).unwrap();
    found.get_mut(&b"."[..]).unwrap().mtime_ns = wanted[&b"."[..]].mtime_ns;
    assert_eq!(diff(&found, &wanted), [""; 0]);
}

#[test]
fn what_is_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::indexed(&layout(dir.path()));
    let node = Node::new();
    let absent = node.path("absent.sock");
    let said = node.fails(&["pull", "--containerd", "--address", absent.to_str().unwrap(), &image.name]);
    assert!(said.contains("does containerd listen at") && said.contains("--address"), "{said}");
    let machine = start(&node);
    let socket = machine.containerd.socket();
    let pull = ["pull", "--containerd", "--address", socket.to_str().unwrap(), "--snapshotter"];
    let output = node.hoist(&[&pull[..], &["nothing", &image.name]].concat()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("by the snapshotter nothing") && said.contains("containerd says"), "{said}");
    assert!(output.status.code() == Some(1) && said.contains("hint: "), "{said}");
    // A snapshotter that would have to unpack them.
    let said = node.fails(&[&pull[..], &["overlayfs", &image.name]].concat());
    assert!(said.contains("would have to unpack layer") && said.contains("is it hoist's"), "{said}");
    assert_eq!(machine.ctr(&["images", "list", "--quiet"]), "");
    assert_eq!(machine.ctr(&["snapshots", "list"]).lines().count(), 1);
}

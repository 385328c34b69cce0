//! The snapshotter as containerd asks it, over its socket: layers that are not unpacked, and what they are
//! mounted from. containerd's own tests of ordinary snapshots are in tests/containerd-suite.

mod asked;
mod node;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use asked::*;
use hoist_snapshotter::api::*;
use hoist_testkit::layout::{Builder, Built, Compression};
use hoist_testkit::{
    Exceptions, Fault, FaultKind, When, compare_tree, containerd, diff, fixtures_dir, process, walk,
};
use node::daemon::{Daemon, metrics};
use node::tree::{noise, wait_mended};
use node::{Node, Published};
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

#[test]
fn an_image_is_one_mount_that_nobody_unpacked() {
    let image = Image::indexed();
    let containerd = containerd::Daemon::start().unwrap();
    let unpacked = containerd.unpack(&image.published.name).unwrap();
    let wanted = walk(unpacked.path()).unwrap();
    image.published.proxy.reset();

    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    let asked = image.published.proxy.log();
    let of_layers =
        asked.iter().filter(|asked| image.built.layers.iter().any(|layer| asked.path.contains(layer)));
    assert_eq!(of_layers.count(), 0, "{asked:?}");
    assert_eq!(images(&node).len(), 1);
    let prepared =
        daemon.said().lines().filter(|line| line.contains("\"remote-snapshot-prepared\":\"true\"")).count();
    assert_eq!(prepared, 3, "{}", daemon.said());

    let mounts = snapshots.prepare("container", &top, &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts), images(&node));
    let shown = show(&node, &mounts);
    let mut found = walk(&shown.0).unwrap();
    found.get_mut(&b"."[..]).unwrap().mtime_ns = wanted[&b"."[..]].mtime_ns;
    assert_eq!(diff(&found, &wanted), [""; 0]);
    fs::rename(shown.0.join("etc"), shown.0.join("moved")).unwrap();
    assert_eq!(shown.read("moved/1"), vec![1; 300_000]);
    assert_eq!(snapshots.view("look", &top)[0].r#type, "bind");

    // What it takes is what is here of it.
    let usage = UsageRequest { key: top.clone(), snapshotter: String::new() };
    let usage = snapshots.ask(async |mut client| client.usage(usage).await).unwrap();
    assert!(usage.size >= 300_000 && usage.size < 1 << 20, "{usage:?}");

    drop(shown);
    for key in ["look", "container", &image.chain[2], &image.chain[1], &image.chain[0]] {
        snapshots.remove(key);
    }
    wait_no_images(&node);
    wait_no_layers(&node, &daemon);
}

fn wait_no_layers(node: &Node, daemon: &Daemon<'_>) {
    let none = || Ok(fs::read_dir(node.store("layers"))?.count() == 0);
    process::wait_until("the layers to be freed", Duration::from_secs(20), none)
        .unwrap_or_else(|e| panic!("{e}{}", daemon.said()));
}

#[test]
fn a_killed_daemon_and_the_next_leave_containers_running() {
    let image = Image::indexed();
    let node = Node::new();
    let (mut daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    let shown = show(&node, &snapshots.prepare("container", &top, &BTreeMap::new()).unwrap());
    daemon.signal(Signal::KILL);
    daemon.wait();
    // By its successor.
    assert_eq!(shown.read("etc/1"), vec![1; 300_000]);

    let (mut daemon, snapshots) = serve(&node);
    assert_eq!(snapshots.pull(&image, "again"), top);
    let mounts = snapshots.prepare("second", &top, &BTreeMap::new()).unwrap();
    assert_eq!((lower(&mounts), images(&node).len()), (images(&node), 1));
    let second = show(&node, &mounts);
    assert_eq!(second.read("etc/2"), vec![2; 300_000]);
    let request = MountsRequest { key: "container".into(), snapshotter: String::new() };
    let again = snapshots.ask(async |mut client| client.mounts(request).await).unwrap().mounts;
    assert_eq!(lower(&again), images(&node));

    // Told to end, it hands over what containers stand on.
    daemon.end();
    assert_eq!(shown.read("same"), b"of layer 2 of app");
    let (daemon, snapshots) = serve(&node);
    drop((shown, second));
    for key in ["container", "second", &image.chain[2], &image.chain[1], &image.chain[0]] {
        snapshots.remove(key);
    }
    wait_no_images(&node);
    // Another process has served it: what it needed is freed all the same.
    wait_no_layers(&node, &daemon);
}

#[test]
fn an_image_that_is_gone_is_mounted_again_where_it_is_needed() {
    let image = Image::indexed();
    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    // As after a reboot.
    for folder in images(&node) {
        process::run(Command::new("umount").arg(folder)).unwrap();
    }
    let shown = show(&node, &snapshots.prepare("container", &top, &BTreeMap::new()).unwrap());
    assert_eq!(shown.read("etc/2"), vec![2; 300_000]);
    drop(shown);
    drop(daemon);
}

#[test]
fn what_a_killed_daemon_did_not_free_the_next_one_does() {
    let image = Image::indexed();
    let node = Node::new();
    let (mut daemon, snapshots) = serve(&node);
    snapshots.pull(&image, "a");
    let [folder] = &images(&node)[..] else { panic!("{:?}", images(&node)) };
    // For as long as somebody is in it, the image can't be freed.
    let held = fs::File::open(Path::new(folder).join("same")).unwrap();
    for chain in image.chain.iter().rev() {
        snapshots.remove(chain);
    }
    let unmounted = || Ok(!fs::read_to_string("/proc/self/mountinfo")?.contains(folder.as_str()));
    process::wait_until("the image to be unmounted", Duration::from_secs(30), unmounted)
        .unwrap_or_else(|e| panic!("{e}{}", daemon.said()));
    daemon.signal(Signal::KILL);
    daemon.wait();
    drop(held);
    assert_ne!(fs::read_dir(node.store("layers")).unwrap().count(), 0);
    let (daemon, _snapshots) = serve(&node);
    wait_no_layers(&node, &daemon);
}

#[test]
fn layers_below_the_uppermost_are_stood_on_too() {
    let image = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    snapshots.pull(&image, "a");
    // An image that ends here, or one whose next layer has to be unpacked.
    let mounts = snapshots.prepare("next", &image.chain[1], &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts).len(), 1);
    let shown = show(&node, &mounts);
    assert_eq!((shown.read("etc/0"), shown.read("same")), (vec![0; 300_000], b"of layer 1 of app".to_vec()));
    fs::write(shown.0.join("new"), "x").unwrap();
    drop(shown);
    let request = CommitSnapshotRequest { name: "upper".into(), key: "next".into(), ..Default::default() };
    snapshots.ask(async |mut client| client.commit(request).await).unwrap();
    let mounts = snapshots.prepare("container", "upper", &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts).len(), 2);
    let shown = show(&node, &mounts);
    assert_eq!((shown.read("new"), shown.read("etc/1")), (b"x".to_vec(), vec![1; 300_000]));
}

#[test]
fn what_cannot_be_lazy_is_left_to_containerd() {
    let dir = tempfile::tempdir().unwrap();
    let built = layout(dir.path(), "plain");
    let image = Image::of(Published::plain(&built.directory), built);
    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    // No index.
    snapshots.prepare("plain", "", &image.labels(0)).unwrap();
    assert!(daemon.said().contains("\"remote-snapshot-prepared\":\"false\""), "{}", daemon.said());
    // No such layer, no such image, no image named.
    let mut labels = image.labels(0);
    labels.insert(TARGET.into(), image.chain[1].clone());
    snapshots.prepare("other", "", &labels).unwrap();
    labels.insert("containerd.io/snapshot/cri.image-ref".into(), "no image!".into());
    snapshots.prepare("wrong", "", &labels).unwrap();
    snapshots.prepare("unnamed", "", &[(TARGET.to_owned(), image.chain[0].clone())].into()).unwrap();
    assert_eq!(images(&node), [""; 0]);
    // What has become otherwise since counts at the next pull.
    Node::new().says(&["index", "--push", &image.published.name]);
    ["plain", "other", "wrong", "unnamed"].iter().for_each(|key| snapshots.remove(key));
    snapshots.pull(&image, "indexed");
}

/// Layers that are file systems, and can be read only when all of them are here.
#[test]
fn what_containerd_could_not_unpack_is_pulled_whole() {
    let fixture = fixtures_dir().unwrap().join("erofs-raw");
    let published = Published::plain(&fixture);
    let parsed = |digest: &str| -> serde_json::Value {
        let blob = fixture.join("blobs").join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(blob).unwrap()).unwrap()
    };
    let diff_ids = serde_json::from_value(parsed(&published.config())["rootfs"]["diff_ids"].clone()).unwrap();
    let (manifest, layers) = (published.digest.clone(), published.layers());
    let image = Image::of(published, Built { directory: fixture.clone(), manifest, layers, diff_ids });
    let node = Node::new();
    let (config, socket) = (node.path("hoist.toml"), node.path("metrics.sock"));
    fs::write(&config, format!("metrics = \"unix:{}\"\n", socket.display())).unwrap();
    let (daemon, snapshots) = serve_with(&node, &["--config", config.to_str().unwrap()]);
    let top = snapshots.pull(&image, "a");
    assert!(!daemon.said().contains("\"remote-snapshot-prepared\":\"false\""), "{}", daemon.said());
    let told = metrics(&socket);
    let count = "hoist_snapshot_layers_total{outcome=\"full\",reason=\"none\"} 2\n";
    assert!(told.contains(count), "{told}");
    // Nothing is left to fetch.
    image.published.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, Vec::new())));
    let shown = show(&node, &snapshots.prepare("container", &top, &BTreeMap::new()).unwrap());
    assert_eq!(compare_tree(&shown.0, &Exceptions::erofs()).unwrap(), [""; 0]);
}

#[test]
fn a_slow_registry_keeps_nobody_else_waiting() {
    keeps_nobody_waiting(&Image::indexed(), &Image::indexed_as("other"));
}

#[test]
fn a_slow_registry_keeps_nobody_waiting_who_wants_the_same_layers_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let built = layout(dir.path(), "app");
    let of_two = Builder::new(dir.path().join("of-two")).unwrap();
    let of_two = (0..2).fold(of_two, |builder, i| {
        builder.layer(&dir.path().join(format!("app-{i}.tar")), Compression::Gzip(6)).unwrap()
    });
    let of_two = of_two.write("v1").unwrap();
    assert_eq!(of_two.layers, built.layers[..2]);
    let publish = |built: Built| Image::of(Published::indexed(&built.directory), built);
    let (slow, of_two) = (publish(built), publish(of_two));
    keeps_nobody_waiting(&slow, &of_two);
    // The very same image.
    let again = Published::indexed(&slow.built.directory);
    assert_eq!(again.digest, slow.published.digest);
    keeps_nobody_waiting(&slow, &Image::of(again, slow.built.clone()));
}

fn keeps_nobody_waiting(slow: &Image, image: &Image) {
    let tree = &slow.published.parts("tree")[0];
    slow.published.proxy.reset();
    slow.published.proxy.inject(Fault::new(format!("blobs/{tree}"), When::Always, FaultKind::Hang));
    let node = Node::new();
    let (mut daemon, snapshots) = serve(&node);
    let (socket, labels) = (snapshots.socket.clone(), slow.labels(0));
    snapshots.runtime.spawn(async move {
        Snapshots::client(&socket).await.prepare(prepare_request("slow", "", &labels)).await
    });
    let asks = || Ok(slow.published.proxy.log().iter().any(|asked| asked.path.contains(tree)));
    process::wait_until("the tree to be asked for", Duration::from_secs(30), asks).unwrap();
    snapshots.pull(image, "other");
    // Nor is room made only when it answers.
    node.says(&["prune"]);
    daemon.signal(Signal::KILL);
    daemon.wait();
}

#[test]
fn many_who_want_an_image_at_once_fetch_it_once() {
    let alone = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    snapshots.pull(&alone, "a");
    let wanted = alone.published.proxy.log().len();

    let image = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    let labels = image.labels(0);
    let socket = &snapshots.socket;
    let all = snapshots.runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for i in 0..20 {
            let request = prepare_request(&format!("pod-{i}"), "", &labels);
            let socket = socket.clone();
            all.spawn(async move { Snapshots::client(&socket).await.prepare(request).await });
        }
        all.join_all().await
    });
    for answer in all {
        assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
    }
    snapshots.pull(&image, "a");
    assert_eq!(image.published.proxy.log().len(), wanted);
    assert_eq!(images(&node).len(), 1);
}

/// An image of files in a layer each, and in one more much that nobody needs; it runs `tool`.
fn in_layers(dir: &Path, files: &[(&str, &[u8])]) -> Image {
    let mut builder = Builder::new(dir.join("layout")).unwrap();
    let noise: String =
        (0..400_000_u64).map(|n| format!("{:x}\n", n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    for (i, (name, content)) in files.iter().copied().chain([("data", noise.as_bytes())]).enumerate() {
        let root = dir.join(i.to_string());
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), content).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.join("made-in"), dir.as_os_str().as_encoded_bytes()).unwrap();
        let tar = root.with_extension("tar");
        process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(6)).unwrap();
    }
    let builder = builder.config("Cmd", json!(["tool"])).config("Env", json!(["PATH=/none:/bin:/usr/bin"]));
    let built = builder.write("v1").unwrap();
    Image::of(Published::indexed(&built.directory), built)
}

/// How often a layer was asked for.
fn asked(image: &Image, layer: &String) -> usize {
    image.published.proxy.log().iter().filter(|asked| asked.path.contains(layer)).count()
}

/// All layers but the last are asked for without anybody reading them.
fn wait_fetched_ahead(image: &Image, daemon: &Daemon<'_>) {
    let (noise, wanted) = image.built.layers.split_last().unwrap();
    let all = || Ok(wanted.iter().all(|layer| asked(image, layer) > 0));
    process::wait_until("what it needs to be asked for", Duration::from_secs(30), all)
        .unwrap_or_else(|e| panic!("{e}{}", daemon.said()));
    assert_eq!(asked(image, noise), 0);
}

/// Prepares a container of it: what it needs is asked for then, and nothing before.
fn is_fetched_ahead(files: &[(&str, &[u8])]) {
    let dir = tempfile::tempdir().unwrap();
    let image = in_layers(dir.path(), files);
    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    // Neither is a container's.
    snapshots.view("look", &top);
    snapshots.prepare("default/1/extract-1", &top, &BTreeMap::new()).unwrap();
    assert!(image.built.layers.iter().all(|layer| asked(&image, layer) == 0));
    snapshots.prepare("default/2/container", &top, &BTreeMap::new()).unwrap();
    wait_fetched_ahead(&image, &daemon);
}

/// A script and its interpreter.
const SCRIPT: [(&str, &[u8]); 2] = [("bin/tool", b"#!/bin/interpreter\n"), ("bin/interpreter", b"#!/none\n")];

#[test]
fn what_a_container_will_run_is_fetched_while_it_is_made_ready() {
    is_fetched_ahead(&SCRIPT);
}

/// By the name that containerd gives to what it would unpack.
#[test]
fn what_a_start_reads_is_fetched_as_soon_as_containerd_pulls_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = in_layers(dir.path(), &SCRIPT);
    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    let lowest = snapshots.prepare("default/1/extract-1", "", &image.labels(0)).unwrap_err();
    assert_eq!(lowest.code(), Code::AlreadyExists, "{lowest}");
    wait_fetched_ahead(&image, &daemon);
}

/// Nobody reads what comes wrong before it is read: it is fetched again, or who reads it then is told.
#[test]
fn what_is_fetched_ahead_wrongly_is_never_shown() {
    let script = [b"#!/bin/interpreter\n", &noise(1, 300_000)[..]].concat();
    let flip = FaultKind::FlipBit(70_000);
    for (when, kind) in
        [(When::First(1), flip.clone()), (When::Always, flip), (When::Always, FaultKind::WrongContentRange)]
    {
        let dir = tempfile::tempdir().unwrap();
        let image = in_layers(dir.path(), &[("bin/tool", &script), ("bin/interpreter", b"#!/none\n")]);
        let node = Node::new();
        let (daemon, snapshots) = serve(&node);
        let top = snapshots.pull(&image, "a");
        image.published.proxy.inject(Fault::new(image.built.layers[0].clone(), when, kind.clone()));
        let mounts = snapshots.prepare("default/2/container", &top, &BTreeMap::new()).unwrap();
        let ahead = || Ok(asked(&image, &image.built.layers[0]) > 0);
        process::wait_until("it to be asked for", Duration::from_secs(30), ahead)
            .unwrap_or_else(|e| panic!("{e}{}", daemon.said()));
        let shown = show(&node, &mounts);
        match (fs::read(shown.0.join("bin/tool")), when) {
            (Ok(read), When::First(_)) => assert!(read == script, "{kind:?}: wrong bytes"),
            (Err(e), When::Always) => {
                assert_eq!(e.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{kind:?}: {e}");
            }
            (read, _) => panic!("{when:?} {kind:?}: {:?}{}", read.map(|read| read.len()), daemon.said()),
        }
        image.published.proxy.clear_faults();
        wait_mended(&shown.0.join("bin"));
        assert!(shown.read("bin/tool") == script, "{kind:?}: wrong bytes");
    }
}

#[test]
fn what_a_start_reads_besides_its_program_is_fetched_too() {
    let program = fs::read("/bin/true").unwrap();
    is_fetched_ahead(&[
        ("usr/bin/tool", &program),
        ("etc/group", b"root:x:0:"),
        ("etc/localtime", b"TZif2"),
        ("usr/lib/tool/first/of-all", b"first"),
    ]);
}

/// A registry that is silent keeps no mount whose last container has gone: what is fetched ahead for it is called off.
#[test]
fn what_is_fetched_ahead_is_called_off_with_the_mount() {
    let dir = tempfile::tempdir().unwrap();
    let image = in_layers(dir.path(), &[("bin/tool", b"#!/bin/interpreter\n")]);
    let (node, proxy) = (Node::new(), &image.published.proxy);
    let socket = node.path("snapshotter.sock");
    let options = ["daemon", "--log", "debug", "--snapshotter-socket", socket.to_str().unwrap()];
    let mut daemon = Daemon::launch(&node, node.hoist(&options));
    daemon.wait_said("ready");
    let snapshots = Snapshots::at(socket);
    let top = snapshots.pull(&image, "a");
    let layers: Vec<_> = image.built.layers.iter().map(|layer| format!("/blobs/{layer}")).collect();
    layers.iter().for_each(|layer| proxy.inject(Fault::new(layer, When::Always, FaultKind::Hang)));
    snapshots.prepare("default/2/container", &top, &BTreeMap::new()).unwrap();
    let asked = || Ok(proxy.log().iter().any(|asked| asked.path.contains(&layers[0])));
    process::wait_until("the program to be asked for", Duration::from_secs(30), asked).unwrap();
    snapshots.remove("default/2/container");
    image.chain.iter().rev().for_each(|chain| snapshots.remove(chain));
    wait_no_images(&node);
    // It went while the registry was silent, not because that was given up.
    assert!(!daemon.said().contains("fetching ahead: "), "{}", daemon.said());
}

#[test]
fn what_is_known_of_an_image_is_asked_for_at_once() {
    let image = Image::indexed();
    let published = &image.published;
    // The digest alone says where the index is, and the index where its tree.
    let pairs = [
        (published.digest.clone(), published.index_tag()),
        (published.config(), published.parts("tree").remove(0)),
    ];
    for (held_back, beside) in pairs {
        let node = Node::new();
        published.proxy.reset();
        published.proxy.inject(Fault::new(held_back, When::Always, FaultKind::Hang));
        let (mut daemon, snapshots) = serve(&node);
        let (socket, labels) = (snapshots.socket.clone(), image.labels(0));
        snapshots.runtime.spawn(async move {
            Snapshots::client(&socket).await.prepare(prepare_request("a", "", &labels)).await
        });
        let asks = || Ok(published.proxy.log().iter().any(|asked| asked.path.contains(&beside)));
        process::wait_until("what is known already to be asked for", Duration::from_secs(30), asks)
            .unwrap_or_else(|e| panic!("{e}{}", daemon.said()));
        published.proxy.clear_faults();
        daemon.signal(Signal::KILL);
        daemon.wait();
    }
}

//! The snapshotter as containerd asks it, over its socket: what clients of each kind say, layers that are unpacked side
//! by side, and what must hold when things go wrong.

mod asked;
mod node;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use asked::*;
use hoist_snapshotter::api::*;
use hoist_testkit::{digest, process};
use node::Node;
use node::daemon::Daemon;
use tonic::Code;

fn labels<const N: usize>(labels: [(&str, &str); N]) -> BTreeMap<String, String> {
    labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn commit(snapshots: &Snapshots, name: &str, key: &str, parent: &str) {
    let labels = labels([(TARGET, name)]);
    let (name, key, parent) = (name.into(), key.into(), parent.into());
    let request = CommitSnapshotRequest { name, key, parent, labels, snapshotter: String::new() };
    snapshots.ask(async |mut client| client.commit(request).await).unwrap();
}

/// The folder that a snapshot's changes go to.
fn upper(mounts: &[Mount]) -> PathBuf {
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    upper.unwrap_or_else(|| panic!("{mounts:?}")).into()
}

/// As containerd's overlayfs differ writes it down that a layer removes something.
fn whiteout(path: &Path) {
    process::run(Command::new("mknod").arg(path).args(["c", "0", "0"])).unwrap();
}

#[test]
fn labels_of_every_client_name_an_image() {
    let image = Image::indexed();
    let of_image = |layer: usize| {
        let (chain, layers) = (image.chain[layer].as_str(), image.built.layers[layer..].join(","));
        let digest = image.built.layers[layer].as_str();
        let stargz = "containerd.io/snapshot/remote/stargz";
        let cri = "containerd.io/snapshot/cri";
        let client = |pairs: &[(String, &str)]| {
            let mut all = labels([(TARGET, chain)]);
            all.extend(pairs.iter().map(|(key, value)| (key.clone(), (*value).to_owned())));
            all
        };
        [
            // stargz-snapshotter's fs/source/source.go
            client(&[
                (format!("{stargz}.reference"), &image.published.name),
                (format!("{stargz}.digest"), digest),
                (format!("{stargz}.layers"), &layers),
                ("containerd.io/snapshot/remote/urls".into(), ""),
            ]),
            // soci-snapshotter's fs/source/source.go
            client(&[
                (format!("{cri}.image-ref"), &image.published.name),
                (format!("{cri}.layer-digest"), digest),
                (format!("{cri}.image-layers"), &layers),
                (format!("{cri}.manifest-digest"), &image.published.digest),
                ("containerd.io/snapshot/remote/soci.size".into(), "300000"),
                ("containerd.io/snapshot/remote/image.layers.size".into(), "300000,300000"),
                ("containerd.io/snapshot/remote/soci.index.digest".into(), ""),
            ]),
        ]
    };
    for client in 0..of_image(0).len() {
        let node = Node::new();
        let (_daemon, snapshots) = serve(&node);
        let mut parent = String::new();
        for layer in 0..image.chain.len() {
            let asked = &of_image(layer)[client];
            let status = snapshots.prepare(&format!("extract-{layer}"), &parent, asked).unwrap_err();
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            parent.clone_from(&snapshots.find(&image.chain[layer], &parent)[0].name);
        }
        let shown = show(&node, &snapshots.prepare("container", &parent, &BTreeMap::new()).unwrap());
        assert_eq!(shown.read("etc/2"), vec![2; 300_000]);
    }
}

#[test]
fn layers_that_are_unpacked_side_by_side_say_at_their_end_what_they_stand_on() {
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    let chain = ["sha256:one", "sha256:two"];
    let unpacking = |i: usize| {
        let mounts = snapshots.prepare(&format!("extract-{i}"), "", &labels([(TARGET, chain[i])])).unwrap();
        assert_eq!((mounts.len(), mounts[0].r#type.as_str()), (1, "overlay"), "{mounts:?}");
        upper(&mounts)
    };
    let (first, second) = (unpacking(0), unpacking(1));
    fs::write(first.join("kept"), "of the first").unwrap();
    fs::write(first.join("removed"), "of the first").unwrap();
    fs::create_dir(first.join("folder")).unwrap();
    // There is nothing below it to be removed.
    whiteout(&first.join("folder/ghost"));
    whiteout(&second.join("removed"));
    fs::write(second.join("new"), "of the second").unwrap();
    // The second is done first; then nothing stands below it yet.
    commit(&snapshots, chain[0], "extract-0", "");
    commit(&snapshots, chain[1], "extract-1", chain[0]);
    let shown = show(&node, &snapshots.prepare("container", chain[1], &BTreeMap::new()).unwrap());
    let list = |folder: &str| {
        let entries = fs::read_dir(shown.0.join(folder)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!((list(""), list("folder")), (vec!["folder".to_owned(), "kept".into(), "new".into()], vec![]));
    assert!(fs::symlink_metadata(second.join("removed")).unwrap().file_type().is_char_device());
}

#[test]
fn a_layer_of_an_image_need_not_stand_on_those_below_it() {
    let image = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    // As containerd 2.2 asks for layers of a snapshotter that can rebase.
    for (layer, chain) in image.chain.iter().enumerate().rev() {
        let status = snapshots.prepare(&format!("extract-{layer}"), "", &image.labels(layer)).unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        assert_eq!(snapshots.find(chain, "").len(), 1);
    }
    // It takes away what nothing refers to.
    snapshots.remove(&image.chain[0]);
    snapshots.remove(&image.chain[1]);
    let mounts = snapshots.prepare("container", &image.chain[2], &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts), images(&node));
    let shown = show(&node, &mounts);
    assert_eq!((shown.read("etc/1"), shown.read("same")), (vec![1; 300_000], b"of layer 2 of app".to_vec()));
    // What is asked for in order finds it too.
    let other = snapshots.prepare("other", &image.chain[2], &image.labels(1));
    assert!(other.is_ok(), "a layer that is not where it was said to be is left to containerd: {other:?}");
}

#[test]
fn an_image_that_lied_is_mounted_anew_for_new_containers() {
    let image = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    let before = show(&node, &snapshots.prepare("before", &top, &BTreeMap::new()).unwrap());
    let index = fs::read(node.image(&image.published.digest).join("index.json")).unwrap();
    fs::write(node.store("distrusted").join(&digest::of_bytes(&index)[7..]), "it lied in a test").unwrap();
    let mounts = snapshots.prepare("after", &top, &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts), images(&node));
    // Of what was pulled whole: nobody is asked any more.
    image.published.proxy.reset();
    let after = show(&node, &mounts);
    assert_eq!(after.read("etc/2"), vec![2; 300_000]);
    assert_eq!(image.published.proxy.log(), []);
    // And once is enough.
    snapshots.prepare("later", &top, &BTreeMap::new()).unwrap();
    assert_eq!(images(&node).len(), 1);
    drop((before, after));
    for key in ["before", "after", "later", &image.chain[2], &image.chain[1], &image.chain[0]] {
        snapshots.remove(key);
    }
    wait_no_images(&node);
}

#[test]
fn an_image_that_somebody_pinned_outlives_its_snapshots() {
    let image = Image::indexed();
    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    let (repo, _) = image.published.name.rsplit_once(':').unwrap();
    let named = format!("{repo}:v1@{}", image.published.digest);
    let listed = node.says(&["images", "--json"]);
    assert!(listed.contains(&image.published.digest), "{listed}");
    let name = if listed.contains(&named) { named } else { format!("{repo}@{}", image.published.digest) };
    node.says(&["pin", &name]);
    for key in [&top, &image.chain[1], &image.chain[0]] {
        snapshots.remove(key);
    }
    wait_no_images(&node);
    // It is forgotten, or not, after it was unmounted.
    process::wait_until("what becomes of it", Duration::from_secs(20), || {
        Ok(daemon.said().contains("pruned the store"))
    })
    .unwrap();
    assert!(node.says(&["images", "--json"]).contains(&image.published.digest));
    node.says(&["unpin", &name]);
}

#[test]
fn a_committed_layer_was_synced_first() {
    let node = Node::new();
    let trace = node.path("trace");
    let socket = node.path("snapshotter.sock");
    let mut command = Command::new("strace");
    command.args(["--daemonize", "--follow-forks", "--trace=syncfs", "--output"]).arg(&trace);
    let hoist = node.hoist(&["daemon", "--log", "info", "--snapshotter-socket", socket.to_str().unwrap()]);
    command.arg(hoist.get_program()).args(hoist.get_args());
    for (name, value) in hoist.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let mut daemon = Daemon::launch(&node, command);
    daemon.wait_said("ready");
    let snapshots = Snapshots::at(socket);
    let mounts = snapshots.prepare("layer", "", &BTreeMap::new()).unwrap();
    fs::write(Path::new(&mounts[0].source).join("file"), "x").unwrap();
    let synced = || fs::read_to_string(&trace).unwrap().matches("syncfs(").count();
    let before = synced();
    commit(&snapshots, "committed", "layer", "");
    assert_eq!(synced(), before + 1);
}

#[test]
fn what_is_mounted_in_a_removed_snapshot_is_not_emptied() {
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    let others = node.path("others");
    fs::create_dir(&others).unwrap();
    fs::write(others.join("file"), "somebody's").unwrap();
    let mounts = snapshots.prepare("container", "", &BTreeMap::new()).unwrap();
    let folder = Path::new(&mounts[0].source).join("mnt");
    fs::create_dir(&folder).unwrap();
    process::run(Command::new("mount").arg("--bind").arg(&others).arg(&folder)).unwrap();
    snapshots.remove("container");
    assert_eq!(fs::read(others.join("file")).unwrap(), b"somebody's");
    assert!(!folder.exists());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(folder.to_str().unwrap()), "{table}");
}

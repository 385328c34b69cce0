//! What `ctr` does with hoist: pull in the ways that its containerd knows, run, remove.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hoist_testkit::containerd::{DEFAULT, Version};
use hoist_testkit::process;

use super::{Kubelet, SOON};
use crate::node::Published;

/// Who a container's root is outside of it.
const ROOT: u32 = 100_000;

/// Both ways to pull, a container whose users are mapped, and nothing left.
pub fn pulls_runs_and_removes(kubelet: &Kubelet<'_>, version: Version, lazy: &Published, plain: &Published) {
    let ctr = |args: &[&str]| {
        let said = kubelet.containerd.ctr(args);
        said.unwrap_or_else(|e| panic!("{args:?}: {e}\n{}", kubelet.said()))
    };
    let pull = |how: &[&str], image: &Published| {
        let before = kubelet.prepared();
        let pull = ["images", "pull", "--plain-http", "--snapshotter", "hoist"];
        ctr(&[&pull[..], how, &[&image.name]].concat());
        let now = kubelet.prepared();
        (now.0 - before.0, now.1 - before.1)
    };
    // `ctr` itself does not say of which image a layer is; the transfer service does, if it is told to.
    let (by_client, by_service) = match version {
        Version::V1_6 | Version::V1_7 => (pull(&[], plain), pull(&[], lazy)),
        Version::V2 | Version::V2_2 => (pull(&["--local"], plain), pull(&[], lazy)),
    };
    assert_eq!(by_client, (0, 0), "{}", kubelet.said());
    // The lower layer is there already: the client has unpacked it.
    assert_eq!(by_service, if version.is_2() { (1, 0) } else { (0, 0) }, "{}", kubelet.said());
    // 1.6 can't mount so, nor copy; and its `ctr images mount` has overlayfs unpack an image, whatever it is told.
    if version != Version::V1_6 {
        runs_mapped(kubelet, version, &ctr, lazy);
        mounts_what_hoist_gave(kubelet, &ctr, lazy);
    }
    ctr(&["images", "rm", "--sync", &lazy.name, &plain.name]);
    let left = || Ok(ctr(&["snapshots", "--snapshotter", "hoist", "ls"]).lines().count() == 1);
    process::wait_until("the snapshots to be gone", SOON, left).unwrap();
}

fn runs_mapped(kubelet: &Kubelet<'_>, version: Version, ctr: &dyn Fn(&[&str]) -> String, image: &Published) {
    let before = snapshots(kubelet);
    let map = format!("0:{ROOT}:65536");
    let run =
        ["run", "--detach", "--snapshotter", "hoist", "--remap-labels", "--uidmap", &map, "--gidmap", &map];
    ctr(&[&run[..], &[&image.name, "mapped", "sleep", "1000000"]].concat());
    let said = ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "look",
        "mapped",
        "sh",
        "-c",
        "id -u; echo x >/new; cat /etc/group",
    ]);
    assert!(said.starts_with("0\nroot:x:0:"), "{said}");
    let root = kubelet.containerd.rootfs(DEFAULT, "mapped");
    for path in ["bin/sh", "data0", "new"] {
        let about = fs::metadata(root.join(path)).unwrap();
        assert_eq!((about.uid(), about.gid()), (ROOT, ROOT), "{path}");
    }
    // Where containerd knows that hoist can map owners, nothing was copied to be given away.
    let copied = snapshots(kubelet).iter().filter(|id| !before.contains(id)).any(|id| has(id, "bin/sh"));
    assert_eq!(copied, !version.is_2());
    ctr(&["tasks", "delete", "--force", "mapped"]);
    ctr(&["containers", "delete", "mapped"]);
}

/// `ctr images mount` of an image whose layers containerd has never seen.
fn mounts_what_hoist_gave(kubelet: &Kubelet<'_>, ctr: &dyn Fn(&[&str]) -> String, image: &Published) {
    ctr(&["images", "rm", "--sync", &image.name]);
    let socket = kubelet.containerd.socket();
    kubelet.node.says(&["pull", "--containerd", "--address", socket.to_str().unwrap(), &image.name]);
    let shown = kubelet.containerd.as_a_container(DEFAULT, "hoist", &image.name);
    let shown = shown.unwrap_or_else(|e| panic!("{e}\n{}", kubelet.said()));
    assert!(shown.path().join("bin/sh").exists());
}

/// Folders of snapshots.
fn snapshots(kubelet: &Kubelet<'_>) -> Vec<std::path::PathBuf> {
    let folders = fs::read_dir(kubelet.node.store("snapshotter/snapshots")).unwrap();
    folders.map(|folder| folder.unwrap().path()).collect()
}

fn has(snapshot: &Path, path: &str) -> bool {
    snapshot.join("fs").join(path).exists()
}

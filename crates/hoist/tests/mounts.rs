//! Mounting and unmounting as such (`docs/SEMANTICS.md`, "Mounting and unmounting").

mod node;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use hoist_sys::process::{Activity, activity};
use hoist_testkit::{Fault, FaultKind, When, process};
use node::case::{Case, PATIENCE};
use node::pids::{send, the_one};
use node::{Node, REPO, stderr};
use rustix::process::Signal;
use serde_json::Value;

/// `unmount` waits for who has the mount in another mount namespace, and says so.
#[test]
fn unmount_says_what_it_waits_for() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    let mut elsewhere = Command::new("unshare")
        .args(["--mount", "sh", "-c", "echo; read x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(elsewhere.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let log = node.path("unmount.log");
    let mut unmounting = node
        .hoist(&["unmount", mount.root().to_str().unwrap()])
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    process::wait_until("a word about it", PATIENCE, || {
        Ok(fs::read_to_string(&log)?.contains("another mount namespace still has it"))
    })
    .unwrap();
    assert!(unmounting.try_wait().unwrap().is_none());
    drop(elsewhere.stdin.take());
    elsewhere.wait().unwrap();
    assert!(unmounting.wait().unwrap().success());
    assert!(node.servers().is_empty());
}

/// Whoever asked for a mount and was killed before it was made gets none, and nobody goes on trying.
#[test]
fn a_killed_client_leaves_no_mount() {
    let case = Case::new();
    let node = Node::new();
    let tree = &case.image.parts("tree")[0];
    case.image.proxy.reset();
    let of = format!("GET /v2/{REPO}/blobs/{tree}");
    case.image.proxy.inject(Fault::new(of, When::Always, FaultKind::Hang));
    let point = node.path("point");
    fs::create_dir(&point).unwrap();
    let mut client = node.hoist(&["mount", &case.image.name, point.to_str().unwrap()]).spawn().unwrap();
    process::wait_until("a request for the tree", PATIENCE, || {
        Ok(case.image.proxy.log().iter().any(|r| r.path.contains(tree.as_str())))
    })
    .unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    // The registry is silent still.
    process::wait_until("the end of the child", PATIENCE, || {
        Ok(node.logs().contains("the process that asked for it is gone"))
    })
    .unwrap();
    case.image.proxy.clear_faults();
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
    assert!(node.says(&["status"]).contains("nothing is mounted"));
}

/// Of two who remove an image at once each has removed it, or hears that it is not there.
#[test]
fn images_removed_by_several_at_once() {
    let case = Case::new();
    let node = Node::new();
    for _ in 0..4 {
        node.says(&["pull", &case.image.name]);
        let removing: Vec<_> = (0..4)
            .map(|_| node.hoist(&["rm", &case.image.name]).stderr(Stdio::piped()).spawn().unwrap())
            .collect();
        let ended: Vec<_> = removing.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        assert!(ended.iter().any(|one| one.status.success()));
        for one in ended.iter().filter(|one| !one.status.success()) {
            let said = stderr(one);
            assert!(one.status.code() == Some(1) && said.contains("no image or container"), "{said}");
        }
    }
}

/// Goes on when dropped.
struct Stopped(i32);

impl Stopped {
    fn of(pid: i32) -> Stopped {
        send(pid, Signal::STOP);
        process::wait_until("a process that is stopped", PATIENCE, || {
            Ok(activity(pid.unsigned_abs()) == Activity::Stopped)
        })
        .unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        send(self.0, Signal::CONT);
    }
}

/// A stopped process answers nobody: who would have to wait for it is told its number instead, and what to do.
#[test]
fn beside_a_stopped_process_nothing_hangs() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &["--driver", "erofs"]);
    assert!(mount.read("etc/motd").unwrap() == case.source.read("etc/motd"));
    let stopped = Stopped::of(the_one(node.servers()));
    let is_told = |said: &str| {
        let told = said.contains(&format!("process {} too, which is stopped", stopped.0));
        assert!(told && said.contains("kill -CONT"), "{said}");
    };
    for driver in ["erofs", "fuse"] {
        is_told(&node.try_mount(&case.image.name, &["--driver", driver]).err().unwrap());
    }
    let checked = node.hoist(&["fsck"]).output().unwrap();
    assert_eq!(checked.status.code(), Some(1));
    is_told(&String::from_utf8(checked.stdout).unwrap());
    let unmounted = node.hoist(&["unmount", mount.root().to_str().unwrap()]).output().unwrap();
    let said = stderr(&unmounted);
    assert!(unmounted.status.success() && said.contains("is stopped and does not notice"), "{said}");
    drop(stopped);
    process::wait_until("the end of the mount", PATIENCE, || Ok(node.servers().is_empty())).unwrap();
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

/// Mounts that are made in the same instant, by different processes, know which superblock is theirs: none waits for the
/// end of another's.
#[test]
fn mounts_of_the_same_instant_are_told_apart() {
    let case = Case::new();
    let nodes = [Node::new(), Node::new()];
    let record = |node: &Node| -> Vec<Value> {
        let files = fs::read_dir(node.store("mounts")).unwrap().map(|entry| entry.unwrap().path());
        let records = files.filter(|path| path.extension().is_some_and(|e| e == "json"));
        records.map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    };
    nodes.iter().for_each(|node| drop(node.mount(&case.image.name, &["--driver", "erofs"])));
    std::thread::scope(|scope| {
        let mounting: Vec<_> = (0..16)
            .map(|i| {
                scope.spawn({
                    let (nodes, name) = (&nodes, &case.image.name);
                    move || nodes[i % 2].mount(name, &["--driver", "erofs"])
                })
            })
            .collect();
        let mounts: Vec<_> = mounting.into_iter().map(|mount| mount.join().unwrap()).collect();
        let superblocks: Vec<Vec<u64>> = nodes
            .iter()
            .flat_map(record)
            .map(|record| serde_json::from_value(record["superblocks"].clone()).unwrap())
            .collect();
        assert!(superblocks.iter().all(|of_one| of_one.len() == 1), "{superblocks:?}");
        let different: std::collections::BTreeSet<_> = superblocks.iter().flatten().collect();
        assert_eq!(different.len(), mounts.len(), "{superblocks:?}");
        mounts.into_iter().for_each(|mount| drop(mount.unmount()));
    });
}

/// A store whose path cannot be told in a record is refused by name, and none is made.
#[test]
fn a_store_that_cannot_be_named_is_refused() {
    let node = Node::new();
    let root = node.path("").join(OsStr::from_bytes(b"st\xffore"));
    let output = node.hoist(&["images"]).env("HOIST_ROOT", &root).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("UTF-8") && said.contains("--root") && !said.contains("internal"), "{said}");
    assert!(!root.exists());
}

/// No credential that somebody took for a part of a name is told to a terminal.
#[test]
fn no_secret_of_a_wrong_name_is_told() {
    let node = Node::new();
    for command in ["pull", "inspect", "rm", "pin", "run"] {
        let said = node.fails(&[command, "user:s3cret@registry.example/app"]);
        assert!(!said.contains("s3cret"), "{command}: {said}");
    }
}

//! Mounting and unmounting as such (`docs/SEMANTICS.md`, "Mounting and unmounting").

mod node;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use hoist_testkit::process;
use node::case::{Case, PATIENCE};
use node::{Node, stderr};
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

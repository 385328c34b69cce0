//! What stands in the store and is not what was written there: it is fetched again, and nobody is blamed for it.

mod node;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hoist_testkit::{FaultKind, When, process};
use node::case::{Case, PATIENCE};
use node::{Mounted, Node, count};

/// Turns bytes in the middle of a file, in place.
fn damage(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut bytes = [0; 64];
    let n = file.read_at(&mut bytes, middle).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    file.write_all_at(&bytes[..n], middle).unwrap();
}

fn the_layer(node: &Node) -> PathBuf {
    let [layer] = &node.layers()[..] else { panic!("{:?}", node.layers()) };
    layer.clone()
}

/// Nobody was found to lie.
fn is_nobody_blamed(node: &Node) -> bool {
    fs::read_dir(node.store("distrusted")).unwrap().count() == 0
}

/// Requests for blobs whose digests are these.
fn requests_for(case: &Case, digests: &[String]) -> usize {
    let log = case.image.proxy.log();
    log.iter().filter(|request| digests.iter().any(|digest| request.path.contains(digest.as_str()))).count()
}

/// The maps of what is here say nothing of a data file that is missing or shorter than it was.
#[test]
fn maps_of_a_data_file_that_is_gone_or_cut_are_void() {
    for cut in [None, Some(4096)] {
        let case = Case::new();
        let node = Node::new();
        let mount = node.mount(&case.image.name, &[]);
        case.source.assert_shown(mount.root());
        let layer = the_layer(&node);
        process::wait_until("the record of what is here", PATIENCE, || Ok(layer.join("present").exists()))
            .unwrap();
        mount.unmount();
        // As it is before its check.
        let _ = fs::remove_file(layer.join("state.json"));
        match cut {
            Some(length) => {
                OpenOptions::new().write(true).open(layer.join("data")).unwrap().set_len(length).unwrap()
            }
            None => fs::remove_file(layer.join("data")).unwrap(),
        }
        case.source.assert_shown(node.mount(&case.image.name, &[]).root());
    }
}

/// So it is for a layer that was complete and checked: in the layout of an index, and in our own.
#[test]
fn a_complete_layer_whose_data_is_gone_or_cut_is_fetched_again() {
    let case = Case::new();
    for pulled in [false, true] {
        for cut in [None, Some(4096)] {
            let node = Node::new();
            match pulled {
                true => drop(node.says(&["pull", &case.image.name])),
                false => {
                    let mount = node.mount(&case.image.name, &[]);
                    case.source.assert_shown(mount.root());
                    node.wait_verified();
                    mount.unmount();
                }
            }
            let data = the_layer(&node).join("data");
            match cut {
                Some(length) => OpenOptions::new().write(true).open(data).unwrap().set_len(length).unwrap(),
                None => fs::remove_file(data).unwrap(),
            }
            let mount = node.mount(&case.image.name, &[]);
            case.source.assert_shown(mount.root());
            assert!(count(&mount.unmount(), "wire_bytes") > 1_000_000);
            let inspected = node.says(&["pull", "--json", &case.image.name]);
            case.source.assert_shown(node.mount(&case.image.name, &[]).root());
            assert!(is_nobody_blamed(&node), "{inspected}");
        }
    }
}

/// A tree of a pulled image is merged again, and where the layer's own tree is damaged too, the layer is fetched.
#[test]
fn damaged_trees_of_pulled_images_are_made_again() {
    let case = Case::new();
    let node = Node::new();
    node.says(&["pull", &case.image.name]);
    let (merged, own) = (node.image(&case.image.digest).join("tree.erofs"), the_layer(&node).join("tree"));
    damage(&merged);
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    assert!(count(&mount.unmount(), "wire_bytes") < 100_000);
    for both in [[&merged, &own], [&merged, &the_layer(&node).join("table")]] {
        both.into_iter().for_each(|path| damage(path));
        let mount = node.mount(&case.image.name, &[]);
        case.source.assert_shown(mount.root());
        assert!(count(&mount.unmount(), "wire_bytes") > 1_000_000);
        both.into_iter().for_each(|path| damage(path));
        node.says(&["pull", &case.image.name]);
        case.source.assert_shown(node.mount(&case.image.name, &[]).root());
    }
    assert!(is_nobody_blamed(&node));
}

/// A stored part of an index that is not what the index names is fetched again, once, and accuses nobody.
#[test]
fn damaged_parts_of_an_index_are_fetched_again() {
    let case = Case::new();
    let (trees, tables) = (case.image.parts("tree"), case.image.parts("table"));
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    assert!(mount.read("etc/motd").unwrap() == case.source.read("etc/motd"));
    mount.unmount();
    let tree = fs::read_dir(node.image(&case.image.digest)).unwrap().map(|e| e.unwrap().path());
    let tree = tree.into_iter().find(|path| path.extension().is_some_and(|e| e == "erofs")).unwrap();
    for (stored, parts) in [(tree, trees), (the_layer(&node).join("table"), tables)] {
        damage(&stored);
        for requests in [1, 0] {
            case.image.proxy.reset();
            let mount = node.mount(&case.image.name, &[]);
            assert!(mount.read("etc/motd").unwrap() == case.source.read("etc/motd"));
            mount.unmount();
            assert_eq!(requests_for(&case, &parts), requests, "{}", stored.display());
        }
    }
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
    assert!(is_nobody_blamed(&node), "{}", node.logs());
}

/// Damaged after it was mounted, a tree is found to be when it is held against the layers.
#[test]
fn an_index_is_not_blamed_for_a_tree_that_was_damaged_here() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    let image = node.image(&case.image.digest);
    let tree = fs::read_dir(&image).unwrap().map(|e| e.unwrap().path());
    let tree = tree.into_iter().find(|path| path.extension().is_some_and(|e| e == "erofs")).unwrap();
    // The last block, which a tree this small has for padding or names: the mount goes on.
    let file = OpenOptions::new().write(true).open(&tree).unwrap();
    file.write_all_at(&[0xaa; 16], file.metadata().unwrap().len() - 16).unwrap();
    for (path, _) in node::tree::FILES {
        let _ = mount.read(path);
    }
    process::wait_until("the check of the tree", PATIENCE, || {
        Ok(node.logs().contains("damaged on the disk"))
    })
    .unwrap_or_else(|e| panic!("{e}{}", node.logs()));
    mount.unmount();
    assert!(is_nobody_blamed(&node), "{}", node.logs());
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

/// The verdict is on what was fetched; it counts once the data file was read and found to hold that.
#[test]
fn a_layer_is_not_verified_before_its_data_was_read() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    assert!(mount.read("lib/a.so").unwrap() == case.source.read("lib/a.so"));
    let layer = the_layer(&node);
    let wanted = &case.source.read("lib/a.so")[..4096];
    let data = fs::read(layer.join("data")).unwrap();
    let at = data.chunks(4096).position(|block| block == wanted).unwrap() as u64 * 4096;
    let file = OpenOptions::new().write(true).open(layer.join("data")).unwrap();
    // Through a hard link, or the kernel would ask hoist about the write.
    file.write_all_at(b"wrong", at).unwrap();
    read_all_but(&mount, "lib/a.so");
    case.inject(When::Always, FaultKind::Status(404, vec![]));
    process::wait_until("the check", PATIENCE, || {
        let logs = node.logs();
        Ok(logs.contains("it can't be fetched again") || logs.contains("complete, and all of it"))
    })
    .unwrap_or_else(|e| panic!("{e}{}", node.logs()));
    let state = fs::read_to_string(layer.join("state.json")).unwrap_or_default();
    assert!(!state.contains(r#""verified":true"#), "{state}{}", node.logs());
    case.image.proxy.clear_faults();
    mount.unmount();
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

fn read_all_but(mount: &Mounted<'_>, spared: &str) {
    for (path, _) in node::tree::FILES.into_iter().filter(|(path, _)| *path != spared) {
        mount.read(path).unwrap();
    }
}

/// What the kernel is given are the very files that were opened and are watched: whatever becomes of their names in
/// between, no other file is shown.
#[test]
fn names_that_change_while_it_is_mounted_do_no_harm() {
    let case = Case::new();
    let node = Node::new();
    let point = node.path("point");
    fs::create_dir(&point).unwrap();
    let hoist = node.hoist(&[]);
    // The mount itself is held up; what comes before it is not.
    let mut mounting = std::process::Command::new("strace");
    mounting.args(["-f", "-qq", "-e", "trace=fsconfig", "-e", "inject=fsconfig:delay_enter=1000000", "-o"]);
    mounting.arg(node.path("strace.log")).arg(hoist.get_program());
    mounting.args(["mount", "--driver", "erofs", &case.image.name]).arg(&point);
    mounting.env("HOIST_ROOT", node.store("")).env_remove("HOIST_TRUST_INDEX");
    let mut mounting = mounting.spawn().expect("strace is there: `make deps` installs what tests need");
    process::wait_until("the record of the mount", PATIENCE, || {
        Ok(fs::read_dir(node.store("mounts")).is_ok_and(|mut records| records.next().is_some()))
    })
    .unwrap();
    let data = the_layer(&node).join("data");
    let length = fs::metadata(&data).unwrap().len();
    fs::rename(&data, node.path("aside")).unwrap();
    File::create(&data).unwrap().set_len(length).unwrap();
    process::wait_until("the mount", PATIENCE, || Ok(point.join("etc/motd").exists())).unwrap();
    case.source.assert_shown(&point);
    node.says(&["unmount", point.to_str().unwrap()]);
    assert!(mounting.wait().unwrap().success());
    // Nor is anything recorded of the file that now has the name.
    assert!(!the_layer(&node).join("present").exists());
}

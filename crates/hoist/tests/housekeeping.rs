//! The store checked, mended, pruned and kept within its limit (`docs/SEMANTICS.md`, "The store").

mod node;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use hoist_testkit::layout::Compression;
use hoist_testkit::{Fault, FaultKind, ProxyOptions, When, process, push_layout};
use node::case::{Case, PATIENCE};
use node::tree::{FILES, Source, noise};
use node::{Node, Published, REPO, count};
use serde_json::Value;

fn json(said: &str) -> Value {
    serde_json::from_str(said).unwrap()
}

/// Flips a bit in every 200,000th byte of a file, in place.
fn damage(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    bytes.iter_mut().skip(70_000).step_by(200_000).for_each(|byte| *byte ^= 4);
    fs::write(path, bytes).unwrap();
}

/// What `fsck` with these options finds, and whether it is satisfied.
fn fsck(node: &Node, options: &[&str]) -> (Value, bool) {
    let output = node.hoist(&[&["fsck", "--json"], options].concat()).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    (json(&String::from_utf8(output.stdout).unwrap()), output.status.success())
}

/// Many who pull, index, remove and prune the same image at once: each layer is here whole, or not at all.
#[test]
fn pulled_and_removed_by_many_at_once_no_layer_is_half_here() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    std::thread::scope(|scope| {
        let name = &image.name;
        for command in [vec!["pull", name], vec!["index", name], vec!["pull", name], vec!["prune"]] {
            let node = &node;
            scope.spawn(move || {
                for _ in 0..8 {
                    let output = node.hoist(&command).output().unwrap();
                    let said = node::stderr(&output);
                    assert!(!said.contains("is gone"), "{command:?}: {said}");
                    // It may be refused, as somebody goes on choosing or has taken the image away: never by half.
                    assert!(matches!(output.status.code(), Some(0 | 1)), "{command:?}: {said}");
                    if command[0] == "prune" {
                        let _ = node.hoist(&["rm", name]).output().unwrap();
                    }
                }
            });
        }
    });
    let (found, well) = fsck(&node, &[]);
    assert!(well, "{found}");
    node.says(&["pull", &image.name]);
    source.assert_shown(node.mount(&image.name, &[]).root());
}

/// What is being mounted is never taken away under it, and nothing that comes and goes meanwhile is called damaged.
#[test]
fn mounted_pulled_removed_pruned_and_checked_by_many_at_once() {
    let source = Source::small();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    node.says(&["pull", &image.name]);
    std::thread::scope(|scope| {
        let (node, image, source) = (&node, &image, &source);
        for _ in 0..3 {
            scope.spawn(move || {
                for _ in 0..12 {
                    match node.try_mount(&image.name, &[]) {
                        Ok(mount) => source.assert_shown(mount.root()),
                        Err(said) => assert!(said.contains("try again"), "{said}{}", node.logs()),
                    }
                }
            });
        }
        for command in [["pull", &image.name], ["rm", &image.name]] {
            scope.spawn(move || (0..12).for_each(|_| drop(node.hoist(&command).output().unwrap())));
        }
        scope.spawn(move || (0..24).for_each(|_| drop(node.hoist(&["prune"]).output().unwrap())));
        scope.spawn(move || {
            for round in 0..12 {
                let (found, _) = fsck(node, if round % 2 == 0 { &[] } else { &["--repair"] });
                assert_eq!(found["problems"], serde_json::json!([]), "{found}");
            }
        });
    });
}

#[test]
fn damage_is_found_mended_and_fetched_again() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for pulled in [false, true] {
        let node = Node::new();
        match pulled {
            true => drop(node.says(&["pull", &image.name])),
            // In part: so the layer is not complete.
            false => drop(node.mount(&image.name, &[]).read("lib/c.so").unwrap()),
        }
        let (found, well) = fsck(&node, &[]);
        assert!(well && count(&found, "extents") > 5 && count(&found, "layers") == 1, "{found}");
        damage(&node.layers()[0].join("data"));
        let (found, well) = fsck(&node, &[]);
        let bad = count(&found, "bad_extents");
        assert!(!well && bad > 5, "{pulled}: {found}");
        // Told only: nothing was changed.
        assert_eq!(count(&fsck(&node, &[]).0, "bad_extents"), bad);
        let (found, well) = fsck(&node, &["--repair"]);
        assert!(well && count(&found, "bad_extents") == bad, "{found}");
        let (found, well) = fsck(&node, &[]);
        assert!(well && count(&found, "bad_extents") == 0, "{found}");
        // How much of it is still good is told, though nobody has touched it yet.
        let told = json(&node.says(&["inspect", "--json", &image.name]));
        let present: Vec<u64> = serde_json::from_value(told["layers"][0]["present"].clone()).unwrap();
        assert!(present[0] < present[1], "{told}");
        source.assert_shown(node.mount(&image.name, &[]).root());
        node.says(&["pull", &image.name]);
        source.assert_shown(node.mount(&image.name, &[]).root());
        assert!(fsck(&node, &[]).1);
    }
}

#[test]
fn damaged_documents_are_found_and_made_anew() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let cases = [
        ("manifest", "image", "manifest.json"),
        ("configuration", "image", "config.json"),
        ("tree", "image", "tree.erofs"),
        ("tree", "layer", "tree"),
        ("table", "layer", "table"),
        ("windows", "layer", "windows"),
    ];
    for (what, of, file) in cases {
        let node = Node::new();
        node.says(&["pull", &image.name]);
        let path = match of {
            "image" => node.store("images").join(&image.digest[7..]).join(file),
            _ => node.layers()[0].join(file),
        };
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let (found, well) = fsck(&node, &[]);
        assert!(!well && found.to_string().contains(what), "{what}: {found}");
        let (found, well) = fsck(&node, &["--repair"]);
        assert!(well, "{what}: {found}");
        let (found, well) = fsck(&node, &["--repair"]);
        assert!(well, "{what}: {found}");
        source.assert_shown(node.mount(&image.name, &[]).root());
    }
}

/// The one file that says what the folder is.
#[test]
fn a_damaged_version_is_told_and_mended() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    fs::write(node.store("version"), b"h\0ist\xff").unwrap();
    for command in [&["images"][..], &["pull", &case.image.name], &["status"]] {
        let said = node.fails(command);
        assert!(said.contains("version") && said.contains("hoist fsck --repair"), "{command:?}: {said}");
    }
    node.says(&["unmount", mount.root().to_str().unwrap()]);
    let (found, well) = fsck(&node, &[]);
    assert!(!well && found["problems"][0]["path"] == "version", "{found}");
    assert!(fsck(&node, &["--repair"]).1);
    assert!(fsck(&node, &[]).1);
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

/// A file system that came back from a crash with less than it had promised.
#[test]
fn what_the_disk_has_lost_is_fetched_again() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("etc/motd").unwrap() == source.read("etc/motd"));
    let layer = &node.layers()[0];
    let recorded = || Ok(layer.join("present").exists());
    process::wait_until("the record of what is here", Duration::from_secs(20), recorded).unwrap();
    mount.unmount();
    let data = fs::OpenOptions::new().write(true).open(layer.join("data")).unwrap();
    let length = data.metadata().unwrap().len();
    data.set_len(4096).unwrap();
    data.set_len(length).unwrap();
    // They count for the boot that they were made in.
    for name in ["live", "kept"] {
        fs::remove_file(layer.join(name)).unwrap();
    }
    source.assert_shown(node.mount(&image.name, &[]).root());
    assert!(node.logs().contains("fetching it again"), "{}", node.logs());
}

/// A mounted layer is read by the kernel: it is told of, and left alone until it is unmounted.
/// What a disk has spoiled before a boot is found without anybody asking for it.
#[test]
fn what_was_spoiled_before_a_boot_is_fetched_again() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    assert!(mount.read("lib/a.so").unwrap() == case.source.read("lib/a.so"));
    let layer = node.layers()[0].clone();
    process::wait_until("the record of what is here", PATIENCE, || Ok(layer.join("present").exists()))
        .unwrap();
    mount.unmount();
    let (data, wanted) = (layer.join("data"), case.source.read("lib/a.so"));
    let place = fs::read(&data).unwrap().windows(4096).position(|block| *block == wanted[..4096]).unwrap();
    let file = fs::File::options().write(true).open(&data).unwrap();
    file.write_all_at(b"spoiled", place as u64 + 1000).unwrap();
    // As after a reboot.
    for name in ["live", "kept", "checked"] {
        fs::remove_file(layer.join(name)).unwrap();
    }

    let mount = node.mount(&case.image.name, &[]);
    mount.read("etc/motd").unwrap();
    process::wait_until("the damage to be found", PATIENCE, || {
        Ok(node.logs().contains("is not what it was"))
    })
    .unwrap();
    case.image.proxy.reset();
    assert!(mount.read("lib/a.so").unwrap() == wanted);
    assert!(case.image.proxy.stats().requests > 0);
    assert!(layer.join("checked").exists());
}

#[test]
fn what_is_mounted_is_not_mended() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    source.assert_shown(mount.root());
    let (found, well) = fsck(&node, &["--repair"]);
    assert!(well && count(&found, "extents") > 5, "{found}");
    let present = node.layers()[0].join("present");
    fs::write(&present, b"nonsense").unwrap();
    let (found, well) = fsck(&node, &["--repair"]);
    assert!(!well && found.to_string().contains("in use"), "{found}");
    source.assert_shown(mount.root());
    mount.unmount();
    assert!(fsck(&node, &["--repair"]).1);
    source.assert_shown(node.mount(&image.name, &[]).root());
}

/// Another image with contents of its own, under this tag.
fn another(image: &Published, tag: &str, seed: u64) -> (Source, String) {
    let source = Source::new();
    for (i, (path, length)) in FILES.iter().enumerate() {
        source.write(path, &noise(seed + i as u64, *length));
    }
    push_layout(&image.registry.host(), REPO, tag, &source.layout(Compression::Gzip(1)).directory).unwrap();
    (source, format!("{}/{REPO}:{tag}", image.proxy.host()))
}

#[test]
fn pruning_spares_what_is_mounted_and_nothing_else() {
    let first = Source::new();
    let image = Published::indexed(&first.layout(Compression::Gzip(6)).directory);
    let (_, second) = another(&image, "v2", 100);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("lib/a.so").unwrap() == first.read("lib/a.so"));
    node.says(&["pull", &second]);
    node.says(&["rm", &image.name, &second]);
    let pruned = json(&node.says(&["prune", "--json"]));
    assert_eq!((count(&pruned, "images"), count(&pruned, "layers")), (1, 1), "{pruned}");
    assert!(count(&pruned, "bytes") > 9_000_000, "{pruned}");
    first.assert_shown(mount.root());
    mount.unmount();
    let pruned = json(&node.says(&["prune", "--json"]));
    assert_eq!((count(&pruned, "images"), count(&pruned, "layers")), (1, 1), "{pruned}");
    assert!(node.layers().is_empty());
}

fn on_disk(node: &Node) -> u64 {
    let files = node.layers().into_iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn the_limit_takes_what_was_used_least_recently_and_nothing_that_is_needed() {
    let first = Source::new();
    let image = Published::plain(&first.layout(Compression::Gzip(6)).directory);
    let (second, second_name) = another(&image, "v2", 100);
    let (_, third_name) = another(&image, "v3", 200);
    let (_, fourth_name) = another(&image, "v4", 300);
    let complete = |node: &Node, name: &str| {
        let images = json(&node.says(&["images", "--json"]));
        let found = images.as_array().unwrap().iter().find(|i| i["name"] == name).unwrap().clone();
        found["complete"] == true
    };
    let node = Node::new();
    node.says(&["pull", &image.name]);
    let one = on_disk(&node);
    let limit = (one * 5 / 2).to_string();
    let pull = |name: &str| node.says(&["--store-limit", &limit, "pull", name]);
    pull(&second_name);
    // Used again: the second is the older one now.
    node.mount(&image.name, &[]).unmount();
    pull(&third_name);
    assert!(on_disk(&node) <= one * 5 / 2);
    assert!(complete(&node, &image.name) && !complete(&node, &second_name) && complete(&node, &third_name));

    // Mounted and pinned ones stay, though that is more than the limit.
    let mount = node.mount(&image.name, &[]);
    node.says(&["pin", &third_name]);
    pull(&fourth_name);
    assert!(complete(&node, &image.name) && complete(&node, &third_name) && complete(&node, &fourth_name));
    first.assert_shown(mount.root());
    mount.unmount();
    node.says(&["unpin", &third_name]);
    pull(&fourth_name);
    assert!(on_disk(&node) <= one * 5 / 2 && complete(&node, &fourth_name));
    // What went comes again.
    second.assert_shown(node.mount(&second_name, &[]).root());
    assert!(node.fails(&["pin", "no.such/image"]).contains("hoist images"));
}

/// A process that dies while it makes room leaves nothing half: the next one ends its work.
#[test]
fn room_is_made_by_the_next_process_if_one_dies_at_it() {
    let source = Source::new();
    let image = Published::plain(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    for _ in 0..12 {
        node.says(&["pull", &image.name]);
        node.says(&["rm", &image.name]);
        let mut pruning = node.hoist(&["prune"]).spawn().unwrap();
        // However far it came.
        let mut spins = 0u32;
        while pruning.try_wait().unwrap().is_none() && spins < 40 {
            spins += 1;
            let _ = node.hoist(&["--version"]).output().unwrap();
            if node.layers().is_empty() {
                break;
            }
        }
        let _ = pruning.kill();
        pruning.wait().unwrap();
        source.assert_shown(node.mount(&image.name, &[]).root());
        assert!(fsck(&node, &[]).1);
    }
    node.says(&["rm", &image.name]);
    node.says(&["prune"]);
    assert!(node.layers().is_empty());
    assert_eq!(fs::read_dir(node.store("gone")).map_or(0, Iterator::count), 0);
}

/// A pull that is killed leaves nothing behind that the next command does not remove; one that goes on loses nothing.
#[test]
fn what_a_killed_pull_has_written_is_removed() {
    let case = Case::new();
    let node = Node::new();
    let aside = || fs::read_dir(node.store("aside")).into_iter().flatten().flatten().map(|e| e.path());
    let is_written = || Ok(aside().any(|path| path.metadata().is_ok_and(|meta| meta.len() > 1 << 16)));
    case.image.proxy.set_options(ProxyOptions { rate: Some(2_000_000), ..ProxyOptions::default() });
    let mut pull = node.hoist(&["pull", &case.image.name]).spawn().unwrap();
    process::wait_until("a part of the layer", PATIENCE, is_written).unwrap();
    node.says(&["images"]);
    assert_eq!(aside().count(), 1);
    pull.kill().unwrap();
    pull.wait().unwrap();
    assert_eq!(aside().count(), 1);
    node.says(&["images"]);
    assert_eq!(aside().count(), 0);
    let mut pull = node.hoist(&["pull", &case.image.name]).spawn().unwrap();
    process::wait_until("a part of the layer", PATIENCE, is_written).unwrap();
    node.says(&["images"]);
    case.image.proxy.set_options(ProxyOptions::default());
    assert!(pull.wait().unwrap().success());
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

/// While an image of another format waits for its registry, room can be made.
#[test]
fn an_image_that_is_being_converted_keeps_nobody_from_making_room() {
    let image = Published::plain(&hoist_testkit::fixtures_dir().unwrap().join("estargz"));
    let layer = image.layers()[0].clone();
    // Longer than who takes things away would wait.
    let slow = FaultKind::Delay(Duration::from_secs(7));
    image.proxy.inject(Fault::new(format!("/blobs/{layer}"), When::First(1), slow));
    let node = Node::new();
    let point = node.path("point");
    fs::create_dir(&point).unwrap();
    let mut mounting = node.hoist(&["mount", &image.name, point.to_str().unwrap()]).spawn().unwrap();
    process::wait_until("a request for the layer", PATIENCE, || {
        Ok(image.proxy.log().iter().any(|asked| asked.path.contains(&layer)))
    })
    .unwrap();
    node.says(&["prune"]);
    assert!(mounting.try_wait().unwrap().is_none(), "it was to wait for its registry");
    assert!(mounting.wait().unwrap().success());
    let differences = hoist_testkit::compare_tree(&point, &hoist_testkit::Exceptions::full()).unwrap();
    assert_eq!(differences, [""; 0]);
    node.says(&["unmount", point.to_str().unwrap()]);
}

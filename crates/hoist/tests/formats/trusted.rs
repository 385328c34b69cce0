//! What is taken on trust, and how far.

use std::time::Duration;

use super::*;

/// A layer that only its own TOC vouches for is never called verified, however complete.
#[test]
fn what_only_vouches_for_itself_is_not_verified() {
    let image = unpinned();
    let node = Node::new();
    let mount = node.mount(&image.name, &["--log", "info"]);
    assert_right(&mount, &Exceptions::full());
    process::wait_until("word of the complete layer", Duration::from_secs(30), || {
        Ok(node.logs().contains("complete; `hoist pull` checks it against the image"))
    })
    .unwrap_or_else(|e| panic!("{e}{}", node.logs()));
    let state = |layer: PathBuf| fs::read_to_string(layer.join("state.json")).unwrap_or_default();
    assert!(node.layers().into_iter().map(state).all(|state| !state.contains("\"verified\":true")));
    mount.unmount();
    node.says(&["pull", &image.name]);
    node.wait_verified();
    assert_right(&node.mount(&image.name, &[]), &Exceptions::full());
}

/// Records that were damaged on the disk count as none: what they were of is fetched and verified again.
#[test]
fn damaged_records_are_made_anew() {
    let image = published("overlaybd");
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    mount.read(SMALL).unwrap();
    mount.unmount();
    let layers = node.layers();
    let path = layers.iter().map(|layer| layer.join("digests")).find(|path| path.exists()).unwrap();
    let damaged: Vec<u8> = fs::read(&path).unwrap().iter().map(|byte| byte ^ 1).collect();
    fs::write(&path, damaged).unwrap();
    let found = node.hoist(&["fsck", "--repair"]).output().unwrap();
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(said.contains("are not what they should be"), "{said}");
    assert_right(&node.mount(&image.name, &[]), &Exceptions::ext4());
    node.says(&["fsck"]);
}

//! TurboOCI: metadata beside the original layers.

use std::collections::HashMap;

use hoist_format::digest::Digest;
use hoist_format::overlaybd::{TurboLayer, describe_turbo};

use crate::fixture::data_file;
use crate::unpacked::{Allowed, blob, compare, layers};

fn turbo_layers(image: &str) -> (Vec<TurboLayer>, HashMap<Digest, Vec<u8>>) {
    let (mut all, mut originals) = (Vec::new(), HashMap::new());
    for (descriptor, meta) in layers(image) {
        let target =
            descriptor["annotations"]["containerd.io/snapshot/overlaybd/turbo-oci/target-digest"].as_str();
        let bytes = blob(image, target.unwrap());
        let (target, size) = (Digest::of(&bytes), bytes.len() as u64);
        originals.insert(target, bytes);
        all.push(TurboLayer { meta, target, size });
    }
    (all, originals)
}

fn check(image: &str, allowed: &Allowed) {
    let (layers, originals) = turbo_layers(image);
    let described = describe_turbo(&layers).unwrap();
    let data = data_file(&described, &originals);
    compare(&described.tree, allowed, |_, place, size| {
        data[place.offset as usize..(place.offset + size) as usize].to_vec()
    });
}

#[test]
fn ext4_is_what_containerd_unpacks() {
    // Its tools keep no ids of more than 21 bits, as debugfs says too.
    let without = |path: &str| path == "ids/big";
    check("turbooci-ext4", &Allowed { more: &["lost+found"], without, ..Allowed::default() });
}

#[test]
fn erofs_is_what_containerd_unpacks() {
    // Its tools cut a name of 255 bytes, as dump.erofs says too.
    let without = |path: &str| path.starts_with("names/nnnnn");
    check("turbooci-erofs", &Allowed { without, implied_mode: Some("0o777"), ..Allowed::default() });
}

/// An original of another size is another layer.
#[test]
fn metadata_is_of_its_layer_alone() {
    for image in ["turbooci-ext4", "turbooci-erofs"] {
        let (mut layers, _) = turbo_layers(image);
        layers[1].size += 1;
        let said = describe_turbo(&layers).unwrap_err().to_string();
        assert!(said.contains("of another layer"), "{said}");
    }
}

/// Metadata that is cut or has a byte flipped: an error, or a tree; never a panic.
#[test]
fn damage_does_not_panic() {
    for image in ["turbooci-ext4", "turbooci-erofs"] {
        let (layers, _) = turbo_layers(image);
        for at in (0..layers[1].meta.len()).step_by(61) {
            let mut bad = layers.clone();
            bad[1].meta[at] ^= 0x41;
            let _ = describe_turbo(&bad);
            bad[1].meta.truncate(at);
            assert!(describe_turbo(&bad).is_err(), "{image} cut at {at}");
        }
    }
}

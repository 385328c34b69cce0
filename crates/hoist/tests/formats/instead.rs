//! Images whose own metadata is of no use, and whose manifest names the layers that they were made of.

use super::*;

/// Its original layers are shown, with the reason, and found again without it; no index can be made of it.
fn is_shown_by_its_originals(layout: &Layout, reason: &str, exceptions: &Exceptions) {
    let image = Published::plain(layout.path());
    let node = Node::new();
    for _ in 0..2 {
        let told = inspect(&node, &image.name, &[]);
        assert_eq!(told["lazy"], false, "{told}");
        let noted = |l: &Value| {
            l["note"].as_str().is_some_and(|n| n.contains("original layers") && n.contains(reason))
        };
        assert!(told["layers"].as_array().unwrap().iter().all(noted), "{reason}: {told}");
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount, exceptions);
        mount.unmount();
        image.proxy.reset();
    }
    node.says(&["prune"]);
    assert_right(&node.mount(&image.name, &["--trust-index", "none"]), exceptions);
    assert!(image.proxy.log().iter().all(|r| !r.path.contains("/blobs/")), "{:?}", image.proxy.log());
    let told = inspect(&node, &image.name, &[]);
    assert!(told["layers"].as_array().unwrap().iter().all(|layer| layer["verified"] == true), "{told}");
    let said = node.fails(&["index", "--push", &image.name]);
    assert!(said.contains("index that image") && said.contains(reason), "{said}");
    let pulled = Node::new();
    let output = pulled.hoist(&["pull", &image.name]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("original layers are fetched whole instead"), "{said}");
    assert!(said.contains(reason), "{said}");
    // Where nothing is trusted, whoever mounts it has them pulled.
    let node = Node::new();
    let mount = node.mount(&image.name, &["--trust-index", "none"]);
    assert_right(&mount, exceptions);
    let stats = mount.unmount();
    assert_eq!(count(&stats, "demand_stalls"), 0, "{stats}");
    let by_digest = format!("{}@{}", image.name.rsplit_once(':').unwrap().0, image.digest);
    drop(image);
    assert_right(&pulled.mount(&by_digest, &[]), exceptions);
}

/// The lower layer of a TurboOCI image with `change` made to the archive in it.
fn turbooci(fixture: &str, change: impl FnOnce(&mut Vec<u8>)) -> Layout {
    let layout = Layout::of(fixture);
    layout.change(|manifest| {
        let layer = &mut manifest["layers"][0];
        let mut tar = filter("gzip", &["-dc"], &fs::read(layout.blob(&layer["digest"])).unwrap());
        change(&mut tar);
        let stored = filter("gzip", &["-n"], &tar);
        layer["digest"] = layout.add(&stored).into();
        layer["size"] = stored.len().into();
    });
    layout
}

#[test]
fn turbooci_of_damaged_metadata() {
    let damage = |tar: &mut Vec<u8>| {
        let magic = tar.windows(8).position(|part| part == b"ddgzidx\0").unwrap();
        tar[magic + 40] ^= 1;
    };
    let layout = turbooci("turbooci-ext4", damage);
    is_shown_by_its_originals(&layout, "its header has another checksum", &Exceptions::full());
}

/// The metadata of the two layers is exchanged.
pub(super) fn of_other_layers() -> Layout {
    let layout = Layout::of("turbooci-erofs");
    layout.change(|manifest| {
        for field in ["digest", "size"] {
            let lower = manifest["layers"][0][field].clone();
            manifest["layers"][0][field] = std::mem::replace(&mut manifest["layers"][1][field], lower);
        }
    });
    layout
}

#[test]
fn turbooci_of_another_layer() {
    let layout = of_other_layers();
    is_shown_by_its_originals(&layout, "of another layer than", &Exceptions::full());
}

#[test]
fn nydus_zran_of_a_damaged_bootstrap() {
    let layout = Layout::of("nydus-zran");
    layout.change(|manifest| {
        let layer = &mut manifest["layers"][2];
        let mut tar = filter("gzip", &["-dc"], &fs::read(layout.blob(&layer["digest"])).unwrap());
        // Behind a folder's header and its own: the superblock's first byte.
        tar[1024 + 1024] ^= 1;
        layer["digest"] = layout.add(&tar).into();
        layer["size"] = tar.len().into();
    });
    is_shown_by_its_originals(&layout, "magic number", &Exceptions::without_fifo());
}

/// Where they are gone too, both are said.
#[test]
fn without_original_layers_it_is_refused() {
    let layout = turbooci("turbooci-ext4", |tar| tar.truncate(100));
    layout.change(|manifest| {
        let annotations = &manifest["layers"][0]["annotations"];
        let target = annotations["containerd.io/snapshot/overlaybd/turbo-oci/target-digest"].clone();
        fs::remove_file(layout.blob(&target)).unwrap();
    });
    let image = Published::plain(layout.path());
    let said = Node::new().try_mount(&image.name, &[]).err().unwrap();
    assert!(said.contains("that it was made of cannot be had"), "{said}");
}

//! The awkward image in every format, through containerd: what a container of it sees.

use std::process::Command;

use hoist_testkit::containerd::PODS;
use hoist_testkit::{Exceptions, compare_tree, fixtures_dir, process, push_layout};

use super::Kubelet;
use crate::node::{Published, REPO};

/// Whether an image is had without unpacking it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Lazy,
    Unpacked,
}

/// Pulls each and compares.
pub fn all_are_right(kubelet: &Kubelet<'_>) {
    // Each is to be the only one there.
    kubelet.remove_images();
    kubelet.wait_nothing_left();
    let plain = ["tar", "gzip", "gzip-multimember", "zstd"];
    for format in plain {
        check(kubelet, format, &published(format), Some(Is::Unpacked), &Exceptions::full());
    }
    let indexed = Published::indexed(&fixtures_dir().unwrap().join("gzip"));
    check(kubelet, "gzip with an index", &indexed, Some(Is::Lazy), &Exceptions::full());
    for format in ["estargz", "estargz-inner", "estargz-extern", "zstdchunked-stargz"] {
        check(kubelet, format, &published(format), Some(Is::Lazy), &Exceptions::full());
    }
    for format in ["nydus-v5", "nydus-v6", "nydus-zran"] {
        check(kubelet, format, &published(format), Some(Is::Lazy), &Exceptions::without_fifo());
    }
    check(
        kubelet,
        "zstdchunked-containers",
        &published("zstdchunked-containers"),
        Some(Is::Lazy),
        &Exceptions::full(),
    );
    for (format, exceptions) in [
        ("overlaybd", Exceptions::ext4()),
        ("turbooci-ext4", Exceptions::ext4()),
        ("turbooci-erofs", Exceptions::turbo_erofs()),
    ] {
        check(kubelet, format, &published(format), Some(Is::Lazy), &exceptions);
    }
    for format in ["soci-v1", "soci-v2"] {
        check(kubelet, format, &published(format), None, &Exceptions::full());
    }
    for format in ["erofs-raw", "erofs-zstd", "erofs-lz4hc"] {
        check_beside(kubelet, format, &published(format), &Exceptions::erofs());
    }
}

fn published(format: &str) -> Published {
    let image = Published::plain(&fixtures_dir().unwrap().join(format));
    if format == "estargz-extern" {
        let tocs = fixtures_dir().unwrap().join("estargz-extern-esgztoc");
        push_layout(&image.registry.host(), REPO, "v1-esgztoc", &tocs).unwrap();
    }
    image
}

fn check(kubelet: &Kubelet<'_>, format: &str, image: &Published, is: Option<Is>, exceptions: &Exceptions) {
    let before = kubelet.prepared();
    kubelet.cri().pull(&image.name).unwrap_or_else(|e| panic!("{format}: {e}\n{}", kubelet.said()));
    let now = kubelet.prepared();
    let found = if now.1 > before.1 { Is::Unpacked } else { Is::Lazy };
    assert!(is.is_none_or(|is| found == is), "{format}: {}", kubelet.said());
    assert_shown(kubelet, format, exceptions);
}

/// containerd before 2.3 does not take the media type of native EROFS layers for a layer's: whatever snapshotter it has, it
/// fails to count them (1.7) or to unpack them (1.6), or says nothing and unpacks none (2.1). `hoist pull --containerd`
/// gives it the image all the same.
fn check_beside(kubelet: &Kubelet<'_>, format: &str, image: &Published, exceptions: &Exceptions) {
    if let Err(said) = kubelet.cri().pull(&image.name) {
        let said = said.to_string();
        let known = ["mismatched image rootfs and manifest layers", "no processor for media-type"];
        assert!(known.iter().any(|known| said.contains(known)), "{format}: {said}");
    }
    kubelet.remove_images();
    kubelet.wait_nothing_left();
    let socket = kubelet.containerd.socket();
    let pull = ["pull", "--json", "--containerd", "--namespace", PODS, "--address", socket.to_str().unwrap()];
    kubelet.node.says(&[&pull[..], &[&image.name]].concat());
    assert_shown(kubelet, format, exceptions);
}

/// What a container of the only image there is sees. Nothing is left of it then: several have the same layers.
fn assert_shown(kubelet: &Kubelet<'_>, format: &str, exceptions: &Exceptions) {
    let ctr = |args: &[&str]| {
        let snapshots = ["snapshots", "--snapshotter", "hoist"];
        let said = kubelet.containerd.ctr_of_pods(&[&snapshots[..], args].concat());
        said.unwrap_or_else(|e| panic!("{format}: {e}\n{}", kubelet.said()))
    };
    // containerd 2.2 has layers that come side by side stand on nothing: then it keeps the uppermost alone.
    for lease in [&["leases", "create", "--id", "done"][..], &["leases", "rm", "--sync", "done"]] {
        kubelet.containerd.ctr_of_pods(lease).unwrap_or_else(|e| panic!("{format}: {e}\n{}", kubelet.said()));
    }
    let all = ctr(&["ls"]);
    let all: Vec<Vec<&str>> = all.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let is_stood_on = |name: &str| all.iter().any(|words| words[1] == name);
    let top = all.iter().find(|words| !is_stood_on(words[0])).unwrap_or_else(|| panic!("{format}: {all:?}"));
    let point = tempfile::tempdir_in(kubelet.node.path("")).unwrap().keep();
    let mount = ctr(&["prepare", "--target", point.to_str().unwrap(), "seen", top[0]]);
    process::run(Command::new("sh").args(["-ec", &mount])).unwrap();
    let differences = compare_tree(&point, exceptions).unwrap();
    process::run(Command::new("umount").arg(&point)).unwrap();
    assert_eq!(differences, [""; 0], "{format}");
    ctr(&["rm", "seen"]);
    kubelet.remove_images();
    kubelet.wait_nothing_left();
}

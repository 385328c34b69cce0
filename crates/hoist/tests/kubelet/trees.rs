//! The awkward image in every format, through containerd: what a container of it sees.
//!
//! Native EROFS layers are left out: no containerd before 2.3 takes their media type for a layer's.

use hoist_testkit::containerd::PODS;
use hoist_testkit::{Exceptions, compare_tree, fixtures_dir, push_layout};

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
    let view = kubelet.containerd.as_a_container(PODS, "hoist", &image.name);
    let view = view.unwrap_or_else(|e| panic!("{format}: {e}\n{}", kubelet.said()));
    let differences = compare_tree(view.path(), exceptions).unwrap();
    assert_eq!(differences, [""; 0], "{format}");
    drop(view);
    // Several have the same layers.
    kubelet.remove_images();
    kubelet.wait_nothing_left();
}

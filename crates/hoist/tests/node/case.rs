//! What most tests begin with: an image with its index, behind a registry that misbehaves on demand.

use std::time::Duration;

use hoist_testkit::layout::Compression;
use hoist_testkit::{Fault, FaultKind, When, process};

use super::tree::Source;
use super::{Published, REPO};

/// Longer than any of this takes on a loaded machine; nothing is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An image of one layer, and where faults of that layer are injected.
pub struct Case {
    pub source: Source,
    pub image: Published,
    /// The layer's digest.
    pub layer: String,
}

impl Case {
    /// Of the usual files, with gzip.
    pub fn new() -> Case {
        Case::of(Source::new(), Compression::Gzip(6))
    }

    pub fn of(source: Source, compression: Compression) -> Case {
        let layout = source.layout(compression);
        let image = Published::indexed(&layout.directory);
        Case { source, image, layer: layout.layers[0].clone() }
    }

    /// Requests for the layer fail like this.
    pub fn inject(&self, when: When, kind: FaultKind) {
        let of = format!("GET /v2/{REPO}/blobs/{}", self.layer);
        self.image.proxy.inject(Fault::new(of, when, kind));
    }

    /// Requests for the layer are never answered.
    pub fn hang(&self) {
        self.inject(When::Always, FaultKind::Hang);
    }

    /// Waits until the layer was asked for.
    pub fn wait_for_a_request(&self) {
        process::wait_until("a request for the layer", PATIENCE, || {
            Ok(self.image.proxy.log().iter().any(|r| r.path.contains(&self.layer)))
        })
        .unwrap();
    }
}

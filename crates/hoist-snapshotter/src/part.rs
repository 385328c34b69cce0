//! Snapshots that are layers of images: what containerd asks of them, and whoever has the images.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::{Labels, Usage};

/// The key under which containerd looks for a layer that somebody else has made (its
/// core/metadata/snapshot.go): a chain ID.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// The image's name, as clients say it: containerd's CRI plugin and the transfer service
/// (pkg/snapshotters/annotations.go), and clients of remote snapshotters.
const NAMES: [&str; 2] =
    ["containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/remote/stargz.reference"];
/// The digest of its manifest, where it is said.
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// An image's lowest layers, mounted as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The image's name.
    pub image: String,
    /// The digest of its manifest.
    pub manifest: String,
    /// How many of its layers.
    pub layers: usize,
    /// Are these all it has?
    pub whole: bool,
    /// The digest of the uppermost's blob.
    pub layer: String,
}

impl Part {
    /// Names its mount.
    pub fn folder(&self) -> String {
        let digest = self.manifest.replace(':', "-");
        if self.whole { digest } else { format!("{digest}.{}", self.layers) }
    }
}

/// A layer that a client wants to have without unpacking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The image's name.
    pub image: String,
    /// The digest of its manifest, if the client knows it.
    pub manifest: Option<String>,
    /// The layer's chain ID.
    pub chain: String,
    /// Layers below it. None where it stands on nothing: it is the lowest, or the client unpacks layers side by side and
    /// says what each stands on when it is committed.
    pub below: Option<usize>,
    /// All that was said.
    pub labels: Labels,
}

impl Wanted {
    /// What the labels of a new snapshot ask for; None of an ordinary one.
    pub(crate) fn of(labels: &Labels, below: Option<usize>) -> Option<Wanted> {
        Some(Wanted {
            image: image(labels)?,
            manifest: labels.get(MANIFEST).cloned(),
            chain: labels.get(TARGET)?.clone(),
            below,
            labels: labels.clone(),
        })
    }
}

/// The image that the labels of one of its layers name.
pub(crate) fn image(labels: &Labels) -> Option<String> {
    NAMES.iter().find_map(|name| labels.get(*name)).cloned()
}

/// The labels by which a layer is asked for.
pub(crate) fn labels(image: &str, manifest: &str, chain: &str) -> Labels {
    let pairs = [(TARGET, chain), (NAMES[0], image), (MANIFEST, manifest)];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A layer's place in an image that can be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The part that it is uppermost in.
    pub part: Part,
    /// How much of the image is here.
    pub how: How,
}

/// What a layer that nobody unpacks was prepared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// What is read is fetched then.
    Lazy,
    /// The whole image was pulled first.
    Full,
}

/// Why a layer is to be unpacked by containerd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of it, to be counted by.
    pub reason: Reason,
    /// For people.
    pub why: String,
}

/// See [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The image can't be read lazily, and is not here.
    NotLazy,
    /// Its registry wants other credentials.
    Denied,
    /// Its registry can't be asked, or has not the image.
    Registry,
    /// The layer is none of the image that the client names.
    Mismatch,
    /// It could not be pulled.
    Pull,
    /// It could not be mounted.
    Mount,
    /// Anything else.
    Internal,
}

impl Reason {
    /// With a word for people.
    pub fn because(self, why: impl Into<String>) -> Refusal {
        Refusal { reason: self, why: why.into() }
    }
}

/// Whoever has images.
#[tonic::async_trait]
pub trait Images: Send + Sync + 'static {
    /// Which part of its image a layer is uppermost in.
    ///
    /// # Errors
    /// Why it is to be unpacked.
    async fn find(&self, wanted: &Wanted) -> Result<Found, Refusal>;

    /// What became of a layer that was wanted, and how long it took.
    fn told(&self, wanted: &Wanted, outcome: Result<How, &Refusal>, took: Duration);

    /// Mounts a part on a folder, unless it is mounted there. Done when it can be read.
    ///
    /// # Errors
    /// Why it can't.
    async fn mount(&self, part: &Part, folder: &Path) -> Result<(), String>;

    /// A container is being made that stands on a whole image, which is mounted on this folder, or is about to be, as the
    /// image is being pulled. Waits for nothing.
    fn starts(&self, part: &Part, folder: &Path);

    /// Unmounts what is on a folder, if anything.
    async fn unmount(&self, folder: &Path);

    /// No snapshot is a layer of the image with this manifest any more.
    async fn forget(&self, manifest: &str);

    /// What a part's uppermost layer takes on disk now.
    fn usage(&self, part: &Part) -> Usage;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without_labels(wanted: Wanted) -> Wanted {
        Wanted { labels: Labels::new(), ..wanted }
    }

    #[test]
    fn labels_of_all_clients() {
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Wanted::of(&labels.collect(), Some(1)).map(without_labels)
        };
        let wanted = |manifest: Option<&str>| Wanted {
            image: "r/app:1".into(),
            manifest: manifest.map(str::to_owned),
            chain: "sha256:c".into(),
            below: Some(1),
            labels: Labels::new(),
        };
        let target = (TARGET, "sha256:c");
        assert_eq!(of(&[target, (NAMES[0], "r/app:1"), (MANIFEST, "m")]), Some(wanted(Some("m"))));
        assert_eq!(of(&[target, (NAMES[1], "r/app:1")]), Some(wanted(None)));
        assert_eq!(of(&[target]), None);
        assert_eq!(of(&[(NAMES[0], "r/app:1")]), None);
        let own = Wanted::of(&labels("r/app:1", "m", "sha256:c"), Some(1));
        assert_eq!(own.map(without_labels), Some(wanted(Some("m"))));
    }
}

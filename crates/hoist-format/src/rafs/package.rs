//! The layer that holds a bootstrap: a tar file with `image/image.boot`, and `image/BLOB.blob.meta` for blobs that have
//! contexts (`pkg/converter` of nydus-snapshotter).

use std::collections::BTreeMap;

use super::{Beside, Bootstrap, Contexts, RafsError};
use crate::digest::Digest;
use crate::tar::{Decoder, Entry, Sink, TarError};

const BOOTSTRAP: &[u8] = b"image/image.boot";
/// Where versions before 2.0 had it.
const OLD_BOOTSTRAP: &[u8] = b"image.boot";
const CONTEXTS: &[u8] = b".blob.meta";

/// Most bytes of the layer when decompressed.
pub const MAX_PACKAGE: u64 = 512 << 20;

/// What a bootstrap's layer holds.
#[derive(Default)]
pub struct Package {
    bootstrap: Vec<u8>,
    contexts: BTreeMap<Digest, Vec<u8>>,
}

impl Package {
    /// Reads the layer's uncompressed stream, of at most [`MAX_PACKAGE`] bytes.
    ///
    /// # Errors
    /// A damaged tar file.
    pub fn read(stream: &[u8]) -> Result<Self, TarError> {
        let mut reader = PackageReader::default();
        reader.feed(stream)?;
        reader.finish()
    }

    /// The bootstrap.
    ///
    /// # Errors
    /// [`RafsError::Missing`] where there is none, or as [`Bootstrap::open`].
    pub fn bootstrap(&self) -> Result<Bootstrap<'_>, RafsError> {
        if self.bootstrap.is_empty() {
            return Err(RafsError::Missing("image/image.boot in the layer that should hold it"));
        }
        Bootstrap::open(&self.bootstrap)
    }

    /// Contexts of its blobs that are here.
    ///
    /// # Errors
    /// As [`Contexts::unpacked`].
    pub fn contexts(&self, bootstrap: &Bootstrap<'_>) -> Result<BTreeMap<u32, Beside>, RafsError> {
        let mut all = BTreeMap::new();
        for (index, blob) in (0..).zip(bootstrap.blobs()) {
            let file = blob.contexts.as_ref().and_then(|at| self.contexts.get(&at.blob));
            if let Some(file) = file.filter(|_| blob.needs_contexts()) {
                let contexts = Some(Contexts::unpacked(file, blob)?);
                all.insert(index, Beside { contexts, digests: None });
            }
        }
        Ok(all)
    }
}

/// Reads a bootstrap's layer piece by piece.
#[derive(Default)]
pub struct PackageReader {
    tar: Decoder,
    found: Found,
}

impl PackageReader {
    /// Takes the next bytes of the uncompressed stream.
    ///
    /// # Errors
    /// A damaged tar file.
    pub fn feed(&mut self, stream: &[u8]) -> Result<(), TarError> {
        self.tar.feed(stream, &mut self.found)
    }

    /// Ends it.
    ///
    /// # Errors
    /// A tar file that is cut off.
    pub fn finish(self) -> Result<Package, TarError> {
        self.tar.finish()?;
        Ok(self.found.package)
    }
}

/// The file at work, and those before.
#[derive(Default)]
struct Found {
    package: Package,
    at: At,
}

#[derive(Default)]
enum At {
    #[default]
    Other,
    Bootstrap,
    Contexts(Digest),
}

impl Sink for Found {
    type Error = TarError;

    fn entry(&mut self, entry: Entry) -> Result<(), TarError> {
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        self.at = match path {
            BOOTSTRAP | OLD_BOOTSTRAP => At::Bootstrap,
            _ => match contexts_of(path) {
                Some(digest) => At::Contexts(digest),
                None => At::Other,
            },
        };
        Ok(())
    }

    fn data(&mut self, _: u64, _: u64, bytes: &[u8]) -> Result<(), TarError> {
        match self.at {
            At::Bootstrap => self.package.bootstrap.extend_from_slice(bytes),
            At::Contexts(digest) => {
                self.package.contexts.entry(digest).or_default().extend_from_slice(bytes);
            }
            At::Other => {}
        }
        Ok(())
    }
}

/// Which blob `image/BLOB.blob.meta` is of.
fn contexts_of(path: &[u8]) -> Option<Digest> {
    let name = path.strip_prefix(b"image/")?.strip_suffix(CONTEXTS)?;
    format!("sha256:{}", std::str::from_utf8(name).ok()?).parse().ok()
}

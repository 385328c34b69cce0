//! What a layer's extents must be. Most tables say it; of one of chunks it is recorded when an extent was first
//! verified by the chunks that it is cut from, in the file `digests`: 32 bytes for each extent, zeros where nothing was
//! recorded yet.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use hoist_format::chunk::Check;
use hoist_format::extent::Extent;
use hoist_format::table::Table;

use super::LayerDir;
use super::known::NAMELESS;
use crate::error::Error;

/// The file's name.
pub(crate) const DIGESTS: &str = "digests";

/// See the module.
pub(crate) struct Digests {
    /// None where the table has them.
    recorded: Option<Option<File>>,
}

fn are_in(table: &Table) -> bool {
    table.spans.chunks().is_none_or(|chunks| chunks.check == Check::Extents)
}

impl Digests {
    /// Of a layer that is about to be filled.
    pub fn open(dir: &LayerDir, table: &Table) -> Result<Self, Error> {
        let bytes = 32 * table.extents.extents.len() as u64;
        let recorded = match are_in(table) {
            true => None,
            false => Some(Some(dir.open_sparse(DIGESTS, bytes)?)),
        };
        Ok(Self { recorded })
    }

    /// Of a layer that is only looked at.
    pub fn existing(dir: &LayerDir, table: &Table) -> Self {
        let recorded = (!are_in(table)).then(|| File::open(dir.file(DIGESTS)).ok());
        Self { recorded }
    }

    /// Are they recorded, and not in the table?
    pub fn are_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// What extent `i` must be; None if nobody knows yet.
    pub fn wanted(&self, i: usize, extent: &Extent) -> Option<[u8; 32]> {
        match &self.recorded {
            None => Some(extent.digest),
            Some(file) => recorded(file.as_ref()?, i),
        }
    }

    /// Is `digest` what extent `i` must be? What was not known is recorded. An extent that has a name was held to the
    /// digests of its chunks just now: then the record may be what is damaged, and is made anew.
    pub fn is_right(&self, i: usize, extent: &Extent, digest: [u8; 32]) -> io::Result<bool> {
        match (self.wanted(i, extent), &self.recorded) {
            (Some(wanted), _) if wanted == digest => Ok(true),
            (_, Some(Some(file))) if extent.digest != NAMELESS => record(file, i, digest),
            (None, Some(Some(file))) => record(file, i, digest),
            _ => Ok(false),
        }
    }

    /// Has the records outlive a power cut.
    pub fn sync(&self) -> io::Result<()> {
        self.recorded.iter().flatten().try_for_each(File::sync_data)
    }
}

fn record(file: &File, i: usize, digest: [u8; 32]) -> io::Result<bool> {
    file.write_all_at(&digest, 32 * i as u64)?;
    Ok(true)
}

/// What was recorded of extent `i`.
pub(crate) fn recorded(file: &File, i: usize) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    file.read_exact_at(&mut digest, 32 * i as u64).ok()?;
    (digest != NAMELESS).then_some(digest)
}

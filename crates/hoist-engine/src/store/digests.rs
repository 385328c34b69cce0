//! What a layer's extents must be. Most tables say it; of one of chunks it is recorded when an extent was first
//! verified by the chunks that it is cut from, in the file `digests`: for each extent 32 bytes of BLAKE3 and 8 that tell
//! whether these are what was recorded, zeros where nothing was yet. A damaged record counts as none: what it was of is
//! fetched and recorded again.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

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
        let bytes = RECORD * table.extents.extents.len() as u64;
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

    /// Extent `i` is `digest`, whatever was recorded of it.
    pub fn correct(&self, i: usize, digest: [u8; 32]) -> io::Result<()> {
        self.recorded.iter().flatten().try_for_each(|file| record(file, i, digest).map(drop))
    }

    /// The turn to write extent `i`: its record, its bytes, and that they are here. Of two who took different bytes for
    /// right, in whatever process, the second must not write the bytes when the record is the first one's. None where
    /// nothing is recorded: then all write the same. Blocks.
    pub fn turn(&self, i: usize) -> io::Result<Option<Turn<'_>>> {
        let Some(Some(file)) = &self.recorded else { return Ok(None) };
        let range = RECORD * i as u64..RECORD * (i as u64 + 1);
        let since = Instant::now();
        while !hoist_sys::file::try_lock_range(file, range.clone())? {
            if since.elapsed() > PATIENCE {
                return Err(io::Error::other(
                    "another process writes the same, and has stopped in the middle",
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Some(Turn { file, range }))
    }

    /// Has the records outlive a power cut.
    pub fn sync(&self) -> io::Result<()> {
        self.recorded.iter().flatten().try_for_each(File::sync_data)
    }
}

/// See [`Digests::turn`].
pub(crate) struct Turn<'a> {
    file: &'a File,
    range: Range<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // It fails for no file that could be locked.
        let _ = hoist_sys::file::unlock_range(self.file, self.range.clone());
    }
}

/// Whoever writes an extent is through with it long before.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a record, and of its digest.
const RECORD: u64 = 40;
const DIGEST: usize = 32;

/// What stands behind a record's digest.
fn check(i: usize, digest: &[u8; 32]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(i as u64).to_le_bytes()).update(digest);
    let mut check = [0; 8];
    hasher.finalize_xof().fill(&mut check);
    check
}

fn record(file: &File, i: usize, digest: [u8; 32]) -> io::Result<bool> {
    let mut bytes = digest.to_vec();
    bytes.extend_from_slice(&check(i, &digest));
    file.write_all_at(&bytes, RECORD * i as u64)?;
    Ok(true)
}

/// What was recorded of extent `i`.
pub(crate) fn recorded(file: &File, i: usize) -> Option<[u8; 32]> {
    let mut bytes = [0; RECORD as usize];
    file.read_exact_at(&mut bytes, RECORD * i as u64).ok()?;
    let digest: [u8; DIGEST] = bytes[..DIGEST].try_into().ok()?;
    (check(i, &digest)[..] == bytes[DIGEST..]).then_some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_writes_an_extent() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || Digests { recorded: Some(Some(file.reopen().unwrap())) };
        let (first, second) = (open(), open());
        let taken = |i| {
            let Some(Some(file)) = &second.recorded else { unreachable!() };
            let range = RECORD * i..RECORD * (i + 1);
            let taken = !hoist_sys::file::try_lock_range(file, range.clone()).unwrap();
            hoist_sys::file::unlock_range(file, range).unwrap();
            taken
        };
        let turn = first.turn(1).unwrap();
        assert_eq!([taken(0), taken(1), taken(2)], [false, true, false]);
        drop(turn);
        assert!(!taken(1));
        assert!(second.turn(1).unwrap().is_some());
        assert!(Digests { recorded: None }.turn(1).unwrap().is_none());
    }

    #[test]
    fn a_damaged_record_is_none() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * RECORD).unwrap();
        assert_eq!(recorded(&file, 1), None);
        record(&file, 1, [7; 32]).unwrap();
        assert_eq!(recorded(&file, 1), Some([7; 32]));
        assert_eq!((recorded(&file, 0), recorded(&file, 2), recorded(&file, 3)), (None, None, None));
        for at in 0..RECORD {
            let mut byte = [0];
            file.read_exact_at(&mut byte, RECORD + at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], RECORD + at).unwrap();
            assert_eq!(recorded(&file, 1), None, "byte {at}");
            file.write_all_at(&byte, RECORD + at).unwrap();
        }
        assert_eq!(recorded(&file, 1), Some([7; 32]));
        // Another's record is none either.
        let mut bytes = [0; RECORD as usize];
        file.read_exact_at(&mut bytes, RECORD).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        assert_eq!(recorded(&file, 0), None);
    }
}

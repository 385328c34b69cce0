//! The tar archive of one file that a layer's blob is (overlaybd `src/overlaybd/tar/tar_file.cpp`).

use super::OverlaybdError;

const RECORD: u64 = 512;
/// Bytes that tell where the payload is, if the blob has as many.
pub(super) const HEAD: u64 = 3 * RECORD;
const MAGIC: &[u8] = b"ustar";
const TYPE: usize = 156;
const SIZE: std::ops::Range<usize> = 124..136;

/// Where the payload stands in a blob of `size` bytes that starts with `head`.
pub(super) fn payload(head: &[u8], size: u64) -> Result<std::ops::Range<u64>, OverlaybdError> {
    let bad = |what| Err(OverlaybdError::Tar(what));
    let is_tar = |at: usize| head.get(at + 257..at + 262) == Some(MAGIC);
    if !is_tar(0) {
        return Ok(0..size);
    }
    let (start, len) = match head[TYPE] {
        // The length stands in a record of its own, since the octal field is short.
        b'x' if is_tar(2 * RECORD as usize) => {
            let record = &head[RECORD as usize..2 * RECORD as usize];
            let len = record.split(|&b| b == b'\n').find_map(|line| {
                let at = line.windows(6).position(|w| w == b" size=")?;
                std::str::from_utf8(&line[at + 6..]).ok()?.parse().ok()
            });
            let Some(len) = len else { return bad("its extended header does not say the size") };
            (3 * RECORD, len)
        }
        b'0' | 0 => {
            let digits = head[SIZE].iter().skip_while(|&&b| b == b' ').take_while(|&&b| b.is_ascii_digit());
            let len = digits.fold(0u64, |n, &b| n << 3 | u64::from(b.wrapping_sub(b'0') & 7));
            (RECORD, len)
        }
        _ => return bad("it starts with an entry that is no file"),
    };
    let end = start.checked_add(len).filter(|&end| end <= size);
    end.map_or_else(|| bad("it says more bytes than the blob has"), |end| Ok(start..end))
}

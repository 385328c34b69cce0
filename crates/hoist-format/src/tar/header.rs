//! The 512-byte header block: v7, ustar (POSIX.1-1988), star and old GNU, told apart by their
//! magic (GNU tar manual, "Basic Tar Format"; Go's archive/tar, by which containerd and docker read).

use super::error::TarFault;

/// Bytes of a tar block.
pub(super) const BLOCK: usize = 512;

/// A header block whose checksum is right.
#[derive(Clone, Copy)]
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Magic {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the checksum (over unsigned bytes, or signed as some old writers did).
    pub fn verify(block: &'a [u8; BLOCK]) -> Result<Self, TarFault> {
        let want = number(&block[148..156]).ok_or(TarFault::Checksum)?;
        let field: u32 = block[148..156].iter().map(|&b| u32::from(b)).sum();
        let unsigned = block.iter().map(|&b| u32::from(b)).sum::<u32>() - field + 8 * 32;
        if want == i64::from(unsigned) {
            return Ok(Self(block));
        }
        let field: i32 = block[148..156].iter().map(|&b| i32::from(b as i8)).sum();
        let signed = block.iter().map(|&b| i32::from(b as i8)).sum::<i32>() - field + 8 * 32;
        if want == i64::from(signed) { Ok(Self(block)) } else { Err(TarFault::Checksum) }
    }
    fn magic(&self) -> Magic {
        match (&self.0[257..263], &self.0[263..265]) {
            (b"ustar\0", _) if &self.0[508..512] == b"tar\0" => Magic::Star,
            (b"ustar\0", _) => Magic::Ustar,
            (b"ustar ", b" \0") => Magic::Gnu,
            _ => Magic::V7,
        }
    }
    pub fn typeflag(&self) -> u8 {
        self.0[156]
    }
    /// The name, with the prefix of the formats that have one.
    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.magic() {
            Magic::Ustar => text(&self.0[345..500]),
            Magic::Star => text(&self.0[345..476]),
            Magic::Gnu | Magic::V7 => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }
    pub fn link(&self) -> &'a [u8] {
        text(&self.0[157..257])
    }
    pub fn perm(&self) -> Result<u16, TarFault> {
        Ok((self.field("mode", 100..108)? & 0o7777) as u16)
    }
    pub fn uid(&self) -> Result<u32, TarFault> {
        u32::try_from(self.field("uid", 108..116)?).map_err(|_| TarFault::Number("uid"))
    }
    pub fn gid(&self) -> Result<u32, TarFault> {
        u32::try_from(self.field("gid", 116..124)?).map_err(|_| TarFault::Number("gid"))
    }
    pub fn size(&self) -> Result<u64, TarFault> {
        u64::try_from(self.field("size", 124..136)?).map_err(|_| TarFault::Number("size"))
    }
    pub fn mtime(&self) -> Result<i64, TarFault> {
        self.field("mtime", 136..148)
    }
    /// Device numbers, of which v7 has none.
    pub fn dev(&self) -> Result<(u32, u32), TarFault> {
        if self.magic() == Magic::V7 {
            return Ok((0, 0));
        }
        // The kernel's dev_t: 12 bits of major, 20 of minor.
        let fit = |v: i64, bits: u32, name| {
            u32::try_from(v).ok().filter(|v| v >> bits == 0).ok_or(TarFault::Number(name))
        };
        Ok((
            fit(self.field("devmajor", 329..337)?, 12, "devmajor")?,
            fit(self.field("devminor", 337..345)?, 20, "devminor")?,
        ))
    }
    /// Old GNU sparse: up to four segments, whether more blocks of them follow, and the real size.
    pub fn gnu_sparse(&self, segments: &mut Vec<(u64, u64)>) -> Result<(bool, u64), TarFault> {
        if self.magic() != Magic::Gnu {
            return Err(TarFault::Sparse("type S in a header that is not GNU's"));
        }
        sparse_fields(&self.0[386..482], segments)?;
        let real = u64::try_from(self.field("realsize", 483..495)?);
        Ok((self.0[482] != 0, real.map_err(|_| TarFault::Number("realsize"))?))
    }
    fn field(&self, name: &'static str, at: std::ops::Range<usize>) -> Result<i64, TarFault> {
        number(&self.0[at]).ok_or(TarFault::Number(name))
    }
}

/// A block of 21 further old GNU sparse segments; true when yet another follows.
pub(super) fn gnu_sparse_block(
    block: &[u8; BLOCK],
    segments: &mut Vec<(u64, u64)>,
) -> Result<bool, TarFault> {
    sparse_fields(&block[..504], segments)?;
    Ok(block[504] != 0)
}

fn sparse_fields(fields: &[u8], segments: &mut Vec<(u64, u64)>) -> Result<(), TarFault> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let value =
            |b: &[u8]| number(b).and_then(|v| u64::try_from(v).ok()).ok_or(TarFault::Number("sparse"));
        segments.push((value(&pair[..12])?, value(&pair[12..])?));
    }
    Ok(())
}

/// A NUL-terminated or full field.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// Octal digits between spaces and NULs (none is 0), or GNU's base-256 big-endian two's complement,
/// marked by the first byte's high bit.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = if negative { i128::from(first) - 256 } else { i128::from(first & 0x7f) };
        let value = field[1..]
            .iter()
            .try_fold(start, |v, &b| Some(v * 256 + i128::from(b)).filter(|v| v.unsigned_abs() < 1 << 100))?;
        return i64::try_from(value).ok();
    }
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |v, &b| match b {
        b'0'..=b'7' => v.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"  644 \0\0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777777\0"), Some(0o77777777777));
        assert_eq!(number(b"12x"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), Some(-1));
        assert_eq!(number(b"\x80\0\0\0\xb2\xd0\x5e\0"), Some(3_000_000_000));
        assert_eq!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }
}

//! PAX extended headers (POSIX.1-2001 pax, "pax Extended Header"): `length key=value\n` records,
//! with the vendor keys that carry extended attributes and sparse maps.

use std::collections::BTreeMap;

use super::error::TarFault;
use crate::tree::{Name, Time};

/// What the records of one extended header say. An absent or empty value changes nothing.
#[derive(Debug, Default, Clone)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Time>,
    pub xattrs: BTreeMap<Name, Name>,
    pub sparse: Sparse,
}

/// The `GNU.sparse.*` keys (GNU tar manual, "PAX Format, Versions 0.0, 0.1 and 1.0").
#[derive(Debug, Default, Clone)]
pub(super) struct Sparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub size: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// Versions 0.0 and 0.1.
    pub map: Vec<(u64, u64)>,
    pub has_map: bool,
    offset: Option<u64>,
}

impl Pax {
    /// Decodes the records of a local header.
    pub fn decode(mut block: &[u8]) -> Result<Self, TarFault> {
        let mut pax = Self::default();
        let mut libarchive = Vec::new();
        while !block.is_empty() {
            let (key, value, rest) = record(block)?;
            block = rest;
            pax.set(key, value, &mut libarchive)?;
        }
        // Star's raw form of an attribute beats libarchive's encoded one.
        for (name, value) in libarchive {
            pax.xattrs.entry(name).or_insert(value);
        }
        Ok(pax)
    }

    /// Decodes the records of a global header. Its attributes and sparse keys are not taken: no
    /// writer makes them, and one header must not be multiplied by a million entries.
    pub fn decode_global(block: &[u8]) -> Result<Self, TarFault> {
        let pax = Self::decode(block)?;
        Ok(Self { xattrs: BTreeMap::new(), sparse: Sparse::default(), ..pax })
    }

    fn set(&mut self, key: &[u8], value: &[u8], libarchive: &mut Vec<(Name, Name)>) -> Result<(), TarFault> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.into(), value.into());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            if let (Some(name), Some(value)) = (url_decode(name), base64_decode(value)) {
                libarchive.push((name.into(), value.into()));
            }
            return Ok(());
        }
        match key {
            b"path" => self.path = string(value)?,
            b"linkpath" => self.link = string(value)?,
            b"size" => self.size = decimal(value, "size")?,
            b"uid" => self.uid = id(value, "uid")?,
            b"gid" => self.gid = id(value, "gid")?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.major" => self.sparse.major = decimal(value, "GNU.sparse.major")?,
            b"GNU.sparse.minor" => self.sparse.minor = decimal(value, "GNU.sparse.minor")?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.size = decimal(value, "GNU.sparse.size")?;
            }
            b"GNU.sparse.name" => self.sparse.name = string(value)?,
            b"GNU.sparse.offset" => {
                self.sparse.has_map = true;
                self.sparse.offset = decimal(value, "GNU.sparse.offset")?;
            }
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take().ok_or(TarFault::Pax("numbytes without offset"))?;
                let len = decimal(value, "GNU.sparse.numbytes")?;
                self.sparse.map.push((offset, len.ok_or(TarFault::Pax("GNU.sparse.numbytes"))?));
            }
            b"GNU.sparse.map" => {
                self.sparse.has_map = true;
                self.sparse.map = map(value)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// What records that were decoded by another program say besides a header's fields.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub xattrs: BTreeMap<Name, Name>,
    pub mtime: Option<Time>,
    /// Are they of a sparse file?
    pub sparse: bool,
}

/// Takes such records, keys and values.
pub(crate) fn records(all: &[(&[u8], &[u8])]) -> Result<Records, TarFault> {
    let (mut pax, mut libarchive, mut sparse) = (Pax::default(), Vec::new(), false);
    for (key, value) in all {
        sparse |= key.starts_with(b"GNU.sparse.");
        if *key == b"mtime" || key.starts_with(b"SCHILY.xattr.") || key.starts_with(b"LIBARCHIVE.xattr.") {
            pax.set(key, value, &mut libarchive)?;
        }
    }
    for (name, value) in libarchive {
        pax.xattrs.entry(name).or_insert(value);
    }
    Ok(Records { xattrs: pax.xattrs, mtime: pax.mtime, sparse })
}

/// Key, value and what follows.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits off the first record.
fn record(block: &[u8]) -> Result<Record<'_>, TarFault> {
    let space = block.iter().take(20).position(|&b| b == b' ').ok_or(TarFault::Pax("no length"))?;
    let len = decimal(&block[..space], "length")?.ok_or(TarFault::Pax("no length"))?;
    let len = usize::try_from(len).ok().filter(|&l| l > space + 1 && l <= block.len());
    let (record, rest) = block.split_at(len.ok_or(TarFault::Pax("length"))?);
    let body = record[space + 1..].strip_suffix(b"\n").ok_or(TarFault::Pax("no newline"))?;
    let equals = body.iter().position(|&b| b == b'=').ok_or(TarFault::Pax("no ="))?;
    if equals == 0 {
        return Err(TarFault::Pax("empty key"));
    }
    Ok((&body[..equals], &body[equals + 1..], rest))
}

fn string(value: &[u8]) -> Result<Option<Vec<u8>>, TarFault> {
    if value.contains(&0) {
        return Err(TarFault::NulInName);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Non-negative decimal digits; None when empty.
fn decimal(value: &[u8], key: &'static str) -> Result<Option<u64>, TarFault> {
    if value.is_empty() {
        return Ok(None);
    }
    digits(value).map(Some).ok_or(TarFault::Pax(key))
}

fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0u64, |v, &b| {
        if !b.is_ascii_digit() {
            return None;
        }
        v.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

fn id(value: &[u8], key: &'static str) -> Result<Option<u32>, TarFault> {
    decimal(value, key)?.map(|v| u32::try_from(v).map_err(|_| TarFault::Pax(key))).transpose()
}

fn map(value: &[u8]) -> Result<Vec<(u64, u64)>, TarFault> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let mut numbers = value.split(|&b| b == b',').map(digits);
    let mut map = Vec::new();
    while let Some(offset) = numbers.next() {
        match (offset, numbers.next().flatten()) {
            (Some(offset), Some(len)) => map.push((offset, len)),
            _ => return Err(TarFault::Pax("GNU.sparse.map")),
        }
    }
    Ok(map)
}

/// Seconds with an optional sign and fraction; digits past nanoseconds are cut.
fn time(value: &[u8]) -> Result<Option<Time>, TarFault> {
    if value.is_empty() {
        return Ok(None);
    }
    let bad = TarFault::Pax("mtime");
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |v| (true, v));
    let dot = value.iter().position(|&b| b == b'.');
    let (whole, fraction) = dot.map_or((value, &b""[..]), |at| (&value[..at], &value[at + 1..]));
    let secs = digits(whole).and_then(|s| i64::try_from(s).ok()).ok_or(bad.clone())?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad);
    }
    let nanos = (0..9).fold(0, |n, i| n * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0')));
    Ok(Some(match (negative, nanos) {
        (false, _) => Time { secs, nanos },
        (true, 0) => Time { secs: -secs, nanos },
        // i64 reaches one further down than up, so this cannot overflow.
        (true, _) => Time { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    }))
}

fn url_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut nibble = || char::from(*bytes.next()?).to_digit(16);
        out.push((nibble()? * 16 + nibble()?) as u8);
    }
    Some(out)
}

/// Standard alphabet, padding optional as libarchive leaves it out.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut have) = (0u32, 0u32);
    for &b in text.iter().take_while(|b| **b != b'=') {
        let six = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 & 0xffff | u32::from(six);
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let t = |v: &[u8]| time(v).map(|t| t.map(|t| (t.secs, t.nanos)));
        assert_eq!(t(b"1.5"), Ok(Some((1, 500_000_000))));
        assert_eq!(t(b"-1.5"), Ok(Some((-2, 500_000_000))));
        assert_eq!(t(b"-86400"), Ok(Some((-86400, 0))));
        assert_eq!(t(b"1.1234567899"), Ok(Some((1, 123_456_789))));
        assert_eq!(t(b""), Ok(None));
        for bad in [&b"."[..], b"--1", b"1.x", b"99999999999999999999", b"-", b" 1"] {
            assert!(t(bad).is_err(), "{bad:?}");
        }
        assert!(t(b"-9223372036854775807.9").is_ok());
    }

    #[test]
    fn libarchive_attributes() {
        let pax = Pax::decode(b"33 LIBARCHIVE.xattr.user.%41=YWI\n").unwrap();
        assert_eq!(pax.xattrs.get(&b"user.A"[..]).map(|v| &v[..]), Some(&b"ab"[..]));
    }

    #[test]
    fn malformed_records() {
        for bad in
            ["9 a=b\n", "5 a=b\n", "x a=b\n", "6 =bc\n", "6 abcd", "5 ab\n", "99999999999999999999999 a=b\n"]
        {
            assert!(Pax::decode(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Pax::decode(b"6 a=b\n").is_ok());
    }
}

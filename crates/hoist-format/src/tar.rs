//! A push decoder of uncompressed tar streams: bytes in, entries and runs of file data out.
//!
//! Reads what writers of image layers make: v7, ustar, PAX (local and global headers) and GNU,
//! with long names, every file type, extended attributes and all four sparse formats. Where
//! readers differ it does as Go's archive/tar, which containerd and docker use. File data is
//! passed on as slices of the input, never copied.

mod error;
mod header;
mod pax;
mod sparse;

use std::collections::BTreeMap;
use std::mem;

pub use error::{TarError, TarFault};
use header::{BLOCK, Header};
use pax::Pax;
pub(crate) use pax::records;
use sparse::{Segment, TextMap};

use crate::tree::{Dev, Meta, Time};

/// Most bytes of one PAX extended header.
pub const MAX_PAX: u64 = 1 << 20;
/// Most bytes of one GNU long name or link.
pub const MAX_LONG_NAME: u64 = 64 << 10;
/// Most entries of one layer.
pub const MAX_ENTRIES: u64 = 16 << 20;
/// Most headers of one stream, extended ones among them.
const MAX_HEADERS: u64 = 4 * MAX_ENTRIES;
/// Linux's PATH_MAX, which counts the closing NUL.
const PATH_MAX: usize = 4096;
/// Linux's NAME_MAX.
const NAME_MAX: usize = 255;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Dir,
    /// A regular file of this many bytes, holes included; its data follows.
    File(u64),
    /// Another name of an earlier path.
    Hardlink(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device.
    Char(Dev),
    /// A block device.
    Block(Dev),
    /// A named pipe.
    Fifo,
}

/// One entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path as the archive has it: `./`, `/`, `..` and all.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Its attributes.
    pub meta: Meta,
}

/// Takes what the decoder finds, in the stream's order.
pub trait Sink {
    /// What stops the decoding.
    type Error: From<TarError>;
    /// The next entry; of a file, before its data.
    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error>;
    /// A run of the current file's bytes: its offset in the file, and in the stream. Offsets
    /// ascend; what is left out between runs or at the end is a hole.
    fn data(&mut self, file_offset: u64, stream_offset: u64, bytes: &[u8]) -> Result<(), Self::Error>;
}

#[derive(Debug)]
enum State {
    /// At a header block; `zero` when the block before was all zeros.
    Header { zero: bool },
    /// In the records of an extended header.
    Extended { kind: u8, left: u64, pad: u64 },
    /// In the extension blocks of an old GNU sparse header.
    GnuSparse { entry: Box<Entry>, stored: u64, size: u64 },
    /// In the text map of a sparse file version 1.0.
    TextMap { entry: Box<Entry>, stored: u64, size: u64, map: TextMap },
    /// In file data.
    Data { pad: u64 },
    /// In padding, or data of no interest; `needed` of them must be there.
    Skip { left: u64, needed: u64 },
    /// Behind the end-of-archive marker.
    End,
}

/// The decoder. After an error it must not be fed again.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Stream offset of the next byte.
    offset: u64,
    /// Stream offset of the header at work, for errors.
    at: u64,
    entries: u64,
    /// Bytes of a block or an extended header that came in parts.
    held: Vec<u8>,
    /// Segments of the current file yet to come, next one last.
    segments: Vec<Segment>,
    local: Option<Box<Pax>>,
    global: Box<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// The path and the size of one header block that stands alone.
///
/// # Errors
/// [`TarFault`] for what is no header.
pub(crate) fn lone_header(block: &[u8; BLOCK]) -> Result<(Vec<u8>, u64), TarFault> {
    let header = Header::verify(block)?;
    Ok((header.path(), header.size()?))
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header { zero: false },
            offset: 0,
            at: 0,
            entries: 0,
            held: Vec::new(),
            segments: Vec::new(),
            local: None,
            global: Box::default(),
            long_name: None,
            long_link: None,
        }
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes of the stream, in pieces of any size.
    ///
    /// # Errors
    /// [`TarError`] when the stream is no tar archive or beyond a limit; whatever the sink returns.
    pub fn feed<S: Sink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        while !bytes.is_empty() {
            match self.state {
                State::Data { .. } => self.feed_data(&mut bytes, sink)?,
                State::Skip { .. } => self.feed_skip(&mut bytes),
                State::Extended { .. } => self.feed_extended(&mut bytes).map_err(|e| self.error(e))?,
                State::End => {
                    self.offset += bytes.len() as u64;
                    bytes = &[];
                }
                _ => self.feed_block(&mut bytes, sink)?,
            }
        }
        Ok(())
    }

    /// Ends the stream. Missing end-of-archive blocks are tolerated as docker does.
    ///
    /// # Errors
    /// [`TarFault::Truncated`] when the stream ends inside an entry.
    pub fn finish(self) -> Result<(), TarError> {
        let announced = self.local.is_some() || self.long_name.is_some() || self.long_link.is_some();
        let whole = match self.state {
            State::Header { .. } => self.held.is_empty() && !announced,
            State::Skip { needed, .. } => needed == 0 && !announced,
            State::End => true,
            _ => false,
        };
        if whole { Ok(()) } else { Err(TarError { offset: self.offset, what: TarFault::Truncated }) }
    }

    fn error(&self, what: TarFault) -> TarError {
        TarError { offset: self.at, what }
    }

    fn take<'a>(&mut self, bytes: &mut &'a [u8], most: u64) -> &'a [u8] {
        let n = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
        let (head, tail) = bytes.split_at(n);
        *bytes = tail;
        self.offset += n as u64;
        head
    }

    fn feed_data<S: Sink>(&mut self, bytes: &mut &[u8], sink: &mut S) -> Result<(), S::Error> {
        let State::Data { pad } = self.state else { return Ok(()) };
        let Some(&(file_offset, len)) = self.segments.last() else {
            self.state = skip(pad, 0);
            return Ok(());
        };
        let stream_offset = self.offset;
        let run = self.take(bytes, len);
        let n = run.len() as u64;
        self.segments.pop();
        if n < len {
            self.segments.push((file_offset + n, len - n));
        } else if self.segments.is_empty() {
            self.state = skip(pad, 0);
        }
        sink.data(file_offset, stream_offset, run)
    }

    fn feed_skip(&mut self, bytes: &mut &[u8]) {
        let State::Skip { left, needed } = self.state else { return };
        let n = self.take(bytes, left).len() as u64;
        self.state = skip(left - n, needed.saturating_sub(n));
    }

    fn feed_extended(&mut self, bytes: &mut &[u8]) -> Result<(), TarFault> {
        let State::Extended { kind, left, pad } = self.state else { return Ok(()) };
        let run = self.take(bytes, left);
        self.held.extend_from_slice(run);
        let left = left - run.len() as u64;
        if left > 0 {
            self.state = State::Extended { kind, left, pad };
            return Ok(());
        }
        self.state = skip(pad, 0);
        let held = mem::take(&mut self.held);
        self.extended(kind, held)
    }

    fn extended(&mut self, kind: u8, mut held: Vec<u8>) -> Result<(), TarFault> {
        match kind {
            b'x' | b'X' => self.local = Some(Box::new(Pax::decode(&held)?)),
            b'g' => *self.global = Pax::decode_global(&held)?,
            _ => {
                held.truncate(held.iter().position(|&b| b == 0).unwrap_or(held.len()));
                *(if kind == b'L' { &mut self.long_name } else { &mut self.long_link }) = Some(held);
            }
        }
        Ok(())
    }

    fn feed_block<S: Sink>(&mut self, bytes: &mut &[u8], sink: &mut S) -> Result<(), S::Error> {
        if self.held.is_empty() {
            self.at = self.offset;
        }
        let missing = BLOCK - self.held.len();
        let part = self.take(bytes, missing as u64);
        if let Ok(block) = <&[u8; BLOCK]>::try_from(part) {
            return self.block(block, sink);
        }
        self.held.extend_from_slice(part);
        let Ok(block) = <[u8; BLOCK]>::try_from(&self.held[..]) else { return Ok(()) };
        self.held.clear();
        self.block(&block, sink)
    }

    fn block<S: Sink>(&mut self, block: &[u8; BLOCK], sink: &mut S) -> Result<(), S::Error> {
        match mem::replace(&mut self.state, State::End) {
            State::GnuSparse { entry, stored, size } => {
                let more = header::gnu_sparse_block(block, &mut self.segments)
                    .and_then(|more| sparse::bounded(&self.segments).map(|()| more))
                    .map_err(|e| self.error(e))?;
                if more {
                    self.state = State::GnuSparse { entry, stored, size };
                    return Ok(());
                }
                let map = mem::take(&mut self.segments);
                self.start_file(*entry, map, size, stored, stored, sink)
            }
            State::TextMap { entry, stored, size, mut map } => {
                let left = stored.checked_sub(BLOCK as u64);
                let left =
                    left.ok_or_else(|| self.error(TarFault::Sparse("its text is longer than the data")))?;
                match map.feed(block).map_err(|e| self.error(e))? {
                    Some(map) => self.start_file(*entry, map, size, left, left, sink),
                    None => {
                        self.state = State::TextMap { entry, stored: left, size, map };
                        Ok(())
                    }
                }
            }
            State::Header { zero } => self.header(block, zero, sink),
            _ => Ok(()),
        }
    }

    fn header<S: Sink>(&mut self, block: &[u8; BLOCK], zero: bool, sink: &mut S) -> Result<(), S::Error> {
        if block.iter().all(|&b| b == 0) {
            self.state = if zero { State::End } else { State::Header { zero: true } };
            return Ok(());
        }
        if zero {
            return Err(self.error(TarFault::LoneZeroBlock).into());
        }
        let header = Header::verify(block).map_err(|e| self.error(e))?;
        let max = match header.typeflag() {
            b'x' | b'X' | b'g' => MAX_PAX,
            b'L' | b'K' => MAX_LONG_NAME,
            _ => return self.file_header(header, sink),
        };
        let size = header.size().map_err(|e| self.error(e))?;
        if size > max {
            return Err(self.error(TarFault::ExtendedHeader { size, max }).into());
        }
        self.count()?;
        self.state = if size == 0 {
            self.extended(header.typeflag(), Vec::new()).map_err(|e| self.error(e))?;
            State::Header { zero: false }
        } else {
            State::Extended { kind: header.typeflag(), left: size, pad: padding(size) }
        };
        Ok(())
    }

    /// Headers of every sort count, so that endless extended headers end too.
    fn count(&mut self) -> Result<(), TarError> {
        self.entries += 1;
        if self.entries > MAX_HEADERS {
            return Err(self.error(TarFault::TooManyEntries(MAX_HEADERS)));
        }
        Ok(())
    }

    fn file_header<S: Sink>(&mut self, header: Header<'_>, sink: &mut S) -> Result<(), S::Error> {
        self.count()?;
        let mut pax = self.local.take().map(|p| *p).unwrap_or_default();
        let (name, link) = (self.long_name.take(), self.long_link.take());
        let sparse = mem::take(&mut pax.sparse);
        let prepared = prepare(&header, pax, &self.global, name, link, sparse.name.clone());
        let Prepared { entry, size, flag } = prepared.map_err(|e| self.error(e))?;
        let Some(entry) = entry else {
            self.state = skip_data(size);
            return Ok(());
        };
        if !matches!(entry.kind, EntryKind::File(_)) {
            // A dump's folder listing is data, though nobody's. Other non-files have none, whatever
            // their size field says (Go: isHeaderOnlyType).
            self.state = if flag == b'D' { skip_data(size) } else { State::Header { zero: false } };
            return sink.entry(entry);
        }
        if flag == b'S' {
            self.segments.clear();
            let (more, real) = header.gnu_sparse(&mut self.segments).map_err(|e| self.error(e))?;
            let entry = Box::new(entry);
            if more {
                self.state = State::GnuSparse { entry, stored: size, size: real };
                return Ok(());
            }
            let map = mem::take(&mut self.segments);
            return self.start_file(*entry, map, real, size, size, sink);
        }
        match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => {
                let real = sparse.size.ok_or_else(|| self.error(TarFault::Sparse("no real size")))?;
                self.state = State::TextMap {
                    entry: Box::new(entry),
                    stored: size,
                    size: real,
                    map: TextMap::default(),
                };
                Ok(())
            }
            (None | Some(0), _) if sparse.has_map => {
                let real = sparse.size.ok_or_else(|| self.error(TarFault::Sparse("no real size")))?;
                self.start_file(entry, sparse.map, real, size, size, sink)
            }
            (Some(major), _) if major > 0 => Err(self.error(TarFault::Sparse("unknown version")).into()),
            _ => self.start_file(entry, vec![(0, size)], size, size, size, sink),
        }
    }

    fn start_file<S: Sink>(
        &mut self,
        mut entry: Entry,
        map: Vec<Segment>,
        size: u64,
        stored: u64,
        unpadded: u64,
        sink: &mut S,
    ) -> Result<(), S::Error> {
        self.segments = sparse::check(map, size, stored).map_err(|e| self.error(e))?;
        self.segments.reverse();
        self.state = if self.segments.is_empty() {
            State::Header { zero: false }
        } else {
            State::Data { pad: padding(unpadded) }
        };
        entry.kind = EntryKind::File(size);
        sink.entry(entry)
    }
}

struct Prepared {
    /// None: not a file at all (a volume label), to be skipped.
    entry: Option<Entry>,
    /// Bytes of data in the stream.
    size: u64,
    flag: u8,
}

/// Joins what header, long names, local and global records say of an entry.
fn prepare(
    header: &Header<'_>,
    pax: Pax,
    global: &Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    sparse_name: Option<Vec<u8>>,
) -> Result<Prepared, TarFault> {
    let size = pax.size.or(global.size).map_or_else(|| header.size(), Ok)?;
    let path = long_name.or(sparse_name).or(pax.path).or_else(|| global.path.clone());
    let path = path.unwrap_or_else(|| header.path());
    let link = long_link.or(pax.link).or_else(|| global.link.clone());
    let link = link.unwrap_or_else(|| header.link().to_vec());
    let flag = header.typeflag();
    let kind = match flag {
        // Before ustar a folder was a file whose name ends so.
        0 if path.ends_with(b"/") => EntryKind::Dir,
        0 | b'0' | b'7' | b'S' => EntryKind::File(size),
        b'1' => EntryKind::Hardlink(target(link)?),
        b'2' => EntryKind::Symlink(target(link)?),
        b'3' | b'4' => {
            let (major, minor) = header.dev()?;
            let dev = Dev { major, minor };
            if flag == b'3' { EntryKind::Char(dev) } else { EntryKind::Block(dev) }
        }
        b'5' | b'D' => EntryKind::Dir,
        b'6' => EntryKind::Fifo,
        b'V' => return Ok(Prepared { entry: None, size, flag }),
        other => return Err(TarFault::Type(other)),
    };
    check_path(&path)?;
    let mtime = match pax.mtime.or(global.mtime) {
        Some(time) => time,
        None => Time { secs: header.mtime()?, nanos: 0 },
    };
    let meta = Meta {
        perm: header.perm()?,
        uid: pax.uid.or(global.uid).map_or_else(|| header.uid(), Ok)?,
        gid: pax.gid.or(global.gid).map_or_else(|| header.gid(), Ok)?,
        mtime,
        xattrs: check_xattrs(pax.xattrs)?,
    };
    Ok(Prepared { entry: Some(Entry { path, kind, meta }), size, flag })
}

/// An entry that came otherwise than from a tar, if it could stand in one.
///
/// # Errors
/// [`TarFault`]: no file system of Linux's can have it.
pub(crate) fn checked(mut entry: Entry) -> Result<Entry, TarFault> {
    check_path(&entry.path)?;
    let has_nul = |text: &[u8]| text.contains(&0);
    if let EntryKind::Hardlink(to) | EntryKind::Symlink(to) = &mut entry.kind {
        *to = target(std::mem::take(to))?;
        if has_nul(to) {
            return Err(TarFault::NulInName);
        }
    }
    if has_nul(&entry.path) {
        return Err(TarFault::NulInName);
    }
    entry.meta.xattrs = check_xattrs(entry.meta.xattrs)?;
    Ok(entry)
}

fn check_path(path: &[u8]) -> Result<(), TarFault> {
    if path.len() >= PATH_MAX {
        return Err(TarFault::PathTooLong { what: "path", len: path.len() });
    }
    match path.split(|&b| b == b'/').map(<[u8]>::len).find(|&n| n > NAME_MAX) {
        Some(len) => Err(TarFault::NameTooLong(len)),
        None => Ok(()),
    }
}

fn target(link: Vec<u8>) -> Result<Vec<u8>, TarFault> {
    match link.len() {
        0 => Err(TarFault::EmptyLink),
        len if len >= PATH_MAX => Err(TarFault::PathTooLong { what: "link target", len }),
        _ => Ok(link),
    }
}

fn check_xattrs<T>(xattrs: BTreeMap<T, T>) -> Result<BTreeMap<T, T>, TarFault>
where
    T: AsRef<[u8]>,
{
    let fits = |name: &[u8], value: &[u8]| {
        !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&0) && value.len() <= 65536
    };
    if xattrs.iter().all(|(name, value)| fits(name.as_ref(), value.as_ref())) {
        Ok(xattrs)
    } else {
        Err(TarFault::Xattr)
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn skip(left: u64, needed: u64) -> State {
    if left == 0 { State::Header { zero: false } } else { State::Skip { left, needed } }
}

fn skip_data(size: u64) -> State {
    skip(size.saturating_add(padding(size)), size)
}

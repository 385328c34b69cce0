//! A layer's blob, opened step by step: what is needed next is asked for, until its index is here.

use std::ops::Range;

use super::OverlaybdError;
use super::lsmt::{self, Segment, Trailer};
use super::tarwrap;
use super::zfile::{self, Head, Zfile};
use crate::partial::Partial;

/// Read at first: headers.
const FIRST: u64 = 4096;
/// Read at first: a part of the end, which has the tables, and may have all of them.
const LAST_MIN: u64 = 16 << 10;
const LAST_MAX: u64 = 1 << 20;
const LAST_SHARE: u64 = 64;

/// The stored bytes of a layer that are here, and how they are to be read.
#[derive(Debug, Clone)]
pub struct Blob {
    size: u64,
    stored: Partial,
    layer: u16,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    New,
    Packed(Payload),
    Open(Payload, Opened),
}

/// The LSMT file in the blob.
#[derive(Debug, Clone)]
struct Payload {
    /// Where it, or the ZFile around it, stands in the blob.
    range: Range<u64>,
    zfile: Option<Zfile>,
}

#[derive(Debug, Clone)]
struct Opened {
    segments: Vec<Segment>,
    virtual_size: u64,
}

/// A part of the LSMT file: where it is stored.
pub(super) struct Stored {
    /// Byte range in the blob.
    pub range: Range<u64>,
    /// How; None: as it is.
    pub run: Option<crate::codec::BlockRun>,
    /// Byte offset in the LSMT file at which it starts, and how many bytes it has of it.
    pub start: u64,
    pub raw_len: u64,
}

impl Blob {
    /// Layer number `layer` (lowest first from 0), a blob of `size` bytes.
    pub fn new(size: u64, layer: u16) -> Self {
        Self { size, stored: Partial::default(), layer, state: State::New }
    }

    /// A layer whose bytes are all here.
    pub fn whole(bytes: Vec<u8>, layer: u16) -> Self {
        let mut blob = Self::new(bytes.len() as u64, layer);
        blob.put(0, bytes);
        blob
    }

    /// Takes bytes of the blob from `offset` on.
    pub fn put(&mut self, offset: u64, bytes: Vec<u8>) {
        self.stored.put(offset, bytes);
    }

    /// The segments and the size of the device, once opened.
    pub fn opened(&self) -> Option<(&[Segment], u64)> {
        match &self.state {
            State::Open(_, opened) => Some((&opened.segments, opened.virtual_size)),
            _ => None,
        }
    }

    /// Bytes of memory that its tables take.
    pub(super) fn held(&self) -> u64 {
        let (payload, opened) = match &self.state {
            State::New => return 0,
            State::Packed(payload) => (payload, None),
            State::Open(payload, opened) => (payload, Some(opened)),
        };
        let segments = opened.map_or(0, |opened| size_of_val(&opened.segments[..]) as u64);
        segments + payload.zfile.as_ref().map_or(0, Zfile::held)
    }

    /// The byte behind the last one that it names of an original layer.
    pub(super) fn original_end(&self) -> u64 {
        let segments = self.opened().map_or(&[][..], |(segments, _)| segments);
        let end = |s: &Segment| match s.source {
            lsmt::Source::Original(at) => at.saturating_add(s.len).saturating_mul(lsmt::SECTOR),
            _ => 0,
        };
        segments.iter().map(end).max().unwrap_or(0)
    }

    /// Goes on as far as the bytes that are here allow; gives the ranges that are needed next, none when it is open.
    ///
    /// # Errors
    /// [`OverlaybdError`]: what is wrong with it.
    pub fn open(&mut self) -> Result<Vec<Range<u64>>, OverlaybdError> {
        if let State::New = self.state {
            let last = (self.size / LAST_SHARE).clamp(LAST_MIN, LAST_MAX);
            let need = vec![0..FIRST.min(self.size), self.size.saturating_sub(last)..self.size];
            let Some(head) = self.stored.get(0..FIRST.min(self.size)) else { return Ok(need) };
            match self.payload(&head)? {
                Ok(payload) => self.state = State::Packed(payload),
                Err(need) => return Ok(vec![need]),
            }
        }
        if let State::Packed(payload) = &self.state {
            match self.index(payload)? {
                Ok(opened) => self.state = State::Open(payload.clone(), opened),
                Err(need) => return Ok(need),
            }
        }
        Ok(Vec::new())
    }

    /// Finds the LSMT file, or what is needed to find it.
    fn payload(&self, head: &[u8]) -> Result<Result<Payload, Range<u64>>, OverlaybdError> {
        let range = tarwrap::payload(&head[..head.len().min(tarwrap::HEAD as usize)], self.size)?;
        let size = range.end - range.start;
        let Some(start) = head.get(range.start as usize..(range.start + zfile::HEAD) as usize) else {
            return Err(OverlaybdError::Zfile("the blob is too short for one"));
        };
        if !zfile::is_zfile(start) {
            return Ok(Ok(Payload { range, zfile: None }));
        }
        let head = match Head::header(start, size)? {
            Some(head) => head,
            None => {
                let trailer = range.end.saturating_sub(zfile::HEAD).max(range.start)..range.end;
                let Some(bytes) = self.stored.get(trailer.clone()) else { return Ok(Err(trailer)) };
                Head::trailer(&bytes, size)?
            }
        };
        let table = range.start + head.index.start..range.start + head.index.end;
        let Some(bytes) = self.stored.get(table.clone()) else { return Ok(Err(table)) };
        Ok(Ok(Payload { range, zfile: Some(Zfile::new(head, &bytes)?) }))
    }

    /// Reads trailer and index of the LSMT file, or says what is needed for that.
    fn index(&self, payload: &Payload) -> Result<Result<Opened, Vec<Range<u64>>>, OverlaybdError> {
        let size = payload.size();
        if size < 2 * lsmt::HEAD {
            return Err(OverlaybdError::Lsmt("it is too short for one"));
        }
        let trailer = match self.raw(payload, size - lsmt::HEAD..size)? {
            Ok(bytes) => Trailer::read(&bytes, size)?,
            Err(need) => return Ok(Err(need)),
        };
        let segments = match self.raw(payload, trailer.index.clone())? {
            Ok(bytes) => trailer.segments(&bytes, self.layer)?,
            Err(need) => return Ok(Err(need)),
        };
        Ok(Ok(Opened { segments, virtual_size: trailer.virtual_size }))
    }

    /// Bytes of the LSMT file, checked and decompressed, or the ranges of the blob that are needed for them.
    fn raw(
        &self,
        payload: &Payload,
        range: Range<u64>,
    ) -> Result<Result<Vec<u8>, Vec<Range<u64>>>, OverlaybdError> {
        let mut out = Vec::new();
        let mut need = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let stored = payload.stored(at, range.end)?;
            let end = (stored.start + stored.raw_len).min(range.end);
            match self.stored.get(stored.range.clone()) {
                None => need.push(stored.range),
                Some(bytes) => {
                    let raw = decoded(&stored, &bytes)?;
                    out.extend_from_slice(&raw[(at - stored.start) as usize..(end - stored.start) as usize]);
                }
            }
            at = end;
        }
        Ok(if need.is_empty() { Ok(out) } else { Err(need) })
    }

    /// Where byte `at` of the LSMT file is stored; of an open layer.
    pub(super) fn stored(&self, at: u64, end: u64) -> Result<Stored, OverlaybdError> {
        match &self.state {
            State::Open(payload, _) => payload.stored(at, end),
            _ => Err(OverlaybdError::Lsmt("it is not open yet")),
        }
    }

    /// The run of blocks that is stored there, decoded; None when its bytes are not here.
    pub(super) fn decoded(&self, stored: &Stored) -> Result<Option<Vec<u8>>, OverlaybdError> {
        self.stored.get(stored.range.clone()).map(|bytes| decoded(stored, &bytes)).transpose()
    }
}

/// Runs of an LSMT file that is not compressed are cut at multiples of this.
const PLAIN_RUN: u64 = 256 << 10;

impl Payload {
    fn size(&self) -> u64 {
        self.zfile.as_ref().map_or(self.range.end - self.range.start, Zfile::raw_size)
    }

    /// The run that holds byte `at`. One that is not compressed ends at `end`.
    fn stored(&self, at: u64, end: u64) -> Result<Stored, OverlaybdError> {
        if at >= self.size() {
            return Err(OverlaybdError::Lsmt("it names bytes beyond its end"));
        }
        match &self.zfile {
            Some(zfile) => {
                let index = at / zfile.run_size();
                let (range, run, raw_len) = zfile.run(index)?;
                let range = self.range.start + range.start..self.range.start + range.end;
                Ok(Stored { range, run: Some(run), start: index * zfile.run_size(), raw_len })
            }
            None => {
                let end = end.min(self.size()).min((at / PLAIN_RUN + 1) * PLAIN_RUN);
                let range = self.range.start + at..self.range.start + end;
                Ok(Stored { range, run: None, start: at, raw_len: end - at })
            }
        }
    }
}

fn decoded(stored: &Stored, bytes: &[u8]) -> Result<Vec<u8>, OverlaybdError> {
    match &stored.run {
        None => Ok(bytes.to_vec()),
        Some(run) => run.decompress(bytes, stored.raw_len as usize).map_err(OverlaybdError::Zfile),
    }
}

//! One pass over a whole layer: blob bytes in, a verified data file, tree and table out.
//!
//! Threads beside the one that fetches: one hashes the blob, one decompresses, one hashes the
//! stream (diffID), reads the tar and writes the data file. Nothing of it may be read by anyone
//! before both digests were found right.
//!
//! A layer that is a file system's image is written aside instead, and read once all of it is there.

mod blocks;
mod image;
mod pool;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use bytes::Bytes;
use hoist_format::chunk::ChunkTable;
use hoist_format::codec::{CodecError, Decoded, Piece, StreamDecoder};
use hoist_format::digest::{Digest, Hasher};
use hoist_format::extent::BLOCK;
use hoist_format::formats;
use hoist_format::layer::{DataSink, Layer, LayerBuilder, LayerError};
use hoist_format::span::{Codec, Spans};
use hoist_format::table::Table;

use crate::error::Error;
use blocks::Blocks;
use pool::Pool;

/// What a pass over a layer yields.
pub struct Ingested {
    /// The tree of this layer alone.
    pub layer: Layer,
    /// Its table.
    pub table: Table,
    /// The compressed windows that the table's spans name.
    pub windows: Vec<u8>,
}

/// What the layer must turn out to be.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Blob digest, of the manifest.
    pub blob: Digest,
    /// Blob size in bytes, of the manifest.
    pub size: u64,
    /// Digest of the uncompressed layer, of the config; None where no config tells it.
    pub diff_id: Option<Digest>,
    /// How it is stored.
    pub codec: Codec,
    /// What its stream is.
    pub stream: Stream,
}

/// What a layer's stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// A tar archive.
    Archive,
    /// A file system's image.
    Image,
}

/// What the thread that reads the stream found.
struct Built {
    layer: Layer,
    diff_id: Digest,
    /// How the layer's files are had from its blob, where it is no archive.
    chunks: Option<ChunkTable>,
}

/// A pass under way: blob bytes go in, in order, from any thread that may block.
pub struct Ingest {
    input: Option<SyncSender<Bytes>>,
    /// Hashing the blob is a third of a second per gigabyte that inflating need not wait for.
    hashed: Option<SyncSender<Bytes>>,
    hash: thread::JoinHandle<Result<(Digest, u64), Error>>,
    decode: thread::JoinHandle<Result<Option<Inflated>, Error>>,
    build: thread::JoinHandle<Result<Built, Error>>,
    expected: Expected,
}

/// How much a pass takes to be quick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// Somebody waits for it.
    Now,
    /// Nobody does: its threads take what processor time others leave, and it holds less memory.
    Whenever,
}

impl Haste {
    /// Decoded pieces between the threads, 288 KiB each: with few, the decompressing thread waits whenever another takes
    /// the builder's processor for some milliseconds. They travel in the memory that they were decoded to.
    fn in_flight(self) -> usize {
        match self {
            Self::Now => 64,
            Self::Whenever => 6,
        }
    }

    /// Pieces of the blob that may wait to be decompressed, and to be hashed.
    fn waiting(self) -> (usize, usize) {
        match self {
            Self::Now => (64, 256),
            Self::Whenever => (4, 4),
        }
    }
}

impl Ingest {
    /// Starts the threads. File contents go to `data`; None checks and indexes only. What is needed on disk meanwhile
    /// goes to the folder `aside`.
    pub fn start(
        expected: Expected,
        data: Option<(File, PathBuf)>,
        aside: &Path,
        haste: Haste,
    ) -> Result<Self, Error> {
        let (to_inflate, to_be_hashed) = haste.waiting();
        let (input, compressed) = sync_channel::<Bytes>(to_inflate);
        let (hashed, to_hash) = sync_channel::<Bytes>(to_be_hashed);
        let (decoded, stream) = channel::<Piece>();
        let (recycle, returned) = channel::<Piece>();
        let blob = expected.blob;
        let coded = (blob, expected.codec, expected.diff_id.is_some());
        let hash = spawn("hoist-digest", haste, 10, move || {
            let mut hasher = Hasher::new();
            let size = to_hash.iter().map(|bytes| (hasher.update(&bytes), bytes.len() as u64).1).sum();
            Ok((hasher.finish(), size))
        })?;
        let pool = Pool::new(returned, haste.in_flight());
        let decode = spawn("hoist-inflate", haste, 0, move || decode(coded, compressed, decoded, pool))?;
        let scratch = (expected.stream == Stream::Image).then(|| image::Scratch::new(aside)).transpose()?;
        let wanted = expected.clone();
        let build = spawn("hoist-build", haste, 5, move || match scratch {
            None => build(blob, stream, &recycle, data),
            Some(scratch) => image::build(&wanted, scratch, stream, &recycle, data),
        })?;
        Ok(Self { input: Some(input), hashed: Some(hashed), hash, decode, build, expected })
    }

    /// Takes the next bytes of the blob; blocks while the pass is behind.
    pub fn feed(&self, bytes: Bytes) {
        // A decoder that has failed stops listening; the digest is wanted all the same, as a wrong
        // blob is the truer word than its consequence.
        let _ = self.hashed.as_ref().map(|h| h.send(bytes.clone()));
        let _ = self.input.as_ref().map(|i| i.send(bytes));
    }

    /// Ends the pass: checks both digests and gives what was found.
    pub fn finish(mut self) -> Result<Ingested, Error> {
        drop((self.input.take(), self.hashed.take()));
        let wanted = self.expected;
        let (decoded, built) = (join(self.decode), join(self.build));
        let (blob, size) = join(self.hash)?;
        if blob != wanted.blob || size != wanted.size {
            let which = "the digest of its blob";
            return Err(Error::Digest { blob: wanted.blob, which, found: blob, wanted: wanted.blob });
        }
        // A decoder that found its listener gone has no word of its own: the builder's is the cause.
        let decoded = decoded?;
        let Built { mut layer, diff_id, chunks } = built?;
        let stopped = || Error::Internal("the builder stopped without a word".into());
        let Inflated { decoded: Decoded { spans, windows }, tail } = decoded.ok_or_else(stopped)?;
        if let Some(wanted) = wanted.diff_id.filter(|wanted| *wanted != diff_id) {
            return Err(Error::Digest { blob, which: "its diffID", found: diff_id, wanted });
        }
        let (spans, windows) = match chunks {
            Some(chunks) => (Spans::Chunks(chunks), Vec::new()),
            None => {
                layer.tree.hide(formats::hidden(&tail));
                (Spans::Linear(spans), windows)
            }
        };
        let table = Table { extents: layer.extents.clone(), spans };
        Ok(Ingested { layer, table, windows })
    }
}

/// What the decoding thread found.
struct Inflated {
    decoded: Decoded,
    /// The blob's last bytes, [`formats::TAIL`] of them or all.
    tail: Vec<u8>,
}

/// `back`: by how much it gives way to the thread that decompresses. On two cores that one sets the pace, and all others
/// together have less than one core's work: where one of them got between, the pass took longer.
fn spawn<T: Send + 'static>(
    name: &str,
    haste: Haste,
    back: i32,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, Error> {
    let run = move || {
        // Best effort: without it others only wait longer.
        let _ = match haste {
            Haste::Whenever => hoist_sys::thread::stand_back(),
            Haste::Now => hoist_sys::thread::give_way(back),
        };
        f()
    };
    thread::Builder::new().name(name.into()).spawn(run).map_err(Error::io("start thread", name))
}

fn join<T>(handle: thread::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    handle.join().unwrap_or_else(|_| Err(Error::Internal("a decoding thread panicked".into())))
}

/// The other thread has ended, which it does only with an error of its own.
#[derive(Debug, thiserror::Error)]
enum Halt {
    #[error("the other half of the pass has stopped")]
    Stopped,
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// `held`: all output is held to the diffID, whose word is better than a gzip member's checksum.
fn decode(
    (blob, codec, held): (Digest, Codec, bool),
    input: Receiver<Bytes>,
    out: Sender<Piece>,
    mut pool: Pool<Piece>,
) -> Result<Option<Inflated>, Error> {
    let bad = |e: &dyn std::fmt::Display| Error::Layer { blob, why: e.to_string() };
    let mut decoder = StreamDecoder::new(codec, true).map_err(|e| bad(&e))?;
    if held {
        decoder = decoder.without_checksums();
    }
    let mut give = |block: &[u8]| {
        decoder.feed_taking(block, &mut |output| {
            let piece = output.take(pool.rested());
            out.send(piece).map_err(|_| Halt::Stopped)
        })
    };
    let mut blocks = Blocks::default();
    let mut tail = Vec::new();
    let fed = input.iter().try_for_each(|bytes| {
        tail.extend_from_slice(&bytes[bytes.len().saturating_sub(formats::TAIL)..]);
        tail.drain(..tail.len().saturating_sub(formats::TAIL));
        blocks.feed(&bytes, &mut give)
    });
    match fed.and_then(|()| give(blocks.rest())) {
        Ok(()) => {}
        Err(Halt::Stopped) => return Ok(None),
        Err(e) => return Err(bad(&e)),
    }
    decoder.finish().map(|decoded| Some(Inflated { decoded, tail })).map_err(|e| bad(&e))
}

fn build(
    blob: Digest,
    stream: Receiver<Piece>,
    recycle: &Sender<Piece>,
    data: Option<(File, PathBuf)>,
) -> Result<Built, Error> {
    let mut hasher = Hasher::new();
    let mut builder = LayerBuilder::new();
    let mut sink = Writer::new(data);
    for piece in stream {
        hasher.update(&piece);
        if let Err(e) = builder.feed(&piece, &mut sink) {
            return Err(match (e, sink.data.take()) {
                (LayerError::Write { source, .. }, Some((_, path))) => Error::io("write", path)(source),
                (e, _) => Error::Layer { blob, why: e.to_string() },
            });
        }
        let _ = recycle.send(piece);
    }
    let layer = builder.finish().map_err(|e| Error::Layer { blob, why: e.to_string() })?;
    sink.finish(layer.extents.data_size)?;
    Ok(Built { layer, diff_id: hasher.finish(), chunks: None })
}

/// Bytes gathered before one write.
const WRITE: usize = 1 << 20;

/// Gathers neighbouring files into large writes and starts their writeback early, so that the
/// sync at the end has little left to wait for.
struct Writer {
    data: Option<(File, PathBuf)>,
    start: u64,
    buffer: Vec<u8>,
    synced: u64,
}

impl Writer {
    fn new(data: Option<(File, PathBuf)>) -> Self {
        Self { data, start: 0, buffer: Vec::with_capacity(WRITE), synced: 0 }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if let Some((file, _)) = &self.data
            && !self.buffer.is_empty()
        {
            file.write_all_at(&self.buffer, self.start)?;
            let end = self.start + self.buffer.len() as u64;
            if end >= self.synced + (8 << 20) {
                let _ = hoist_sys::file::sync_range(file, self.synced, end - self.synced);
                self.synced = end;
            }
        }
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, data_size: u64) -> Result<(), Error> {
        let flushed = self.flush();
        let Some((file, path)) = &self.data else { return Ok(()) };
        flushed.map_err(Error::io("write", path))?;
        file.set_len(data_size.max(BLOCK)).map_err(Error::io("size", path))?;
        file.sync_data().map_err(Error::io("sync", path))?;
        let _ = hoist_sys::file::fadvise_dontneed(file, 0, 0);
        Ok(())
    }
}

impl DataSink for Writer {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let end = self.start + self.buffer.len() as u64;
        let gap = offset.wrapping_sub(end);
        if gap < BLOCK && self.buffer.len() + gap as usize + bytes.len() <= WRITE {
            self.buffer.resize(self.buffer.len() + gap as usize, 0);
        } else {
            self.flush()?;
            self.start = offset;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// The index of a layer is that of its bytes, not of how they came in.
    #[test]
    fn an_index_does_not_depend_on_the_network() {
        let dir = tempfile::tempdir().unwrap();
        // Files that refer back to each other, so that checkpoints have windows.
        let mut state = 1u64;
        let words: Vec<String> = (0..1_200_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                format!("{:x} ", state >> 52)
            })
            .collect();
        for (i, part) in words.chunks(120_000).enumerate() {
            std::fs::write(dir.path().join(format!("{i}.txt")), part.concat()).unwrap();
        }
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "-cC"]).arg(dir.path()).arg(".");
        let tar = tar.output().unwrap().stdout;
        let mut gzip =
            Command::new("gzip").arg("-9n").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut to, given) = (gzip.stdin.take().unwrap(), tar.clone());
        let giving = thread::spawn(move || to.write_all(&given));
        let blob = gzip.wait_with_output().unwrap().stdout;
        giving.join().unwrap().unwrap();

        let expected = Expected {
            blob: Digest::of(&blob),
            size: blob.len() as u64,
            diff_id: Some(Digest::of(&tar)),
            codec: Codec::Gzip,
            stream: Stream::Archive,
        };
        let index = |cuts: &mut dyn FnMut() -> usize| {
            let ingest = Ingest::start(expected.clone(), None, dir.path(), Haste::Now).unwrap();
            let mut rest = &blob[..];
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(cuts().clamp(1, rest.len()));
                ingest.feed(Bytes::copy_from_slice(piece));
                rest = more;
            }
            let done = ingest.finish().unwrap();
            assert!(done.table.spans.linear().unwrap().spans.len() > 1 && !done.windows.is_empty());
            (done.table.encode(), done.windows)
        };
        let whole = index(&mut || blob.len());
        for piece in [700, 1460, 16 << 10, (128 << 10) + 1, 300_000] {
            assert!(index(&mut || piece) == whole, "in pieces of {piece} bytes it differs");
        }
        let mut state = 7u64;
        for _ in 0..5 {
            let mut random = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 48) as usize
            };
            assert!(index(&mut random) == whole);
        }
    }
}

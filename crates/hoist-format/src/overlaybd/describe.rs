//! From an overlaybd or TurboOCI image to a tree and a table, step by step.

use std::collections::HashMap;
use std::ops::Range;

use super::blob::Blob;
use super::device::{Layers, Place};
use super::gzip_meta::GzipIndex;
use super::trace::{Recorded, Spots};
use super::turbo::{FileSystem, TurboMeta};
use super::{OverlaybdError, Room};
use crate::build::{Builder, ChunkId, Described, Run, StoredChunk};
use crate::chunk::ChunkCodec;
use crate::digest::Digest;
use crate::erofs;
use crate::ext4;
use crate::volume::{Stretch, Volume};

/// What an image needs next, or what it is.
#[derive(Debug)]
pub enum Step {
    /// These ranges of these layers' blobs, layers counted from the lowest. Of metadata layers of TurboOCI: all of it.
    Fetch(Vec<(usize, Range<u64>)>),
    /// All is read.
    Done(Box<Described>),
}

/// A layer of a TurboOCI image.
#[derive(Debug, Clone)]
pub struct TurboLayer {
    /// The metadata layer's blob, all of it, its digest right.
    pub meta: Vec<u8>,
    /// The original layer's digest.
    pub target: Digest,
    /// Bytes of its blob.
    pub size: u64,
}

/// An overlaybd image, being read.
#[derive(Debug)]
pub struct Image {
    layers: Vec<(Digest, u64)>,
    state: State,
    /// What is read first.
    recorded: Vec<Recorded>,
}

#[derive(Debug)]
enum State {
    Opening(Vec<Blob>),
    Reading(Layers),
    Done,
}

impl Image {
    /// An image of these blobs, lowest first: digest and size of each.
    ///
    /// # Errors
    /// When there are too many.
    pub fn new(layers: Vec<(Digest, u64)>) -> Result<Self, OverlaybdError> {
        if layers.is_empty() || layers.len() > super::lsmt::MOST_LAYERS {
            return Err(OverlaybdError::TooMuch("no or more than 255 layers"));
        }
        let blobs = layers.iter().enumerate().map(|(i, (_, size))| Blob::new(*size, i as u16)).collect();
        Ok(Self { layers, state: State::Opening(blobs), recorded: Vec::new() })
    }

    /// Takes what is known to be read first.
    pub fn read_first(&mut self, recorded: Vec<Recorded>) {
        self.recorded = recorded;
    }

    /// Takes bytes of a layer's blob.
    pub fn put(&mut self, layer: usize, offset: u64, bytes: Vec<u8>) {
        match &mut self.state {
            State::Opening(blobs) => {
                if let Some(blob) = blobs.get_mut(layer) {
                    blob.put(offset, bytes);
                }
            }
            State::Reading(layers) => layers.put(layer as u16, offset, bytes),
            State::Done => {}
        }
    }

    /// Goes on as far as what is here allows.
    ///
    /// # Errors
    /// What is wrong with the image. It is of no more use then.
    pub fn step(&mut self) -> Result<Step, OverlaybdError> {
        if let State::Opening(blobs) = &mut self.state {
            let mut need = Vec::new();
            let mut room = Room::default();
            for (i, blob) in blobs.iter_mut().enumerate() {
                need.extend(blob.open()?.into_iter().map(|range| (i, range)));
                room.take(blob.held())?;
            }
            if !need.is_empty() {
                return Ok(Step::Fetch(need));
            }
            self.state = State::Reading(Layers::merge(std::mem::take(blobs))?);
        }
        let State::Reading(layers) = &mut self.state else {
            return Err(OverlaybdError::TooMuch("no more steps than it has"));
        };
        let Some(volume) = ext4::decode(layers).map_err(OverlaybdError::Ext4)? else {
            let wanted = layers.wanted().into_iter();
            let need: Vec<_> = wanted
                .flat_map(|(layer, all)| all.into_iter().map(move |r| (usize::from(layer), r)))
                .collect();
            return match need.is_empty() {
                true => Err(OverlaybdError::Lsmt("its metadata contradicts itself")),
                false => Ok(Step::Fetch(need)),
            };
        };
        let mut builder = Builder::new();
        let mut blobs = Vec::new();
        for (digest, size) in &self.layers {
            blobs.push(builder.blob(*digest, *size)?);
        }
        let source = Own { blobs, chunks: HashMap::new() };
        let described = fill(builder, volume, layers, source, &self.recorded)?;
        self.state = State::Done;
        Ok(Step::Done(Box::new(described)))
    }
}

/// Describes a TurboOCI image, whose metadata is all here: lowest layer first.
///
/// # Errors
/// What is wrong with it.
pub fn describe_turbo(layers: &[TurboLayer]) -> Result<Described, OverlaybdError> {
    let mut builder = Builder::new();
    let (mut blobs, mut originals, mut file_system) = (Vec::new(), Vec::new(), None);
    let mut room = Room::default();
    for (i, layer) in layers.iter().enumerate() {
        let meta = TurboMeta::read(&layer.meta, i as u16, &mut room)?;
        if *file_system.get_or_insert(meta.file_system) != meta.file_system {
            return Err(OverlaybdError::Turbo("its layers are of different file systems".to_owned()));
        }
        let size = layer.size;
        let told = match &meta.gzip {
            Some(gzip) => gzip.blob_size == size,
            None => meta.blob.original_end() <= size,
        };
        if !told && !crate::codec::FUZZING {
            let why = format!("it is of another layer than {}, which has {size} bytes", layer.target);
            return Err(OverlaybdError::Turbo(why));
        }
        originals.push(Original { blob: builder.blob(layer.target, size)?, size, gzip: meta.gzip });
        blobs.push(meta.blob);
    }
    let mut device = Layers::merge(blobs)?;
    let volume = match file_system {
        Some(FileSystem::Ext4) => {
            let cut = || OverlaybdError::Turbo("its blocks are cut off".to_owned());
            ext4::decode(&mut device).map_err(OverlaybdError::Ext4)?.ok_or_else(cut)?
        }
        _ => {
            let parts = device.parts()?;
            let bytes = erofs::Bytes::Parts { parts: &parts, size: crate::volume::Device::size(&device) };
            erofs::decode_foreign(bytes).map_err(OverlaybdError::Erofs)?
        }
    };
    // What was recorded of such an image is reads of its metadata, which is here.
    fill(builder, volume, &device, Turbo { originals, windows: MOST_WINDOWS, chunks: HashMap::new() }, &[])
}

/// Where chunks come from.
trait Chunks {
    /// The runs that a place of the device is.
    fn runs(&mut self, builder: &mut Builder, place: Place, out: &mut Vec<Run>)
    -> Result<(), OverlaybdError>;
}

fn fill(
    mut builder: Builder,
    volume: Volume,
    layers: &Layers,
    mut chunks: impl Chunks,
    recorded: &[Recorded],
) -> Result<Described, OverlaybdError> {
    let mut spots = Spots::default();
    for (inode, stretches) in &volume.contents {
        let mut runs = Vec::new();
        let mut end = 0;
        for stretch in stretches {
            let from = end;
            end += stretch.len();
            match *stretch {
                Stretch::Hole { len } => runs.push(Run::Hole { len }),
                Stretch::Plain { offset, len } => {
                    let mut done = from;
                    for place in layers.places(offset, len)? {
                        if let (Place::Own { layer, at, len, .. }, false) = (&place, recorded.is_empty()) {
                            spots.add(*layer, *at..at + len, *inode, done);
                        }
                        done += place.len();
                        chunks.runs(&mut builder, place, &mut runs)?;
                    }
                }
                Stretch::Packed { .. } => {
                    return Err(OverlaybdError::Turbo("its file system is compressed itself".to_owned()));
                }
            }
        }
        builder.file(*inode, runs)?;
    }
    spots.read(recorded, |inode, part| builder.prefetch_part(inode, part));
    Ok(builder.build(volume.tree)?)
}

/// Contents in the layers' own blobs.
struct Own {
    blobs: Vec<u16>,
    /// By layer and first stored byte.
    chunks: HashMap<(u16, u64), ChunkId>,
}

impl Chunks for Own {
    fn runs(
        &mut self,
        builder: &mut Builder,
        place: Place,
        out: &mut Vec<Run>,
    ) -> Result<(), OverlaybdError> {
        match place {
            Place::Zero { len } => out.push(Run::Hole { len }),
            // Nothing else would tell right bytes from wrong ones.
            Place::Own { ref run, .. } if !run.as_ref().is_some_and(|run| run.checksums) => {
                return Err(OverlaybdError::Zfile("its blocks have no checksums"));
            }
            Place::Own { layer, stored, run, raw_len, offset, len, .. } => {
                let chunk = match self.chunks.get(&(layer, stored.start)) {
                    // What is not compressed is cut to what is wanted.
                    Some(&chunk) if run.is_some() => chunk,
                    _ => {
                        let chunk = builder.chunk(StoredChunk {
                            blob: self.blobs[usize::from(layer)],
                            stored: stored.clone(),
                            codec: if run.is_some() { ChunkCodec::BlockRun } else { ChunkCodec::Plain },
                            raw_len,
                            bits: 0,
                            state: run.as_ref().map(crate::codec::BlockRun::encode),
                            stored_digest: None,
                        })?;
                        self.chunks.insert((layer, stored.start), chunk);
                        chunk
                    }
                };
                out.push(Run::Data { len, chunk, offset });
            }
            Place::Original { .. } => {
                return Err(OverlaybdError::Lsmt("it names sectors of another layer, as only TurboOCI does"));
            }
        }
        Ok(())
    }
}

/// An original layer of a TurboOCI image.
struct Original {
    blob: u16,
    size: u64,
    gzip: Option<GzipIndex>,
}

/// Contents in the original layers.
struct Turbo {
    originals: Vec<Original>,
    /// Bytes of windows that may still be held.
    windows: usize,
    /// By layer and span.
    chunks: HashMap<(u16, u64), ChunkId>,
}

/// Most bytes of gzip windows.
const MOST_WINDOWS: usize = 512 << 20;
/// Runs of an original layer that is not compressed are cut at multiples of this.
const PLAIN_RUN: u64 = 1 << 20;

impl Chunks for Turbo {
    fn runs(
        &mut self,
        builder: &mut Builder,
        place: Place,
        out: &mut Vec<Run>,
    ) -> Result<(), OverlaybdError> {
        match place {
            Place::Zero { len } => out.push(Run::Hole { len }),
            Place::Original { layer, offset, len } => {
                let (mut at, end) = (offset, offset + len);
                while at < end {
                    let (chunk, output) = self.chunk(builder, layer, at)?;
                    let n = output.end.min(end) - at;
                    out.push(Run::Data { len: n, chunk, offset: at - output.start });
                    at += n;
                }
            }
            Place::Own { .. } => {
                let why = "a file's contents are among its metadata, which hoist does not serve";
                return Err(OverlaybdError::Turbo(why.to_owned()));
            }
        }
        Ok(())
    }
}

impl Turbo {
    /// The chunk that holds byte `at` of a layer's tar stream, and its part of the stream.
    fn chunk(
        &mut self,
        builder: &mut Builder,
        layer: u16,
        at: u64,
    ) -> Result<(ChunkId, Range<u64>), OverlaybdError> {
        let original = &self.originals[usize::from(layer)];
        let beyond = || OverlaybdError::Turbo("it names bytes beyond the original layer".to_owned());
        let (number, output) = match &original.gzip {
            Some(gzip) => {
                let span = gzip.containing(at);
                (span as u64, gzip.stream_range(span))
            }
            None => {
                let number = at / PLAIN_RUN;
                (number, number * PLAIN_RUN..((number + 1) * PLAIN_RUN).min(original.size))
            }
        };
        if at >= output.end {
            return Err(beyond());
        }
        if let Some(&chunk) = self.chunks.get(&(layer, number)) {
            return Ok((chunk, output));
        }
        let mut stored = StoredChunk {
            blob: original.blob,
            stored: output.clone(),
            codec: ChunkCodec::Plain,
            raw_len: output.end - output.start,
            bits: 0,
            state: None,
            stored_digest: None,
        };
        if let Some(gzip) = &original.gzip {
            let span = number as usize;
            stored.stored = gzip.blob_range(span);
            stored.codec = ChunkCodec::Inflate;
            stored.bits = gzip.spans[span].bits;
            stored.state = gzip.window(span)?;
            let left = self.windows.checked_sub(stored.state.as_ref().map_or(0, |w| w.len()));
            self.windows = left.ok_or(OverlaybdError::TooMuch("more than 16384 gzip windows"))?;
        }
        let chunk = builder.chunk(stored)?;
        self.chunks.insert((layer, number), chunk);
        Ok((chunk, output))
    }
}

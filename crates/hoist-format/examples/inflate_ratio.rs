//! What indexing a gzip layer costs over inflating it: `inflate_ratio LAYER.tar.gz`, in release mode.
//!
//! Prints the best of three runs (and, in brackets, the CPU time of the calling thread, which other
//! work on the machine disturbs less) of: a plain inflate with the same library; the decoder with its
//! checkpoints; the whole pass (both digests, tree, extent table), one thread decoding, one hashing
//! and reading the stream, one hashing the blob.

use std::io::{Error, Result};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use hoist_format::codec::{CodecError, Decoded, StreamDecoder};
use hoist_format::digest::Hasher;
use hoist_format::layer::{Discard, LayerBuilder};
use hoist_format::span::Codec;
use hoist_sys::inflate::Inflate;

const INPUT: usize = 256 << 10;
const OUTPUT: usize = 256 << 10;
/// Decoded bytes travel between the threads in pieces of this many.
const CHUNK: usize = 512 << 10;
const IN_FLIGHT: usize = 6;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).ok_or_else(|| Error::other("usage: inflate_ratio LAYER.tar.gz"))?;
    let blob = std::fs::read(&path)?;
    let (mut plain, mut spans, mut pass, mut build) = (Cost::MAX, Cost::MAX, Cost::MAX, f64::INFINITY);
    let mut decoded = None;
    for _ in 0..3 {
        plain = plain.min(timed(|| inflate(&blob))?.0);
        let (cost, found) = timed(|| checkpoints(&blob))?;
        spans = spans.min(cost);
        decoded = Some(found);
        let (cost, building) = timed(|| whole(&blob))?;
        (pass, build) = (pass.min(cost), build.min(building));
    }
    let Decoded { spans: table, windows } = decoded.ok_or_else(|| Error::other("nothing was decoded"))?;
    println!("blob {} bytes, stream {} bytes", blob.len(), table.stream_size);
    for (what, cost) in [("plain inflate", &plain), ("with spans", &spans), ("whole pass", &pass)] {
        let (wall, cpu) = (cost.wall / plain.wall, cost.cpu / plain.cpu);
        println!("{what:<14} {:>6.2} s ({:.2} s)  {wall:.3} ({cpu:.3})", cost.wall, cost.cpu);
    }
    println!("  and its second thread ({build:.2} s)         ({:.3})", build / plain.cpu);
    let mut sizes: Vec<u64> =
        (0..table.spans.len()).map(|i| table.stream_range(i)).map(|r| r.end - r.start).collect();
    sizes.sort_unstable();
    let at = |percent: usize| sizes[(sizes.len() - 1) * percent / 100] >> 10;
    let stored: usize = table.spans.iter().filter(|s| s.window_len > 0).count();
    println!(
        "{} spans; KiB of output: least {}, median {}, 90% {}, largest {}",
        sizes.len(),
        at(0),
        at(50),
        at(90),
        at(100)
    );
    println!(
        "windows {} bytes, {:.3}% of the blob, {} each",
        windows.len(),
        windows.len() as f64 * 100.0 / blob.len() as f64,
        windows.len().checked_div(stored).unwrap_or(0)
    );
    Ok(())
}

/// Seconds.
struct Cost {
    wall: f64,
    cpu: f64,
}

impl Cost {
    const MAX: Self = Self { wall: f64::INFINITY, cpu: f64::INFINITY };

    fn min(self, other: Self) -> Self {
        Self { wall: self.wall.min(other.wall), cpu: self.cpu.min(other.cpu) }
    }
}

/// CPU seconds of this thread so far (proc(5), `schedstat`: nanoseconds on a CPU come first).
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    nanoseconds.map(|n| n as f64 / 1e9).ok_or_else(|| Error::other("no CPU time in schedstat"))
}

fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<(Cost, T)> {
    let (wall, from) = (Instant::now(), cpu()?);
    let value = f()?;
    Ok((Cost { wall: wall.elapsed().as_secs_f64(), cpu: cpu()? - from }, value))
}

/// One member, its header assumed to be gzip's usual ten bytes (and a name).
fn inflate(blob: &[u8]) -> Result<()> {
    let named = blob.get(3).is_some_and(|flags| flags & 8 != 0);
    let name = if named { blob[10..].iter().position(|&b| b == 0).map_or(0, |n| n + 1) } else { 0 };
    let mut input = &blob[10 + name..];
    let mut inflate = Inflate::raw().map_err(Error::other)?;
    let mut room = vec![0; OUTPUT];
    loop {
        let piece = &input[..input.len().min(INPUT)];
        let step = inflate.step(piece, &mut room, false).map_err(Error::other)?;
        input = &input[step.consumed..];
        if step.end {
            return Ok(());
        }
        if step.consumed == 0 && step.produced == 0 {
            return Err(Error::other("truncated"));
        }
    }
}

fn checkpoints(blob: &[u8]) -> Result<Decoded> {
    let mut decoder = StreamDecoder::new(Codec::Gzip, true).map_err(Error::other)?;
    for piece in blob.chunks(INPUT) {
        decoder.feed::<CodecError>(piece, &mut |_| Ok(())).map_err(Error::other)?;
    }
    decoder.finish().map_err(Error::other)
}

/// Gives the CPU seconds of the second thread.
fn whole(blob: &[u8]) -> Result<f64> {
    let (out, stream) = sync_channel::<Vec<u8>>(IN_FLIGHT);
    let (recycle, recycled) = sync_channel::<Vec<u8>>(IN_FLIGHT + 2);
    std::thread::scope(|scope| {
        let build = scope.spawn(move || {
            let (mut hasher, mut builder) = (Hasher::new(), LayerBuilder::new());
            for mut chunk in stream {
                hasher.update(&chunk);
                builder.feed(&chunk, &mut Discard).map_err(Error::other)?;
                chunk.clear();
                let _ = recycle.try_send(chunk);
            }
            hasher.finish();
            builder.finish().map_err(Error::other)?;
            cpu()
        });
        let digest = scope.spawn(move || {
            let mut hasher = Hasher::new();
            blob.chunks(INPUT).for_each(|piece| hasher.update(piece));
            hasher.finish()
        });
        let mut decoder = StreamDecoder::new(Codec::Gzip, true).map_err(Error::other)?;
        let mut buffer = Vec::with_capacity(CHUNK);
        for piece in blob.chunks(INPUT) {
            let fed = decoder.feed::<CodecError>(piece, &mut |mut bytes| {
                while !bytes.is_empty() {
                    let n = bytes.len().min(CHUNK - buffer.len());
                    buffer.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    if buffer.len() == CHUNK {
                        let fresh = recycled.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
                        // If the other side is gone, joining it tells why.
                        let _ = out.send(std::mem::replace(&mut buffer, fresh));
                    }
                }
                Ok(())
            });
            fed.map_err(Error::other)?;
        }
        let _ = out.send(buffer);
        drop(out);
        digest.join().map_err(|_| Error::other("the hashing thread panicked"))?;
        decoder.finish().map_err(Error::other)?;
        build.join().unwrap_or_else(|_| Err(Error::other("the building thread panicked")))
    })
}

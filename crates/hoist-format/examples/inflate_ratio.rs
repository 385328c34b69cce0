//! What indexing a gzip layer costs over inflating it: `inflate_ratio LAYER.tar.gz [TURNS]`, in release mode.
//!
//! By turns, and the median of them: a plain inflate with the same library on one thread; then the whole pass of
//! `hoist index` but for the writing: blob digest, diffID, tree, extents, checkpoints and windows, on the same threads.
//! Wall time of both is what counts. CPU time is that of all threads, and below it stands which thread took it: both
//! sha256 digests and the extents' BLAKE3 are work that inflating alone does not have.

use std::io::{Error, Result};
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use hoist_format::codec::{CodecError, Decoded, Piece, StreamDecoder};
use hoist_format::digest::Hasher;
use hoist_format::layer::{Discard, LayerBuilder};
use hoist_format::span::Codec;
use hoist_sys::inflate::Inflate;

const INPUT: usize = 256 << 10;
const OUTPUT: usize = 256 << 10;
/// Decoded pieces between the threads, as in hoist-engine's `ingest.rs`.
const IN_FLIGHT: usize = 12;

fn main() -> Result<()> {
    let usage = || Error::other("usage: inflate_ratio LAYER.tar.gz [TURNS]");
    let mut args = std::env::args_os().skip(1);
    let blob = std::fs::read(args.next().ok_or_else(usage)?)?;
    let turns = args.next().map_or(Some(7), |n| n.to_str()?.parse().ok()).ok_or_else(usage)?;
    let mut rows = [(); 7].map(|()| Vec::new());
    let mut decoded = None;
    for _ in 0..turns {
        let plain = timed(|| inflate(&blob))?.0;
        let (pass, (found, threads)) = timed(|| whole(&blob))?;
        decoded = Some(found);
        let [decode, build, digest] = threads;
        let windows = pass.1 - decode - build - digest;
        let costs = [plain.0, plain.1, pass.0, pass.1, decode, build, digest];
        rows.iter_mut().zip(costs).for_each(|(row, cost)| row.push(cost));
        eprintln!("wall {:.3}, windows' thread {windows:.2} s", pass.0 / plain.0);
    }
    let [wall, cpu, pass_wall, pass_cpu, decode, build, digest] = rows.map(median);
    let Decoded { spans: table, windows } = decoded.ok_or_else(usage)?;
    println!("blob {} bytes, stream {} bytes, median of {turns} turns", blob.len(), table.stream_size);
    let row =
        |what: &str, seconds: f64, of: f64| println!("{what:<44} {seconds:>7.3} s {:>7.3}", seconds / of);
    row("plain inflate: wall", wall, wall);
    row("whole pass: wall", pass_wall, wall);
    row("whole pass: CPU of all threads", pass_cpu, cpu);
    row("  inflating, checksum, finding checkpoints", decode, cpu);
    row("  diffID, tar, extents and their digests", build, cpu);
    row("  digest of the blob", digest, cpu);
    row("  windows (what is left)", pass_cpu - decode - build - digest, cpu);
    let mut sizes: Vec<u64> =
        (0..table.spans.len()).map(|i| table.stream_range(i)).map(|r| r.end - r.start).collect();
    sizes.sort_unstable();
    let at = |percent: usize| sizes[(sizes.len() - 1) * percent / 100] >> 10;
    let (least, half, most, largest) = (at(0), at(50), at(90), at(100));
    println!(
        "{} spans; KiB of output: least {least}, median {half}, 90% {most}, largest {largest}; \
         windows {} bytes, {:.3}% of the blob",
        sizes.len(),
        windows.len(),
        windows.len() as f64 * 100.0 / blob.len() as f64
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU seconds of this thread so far (proc(5), `schedstat`: nanoseconds on a CPU come first).
fn of_thread() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    nanoseconds.map(|n| n as f64 / 1e9).ok_or_else(|| Error::other("no CPU time in schedstat"))
}

/// CPU seconds of all threads so far, those that have ended among them, to a hundredth (proc(5), `stat`: fields 14 and
/// 15, of which the second is in parentheses).
fn of_process() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Seconds on the wall, and of all threads' CPU time.
fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<((f64, f64), T)> {
    let (wall, from) = (Instant::now(), of_process()?);
    let value = f()?;
    Ok(((wall.elapsed().as_secs_f64(), of_process()? - from), value))
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

/// Gives the CPU seconds of the three threads too.
fn whole(blob: &[u8]) -> Result<(Decoded, [f64; 3])> {
    let from = of_thread()?;
    let (out, stream) = sync_channel::<Piece>(IN_FLIGHT);
    let (recycle, recycled) = sync_channel::<Piece>(IN_FLIGHT + 2);
    std::thread::scope(|scope| {
        let build = scope.spawn(move || {
            let (mut hasher, mut builder) = (Hasher::new(), LayerBuilder::new());
            for piece in stream {
                hasher.update(&piece);
                builder.feed(&piece, &mut Discard).map_err(Error::other)?;
                let _ = recycle.try_send(piece);
            }
            hasher.finish();
            builder.finish().map_err(Error::other)?;
            of_thread()
        });
        let digest = scope.spawn(move || {
            let mut hasher = Hasher::new();
            blob.chunks(INPUT).for_each(|piece| hasher.update(piece));
            hasher.finish();
            of_thread()
        });
        let mut decoder = StreamDecoder::new(Codec::Gzip, true).map_err(Error::other)?;
        for piece in blob.chunks(INPUT) {
            let fed = decoder.feed_taking::<CodecError>(piece, &mut |output| {
                // If the other side is gone, joining it tells why.
                let _ = out.send(output.take(recycled.try_recv().ok()));
                Ok(())
            });
            fed.map_err(Error::other)?;
        }
        drop(out);
        let decoded = decoder.finish().map_err(Error::other)?;
        let decode = of_thread()? - from;
        let digest = digest.join().unwrap_or_else(|_| Err(Error::other("the hashing thread panicked")))?;
        let build = build.join().unwrap_or_else(|_| Err(Error::other("the building thread panicked")))?;
        Ok((decoded, [decode, build, digest]))
    })
}

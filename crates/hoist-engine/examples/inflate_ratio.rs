//! What indexing a gzip layer costs over inflating it: `inflate_ratio LAYER.tar.gz [TURNS]`, in release mode.
//!
//! By turns, and the median of them: a plain inflate with the same library on one thread; then the pass that
//! `hoist index` makes but for the writing: blob digest, diffID, tree, extents, checkpoints and windows, on the same
//! threads. Wall time of both is what counts. CPU time is that of all threads: both sha256 digests and the extents'
//! BLAKE3 are work that inflating alone does not have.

use std::io::{Error, Result};
use std::time::Instant;

use bytes::Bytes;
use hoist_engine::ingest::{Expected, Haste, Ingest, Ingested, Stream};
use hoist_format::digest::{Digest, Hasher};
use hoist_format::span::Codec;
use hoist_sys::inflate::Inflate;

const INPUT: usize = 256 << 10;
const OUTPUT: usize = 256 << 10;

fn main() -> Result<()> {
    let usage = || Error::other("usage: inflate_ratio LAYER.tar.gz [TURNS]");
    let mut args = std::env::args_os().skip(1);
    let blob = Bytes::from(std::fs::read(args.next().ok_or_else(usage)?)?);
    let turns = args.next().map_or(Some(7), |n| n.to_str()?.parse().ok()).ok_or_else(usage)?;
    let mut diff_id = Hasher::new();
    inflate(&blob, &mut |output| diff_id.update(output))?;
    let expected = Expected {
        blob: Digest::of(&blob),
        size: blob.len() as u64,
        diff_id: Some(diff_id.finish()),
        codec: Codec::Gzip,
        stream: Stream::Archive,
    };
    let mut rows = [(); 5].map(|()| Vec::new());
    let mut found = None;
    for _ in 0..turns {
        let plain = timed(|| inflate(&blob, &mut |_| ()))?.0;
        let (pass, ingested) = timed(|| whole(&expected, &blob))?;
        found = Some(ingested);
        let ratio = pass.0 / plain.0;
        eprintln!("wall {ratio:.3}");
        let costs = [plain.0, plain.1, pass.0, pass.1, ratio];
        rows.iter_mut().zip(costs).for_each(|(row, cost)| row.push(cost));
    }
    let [wall, cpu, pass_wall, pass_cpu, ratio] = rows.map(median);
    let Ingested { table, windows, .. } = found.ok_or_else(usage)?;
    let table = table.spans.linear().ok_or_else(usage)?;
    println!("blob {} bytes, stream {} bytes, median of {turns} turns", blob.len(), table.stream_size);
    println!("{:<44} {wall:>7.3} s", "plain inflate: wall");
    println!("{:<44} {pass_wall:>7.3} s {ratio:>7.3}", "whole pass: wall");
    println!("{:<44} {pass_cpu:>7.3} s {:>7.3}", "whole pass: CPU of all threads", pass_cpu / cpu);
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

/// CPU seconds of all threads so far, those that have ended among them, to a hundredth (proc(5), `stat`: fields 14 and
/// 15, in ticks of the 100 a second that Linux counts for programs).
fn of_process() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / 100.0)
}

/// Seconds on the wall, and of all threads' CPU time.
fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<((f64, f64), T)> {
    let (wall, from) = (Instant::now(), of_process()?);
    let value = f()?;
    Ok(((wall.elapsed().as_secs_f64(), of_process()? - from), value))
}

/// One member, its header assumed to be gzip's usual ten bytes (and a name).
fn inflate(blob: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<()> {
    let named = blob.get(3).is_some_and(|flags| flags & 8 != 0);
    let name = if named { blob[10..].iter().position(|&b| b == 0).map_or(0, |n| n + 1) } else { 0 };
    let mut input = &blob[10 + name..];
    let mut inflate = Inflate::raw().map_err(Error::other)?;
    let mut room = vec![0; OUTPUT];
    loop {
        let piece = &input[..input.len().min(INPUT)];
        let step = inflate.step(piece, &mut room, false).map_err(Error::other)?;
        out(&room[..step.produced]);
        input = &input[step.consumed..];
        if step.end {
            return Ok(());
        }
        if step.consumed == 0 && step.produced == 0 {
            return Err(Error::other("truncated"));
        }
    }
}

fn whole(expected: &Expected, blob: &Bytes) -> Result<Ingested> {
    let pass =
        Ingest::start(expected.clone(), None, &std::env::temp_dir(), Haste::Now).map_err(Error::other)?;
    (0..blob.len()).step_by(INPUT).for_each(|at| pass.feed(blob.slice(at..blob.len().min(at + INPUT))));
    pass.finish().map_err(Error::other)
}

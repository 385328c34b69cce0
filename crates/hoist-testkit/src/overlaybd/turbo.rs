//! A layer as TurboOCI has it: the blocks of an ext4 that are its metadata, and for the blocks of its files where their bytes stand
//! in the original layer's tar stream, which stays as it is (accelerated-container-image `pkg/convertor`, overlaybd
//! `src/tools/turboOCI-apply.cpp`, `src/overlaybd/gzindex/gzfile_index.h`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use hoist_sys::inflate::{Inflate, WINDOW};

use super::{BLOCK, LONGEST, SECTOR, Zfile, changed, crc, lsmt_head};
use crate::process;

/// Sectors of a block.
const SECTORS: usize = BLOCK / SECTOR;
/// Checkpoints of the gzip index are so many bytes of the stream apart.
const SPAN: u64 = 1 << 20;
/// In an entry's second word.
const ZEROED: u64 = 1 << 55;
const ORIGINAL: u64 = 1 << 56;

/// Where on the device the files of the layer's tar stand: sectors of the device, sectors, the first one's place in the tar.
/// `root`: where the device is mounted.
pub(super) fn contents(layer: &Path, root: &Path) -> Result<Vec<(usize, usize, u64)>> {
    let files = files(layer)?;
    let mut all = Vec::new();
    let list: Vec<_> = files.into_iter().collect();
    for some in list.chunks(1000) {
        let mut filefrag = Command::new("filefrag");
        filefrag.args(["-v", "-b4096"]).args(some.iter().map(|(path, _)| root.join(path)));
        let told = filefrag.output()?;
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let mut of = some.iter();
        let mut current = None;
        for line in told.lines() {
            if line.starts_with("File size of ") {
                current = of.next();
            }
            let fields: Vec<&str> = line.split(':').map(str::trim).collect();
            let (Some((_, (start, size))), Some(true)) =
                (current, fields.first().map(|f| f.parse::<u32>().is_ok()))
            else {
                continue;
            };
            let first = |range: &str| range.split("..").next().and_then(|n| n.trim().parse::<usize>().ok());
            let extent = (fields.get(1).and_then(|f| first(f)), fields.get(2).and_then(|f| first(f)));
            let (Some(logical), Some(physical)) = extent else { bail!("filefrag said {line:?}") };
            let blocks: usize =
                fields.get(3).and_then(|f| f.parse().ok()).context("filefrag said no length")?;
            let sectors = (size.div_ceil(SECTOR as u64) as usize).saturating_sub(logical * SECTORS);
            let from = start / SECTOR as u64 + (logical * SECTORS) as u64;
            all.push((physical * SECTORS, sectors.min(blocks * SECTORS), from));
        }
        if of.next().is_some() {
            bail!("filefrag told of fewer files than it was asked");
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// The regular files with contents of a gzip layer's tar: where their bytes start, and how many there are.
fn files(layer: &Path) -> Result<BTreeMap<PathBuf, (u64, u64)>> {
    let mut gzip = Command::new("gzip").arg("-dc").arg(layer).stdout(Stdio::piped()).spawn()?;
    let mut tar = BufReader::with_capacity(1 << 20, gzip.stdout.take().context("gzip has no output")?);
    let mut files = BTreeMap::new();
    let (mut at, mut header, mut long) = (0, [0; SECTOR], None);
    while tar.read_exact(&mut header).is_ok() && header[0] != 0 {
        at += SECTOR as u64;
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let size = u64::from_str_radix(text(124..136).trim(), 8).context("a size that is no octal number")?;
        let (padded, kind) = (size.next_multiple_of(SECTOR as u64), header[156]);
        if matches!(kind, b'L' | b'x') {
            let mut body = vec![0; padded as usize];
            tar.read_exact(&mut body)?;
            let body = String::from_utf8_lossy(&body[..size as usize]).into_owned();
            match kind {
                b'L' => long = Some(body.trim_end_matches('\0').to_owned()),
                _ => long = body.lines().find_map(|l| Some(l.split_once(" path=")?.1.to_owned())).or(long),
            }
        } else {
            std::io::copy(&mut tar.by_ref().take(padded), &mut std::io::sink())?;
            let prefix = if &header[257..263] == b"ustar\0" { text(345..500) } else { String::new() };
            let short =
                || if prefix.is_empty() { text(0..100) } else { format!("{prefix}/{}", text(0..100)) };
            let path = long.take().unwrap_or_else(short);
            let path = PathBuf::from(path.trim_start_matches("./").trim_start_matches('/'));
            if matches!(kind, b'0' | 0) && size > 0 {
                files.insert(path, (at, size));
            } else {
                files.remove(&path);
            }
        }
        at += padded;
    }
    // What pads the end, which gzip waits to be rid of.
    std::io::copy(&mut tar, &mut std::io::sink())?;
    gzip.wait()?;
    Ok(files)
}

/// Writes the layer: what `disk` has otherwise than `below`, where it is not `contents` of `layer`. Gives the digest of its
/// uncompressed tar's file, which is `to` with `.tar` behind it.
pub(super) fn pack(
    disk: &Path,
    below: &Path,
    contents: &[(usize, usize, u64)],
    layer: &Path,
    to: &Path,
) -> Result<PathBuf> {
    let folder = to.with_extension("files");
    fs::create_dir_all(&folder)?;
    blocks(disk, below, contents, &folder.join("ext4.fs.meta"))?;
    File::create(folder.join(".turbo.ociv1"))?;
    gzip_meta(layer, &folder.join("gzip.meta"))?;
    let tar = to.with_extension("tar");
    let names = ["ext4.fs.meta", ".turbo.ociv1", "gzip.meta"];
    let mut archive = Command::new("tar");
    archive.args([
        "--format=ustar",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mode=0644",
        "--mtime=@0",
    ]);
    process::run(archive.arg("-cf").arg(&tar).arg("-C").arg(&folder).args(names))?;
    let status = Command::new("gzip").args(["-nc"]).arg(&tar).stdout(File::create(to)?).status()?;
    if !status.success() {
        bail!("compressing {} failed", tar.display());
    }
    fs::remove_dir_all(&folder)?;
    Ok(tar)
}

fn blocks(disk: &Path, below: &Path, contents: &[(usize, usize, u64)], to: &Path) -> Result<()> {
    let file = File::create(to)?;
    let mut zfile =
        Zfile { to: BufWriter::new(&file), held: Vec::new(), lengths: Vec::new(), raw: 0, stored: 512 };
    zfile.to.write_all(&[0; SECTOR])?;
    zfile.write(&lsmt_head(1 | 2 | 4, 0, 0))?;
    // First sector, sectors, second word.
    let mut index: Vec<(usize, usize, u64)> = Vec::new();
    for (sector, len, from) in contents {
        for skip in (0..*len).step_by(LONGEST) {
            index.push((sector + skip, LONGEST.min(len - skip), ORIGINAL | (from + skip as u64)));
        }
        let rest = len.next_multiple_of(SECTORS) - len;
        if rest > 0 {
            index.push((sector + len, rest, ZEROED));
        }
    }
    let mut own: Vec<(usize, usize, u64)> = Vec::new();
    changed(&File::open(disk)?, &File::open(below)?, |start, block| {
        let before = contents.partition_point(|(sector, ..)| *sector <= start);
        let is_original =
            before > 0 && contents[before - 1].0 + contents[before - 1].1.next_multiple_of(SECTORS) > start;
        if is_original {
            return Ok(());
        }
        let place = zfile.raw / SECTOR as u64;
        match own.last_mut().filter(|last| last.0 + last.1 == start && last.1 < LONGEST) {
            Some(last) => last.1 += SECTORS,
            None => own.push((start, SECTORS, place)),
        }
        zfile.write(block)
    })?;
    index.extend(own);
    index.sort_unstable();
    let start = zfile.raw;
    for (sector, len, word) in &index {
        zfile.write(&((*sector as u64) | (*len as u64) << 50).to_le_bytes())?;
        zfile.write(&word.to_le_bytes())?;
    }
    zfile.write(&lsmt_head(2 | 4, start, index.len() as u64))?;
    zfile.finish(&file, 0).map(drop)
}

/// Where decoding of a gzip blob of one member may start. The windows are left as they are, for the layer is compressed.
fn gzip_meta(layer: &Path, to: &Path) -> Result<()> {
    const HEAD: u64 = 333;
    const ENTRY: u32 = 29;
    let size = fs::metadata(layer)?.len();
    let mut blob = BufReader::with_capacity(1 << 20, File::open(layer)?);
    let mut header = [0; 10];
    blob.read_exact(&mut header)?;
    let mut consumed = 10;
    if header[3] & !8 != 0 {
        bail!("{} has a gzip header of a kind that is not expected", layer.display());
    }
    if header[3] & 8 != 0 {
        consumed += blob.read_until(0, &mut Vec::new())? as u64;
    }
    let mut windows = BufWriter::new(File::create(to)?);
    windows.write_all(&[0; HEAD as usize])?;
    let (mut list, mut count, mut place) = (Vec::new(), 0u64, HEAD);
    let mut entry = |stream: u64, blob: u64, place: u64, bits: u8, len: u32| {
        for word in [stream, blob, place] {
            list.extend_from_slice(&word.to_le_bytes());
        }
        list.push(bits);
        list.extend_from_slice(&len.to_le_bytes());
        count += 1;
    };
    entry(0, consumed, HEAD, 0, 0);
    let mut inflate = Inflate::raw()?;
    let (mut made, mut last) = (0u64, 0u64);
    let mut past: Vec<u8> = Vec::new();
    let mut out = vec![0; 256 << 10];
    loop {
        let input = blob.fill_buf()?;
        let step = inflate.step(input, &mut out, true)?;
        let is_stuck = step.consumed == 0 && step.produced == 0 && step.block_boundary.is_none();
        if is_stuck && input.is_empty() {
            bail!("{} is cut off", layer.display());
        }
        consumed += step.consumed as u64;
        made += step.produced as u64;
        past.extend_from_slice(&out[..step.produced]);
        past.drain(..past.len().saturating_sub(WINDOW));
        blob.consume(step.consumed);
        if step.end {
            break;
        }
        if let Some(bits) = step.block_boundary.filter(|_| made - last >= SPAN) {
            entry(made, consumed, place, bits, WINDOW as u32);
            windows.write_all(&past)?;
            place += WINDOW as u64;
            last = made;
        }
    }
    windows.write_all(&list)?;
    windows.flush()?;
    let mut head = b"ddgzidx\0".to_vec();
    head.extend_from_slice(&[1, 0, 0, 0, 0]);
    for number in [SPAN as u32, WINDOW as u32, ENTRY] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    for number in [count, size, place + list.len() as u64, made] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.resize(313, 0);
    for number in [place, list.len() as u64] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.extend_from_slice(&crc(&head).to_le_bytes());
    Ok(windows.get_ref().write_all_at(&head, 0)?)
}

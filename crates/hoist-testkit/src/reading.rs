//! The reads that benches time: of names, of everything in order, of pages here and there.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a run of reads came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// How long it took.
    pub took: Duration,
    /// Paths looked at.
    pub paths: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How long the longest of all read calls took.
    pub longest: Duration,
}

/// Lists every folder and stats every path.
pub fn walk(root: &Path) -> Result<Reading> {
    let from = Instant::now();
    let paths = each(root, &mut |_, _| Ok(()))?;
    Ok(Reading { took: from.elapsed(), paths, bytes: 0, longest: Duration::ZERO })
}

/// Reads every file from its start to its end, in the order of folders.
pub fn sequential(root: &Path) -> Result<Reading> {
    let from = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut longest) = (0, Duration::ZERO);
    let paths = each(root, &mut |path, _| {
        use std::io::Read;
        let mut file = File::open(path)?;
        loop {
            let begun = Instant::now();
            let read = file.read(&mut buffer)?;
            longest = longest.max(begun.elapsed());
            match read {
                0 => return Ok(()),
                n => bytes += n as u64,
            }
        }
    })?;
    Ok(Reading { took: from.elapsed(), paths, bytes, longest })
}

/// Reads `count` pages of 4 KiB, each anywhere in the tree's data, always the same ones for the same tree.
pub fn random(root: &Path, count: u64) -> Result<Reading> {
    let mut files: Vec<(PathBuf, u64)> = Vec::new();
    each(root, &mut |path, length| {
        if length >= 4096 {
            files.push((path.to_owned(), length / 4096));
        }
        Ok(())
    })?;
    files.sort();
    let total: u64 = files.iter().map(|(_, pages)| pages).sum();
    if total == 0 {
        bail!("{} has no file of 4 KiB or more", root.display());
    }
    // Opening is no part of what is timed, and no page is read twice in a row.
    let mut starts = Vec::with_capacity(files.len());
    let mut at = 0;
    for (path, pages) in &files {
        starts.push((at, path));
        at += pages;
    }
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut page = [0; 4096];
    let (mut took, mut longest) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let wanted = state % total;
        let (first, path) = starts[starts.partition_point(|(start, _)| *start <= wanted) - 1];
        let file = File::open(path)?;
        let from = Instant::now();
        file.read_exact_at(&mut page, (wanted - first) * 4096)?;
        longest = longest.max(from.elapsed());
        took += from.elapsed();
    }
    Ok(Reading { took, paths: files.len() as u64, bytes: count * 4096, longest })
}

/// Calls `visit` for every regular file with its length; returns how many paths there are.
fn each(root: &Path, visit: &mut dyn FnMut(&Path, u64) -> Result<()>) -> Result<u64> {
    let mut paths = 0;
    for entry in std::fs::read_dir(root).with_context(|| format!("listing {}", root.display()))? {
        let path = entry?.path();
        let meta = path.symlink_metadata().with_context(|| format!("looking at {}", path.display()))?;
        paths += 1;
        if meta.is_dir() {
            paths += each(&path, visit)?;
        } else if meta.is_file() {
            visit(&path, meta.size()).with_context(|| format!("reading {}", path.display()))?;
        }
    }
    Ok(paths)
}

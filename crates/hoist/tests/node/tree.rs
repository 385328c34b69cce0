//! Layers made by GNU tar from folders that the test writes.

use std::fs;
use std::path::{Path, PathBuf};

use hoist_testkit::layout::{Builder, Built, Compression};
use hoist_testkit::{diff, process, walk};

/// A folder that becomes a layer, and the layouts made of it.
pub struct Source {
    dir: tempfile::TempDir,
}

/// What the tests' files are called, and their lengths in bytes: some below a block, some over many spans.
pub const FILES: [(&str, usize); 6] = [
    ("etc/motd", 60),
    ("lib/a.so", 1_500_000),
    ("lib/b.so", 2_000_000),
    ("lib/c.so", 3_000_000),
    ("lib/d.so", 2_500_000),
    ("usr/last", 5000),
];

impl Source {
    /// Files that compress a little, always the same ones.
    pub fn new() -> Source {
        let source = Source { dir: tempfile::tempdir().unwrap() };
        for (seed, (path, length)) in FILES.iter().enumerate() {
            source.write(path, &noise(seed as u64 + 1, *length));
        }
        source
    }

    /// The same names with little in them.
    pub fn small() -> Source {
        let source = Source { dir: tempfile::tempdir().unwrap() };
        for (seed, (path, length)) in FILES.iter().enumerate() {
            source.write(path, &noise(seed as u64 + 1, length / 2));
        }
        source
    }

    /// The tree that a mount must show.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Writes a file of the tree.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A file's content.
    pub fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.root().join(path)).unwrap()
    }

    /// Packs the tree as it now is.
    pub fn layout(&self, compression: Compression) -> Built {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let tar = dir.join("layer.tar");
        let mut pack = std::process::Command::new("tar");
        pack.args(["--sort=name", "--mtime=@1700000000", "-cf"])
            .arg(&tar)
            .arg("-C")
            .arg(self.root())
            .arg(".");
        process::run(&mut pack).unwrap();
        let builder = Builder::new(dir.join("layout")).unwrap().layer(&tar, compression).unwrap();
        builder.write("v1").unwrap()
    }

    /// Fails unless `mounted` shows the tree: everything except the times that packing set.
    pub fn assert_shown(&self, mounted: &Path) {
        let mut wanted = walk(&self.root()).unwrap();
        wanted.values_mut().for_each(|entry| entry.mtime_ns = 1_700_000_000_000_000_000);
        let found = walk(mounted).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(diff(&found, &wanted), [""; 0]);
    }

    /// Of every file, that reading it gives its content or EIO: returns how many gave their content.
    pub fn assert_right_or_failing(&self, mounted: &Path) -> usize {
        self.count_right(mounted, &[libc::EIO])
    }

    /// The same where there may be no room either.
    pub fn assert_right_or_failing_for_room(&self, mounted: &Path) -> usize {
        self.count_right(mounted, &[libc::EIO, libc::ENOSPC])
    }

    fn count_right(&self, mounted: &Path, errors: &[i32]) -> usize {
        let right = |path: &str| is_right_or_failing(&mounted.join(path), &self.read(path), errors);
        FILES.iter().filter(|(path, _)| right(path)).count()
    }
}

/// Waits until every file of a mount can be read: bytes that came wrong twice are not asked for again at once.
pub fn wait_mended(mounted: &Path) {
    let mended = || Ok(hoist_testkit::reading::sequential(mounted).is_ok());
    process::wait_until("what was wrong to be fetched again", super::case::PATIENCE, mended).unwrap();
}

/// Whether a file can be read; fails where what is read is not `wanted`, or the error is another.
fn is_right_or_failing(file: &Path, wanted: &[u8], errors: &[i32]) -> bool {
    match fs::read(file) {
        Ok(found) => {
            assert!(found == wanted, "{} has wrong bytes", file.display());
            true
        }
        Err(e) => {
            assert!(e.raw_os_error().is_some_and(|e| errors.contains(&e)), "{}: {e}", file.display());
            false
        }
    }
}

/// Bytes that look random and are always the same for a seed. Of few values, so that gzip finds matches
/// and its checkpoints need windows.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some((state >> 32) as u8 & 0x1f)
    });
    next.take(length).collect()
}

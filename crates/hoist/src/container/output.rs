//! What a container in the background says: its program writes to a file by itself, so that it can go on without us. The
//! file is cut at its beginning as it grows.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use hoist_engine::waitable;
use hoist_sys::watch::Watcher;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::io::Interest;

/// The file is cut when it has more bytes than this.
pub const MOST: u64 = 16 << 20;
/// The last bytes that are kept then, at least.
const KEPT: u64 = 8 << 20;
/// What is cut is a multiple of this: of the blocks of any file system.
pub const UNIT: u64 = 1 << 20;
/// Between two looks while it grows.
const PAUSE: Duration = Duration::from_millis(500);

/// Keeps the file within its bound until it is dropped. Ends with an error alone; while nobody writes it sleeps.
pub async fn bound(path: &Path) -> anyhow::Error {
    match keep_short(path).await {
        Err(e) => anyhow::Error::new(e).context(format!("keeping {} short", path.display())),
        Ok(never) => match never {},
    }
}

async fn keep_short(path: &Path) -> io::Result<Infallible> {
    let file = File::options().read(true).write(true).open(path)?;
    let appending = File::options().append(true).open(path)?;
    let watcher = waitable(Watcher::new()?, Interest::READABLE)?;
    loop {
        // Before looking, or what is written in between would not be seen.
        watcher.get_ref().next_write(&file)?;
        if file.metadata()?.len() > MOST {
            cut(&file, &appending)?;
        }
        let mut told = watcher.readable().await?;
        watcher.get_ref().told()?;
        told.clear_ready();
        tokio::time::sleep(PAUSE).await;
    }
}

/// Takes its beginning away. Who appends to it meanwhile does not notice.
fn cut(file: &File, appending: &File) -> io::Result<()> {
    let away = (file.metadata()?.len() - KEPT) / UNIT * UNIT;
    if fallocate(file.as_fd(), FallocateFlags::COLLAPSE_RANGE, 0, away).is_ok() {
        return Ok(());
    }
    // Not every file system can (btrfs, tmpfs): what is said in the next moment may be lost.
    let mut last = vec![0; KEPT as usize];
    let from = file.metadata()?.len() - KEPT;
    file.read_exact_at(&mut last, from)?;
    file.set_len(0)?;
    io::Write::write_all(&mut &*appending, &last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_last_of_it_is_kept_and_who_appends_goes_on() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut appending = File::options().append(true).open(file.path()).unwrap();
        let said: Vec<u8> = (0..MOST + 12_345).map(|i| (i / 100_000) as u8).collect();
        file.write_all(&said).unwrap();
        cut(file.as_file(), &appending).unwrap();
        appending.write_all(b"more").unwrap();
        let left = std::fs::read(file.path()).unwrap();
        let (left, more) = left.split_at(left.len() - 4);
        assert!(more == b"more" && left.len() as u64 >= KEPT && (left.len() as u64) < KEPT + UNIT);
        assert!(said.ends_with(left));
    }
}

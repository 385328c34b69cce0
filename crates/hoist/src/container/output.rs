//! What a container in the background says: its program writes to a file by itself, so that it can go on without us. The
//! room of what was said long ago is given back as the file grows: its beginning becomes a hole, and no byte changes its
//! place, so that it makes no difference how whoever writes has opened it.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use hoist_engine::waitable;
use hoist_sys::watch::Watcher;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use tokio::io::Interest;

/// Room is given back when more bytes than this take some.
pub const MOST: u64 = 16 << 20;
/// The last bytes that are kept then, at least.
const KEPT: u64 = 8 << 20;
/// What is given back ends at a multiple of this: of the blocks of any file system.
pub const UNIT: u64 = 1 << 20;
/// Between two looks while it grows quickly, and while it does not.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

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
    let (mut last, mut pause) = (0, PAUSE);
    loop {
        // Before looking, or what is written in between would not be seen.
        watcher.get_ref().next_write(&file)?;
        let length = file.metadata()?.len();
        if length.saturating_sub(beginning(&file)?) > MOST {
            cut(&file, &appending)?;
        }
        pause = if length.saturating_sub(last) > UNIT { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        last = length;
        let mut told = watcher.readable().await?;
        watcher.get_ref().told()?;
        told.clear_ready();
        tokio::time::sleep(pause).await;
    }
}

/// Where what is still there begins. The file's own position is moved.
///
/// # Errors
/// The file system's.
pub fn beginning(file: &File) -> io::Result<u64> {
    match seek(file, SeekFrom::Data(0)) {
        Ok(at) => Ok(at),
        // There is nothing, or one that cannot tell of holes.
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Gives back the room of its beginning.
fn cut(file: &File, appending: &File) -> io::Result<()> {
    let away = (file.metadata()?.len() - KEPT) / UNIT * UNIT;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(file.as_fd(), hole, 0, away).is_ok() {
        return Ok(());
    }
    // Where there are no holes (NFS before 4.2): what is said in the next moment may be lost.
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
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_last_of_it_is_kept_and_whoever_writes_goes_on() {
        for appends in [true, false] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let appending = File::options().append(true).open(file.path()).unwrap();
            let mut writer = File::options().append(appends).write(true).open(file.path()).unwrap();
            let mut said: Vec<u8> = (0..MOST + 12_345).map(|i| (i / 100_000) as u8 | 1).collect();
            writer.write_all(&said).unwrap();
            cut(file.as_file(), &appending).unwrap();
            writer.write_all(b"more").unwrap();
            said.extend(b"more");
            let from = beginning(file.as_file()).unwrap();
            let left = said.len() as u64 - from;
            assert!((KEPT..KEPT + UNIT + 4).contains(&left), "{left}");
            let kept = std::fs::read(file.path()).unwrap();
            assert!(kept.len() == said.len() && kept[from as usize..] == said[from as usize..]);
            file.as_file().sync_all().unwrap();
            assert!(file.as_file().metadata().unwrap().blocks() * 512 < KEPT + 2 * UNIT);
        }
    }

    #[test]
    fn what_is_empty_begins_at_its_start() {
        assert_eq!(beginning(&tempfile::tempfile().unwrap()).unwrap(), 0);
    }
}

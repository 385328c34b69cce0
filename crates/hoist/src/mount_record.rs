//! Records of the mounts in the background, one JSON file each in the store's `mounts` folder.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// A mount and the process that serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Canonical path of the mount point.
    pub target: PathBuf,
    /// The image, as it was named.
    pub image: String,
    /// Process that serves it.
    pub pid: i32,
    /// When the process started, in clock ticks since boot: tells it from a later one of the same pid.
    pub started: u64,
}

/// The records of a store.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Those of the store at `root`; the folder need not be there yet.
    pub fn of(root: &Path) -> Records {
        Records { dir: root.join("mounts") }
    }

    // One process serves one mount, so its pid names the record.
    fn path(&self, pid: i32) -> PathBuf {
        self.dir.join(format!("{pid}.json"))
    }

    /// Records that this process serves `image` on `target`.
    pub fn write(&self, target: &Path, image: &str) -> io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let started = start_time(pid).ok_or_else(|| io::Error::other("/proc/self/stat can't be read"))?;
        let record = MountRecord { target: target.to_owned(), image: image.to_owned(), pid, started };
        crate::stats_file::write_atomically(&self.path(pid), &serde_json::to_vec_pretty(&record)?)
    }

    /// Forgets a mount.
    pub fn remove(&self, pid: i32) -> io::Result<()> {
        match std::fs::remove_file(self.path(pid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The record of the latest mount on `target`.
    pub fn find(&self, target: &Path) -> io::Result<Option<MountRecord>> {
        Ok(self
            .all()?
            .into_iter()
            .filter(|record| record.target == target)
            .max_by_key(|record| record.started))
    }

    /// Every record, those included whose process was killed before it could remove its own.
    pub fn all(&self) -> io::Result<Vec<MountRecord>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut records = Vec::new();
        for entry in entries {
            // Files that are gone meanwhile or are no records are passed over.
            let Ok(text) = std::fs::read(entry?.path()) else { continue };
            records.extend(serde_json::from_slice::<MountRecord>(&text));
        }
        Ok(records)
    }
}

impl MountRecord {
    /// Waits until the process that serves the mount has ended, whatever that takes.
    pub fn wait_for_end(&self) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // Checked after the open: from here on the descriptor can't come to mean another process.
        if start_time(self.pid) != Some(self.started) {
            return Ok(());
        }
        let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
        loop {
            match rustix::event::poll(&mut fds, None) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Field 22 of /proc/PID/stat (proc_pid_stat(5)), counted from behind the command's name, which may hold
/// spaces and brackets.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether something is mounted on `target`, and of what type (mountinfo of this process); the topmost.
pub fn mounted_type(target: &Path) -> io::Result<Option<String>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(find_mount(&String::from_utf8_lossy(&table), target))
}

// proc_pid_mountinfo(5): id parent major:minor root mountpoint options [optional...] - type source options
fn find_mount(table: &str, target: &Path) -> Option<String> {
    let mut found = None;
    for line in table.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let point = mount.split(' ').nth(4).map(unescape);
        if point.is_some_and(|point| Path::new(&point) == target) {
            found = file_system.split(' ').next().map(str::to_owned);
        }
    }
    found
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_by_target() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::of(dir.path());
        assert_eq!(records.find(Path::new("/a")).unwrap(), None);
        records.write(Path::new("/a"), "image").unwrap();
        let record = records.find(Path::new("/a")).unwrap().unwrap();
        assert_eq!((record.image.as_str(), record.pid), ("image", std::process::id().cast_signed()));
        records.remove(record.pid).unwrap();
        records.remove(record.pid).unwrap();
        assert_eq!(records.find(Path::new("/a")).unwrap(), None);
    }

    #[test]
    fn waits_for_its_own_process_only() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        let mut record = MountRecord { target: "/".into(), image: String::new(), pid, started: 0 };
        record.wait_for_end().unwrap();
        record.started = start_time(pid).unwrap();
        child.kill().unwrap();
        record.wait_for_end().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn mount_table_is_read() {
        let table = "22 1 0:5 / /mnt/a\\040b rw - erofs x ro\n23 1 0:6 / /x rw shared:1 - ext4 /dev/a rw\n";
        assert_eq!(find_mount(table, Path::new("/mnt/a b")).as_deref(), Some("erofs"));
        assert_eq!(find_mount(table, Path::new("/x")).as_deref(), Some("ext4"));
        assert_eq!(find_mount(table, Path::new("/y")), None);
        assert!(mounted_type(Path::new("/proc")).unwrap().is_some());
    }
}

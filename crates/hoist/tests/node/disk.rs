//! A file system that is soon full.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoist_testkit::process;

use super::Node;
use super::case::Case;
use super::tree::FILES;

/// A small file system of the test's own, in a file.
pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Makes and mounts an ext4.
    pub fn new(megabytes: u64) -> SmallDisk {
        SmallDisk::of(&["mkfs.ext4", "-qF", "-m", "0"], megabytes)
    }

    /// The same of what this command makes.
    pub fn of(mkfs: &[&str], megabytes: u64) -> SmallDisk {
        let disk = SmallDisk { dir: tempfile::tempdir().unwrap() };
        let image = disk.dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        process::run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image)).unwrap();
        fs::create_dir(disk.root()).unwrap();
        process::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.root())).unwrap();
        disk
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Bytes of room.
    pub fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(self.root()).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Takes all room but about this many bytes, until the file that is returned is removed.
    pub fn fill(&self, leave: u64) -> PathBuf {
        let take = self.free().saturating_sub(leave);
        let ballast = self.root().join("ballast");
        let file = fs::File::create(&ballast).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
        ballast
    }

    /// Takes all room there is, until the file that is returned is removed.
    pub fn fill_up(&self) -> PathBuf {
        let ballast = self.fill(1 << 20);
        let mut file = fs::OpenOptions::new().append(true).open(&ballast).unwrap();
        while file.write_all(&[1; 4096]).and_then(|()| file.sync_data()).is_ok() {}
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        super::unmount_below(self.dir.path());
    }
}

/// Of a store on a full disk: reads that need room fail, all others give right bytes, and all do once there is room.
pub fn reads_fail_until_there_is_room(case: &Case, node: impl Fn(&Path) -> Node) {
    let disk = SmallDisk::new(60);
    let ballast = disk.fill(4 << 20);
    let node = node(&disk.root().join("store"));
    let mount = node.mount(&case.image.name, &[]);
    assert!(case.source.assert_right_or_failing_for_room(mount.root()) < FILES.len());
    fs::remove_file(ballast).unwrap();
    case.source.assert_shown(mount.root());
}

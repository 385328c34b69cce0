//! What is mounted from this store: a record and a lease for each mount.
//!
//! The *record* (`mounts/ID.json`) says all that a successor needs to go on serving. The *lease*
//! (`mounts/ID.lease`) is locked by whoever serves the mount, through a descriptor that the keeper has too:
//! so it is free exactly when nobody is left who holds the mount's fanotify group.
//!
//! Neither is synced: a mount does not outlive a reboot, and its record only counts for the boot it names.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use hoist_format::digest::Digest;
use hoist_sys::presence::{Presence, Snapshot};
use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::Error;

/// Bytes of a lease that says who holds it: more than any two process ids take.
const SIGNED: usize = 96;

/// A mount, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Names its files.
    pub id: String,
    /// The boot it was made in.
    pub boot: String,
    /// The mount point, canonical.
    pub target: PathBuf,
    /// The image as it was named; the path of a layout is absolute.
    pub image: String,
    /// Its manifest.
    pub manifest: Digest,
    /// The document of the published index that lays it out; None where all of it was here.
    pub index: Option<String>,
    /// The data files that the kernel reads, lowest layer first.
    pub data: Vec<PathBuf>,
    /// Has it data that may be absent?
    pub lazy: bool,
    /// See [`Presence`].
    pub before: u64,
    /// See [`Presence`].
    pub superblocks: Vec<u64>,
    /// The FUSE session that shows it or its data files, if one does.
    #[serde(default)]
    pub fuse: Option<FuseRecord>,
    /// Nobody holds its group any more: what was absent may have been read as zeros.
    #[serde(default)]
    pub lost: bool,
    /// Since when, in seconds since 1970.
    #[serde(default)]
    pub since: Option<u64>,
}

/// What a successor must know of a FUSE session, beside its descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FuseRecord {
    /// Minor version of the protocol that was agreed on.
    pub minor: u32,
    /// What both sides can do.
    pub flags: u64,
    /// The most the kernel reads ahead.
    pub max_readahead: u32,
    /// Are all files shown as root's?
    pub root_alone: bool,
    /// Where EROFS lies over the session: what shows each layer to it, lowest first; None for those that it
    /// does not carry. None where the session is the file system.
    pub carried: Option<Vec<Option<LoopRecord>>>,
}

/// A loop device over a file of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopRecord {
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// Device and inode number of the file, which tell whether it is still this one's.
    pub backing: (u64, u64),
}

/// Who serves a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    /// The process that fills.
    pub filler_pid: u32,
    /// Its keeper; None where nothing can be absent.
    pub keeper_pid: Option<u32>,
}

impl MountRecord {
    /// What tells whether it is still there.
    pub fn presence(&self) -> Presence {
        let (target, superblocks) = (self.target.clone(), self.superblocks.clone());
        Presence { target, before: self.before, superblocks }
    }
}

/// The lease of a mount that this process serves.
#[derive(Debug)]
pub struct Lease {
    dir: PathBuf,
    id: String,
    file: File,
    ended: AtomicBool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.ended.load(Ordering::Relaxed) {
            // Whoever still has a copy of it: who waits for its end has waited long enough.
            let _ = self.file.unlock();
        }
    }
}

fn record_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.json"))
}

fn lease_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.lease"))
}

/// Has an empty file for each mount that was lost, of its name; beside the folder of the records.
fn lost_dir(records: &Path) -> PathBuf {
    records.with_file_name("lost-mounts")
}

impl Lease {
    /// One that this process got from the one before it.
    pub(crate) fn inherited(store: &Store, id: &str, file: File) -> Self {
        Self { dir: store.mounts_dir(), id: id.to_owned(), file, ended: AtomicBool::new(false) }
    }

    /// Writes the record anew.
    pub fn record(&self, record: &MountRecord) -> Result<(), Error> {
        let path = record_path(&self.dir, &self.id);
        let bytes = serde_json::to_vec_pretty(record).map_err(|e| Error::Internal(e.to_string()))?;
        let mut file = super::aside::for_place_in(&self.dir)?;
        file.write_all(&bytes).map_err(Error::io("write", &path))?;
        file.persist(&path).map_err(|e| Error::io("rename to", &path)(e.error))?;
        Ok(())
    }

    /// Notes that the mount was lost, for [`Store::has_lost_mounts`]; before its record says so, or nobody would look there.
    pub fn note_lost(&self) -> Result<(), Error> {
        let dir = lost_dir(&self.dir);
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let path = dir.join(&self.id);
        File::create(&path).map_err(Error::io("create", &path)).map(drop)
    }

    /// Says who serves it, in the lease itself.
    pub fn sign(&self, servers: Servers) -> Result<(), Error> {
        let mut text = serde_json::to_vec(&servers).map_err(|e| Error::Internal(e.to_string()))?;
        // Always as long, and written at once: who reads it meanwhile finds the one or the other.
        text.resize(SIGNED.max(text.len()), b' ');
        self.file.write_all_at(&text, 0).map_err(Error::io("write", lease_path(&self.dir, &self.id)))
    }

    /// The mount is gone: forgets it.
    pub fn end(&self) {
        // Who finds a record without a lease takes the mount for gone, as it is.
        let _ = fs::remove_file(record_path(&self.dir, &self.id));
        let _ = fs::remove_file(lease_path(&self.dir, &self.id));
        let _ = fs::remove_file(lost_dir(&self.dir).join(&self.id));
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// See [`Store::end_of_mount`].
#[derive(Debug)]
pub struct EndOfMount {
    path: PathBuf,
    lease: Option<File>,
}

impl EndOfMount {
    /// Waits for it, whatever that takes.
    pub fn wait(&self) -> Result<(), Error> {
        let Some(lease) = &self.lease else { return Ok(()) };
        lease.lock_shared().map_err(Error::io("wait for", &self.path))?;
        lease.unlock().map_err(Error::io("unlock", &self.path))
    }

    /// Has it come?
    pub fn has_come(&self) -> Result<bool, Error> {
        let Some(lease) = &self.lease else { return Ok(true) };
        match lease.try_lock_shared() {
            Ok(()) => lease.unlock().map(|()| true).map_err(Error::io("unlock", &self.path)),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(Error::io("look at", &self.path)(e)),
        }
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Store {
    fn mounts_dir(&self) -> PathBuf {
        self.root().join("mounts")
    }

    /// Takes a lease of this name, if nobody has it.
    fn take_lease(&self, id: &str) -> Result<Option<Lease>, Error> {
        let dir = self.mounts_dir();
        let path = lease_path(&dir, id);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lease { dir, id: id.to_owned(), file, ended: AtomicBool::new(false) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
        }
    }

    /// Records what is about to be mounted.
    pub(crate) fn record_mount(&self, record: &MountRecord) -> Result<Lease, Error> {
        let dir = self.mounts_dir();
        fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        let taken = || Error::Internal(format!("there is a mount {} already", record.id));
        let lease = self.take_lease(&record.id)?.ok_or_else(taken)?;
        lease.record(record)?;
        Ok(lease)
    }

    /// Every recorded mount of this boot.
    pub fn mounts(&self) -> Result<Vec<MountRecord>, Error> {
        let dir = self.mounts_dir();
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let boot = boot()?;
        let files = super::names(&dir)?.into_iter().filter(|name| name.ends_with(".json"));
        // What is gone meanwhile, or is no record, is passed over.
        let records = files.filter_map(|f| serde_json::from_slice(&fs::read(dir.join(f)).ok()?).ok());
        Ok(records.filter(|record: &MountRecord| record.boot == boot).collect())
    }

    /// Was any mount lost that has not gone yet? Costs the same however many there are.
    pub(crate) fn has_lost_mounts(&self) -> Result<bool, Error> {
        let dir = lost_dir(&self.mounts_dir());
        match fs::read_dir(&dir) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            // A hoist that had no such folder noted it in the records alone.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let any = self.mounts()?.iter().any(|record| record.lost);
                if !any {
                    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
                }
                Ok(any)
            }
            Err(e) => Err(Error::io("list", &dir)(e)),
        }
    }

    /// Who serves a mount; None where nobody does.
    pub fn servers(&self, id: &str) -> Option<Servers> {
        let mut file = File::open(lease_path(&self.mounts_dir(), id)).ok()?;
        if file.try_lock_shared().is_ok() {
            return None;
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What tells when nobody serves the mount any more. Taken before the mount is unmounted, it also waits for what
    /// its server does last: the lease's name goes earlier than its lock.
    pub fn end_of_mount(&self, id: &str) -> Result<EndOfMount, Error> {
        let path = lease_path(&self.mounts_dir(), id);
        match File::open(&path) {
            Ok(file) => Ok(EndOfMount { path, lease: Some(file) }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(EndOfMount { path, lease: None }),
            Err(e) => Err(Error::io("open", &path)(e)),
        }
    }

    /// Is any image of this store mounted and served?
    pub fn has_mounts(&self) -> Result<bool, Error> {
        Ok(self.mounts()?.iter().any(|record| self.is_held(&record.id)))
    }

    /// Does anybody serve, or guard, the mount?
    pub fn is_held(&self, id: &str) -> bool {
        let file = File::open(lease_path(&self.mounts_dir(), id));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Is a FUSE server of this mount's dead, and its keeper? Nothing that is not cached can be read of it any more.
    pub fn is_dead(&self, record: &MountRecord) -> bool {
        record.fuse.is_some() && !self.is_held(&record.id)
    }

    /// Forgets mounts that are gone and that nobody served to their end.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn forget_gone(&self) -> Result<(), Error> {
        self.unserved().map(drop)
    }

    /// The mounts that are still there, though nobody holds their group; each with its lease. Records of
    /// mounts that are gone are removed.
    pub(crate) fn unserved(&self) -> Result<Vec<(MountRecord, Lease)>, Error> {
        let dir = self.mounts_dir();
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let boot = boot()?;
        let mut found = Vec::new();
        for name in super::names(&dir)? {
            let Some(id) = name.strip_suffix(".json") else { continue };
            let Some(lease) = self.take_lease(id)? else { continue };
            // Read under the lease: it may just have ended.
            let record = fs::read(dir.join(&name)).ok().and_then(|b| serde_json::from_slice(&b).ok());
            let Some(mut record) = record.filter(|record: &MountRecord| record.boot == boot) else {
                lease.end();
                continue;
            };
            let now = Snapshot::take().map_err(Error::io("read", "/proc/self/mountinfo"))?;
            let mut presence = record.presence();
            presence.look(&now);
            if presence.is_alive(&now) {
                record.superblocks = presence.superblocks;
                found.push((record, lease));
            } else {
                lease.end();
            }
        }
        Ok(found)
    }
}

/// The id of this boot.
pub(crate) fn boot() -> Result<String, Error> {
    hoist_sys::file::boot_id().map_err(Error::io("read", "/proc/sys/kernel/random/boot_id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, target: &Path) -> MountRecord {
        MountRecord {
            id: id.to_owned(),
            boot: boot().unwrap(),
            target: target.to_owned(),
            image: "image".into(),
            manifest: Digest::of(b""),
            index: None,
            data: Vec::new(),
            lazy: true,
            before: u64::MAX,
            superblocks: Vec::new(),
            fuse: None,
            lost: false,
            since: None,
        }
    }

    #[test]
    fn what_is_about_to_be_mounted_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let record = record("a", &dir.path().join("nowhere"));
        let lease = store.record_mount(&record).unwrap();
        assert!(store.clearing().unwrap().uses_image(&record.manifest));
        lease.end();
        drop(lease);
        assert!(!store.clearing().unwrap().uses_image(&record.manifest));
    }

    #[test]
    fn a_lease_is_held_as_long_as_anybody_has_its_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        // The root is always mounted.
        let lease = store.record_mount(&record("a", Path::new("/"))).unwrap();
        let servers = Servers { filler_pid: 1, keeper_pid: Some(2) };
        lease.sign(Servers { filler_pid: u32::MAX, keeper_pid: None }).unwrap();
        lease.sign(servers).unwrap();
        assert_eq!(store.servers("a"), Some(servers));
        assert!(store.has_mounts().unwrap());
        let copy = lease.as_fd().try_clone_to_owned().unwrap();
        drop(lease);
        assert!(store.unserved().unwrap().is_empty());
        let end = store.end_of_mount("a").unwrap();
        drop(copy);
        end.wait().unwrap();
        assert_eq!(store.servers("a"), None);
        assert!(!store.has_mounts().unwrap());
        let [(found, lease)] = &store.unserved().unwrap()[..] else { panic!("not found") };
        assert_eq!(found.target, Path::new("/"));
        assert_eq!(lease.id, "a");
    }

    #[test]
    fn records_of_mounts_that_are_gone_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        drop(store.record_mount(&record("gone", Path::new("/no mount"))).unwrap());
        let other_boot = MountRecord { boot: "another".into(), ..record("b", Path::new("/")) };
        drop(store.record_mount(&other_boot).unwrap());
        assert!(store.unserved().unwrap().is_empty());
        assert_eq!(store.mounts().unwrap(), []);
        assert_eq!(fs::read_dir(dir.path().join("mounts")).unwrap().count(), 0);
        store.end_of_mount("gone").unwrap().wait().unwrap();
    }

    #[test]
    fn a_mount_that_has_gone_is_served_until_its_lease_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let lease = store.record_mount(&record("a", Path::new("/"))).unwrap();
        let end = store.end_of_mount("a").unwrap();
        lease.end();
        assert!(store.end_of_mount("a").unwrap().lease.is_none(), "its name is gone");
        assert!(!end.has_come().unwrap());
        drop(lease);
        end.wait().unwrap();
        assert!(end.has_come().unwrap());
    }
}

//! Mounts whose filler and keeper were killed together: nobody holds their group, so the kernel lets every
//! read through, and what is absent reads as zeros.
//!
//! Nothing can take back what was read. What can be done is done by whoever opens the store next: the mount
//! is detached, so that nobody enters it any more, and its data files are watched again by a keeper that
//! denies, so that those who are still in it get errors.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::guard;
use crate::error::Error;
use crate::store::mounts::Lease;
use crate::store::{LayerDir, MountRecord, Store};

/// Takes lost mounts out of service; says each in the log.
pub(crate) fn retire(store: &Store) -> Result<(), Error> {
    for (record, lease) in store.unserved()? {
        if !record.lazy {
            // Nothing of it can be absent, or its reads fail.
            continue;
        }
        tracing::error!(
            target = %record.target.display(),
            image = record.image,
            "the process that served this mount and its keeper were killed together: what was not here yet may \
             have been read as zeros"
        );
        if let Err(e) = take_out_of_service(store, record, &lease) {
            tracing::error!("taking it out of service: {e}");
        }
    }
    Ok(())
}

/// Nobody enters the mount any more, and who is in it gets errors: says so in the log.
///
/// # Errors
/// When it cannot be recorded.
pub(super) fn take_out_of_service(
    store: &Store,
    mut record: MountRecord,
    lease: &Lease,
) -> Result<(), Error> {
    let denied = match record.fuse {
        // A session fails as soon as nobody has it.
        Some(_) => Ok(()),
        None => record
            .data
            .iter()
            .filter(|path| path.exists() && !is_whole(path))
            .map(|path| File::open(path).map_err(Error::io("open", path)))
            .collect::<Result<Vec<_>, _>>()
            .and_then(|data| guard::deny(store, &data, &record.presence(), (&record.id, lease.as_fd()))),
    };
    let detached = hoist_sys::fuse::unmount(&record.target, true);
    tracing::error!(
        target = %record.target.display(),
        image = record.image,
        "it is out of service: {}, {}. End what runs on it, and mount it anew",
        match detached {
            Ok(()) => "it was detached".to_owned(),
            Err(e) => format!("it could not be detached ({e})"),
        },
        match &denied {
            Ok(()) => "what is still in it gets errors for what is not in the kernel's cache".to_owned(),
            Err(e) => format!("what is still in it may read zeros ({e})"),
        },
    );
    if record.fuse.is_some() {
        lease.end();
        return Ok(());
    }
    record.lost = true;
    lease.note_lost()?;
    lease.record(&record)?;
    denied
}

/// Has a data file no holes that could be read?
fn is_whole(data: &Path) -> bool {
    data.parent().and_then(LayerDir::at).is_some_and(|dir| dir.is_whole())
}

/// The data files of which every read is denied, since a mount that is still in use was lost, and that no other mount
/// fills: who mounts their layers anew begins with new ones.
pub(super) fn denied(store: &Store) -> Result<BTreeSet<PathBuf>, Error> {
    let mut denied = BTreeSet::new();
    // Each mount asks, and hardly ever was one lost: that is not to cost as much as there are mounts.
    if store.has_lost_mounts()? {
        let records = store.mounts()?;
        let held = records.iter().filter(|record| store.is_held(&record.id));
        let (lost, served): (Vec<_>, Vec<_>) = held.partition(|record| record.lost);
        denied.extend(lost.iter().flat_map(|record| record.data.iter().cloned()));
        let filled: BTreeSet<_> = served.iter().flat_map(|record| &record.data).collect();
        denied.retain(|data| !filled.contains(data));
    }
    Ok(denied)
}

impl crate::Engine {
    /// The mounts that were taken out of service, because nobody held their group, and are still in use.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn lost_mounts(&self) -> Result<Vec<MountRecord>, Error> {
        Ok(self.store.mounts()?.into_iter().filter(|record| record.lost).collect())
    }
}

#[cfg(test)]
mod tests {
    use hoist_format::digest::Digest;

    use super::*;

    fn record(store: &Store, id: &str, lost: bool) -> Lease {
        let record = MountRecord {
            id: id.to_owned(),
            boot: crate::store::mounts::boot().unwrap(),
            target: "/".into(),
            image: "image".into(),
            manifest: Digest::of(b""),
            index: None,
            data: vec![format!("/data of {id}").into()],
            lazy: true,
            before: u64::MAX,
            superblocks: Vec::new(),
            fuse: None,
            lost,
            since: None,
        };
        store.record_mount(&record).unwrap()
    }

    /// Bytes that this thread has read.
    fn read() -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    /// Each mount asks what is denied: that no mount was lost is not to be read in all their records.
    #[test]
    fn what_is_denied_is_told_without_reading_all_records() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let denied_now = || denied(&store).unwrap().into_iter().collect::<Vec<_>>();
        // As a hoist without the folder left it.
        let old = record(&store, "old", true);
        assert_eq!(denied_now(), [PathBuf::from("/data of old")]);
        old.end();
        let cost = || {
            let before = read();
            assert!(denied(&store).unwrap().is_empty());
            read() - before
        };
        let one = record(&store, "one", false);
        let of_one = cost();
        let _others: Vec<_> = (0..50).map(|i| record(&store, &format!("{i}"), false)).collect();
        // What tells it has more digits by now.
        assert!(cost() < of_one + 50);
        let lost = record(&store, "lost", true);
        lost.note_lost().unwrap();
        assert_eq!(denied_now(), [PathBuf::from("/data of lost")]);
        lost.end();
        assert!(denied_now().is_empty());
        drop((one, lost));
        assert!(cost() < of_one + 50);
    }
}

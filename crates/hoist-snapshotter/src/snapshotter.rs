//! What containerd asks for, on records and folders. Every call may wait for the disk.

use std::path::{Path, PathBuf};

use crate::api::Mount;
use crate::error::Error;
use crate::filter::Filters;
use crate::folders::Folders;
use crate::ids::Mapping;
use crate::meta::{Commit, Meta};
use crate::mounts::{self, Options, Own};
use crate::record::{Info, Kind, Labels, Record, Usage, now};

/// See the module.
pub struct Snapshotter {
    meta: Meta,
    folders: Folders,
    options: Options,
}

impl Snapshotter {
    /// The one whose records and folders are in `root`, which is made where it is not there. Only one may be
    /// open at a time. What a crash left over is removed.
    ///
    /// # Errors
    /// The folder can't be had; the records are damaged or in use.
    pub fn open(root: &Path) -> Result<Snapshotter, Error> {
        std::fs::create_dir_all(root).map_err(Error::io("make", root))?;
        // As the mount table will have it.
        let root = &root.canonicalize().map_err(Error::io("find", root))?;
        let meta = Meta::open(&root.join("meta.redb"))?;
        let known = meta.all()?.into_iter().map(|info| info.record.id);
        let folders = Folders::open(&root.join("snapshots"), known)?;
        let snapshotter = Snapshotter { meta, folders, options: Options::of_kernel() };
        snapshotter.cleanup()?;
        Ok(snapshotter)
    }

    /// A new snapshot, as its mounts.
    ///
    /// # Errors
    /// The key is taken; the parent is not there or not committed; the labels ask for what can't be.
    pub fn create(&self, kind: Kind, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Error> {
        if kind == Kind::Committed {
            return Err(Error::Invalid("a snapshot is made active or as a view".into()));
        }
        // Before anything is made: containerd asks for what is there already more often than not.
        if self.meta.has(key)? {
            return Err(Error::Exists(key.to_owned()));
        }
        let mapping = Mapping::of(&labels)?;
        let beneath = match parent {
            "" => None,
            parent => Some(self.folders.owner(self.meta.get(parent)?.id)?),
        };
        // Where containerd has changed the owners of all files itself, they are mapped already.
        let mapped = mapping.as_ref().is_some_and(|mapping| beneath != Some(mapping.root));
        let owner = mapping.as_ref().map(|mapping| mapping.root).or(beneath);
        let new = self.folders.create(owner, kind == Kind::Active)?;
        let time = now();
        let record = Record {
            id: new.id,
            parent: parent.to_owned(),
            kind,
            created: time,
            updated: time,
            labels: without_empty(labels),
            usage: Usage::default(),
            mapped,
        };
        let parents = self.meta.create(key, &record)?;
        new.keep();
        self.mount(&record, &parents)
    }

    /// The mounts of a snapshot that is active or a view.
    ///
    /// # Errors
    /// There is none; it is committed.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let (record, parents) = self.meta.chain(key)?;
        if record.kind == Kind::Committed {
            return Err(Error::Precondition(format!(
                "snapshot {key:?} is committed: it is mounted as a view of it"
            )));
        }
        self.mount(&record, &parents)
    }

    fn mount(&self, record: &Record, parents: &[Info]) -> Result<Vec<Mount>, Error> {
        let mapping = if record.mapped { Mapping::of(&record.labels)? } else { None };
        let lower: Vec<PathBuf> = parents.iter().map(|parent| self.folders.upper(parent.record.id)).collect();
        let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        let (upper, work) = (self.folders.upper(record.id), self.folders.work(record.id));
        let own = Own { upper: &upper, work: &work };
        Ok(vec![mounts::mount(&self.options, record.kind, &own, &lower, mapping.as_ref())])
    }

    /// Makes an active snapshot a layer. `parent` is empty, or says what it stands on if that was left open.
    ///
    /// # Errors
    /// There is none, it is not active, the name is taken.
    pub fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), Error> {
        let usage = self.folders.usage(self.meta.get(key)?.id)?;
        let commit = Commit { labels: without_empty(labels), usage, parent: parent.to_owned() };
        self.meta.commit(key, name, &commit)
    }

    /// Takes a snapshot away.
    ///
    /// # Errors
    /// There is none, or others stand on it.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        let record = self.meta.remove(key)?;
        self.folders.remove(record.id);
        Ok(())
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// There is none.
    pub fn stat(&self, key: &str) -> Result<Info, Error> {
        Ok(Info { name: key.to_owned(), record: self.meta.get(key)? })
    }

    /// Changes labels to those given: all of them, or those that are named as `labels.NAME`.
    ///
    /// # Errors
    /// There is no such snapshot; a field is named that can't be changed.
    pub fn update(&self, key: &str, labels: &Labels, fields: &[String]) -> Result<Info, Error> {
        let named = |field: &String| match field.strip_prefix("labels.") {
            Some(name) => Ok(Some(name.to_owned())),
            None if field == "labels" => Ok(None),
            None => Err(Error::Invalid(format!(
                "cannot update {field:?} of snapshot {key:?}: only labels can be changed"
            ))),
        };
        let fields = fields.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let all = fields.is_empty() || fields.contains(&None);
        let record = self.meta.relabel(key, |kept| {
            if all {
                kept.clone_from(labels);
            }
            for name in fields.iter().flatten() {
                kept.insert(name.clone(), labels.get(name).cloned().unwrap_or_default());
            }
            kept.retain(|_, value| !value.is_empty());
        })?;
        Ok(Info { name: key.to_owned(), record })
    }

    /// Those that match any of the filters.
    ///
    /// # Errors
    /// A filter is none.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Info>, Error> {
        let filters = Filters::parse(filters)?;
        let mut all = self.meta.all()?;
        all.retain(|info| filters.matches(info));
        Ok(all)
    }

    /// What a snapshot takes: measured, but for a committed one, which does not change any more.
    ///
    /// # Errors
    /// There is none.
    pub fn usage(&self, key: &str) -> Result<Usage, Error> {
        let record = self.meta.get(key)?;
        match record.kind {
            Kind::Committed => Ok(record.usage),
            Kind::Active | Kind::View => self.folders.usage(record.id),
        }
    }

    /// Removes what no snapshot needs any more.
    ///
    /// # Errors
    /// Records or folders can't be read.
    pub fn cleanup(&self) -> Result<(), Error> {
        self.folders.sweep(|| Ok(self.meta.all()?.into_iter().map(|info| info.record.id).collect()))
    }
}

/// containerd takes an empty value for none.
fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

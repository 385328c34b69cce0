//! What containerd asks for, on records and folders. Every call may wait for the disk.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use crate::api::Mount;
use crate::error::Error;
use crate::filter::Filters;
use crate::folders::{self, Folders};
use crate::ids::Mapping;
use crate::meta::{Commit, Meta};
use crate::mounts::{self, Options, Own};
use crate::part::{self, Images, Part};
use crate::record::{Info, Kind, Labels, Record, Usage, now};

/// Characters that name a container by the beginning of its id.
const SHORT: usize = 8;

/// See the module.
pub struct Snapshotter {
    images: PathBuf,
    /// A folder with nothing in it.
    empty: PathBuf,
    meta: Meta,
    folders: Folders,
    options: Options,
    /// Shared by who makes a folder that no record speaks of yet.
    making: RwLock<()>,
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
        let [images, empty] = ["images", "empty"].map(|name| root.join(name));
        for folder in [&images, &empty] {
            std::fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        }
        let (options, making) = (Options::of_kernel(), RwLock::new(()));
        let snapshotter = Snapshotter { images, empty, meta, folders, options, making };
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
            parent => Some(folders::owner(&self.shown(&self.meta.get(parent)?))?),
        };
        // Where containerd has changed the owners of all files itself, they are mapped already.
        let mapped = mapping.as_ref().is_some_and(|mapping| beneath != Some(mapping.root));
        let owner = mapping.as_ref().map(|mapping| mapping.root).or(beneath);
        let making = self.making.read().unwrap_or_else(PoisonError::into_inner);
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
            part: None,
        };
        let parents = self.meta.create(key, &record)?;
        new.keep();
        drop(making);
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
        // An image has all that is below its uppermost layer.
        let to_image =
            parents.iter().position(|parent| parent.record.part.is_some()).map_or(parents.len(), |at| at + 1);
        let mut lower: Vec<PathBuf> =
            parents[..to_image].iter().map(|parent| self.shown(&parent.record)).collect();
        if record.is_unpacked_alone() {
            // It may be said only at its end what it stands on. containerd keeps what a layer removes of others only
            // where it unpacks into an overlay.
            lower.push(self.empty.clone());
        }
        if mapping.is_some() && parents[..to_image].last().is_some_and(|lowest| lowest.record.part.is_some())
        {
            // containerd maps the folder that all lower ones are in, and of that what is on its own file system alone
            // (its core/mount/mount_linux.go, doPrepareIDMappedOverlay): this one's is the image's.
            let [image] = &mut lower[..] else {
                return Err(Error::Precondition(format!(
                    "the users of a container can't be mapped on {:?}: some of its layers are mounted, some unpacked",
                    record.parent
                )));
            };
            image.push(".");
        }
        let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
        let (upper, work) = (self.folders.upper(record.id), self.folders.work(record.id));
        let own = Own { upper: &upper, work: &work };
        Ok(vec![mounts::mount(&self.options, record.kind, &own, &lower, mapping.as_ref())])
    }

    /// The folder that shows a snapshot; of one that is a layer of an image, with all below it.
    fn shown(&self, record: &Record) -> PathBuf {
        match &record.part {
            Some(part) => self.images.join(part.folder()),
            None => self.folders.upper(record.id),
        }
    }

    /// Layers that a snapshot is made of, itself included; None of none.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn depth(&self, key: &str) -> Result<Option<usize>, Error> {
        if key.is_empty() {
            return Ok(None);
        }
        let (record, parents) = self.meta.chain(key)?;
        let mut all = [&record].into_iter().chain(parents.iter().map(|parent| &parent.record));
        // A layer of an image may stand there without those below it.
        let of_image =
            all.clone().enumerate().find_map(|(above, record)| Some((above, record.part.as_ref()?)));
        Ok(Some(of_image.map_or_else(|| all.by_ref().count(), |(above, part)| above + part.layers)))
    }

    /// The image that what stands on a snapshot stands on.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn part_of(&self, key: &str) -> Result<Option<Part>, Error> {
        if key.is_empty() {
            return Ok(None);
        }
        let (record, parents) = self.meta.chain(key)?;
        let all = [record].into_iter().chain(parents.into_iter().map(|parent| parent.record));
        Ok(all.filter_map(|record| record.part).next())
    }

    /// What the newest snapshot of this name stands on, for those who know a container by its name or the beginning of its
    /// id: containerd puts its own before it.
    ///
    /// # Errors
    /// The records can't be read.
    pub fn standing(&self, name: &str) -> Result<Option<Standing>, Error> {
        let is_it = |info: &Info| {
            let own = info.name.rsplit('/').next().unwrap_or_default();
            own == name || name.len() >= SHORT && own.starts_with(name)
        };
        let all = self.meta.all()?.into_iter();
        let named = all.filter(|info| info.record.kind != Kind::Committed && is_it(info));
        let Some(newest) = named.max_by_key(|info| info.record.created) else { return Ok(None) };
        let (_, parents) = self.meta.chain(&newest.name)?;
        if let Some(part) = parents.iter().find_map(|parent| parent.record.part.as_ref()) {
            let folder = Some(self.images.join(part.folder()));
            return Ok(Some(Standing { image: part.image.clone(), folder }));
        }
        let image = parents.iter().find_map(|parent| part::image(&parent.record.labels));
        Ok(image.map(|image| Standing { image, folder: None }))
    }

    /// What layers took when they were unpacked, all together.
    ///
    /// # Errors
    /// The records can't be read.
    pub fn unpacked_bytes(&self) -> Result<u64, Error> {
        Ok(self.meta.all()?.iter().map(|info| info.record.usage.size).sum())
    }

    /// A new committed snapshot that is a layer of an image, and nothing where it is there already.
    ///
    /// # Errors
    /// The parent is not there or not committed.
    pub fn adopt(&self, chain: &str, parent: &str, labels: Labels, part: Part) -> Result<(), Error> {
        let time = now();
        let record = Record {
            id: self.folders.number(),
            parent: parent.to_owned(),
            kind: Kind::Committed,
            created: time,
            updated: time,
            labels: without_empty(labels),
            usage: Usage::default(),
            mapped: false,
            part: Some(part),
        };
        let created = match self.meta.create(chain, &record) {
            // In another namespace its parents may have other names: containerd goes by label and parent.
            Err(Error::Exists(_)) if self.meta.get(chain)?.parent != parent => {
                self.meta.create(&format!("{chain} {parent}"), &record)
            }
            created => created,
        };
        match created {
            Ok(_) | Err(Error::Exists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where an image's part is mounted; made where it is not there.
    ///
    /// # Errors
    /// It can't be made.
    pub fn image_folder(&self, part: &Part) -> Result<PathBuf, String> {
        let folder = self.images.join(part.folder());
        std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        Ok(folder)
    }

    /// All such folders.
    pub fn image_folders(&self) -> Vec<ImageFolder> {
        let entries = std::fs::read_dir(&self.images).into_iter().flatten().flatten();
        let folder = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let manifest = name.split('.').next()?.replacen('-', ":", 1);
            Some(ImageFolder { manifest, path: entry.path() })
        };
        entries.filter_map(folder).collect()
    }

    /// The manifests of all images that any snapshot is a layer of.
    ///
    /// # Errors
    /// The records can't be read.
    pub fn images_in_use(&self) -> Result<HashSet<String>, Error> {
        Ok(self.meta.all()?.into_iter().filter_map(|info| Some(info.record.part?.manifest)).collect())
    }

    /// Makes an active snapshot a layer. `parent` is empty, or says what it stands on if that was left open.
    ///
    /// # Errors
    /// There is none, it is not active, the name is taken.
    pub fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), Error> {
        let record = self.meta.get(key)?;
        let id = record.id;
        if record.is_unpacked_alone() && parent.is_empty() {
            // The lowest layer: overlayfs would list what it removes of others.
            self.folders.drop_whiteouts(id)?;
        }
        let usage = self.folders.usage(id)?;
        // Nobody unpacks a layer again whose record says that it is there.
        let upper = self.folders.upper(id);
        let synced = File::open(&upper).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
        synced.map_err(Error::io("sync", &upper))?;
        let commit = Commit { labels: without_empty(labels), usage, parent: parent.to_owned() };
        self.meta.commit(key, name, &commit)
    }

    /// Takes a snapshot away; tells of what image it was a layer.
    ///
    /// # Errors
    /// There is none, or others stand on it.
    pub fn remove(&self, key: &str) -> Result<Option<Part>, Error> {
        let record = self.meta.remove(key)?;
        if record.part.is_none() {
            self.folders.remove(record.id);
        }
        Ok(record.part)
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

    /// What a snapshot takes: measured, but for one that was unpacked and committed, which does not
    /// change any more.
    ///
    /// # Errors
    /// There is none.
    pub fn usage(&self, key: &str, images: &dyn Images) -> Result<Usage, Error> {
        let record = self.meta.get(key)?;
        if let Some(part) = &record.part {
            return Ok(images.usage(part));
        }
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
        let _alone = self.making.write().unwrap_or_else(PoisonError::into_inner);
        self.folders.sweep(|| Ok(self.meta.all()?.into_iter().map(|info| info.record.id).collect()))
    }
}

/// What a container's snapshot stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The image's name.
    pub image: String,
    /// Where it is mounted; None: it was unpacked.
    pub folder: Option<PathBuf>,
}

/// Where a part of an image is mounted.
pub struct ImageFolder {
    /// Of the image.
    pub manifest: String,
    /// The folder.
    pub path: PathBuf,
}

/// containerd takes an empty value for none.
fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cleanup_spares_what_is_being_made() {
        let dir = tempfile::tempdir().unwrap();
        let snapshotter = &Snapshotter::open(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let make = |maker: u32| {
                for n in 0..20 {
                    snapshotter.create(Kind::Active, &format!("{maker}-{n}"), "", Labels::new()).unwrap();
                }
            };
            let makers = [1, 2, 3].map(|maker| scope.spawn(move || make(maker)));
            while makers.iter().any(|maker| !maker.is_finished()) {
                snapshotter.cleanup().unwrap();
            }
        });
        let all = snapshotter.list(&[]).unwrap();
        assert_eq!(all.len(), 60);
        assert!(all.iter().all(|info| snapshotter.folders.upper(info.record.id).is_dir()));
    }
}

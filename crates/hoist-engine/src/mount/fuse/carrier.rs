//! EROFS over data files that FUSE serves.
//!
//! The FUSE file system stands on no path: EROFS opens its files, named by the layers' numbers, through a
//! descriptor of ours, and keeps it alive. Once a layer is complete and verified, the loop device under it
//! is given the data file itself, and FUSE is out of its readers' way for good.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use hoist_sys::fuse::{
    self, Answer, Attributes, Detached, Entry, FileSystem, Handler, Listing, MountOptions, Operation, ROOT,
    Request, Session,
};
use hoist_sys::loop_device::LoopDevice;

use super::super::layer::{LazyLayer, MountedLayer};
use super::data::Data;
use super::{End, Keep, Show};
use crate::store::mounts::{FuseRecord, LoopRecord};

/// What EROFS is mounted on. It holds none of it: so the session ends when the mount is gone, whoever had it.
pub(super) struct Carrier {
    /// The layers that come through FUSE, by their data file.
    carried: Vec<(PathBuf, LoopRecord)>,
}

/// EROFS's block.
const BLOCK: u32 = 4096;

impl Carrier {
    pub fn mount(show: &Show<'_>, keep: &Keep<'_>) -> Result<(Self, FuseRecord, End), String> {
        let files = Files::of(show)?;
        let text = |e: std::io::Error| e.to_string();
        let options = MountOptions { source: show.image, allow_other: true, nosuid: true, nodev: true };
        let (carrier, device) = Detached::new(&options).map_err(text)?;
        let mut session = Session::start(device, super::threads(), false).map_err(text)?;
        session.count_answers(show.answers);
        let end = super::serve(&session, files).map_err(text)?;
        let path = |(i, layer): (usize, &MountedLayer)| match layer {
            MountedLayer::Whole(data) => data.clone(),
            MountedLayer::Lazy(_) => carrier.path(&i.to_string()),
        };
        let paths: Vec<PathBuf> = show.layers.iter().enumerate().map(path).collect();
        let (tree, loops) = attach_all(show, &paths)?;
        let whole = |(layer, _): &(&MountedLayer, &LoopDevice)| matches!(layer, MountedLayer::Whole(_));
        show.layers.iter().zip(&loops).filter(whole).for_each(|(_, device)| past_the_cache(device));
        let recorded = loops.iter().zip(show.layers).map(|(device, layer)| match layer {
            MountedLayer::Whole(_) => Ok(None),
            MountedLayer::Lazy(_) => {
                let backing = device.backing().map_err(text)?;
                Ok(Some(LoopRecord { path: device.path().to_owned(), backing }))
            }
        });
        let recorded: Vec<_> = recorded.collect::<Result<_, String>>()?;
        let carrier = Self::of(show.layers, &recorded);
        let record = super::describe(&session, show.owners, Some(recorded));
        keep(&session, &record)?;
        let devices: Vec<_> = loops.iter().map(LoopDevice::path).collect();
        hoist_sys::mount::erofs(tree.path(), &devices, show.target).map_err(text)?;
        Ok((carrier, record, end))
    }

    /// Of what was recorded when it was mounted.
    pub fn of(layers: &[MountedLayer], recorded: &[Option<LoopRecord>]) -> Self {
        let carried = layers.iter().zip(recorded).filter_map(|(layer, device)| match layer {
            MountedLayer::Whole(_) => None,
            MountedLayer::Lazy(layer) => Some((layer.dir().file("data"), device.clone()?)),
        });
        Self { carried: carried.collect() }
    }

    /// Puts a layer's data file in the place of the one that FUSE serves.
    pub fn pass_by(&self, layer: &LazyLayer) {
        let data = layer.dir().file("data");
        for (_, LoopRecord { path, backing }) in self.carried.iter().filter(|(of, _)| *of == data) {
            let change = || {
                let device = LoopDevice::find(path, *backing)?;
                device.change_backing(&File::open(&data)?)?;
                Ok::<_, std::io::Error>(device)
            };
            match change() {
                Ok(device) => past_the_cache(&device),
                // It is served as before.
                Err(e) => {
                    tracing::warn!(layer = %layer.dir().blob(), "FUSE stays in the way of its readers: {e}");
                }
            }
        }
    }
}

/// EROFS caches what it reads of a layer's own data file: a second copy would take memory, and reads here and there time.
fn past_the_cache(device: &LoopDevice) {
    if let Err(e) = device.read_directly() {
        tracing::debug!(device = %device.path().display(), "it caches what it reads: {e}");
    }
}

/// A loop device for the tree and one for each layer.
fn attach_all(show: &Show<'_>, layers: &[PathBuf]) -> Result<(LoopDevice, Vec<LoopDevice>), String> {
    let attach = |path: &PathBuf| {
        File::open(path)
            .and_then(|file| LoopDevice::over(&file, BLOCK))
            .map_err(|e| format!("for {}: {e}", path.display()))
    };
    let tree = attach(&show.tree.to_owned())?;
    Ok((tree, layers.iter().map(attach).collect::<Result<_, _>>()?))
}

/// The first inode number that is a file's.
const FIRST: u64 = 2;

/// A folder with a file for each layer, named by its number.
pub(super) struct Files {
    data: Arc<Data>,
    sizes: Vec<u64>,
}

impl Files {
    pub fn of(show: &Show<'_>) -> Result<Self, String> {
        let size = |layer: &MountedLayer| match layer {
            // EROFS has it directly; but one that became whole may still be read through a session taken over.
            MountedLayer::Whole(path) => Ok(std::fs::metadata(path).map_or(u64::MAX, |meta| meta.len())),
            MountedLayer::Lazy(layer) => layer.data().metadata().map(|meta| meta.len()),
        };
        let sizes = show.layers.iter().map(size).collect::<Result<_, _>>();
        let sizes = sizes.map_err(|e| format!("looking at the layers' data files: {e}"))?;
        Ok(Self { data: Data::open(show)?, sizes })
    }

    fn layer(&self, node: u64) -> Option<usize> {
        let layer = usize::try_from(node.checked_sub(FIRST)?).ok()?;
        (layer < self.sizes.len()).then_some(layer)
    }

    fn attributes(&self, node: u64) -> Option<Attributes> {
        let shown = |mode, size| Attributes { ino: node, mode, size, nlink: 1, ..Attributes::default() };
        match node {
            ROOT => Some(shown(libc::S_IFDIR | 0o500, 0)),
            _ => Some(shown(libc::S_IFREG | 0o400, self.sizes[self.layer(node)?])),
        }
    }

    fn find(&self, name: &[u8]) -> Option<Entry> {
        let layer: u64 = std::str::from_utf8(name).ok()?.parse().ok()?;
        let node = layer.checked_add(FIRST)?;
        Some(Entry { node, attributes: self.attributes(node)? })
    }
}

impl Handler for Files {
    fn handle(&self, request: &Request<'_>, answer: Answer) {
        match request.operation {
            Operation::Lookup { name } if request.node == ROOT => match self.find(name) {
                Some(entry) => answer.with(&fuse::entry(&entry)),
                None => answer.with(&fuse::negative_entry()),
            },
            Operation::Getattr => match self.attributes(request.node) {
                Some(attributes) => answer.with(&fuse::attributes(&attributes)),
                None => answer.fail(libc::ESTALE),
            },
            Operation::Read { offset, size } => match self.layer(request.node) {
                Some(layer) => {
                    let len = self.sizes[layer].saturating_sub(offset).min(u64::from(size)) as usize;
                    self.data.read(layer, offset, len, request.pid, answer);
                }
                None => answer.fail(libc::EISDIR),
            },
            Operation::Interrupt { unique } => {
                answer.none();
                self.data.interrupt(unique);
            }
            // Nobody lists it.
            Operation::Readdir { size, .. } => answer.with(&Listing::new(size).finish()),
            Operation::Statfs => answer.with(&fuse::statfs(&FileSystem { blocks: 0, files: 0 })),
            _ => answer.fail(libc::ENOSYS),
        }
    }
}

//! The drivers that need no pre-content events: FUSE asks for what is read.
//!
//! *fuse*: the whole file system comes from here, out of the same EROFS image that the kernel mounts
//! elsewhere. It needs no more than a `/dev/fuse` that may be opened, so it serves ordinary users too.
//!
//! *erofs-fuse*: the kernel's EROFS serves names and caches pages; FUSE carries nothing but the layers' data
//! files, one regular file each, on a mount that nobody sees (`carrier`). Whole layers are no concern of
//! FUSE's: EROFS has their data files themselves.
//!
//! Both answer a read only after `fill` has returned. Should this process die, reads wait for a successor, which
//! goes on with the session: the keeper holds its descriptors (`Show::keep`), and everything else about it stands
//! in the mount's record.

mod carrier;
mod data;
mod image;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hoist_sys::fuse::{self, Answer, Handler, MountOptions, Negotiated, Request, Session};
use hoist_sys::keeper::Table;
use tokio::sync::watch;

use super::layer::{LazyLayer, MountedLayer};
use super::upkeep::Upkeep;
use carrier::Carrier;
use data::Data;
use image::ImageFs;

use crate::config::Owners;
use crate::fill::Meter;
use crate::store::mounts::{FuseRecord, LoopRecord};

/// What is to be shown, and where.
pub(super) struct Show<'a> {
    pub tree: &'a Path,
    /// Who has the tree in memory.
    pub upkeep: &'a Upkeep,
    pub meter: &'a Arc<Meter>,
    pub layers: &'a [MountedLayer],
    pub target: &'a Path,
    pub image: &'a str,
    pub read_timeout: Duration,
    pub owners: Owners,
    /// Where answers are counted.
    pub answers: &'a Table,
    /// Is it shown already, by a process before this one?
    pub resumed: bool,
}

/// Has a session guarded, before anybody can wait for it.
pub(super) type Keep<'k> = dyn Fn(&Session, &FuseRecord) -> Result<(), String> + 'k;

/// A FUSE session under way. It lasts until the file system is unmounted everywhere, whatever becomes of
/// this value.
pub(super) struct Served {
    end: End,
    carrier: Option<Carrier>,
    record: FuseRecord,
}

/// What is to be recorded of a session.
fn describe(session: &Session, owners: Owners, carried: Option<Vec<Option<LoopRecord>>>) -> FuseRecord {
    let Negotiated { minor, flags, max_readahead } = session.negotiated();
    FuseRecord { minor, flags, max_readahead, root_alone: owners == Owners::Root, carried }
}

/// Sequential readers are read ahead for by this much, where root can say so: several requests under way
/// hide that each has to come to us.
const READAHEAD: u64 = 1 << 20;

impl Served {
    /// Shows the image as a FUSE file system.
    pub fn image(show: &Show<'_>, keep: &Keep<'_>) -> Result<Self, String> {
        let may_mount = hoist_sys::mount::knows("fuse").is_ok();
        let options =
            MountOptions { source: show.image, allow_other: may_mount, nosuid: false, nodev: false };
        let handler = image_handler(show)?;
        let device = match may_mount {
            true => fuse::mount(show.target, &options),
            false => fuse::mount_by_helper(show.target, &options),
        };
        let text = |e: std::io::Error| e.to_string();
        let served = device.map_err(text).and_then(|device| {
            let mut session = Session::start(device, threads(), may_mount).map_err(text)?;
            session.count_answers(show.answers);
            let record = describe(&session, show.owners, None);
            keep(&session, &record)?;
            let end = serve(&session, handler).map_err(text)?;
            Ok(Self { end, carrier: None, record })
        });
        match &served {
            Ok(_) => {
                let _ = fuse::set_readahead(show.target, READAHEAD);
            }
            Err(_) => {
                // Only what the handshake left behind; nothing is there if the mount itself failed.
                let _ = fuse::unmount(show.target, true);
            }
        }
        served
    }

    /// Goes on with a session of another process: its descriptors, and what stands in the mount's record.
    pub fn resume(show: &Show<'_>, record: FuseRecord, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        let text = |e: std::io::Error| e.to_string();
        let FuseRecord { minor, flags, max_readahead, .. } = record;
        let negotiated = Negotiated { minor, flags, max_readahead };
        let mut session = Session::from_fds(descriptors, negotiated).map_err(text)?;
        session.count_answers(show.answers);
        let end = match &record.carried {
            None => serve(&session, image_handler(show)?),
            Some(_) => serve(&session, carrier::Files::of(show)?),
        };
        let end = end.map_err(text)?;
        let carrier = record.carried.as_ref().map(|loops| Carrier::of(show.layers, loops));
        Ok(Self { end, carrier, record })
    }

    /// What a successor must know.
    pub fn record(&self) -> &FuseRecord {
        &self.record
    }

    /// Shows the image as EROFS over data files that FUSE serves.
    pub fn carried(show: &Show<'_>, keep: &Keep<'_>) -> Result<Self, String> {
        let (carrier, record, end) = Carrier::mount(show, keep)?;
        Ok(Self { end, carrier: Some(carrier), record })
    }

    /// A layer is complete and verified: its readers need not come to us any more.
    pub fn pass_by(&self, layer: &LazyLayer) {
        if let Some(carrier) = &self.carrier {
            carrier.pass_by(layer);
        }
    }

    /// Is it unmounted everywhere?
    pub fn has_ended(&self) -> bool {
        *self.end.borrow()
    }

    /// Returns when the file system is unmounted everywhere. Cancel safe.
    pub async fn end(&self) {
        // An error is that nobody watches any more: over as well.
        let _ = self.end.clone().wait_for(|ended| *ended).await;
    }
}

fn image_handler(show: &Show<'_>) -> Result<ImageFs, String> {
    let data = Data::open(show)?;
    // Only root of the machine may see `trusted.` attributes (xattr(7)).
    let trusted = hoist_sys::userns::is_initial();
    let bad = |e: &dyn std::fmt::Display| format!("reading {}: {e}", show.tree.display());
    let tree = show.upkeep.tree(show.tree, show.meter).map_err(|e| bad(&e))?;
    ImageFs::open(tree, data, show.owners, trusted).map_err(|e| bad(&e))
}

/// True once a session is over.
type End = watch::Receiver<bool>;

/// A handler that tells when the last thread has let go of it: then the kernel has let go of the session.
struct Until<H> {
    handler: H,
    over: watch::Sender<bool>,
}

impl<H: Handler> Handler for Until<H> {
    fn handle(&self, request: &Request<'_>, answer: Answer) {
        self.handler.handle(request, answer);
    }
}

impl<H> Drop for Until<H> {
    fn drop(&mut self) {
        self.over.send_replace(true);
    }
}

fn serve(session: &Session, handler: impl Handler) -> std::io::Result<End> {
    let (over, end) = watch::channel(false);
    session.serve(&Arc::new(Until { handler, over }), threads())?;
    Ok(end)
}

/// Threads that answer: reads that have to wait hold none of them.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

//! The daemon as containerd's snapshotter: its images for containerd's layers.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use hoist_engine::progress::Silent;
use hoist_engine::reference::Source;
use hoist_engine::store::EndOfMount;
use hoist_engine::{Engine, Image, Use};
use hoist_format::digest::Digest;
use hoist_snapshotter::{
    Found as Place, How, Images, Labels, Part, Reason, Refusal, Service, Snapshotter, Usage, Wanted as Layer,
};

use tokio::sync::OnceCell;

use super::ahead::Ahead;
use super::mounts::Wanted;
use super::policy;
use super::requests::Daemon;
use super::socket;

/// How long a registry may take to say what an image is, before containerd is left to it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long an image that was found counts: for all layers of one pull, which ask one after another.
const FRESH: Duration = Duration::from_secs(60);
/// How long the last users of an image may take before whoever has removed it is not kept waiting.
const GOING: Duration = Duration::from_secs(5);
/// How often what another process serves is looked at until it does not any more.
const LOOK: Duration = Duration::from_millis(20);

/// Begins to listen; what it returns serves containerd, and never ends. Snapshots are in the daemon's store.
///
/// # Errors
/// The snapshots can't be had, or the socket.
pub async fn serve(
    daemon: &Arc<Daemon>,
    socket: &Path,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let folder = daemon.engine().store().root().join("snapshotter");
    let opened = tokio::task::spawn_blocking(move || Snapshotter::open(&folder)).await?;
    let snapshotter = opened.context("opening the snapshots")?;
    let images = NodeImages { daemon: Arc::clone(daemon), found: Mutex::default(), ahead: Arc::default() };
    let service = Service::new(snapshotter, Arc::new(images));
    let _ = daemon.snapshots.set(service.clone());
    let listener = socket::listen(socket)?;
    tracing::info!(socket = %socket.display(), "serving containerd");
    let cleaning = service.clone();
    tokio::spawn(async move { cleaning.cleanup().await });
    Ok(hoist_snapshotter::serve(listener, service))
}

/// The images of this node.
struct NodeImages {
    daemon: Arc<Daemon>,
    found: Mutex<HashMap<String, Arc<Found>>>,
    ahead: Arc<Ahead>,
}

/// An image by a name, once it is known; who asks meanwhile waits.
struct Found {
    since: Instant,
    image: OnceCell<(Engine, Image)>,
    /// Or why it is to be unpacked.
    usable: OnceCell<Result<How, Refusal>>,
}

impl NodeImages {
    fn found(&self, name: &str) -> Arc<Found> {
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, found| found.since.elapsed() < FRESH || Arc::strong_count(found) > 1);
        let new = || Found { since: Instant::now(), image: OnceCell::default(), usable: OnceCell::default() };
        Arc::clone(all.entry(name.to_owned()).or_insert_with(|| Arc::new(new())))
    }

    /// What was refused may have been pulled or indexed since: the next pull asks anew, with its lowest layer.
    fn forget_refused(&self, name: &str, chain: &str) {
        let is_lowest = |(_, image): &(Engine, Image)| {
            image.chain_ids().first().is_some_and(|lowest| lowest.to_string() == chain)
        };
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = all.get(name).filter(|found| matches!(found.usable.get(), Some(Err(_))));
        if refused.is_some_and(|found| found.image.get().is_some_and(is_lowest)) {
            all.remove(name);
        }
    }

    /// What the name means, asked for once for all layers.
    async fn resolve(&self, name: &str) -> Result<(Engine, Image), Refusal> {
        let found = self.found(name);
        let asking = found.image.get_or_try_init(|| async {
            let engine = self.daemon.engine();
            let image = boxed(engine.resolve_to_mount(name)).await.map_err(|error| {
                let reason = match &error {
                    hoist_engine::Error::Registry(error) if error.is_unauthorized() => Reason::Denied,
                    _ => Reason::Registry,
                };
                reason.because(error.to_string())
            })?;
            Ok((engine, image))
        });
        let late =
            || Reason::Registry.because(format!("the registry of {name} did not answer within {PATIENCE:?}"));
        tokio::time::timeout(PATIENCE, asking).await.map_err(|_| late())?.cloned()
    }

    /// By the rules of the configuration.
    fn wants_all(&self, image: &Image, said: &Labels) -> bool {
        let labels = |name: &str| image.labels(name).chain(said.get(name).map(String::as_str)).collect();
        let name = match image.name.parse() {
            Ok(Source::Registry(reference)) => reference.repo.to_string(),
            _ => image.name.clone(),
        };
        let bytes = image.manifest.layers.iter().map(|layer| layer.size).sum();
        let subject = policy::Subject { name: &name, bytes, labels: &labels };
        let settings = self.daemon.settings();
        policy::is_full(&settings.images, settings.containerd_images, settings.full_below, &subject)
    }

    /// The image of a part that was found before, without asking anyone if it is still here.
    async fn recall(&self, engine: &Engine, part: &Part) -> Result<Image, String> {
        let manifest: Digest = part.manifest.parse().map_err(|e| format!("{}: {e}", part.manifest))?;
        let known = engine.known(&part.image, manifest).await.map_err(|e| e.to_string())?;
        match known {
            Some(image) => Ok(image),
            None => {
                let found = self.resolve(&with_digest(&part.image, &part.manifest)?).await;
                Ok(found.map_err(|refusal| refusal.why)?.1)
            }
        }
    }

    /// Has it here, or finds out whether it can be read lazily.
    async fn make_usable(
        &self,
        engine: &Engine,
        image: &Image,
        full: bool,
    ) -> Result<Result<How, Refusal>, Refusal> {
        if !full && boxed(engine.mounts_at_once(image)).await {
            return Ok(Ok(How::Lazy));
        }
        // What containerd could not unpack is not left to it.
        if full || !image.is_of_tars() {
            let pulled = boxed(engine.pull(image, &Silent)).await;
            return pulled.map(|_| Ok(How::Full)).map_err(|error| Reason::Pull.because(error.to_string()));
        }
        self.let_be_pruned(&image.digest.to_string()).await;
        let why = format!("{} can't be read lazily (`hoist inspect` tells why), and is not here", image.name);
        Ok(Err(Reason::NotLazy.because(why)))
    }

    /// Takes an image out of the store, with all else that nobody needs any more.
    async fn let_be_pruned(&self, manifest: &str) {
        let (engine, of) = (self.daemon.engine(), manifest.to_owned());
        let forgotten = tokio::task::spawn_blocking(move || {
            let known = engine.store().refs()?.into_iter().filter(|known| known.manifest.to_string() == of);
            // A name without a digest may be somebody else's too.
            let mut own = known.filter(|known| known.name.contains('@') && !known.pinned);
            own.try_for_each(|own| engine.remove(&own.name).map(drop))
        });
        if let Ok(Err(error)) = forgotten.await {
            tracing::debug!(manifest, "forgetting an image: {error}");
        }
        prune(self.daemon.engine()).await;
    }

    /// What tells when nobody serves any more what is mounted on a folder, be it another process.
    fn ends(&self, folder: &Path) -> Result<Vec<EndOfMount>, hoist_engine::Error> {
        let engine = self.daemon.engine();
        let store = engine.store();
        let there = store.mounts()?.into_iter().filter(|record| record.target == folder);
        there.map(|record| store.end_of_mount(&record.id)).collect()
    }

    async fn try_mount(&self, part: &Part, folder: &Path) -> Result<(), String> {
        // Of its own counts.
        let engine = self.daemon.engine().with(|_| ());
        let mut image = self.recall(&engine, part).await?;
        if !part.whole {
            image = engine.lowest(&image, part.layers).map_err(|e| e.to_string())?;
        }
        let wanted = Wanted {
            target: folder.to_owned(),
            purpose: Use::Run,
            container: None,
            lower: true,
            stats: None,
        };
        let mounted = boxed(self.daemon.mounts.mount(&engine, &image, wanted, &Silent)).await;
        mounted.map(drop).map_err(|e| format!("{e:#}"))
    }
}

/// A future without its type, which has those of all that it waits for in it: of the engine's whole depth, and a layer
/// of ours around it, the compiler's limit is near.
fn boxed<'a, T>(future: impl Future<Output = T> + Send + 'a) -> Pin<Box<dyn Future<Output = T> + Send + 'a>> {
    Box::pin(future)
}

/// Takes what nobody needs any more out of the store.
async fn prune(engine: Engine) {
    match tokio::task::spawn_blocking(move || engine.prune()).await {
        Ok(Ok(pruned)) => tracing::info!(layers = pruned.layers, bytes = pruned.bytes, "pruned the store"),
        Ok(Err(error)) => tracing::debug!("pruning the store: {error}"),
        Err(_) => {}
    }
}

fn with_digest(name: &str, digest: &str) -> Result<String, String> {
    let source: Source = name.parse().map_err(|e| format!("{e}"))?;
    let digest = digest.parse().map_err(|e| format!("{digest}: {e}"))?;
    match source {
        Source::Registry(reference) => Ok(reference.with_digest(digest).to_string()),
        Source::Layout { .. } => Err(format!("{name} is in no registry")),
    }
}

#[hoist_snapshotter::async_trait]
impl Images for NodeImages {
    async fn find(&self, layer: &Layer) -> Result<Place, Refusal> {
        let name = match &layer.manifest {
            Some(manifest) => {
                with_digest(&layer.image, manifest).map_err(|why| Reason::Mismatch.because(why))?
            }
            None => layer.image.clone(),
        };
        self.forget_refused(&name, &layer.chain);
        let (engine, image) = self.resolve(&name).await?;
        let at = image.chain_ids().iter().position(|chain| chain.to_string() == layer.chain);
        let at =
            at.ok_or_else(|| Reason::Mismatch.because(format!("{name} has no layer {}", layer.chain)))?;
        if let Some(below) = layer.below.filter(|below| *below != at) {
            let why = format!("{name} has layer {} above {at} others, not {below}", layer.chain);
            return Err(Reason::Mismatch.because(why));
        }
        // All layers of an image share one fate.
        let full = self.wants_all(&image, &layer.labels);
        let found = self.found(&name);
        let how = found.usable.get_or_try_init(|| self.make_usable(&engine, &image, full)).await?.clone()?;
        let layers = &image.manifest.layers;
        let digest = layers.get(at).map(|layer| layer.digest.to_string()).unwrap_or_default();
        let part = Part {
            image: name,
            manifest: image.digest.to_string(),
            layers: at + 1,
            whole: at + 1 == layers.len(),
            layer: digest,
        };
        Ok(Place { part, how })
    }

    fn told(&self, layer: &Layer, outcome: Result<How, &Refusal>, took: Duration) {
        self.daemon.prepared.add(outcome, took);
        // For `hoist why`; of several layers one is enough.
        let Err(refusal) = outcome else { return };
        if layer.below.is_none()
            && let Err(error) = self.daemon.engine().store().note_left(&layer.image, &refusal.why)
        {
            tracing::debug!("writing down why an image is not mounted: {error}");
        }
    }

    async fn mount(&self, part: &Part, folder: &Path) -> Result<(), String> {
        // Another process may serve it: the one that took over from the daemon before this.
        let mounted = crate::mount_table::mounted_type(folder);
        if mounted.map_err(|e| format!("reading the mount table: {e}"))?.is_some() {
            let engine = self.daemon.engine();
            let Some(why) = engine.out_of_service(folder).map_err(|e| e.to_string())? else { return Ok(()) };
            tracing::warn!(image = part.image, "mounting an image anew for new containers: {why}");
            // Those that run keep what they have.
            super::mounts::unmount(folder, true).await.map_err(|e| format!("{e:#}"))?;
        }
        // Or somebody has unmounted it, and this is before it was noticed.
        self.daemon.mounts.get(folder).iter().for_each(|served| self.daemon.mounts.vacate(served));
        self.try_mount(part, folder).await
    }

    fn starts(&self, part: &Part, folder: &Path) {
        // What is here whole is read as fast as it can be.
        let served = self.daemon.mounts.get(folder);
        let served = served.filter(|served| served.layers().iter().any(|layer| !layer.complete));
        let Some(served) = served else { return };
        let (engine, ahead) = (self.daemon.engine(), Arc::clone(&self.ahead));
        let (part, folder) = (part.clone(), folder.to_owned());
        tokio::spawn(async move {
            let Ok(manifest) = part.manifest.parse() else { return };
            let Ok(Some(image)) = engine.known(&part.image, manifest).await else { return };
            tokio::task::spawn_blocking(move || match served.files() {
                Ok(Some(files)) => ahead.read(&folder, &image, &files),
                Ok(None) => {}
                Err(error) => tracing::debug!(image = image.name, "nothing is read ahead: {error}"),
            });
        });
    }

    async fn unmount(&self, folder: &Path) {
        self.ahead.call_off(folder);
        let served = self.daemon.mounts.get(folder);
        let ends = self.ends(folder).unwrap_or_else(|error| {
            tracing::error!("{error}");
            Vec::new()
        });
        while let Ok(Some(_)) = crate::mount_table::mounted_type(folder) {
            let gone = match super::mounts::unmount(folder, false).await {
                Ok(()) => Ok(()),
                // Seen by somebody who is no snapshot: it goes when they do.
                Err(_) => super::mounts::unmount(folder, true).await,
            };
            if let Err(error) = gone {
                return tracing::error!("{error:#}");
            }
        }
        // What is not served any more can be freed. Containers may still be on their way out.
        let daemon = Arc::clone(&self.daemon);
        let mut gone = tokio::spawn(async move {
            if let Some(served) = served {
                let _ = daemon.mounts.end(&served).await;
            }
            for end in ends {
                while !end.has_come().unwrap_or(true) {
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        if tokio::time::timeout(GOING, &mut gone).await.is_err() {
            let engine = self.daemon.engine();
            tokio::spawn(async move {
                let _ = gone.await;
                prune(engine).await;
            });
        }
    }

    async fn forget(&self, manifest: &str) {
        let is_it =
            |found: &Found| found.image.get().is_some_and(|(_, image)| image.digest.to_string() == manifest);
        self.found.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, found| !is_it(found));
        self.let_be_pruned(manifest).await;
    }

    fn usage(&self, part: &Part) -> Usage {
        let Ok(blob) = part.layer.parse() else { return Usage::default() };
        let (size, inodes) = self.daemon.engine().disk_usage(&blob);
        Usage { size, inodes }
    }
}

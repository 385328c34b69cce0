//! What the daemon does for its clients.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use hoist_engine::registry::{CredentialSource, Remembered};
use hoist_engine::{Engine, Image, Progress, Use};
use hoist_snapshotter::Service;
use serde::Serialize;
use serde_json::{Value, json};

use super::container::Running;
use super::intents::{Intent, Intents};
use super::mounts::{Mounts, Wanted};
use super::prepared::Prepared;
use super::protocol::{Options, Request, Standing};
use super::settings::Settings;
use crate::cli::{BackgroundFetch, TrustIndex};
use crate::container_image::Facts;
use crate::failure::user;
use crate::unchecked;

/// What all clients share.
pub struct Daemon {
    engine: Mutex<Engine>,
    settings: Mutex<Settings>,
    /// Its mounts.
    pub mounts: Arc<Mounts>,
    /// Those it is to have.
    pub intents: Intents,
    /// When it started.
    pub started: Instant,
    /// Credentials that came with pulls.
    pub given: Arc<Remembered>,
    /// What became of containerd's layers.
    pub prepared: Arc<Prepared>,
    /// containerd's snapshots, where they are served.
    pub snapshots: OnceLock<Service>,
}

/// What one client has under way.
#[derive(Default)]
pub struct Session {
    resolved: Option<(Engine, Image)>,
    /// Its container.
    pub running: Option<Running>,
}

impl Daemon {
    /// With nothing mounted yet.
    pub fn new(engine: Engine, settings: Settings, given: Arc<Remembered>) -> Daemon {
        Daemon {
            intents: Intents::of(&settings.root),
            engine: Mutex::new(engine),
            settings: Mutex::new(settings),
            mounts: Arc::default(),
            started: Instant::now(),
            given,
            prepared: Arc::default(),
            snapshots: OnceLock::new(),
        }
    }

    /// The engine with the daemon's own settings.
    pub fn engine(&self) -> Engine {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it goes by now.
    pub fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes by other settings and credentials from now on, as far as that can be.
    pub fn change(&self, settings: Settings, credentials: Vec<Arc<dyn CredentialSource>>) {
        let engine = self.engine().with(|config| {
            config.credentials = credentials;
            config.certs_dirs.clone_from(&settings.certs_dirs);
            config.plain_http = settings.plain_http;
            config.platform = settings.platform.clone().unwrap_or_default();
            config.trust = crate::engine_glue::trust(settings.trust_index);
            config.store_limit = settings.store_limit;
            config.background = crate::engine_glue::background(settings.background);
        });
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = engine;
        *self.settings() = settings;
    }

    /// The engine as a client wants it.
    fn engine_for(&self, options: &Options) -> anyhow::Result<Engine> {
        let trust = stricter(self.settings().trust_index, options.trust_index);
        let platform = options.platform.as_deref().map(crate::engine_glue::parse_platform).transpose()?;
        let background = options.background.as_deref().map(str::parse::<BackgroundFetch>).transpose();
        let background = background.map_err(|error: String| user(format!("--background: {error}")))?;
        let background = background.and_then(crate::engine_glue::background);
        Ok(self.engine().with(|config| {
            config.trust = crate::engine_glue::trust(trust);
            config.platform_asked = platform.is_some();
            config.platform = platform.unwrap_or_else(|| config.platform.clone());
            config.plain_http = options.plain_http.or(config.plain_http);
            config.driver = options.driver.map(crate::engine_glue::driver).or(config.driver);
            config.background = background.or(config.background);
        }))
    }

    /// Does what is asked. Dropped in its middle, it leaves nothing by halves.
    ///
    /// # Errors
    /// Those the command itself has.
    pub async fn handle(
        &self,
        session: &mut Session,
        request: Request,
        progress: &dyn Progress,
    ) -> anyhow::Result<Value> {
        match request {
            Request::Ping => Ok(Value::Null),
            Request::Mount { image, target, stats, options } => {
                let wanted = Wanted { target, purpose: Use::Look, container: None, lower: false, stats };
                self.mount(image, wanted, options, progress).await
            }
            Request::Resolve { image, options } => self.resolve(session, &image, &options).await,
            Request::Run { container, remove, runtime } => {
                self.run(session, container, remove, runtime, progress).await
            }
            Request::Release => self.release(session).await,
            Request::Unmount { target, lazy } => self.unmount(&target, lazy).await,
            Request::Pull { image, options } => {
                let engine = self.engine_for(&options)?;
                let image = engine.resolve(&image).await?;
                value(&engine.pull(&image, progress).await?)
            }
            Request::Images => {
                let engine = self.engine();
                blocking(move || value(&engine.images()?)).await
            }
            Request::Inspect { image, options } => {
                let engine = self.engine_for(&options)?;
                let image = engine.look_up(&image).await?;
                value(&engine.inspect(&image).await?)
            }
            Request::Snapshot { name } => {
                let Some(snapshots) = self.snapshots.get() else { return Ok(Value::Null) };
                let standing = snapshots.standing(&name).await?;
                value(&standing.map(|standing| Standing { image: standing.image, folder: standing.folder }))
            }
            Request::Remove { image } => value(&self.engine().remove(&image)?),
            Request::Prune => {
                let engine = self.engine();
                blocking(move || value(&engine.prune()?)).await
            }
            Request::Status => self.status().await,
            Request::Stats => {
                let engine = self.engine();
                value(&hoist_engine::Stats::of_client(engine.totals(), self.started.elapsed()))
            }
        }
    }

    async fn resolve(&self, session: &mut Session, image: &str, options: &Options) -> anyhow::Result<Value> {
        let engine = self.engine_for(options)?;
        let image = engine.resolve(image).await?;
        let mut process = value(&crate::engine_glue::process_of(&image))?;
        process["note"] = value(&unchecked::note(&engine, &image))?;
        session.resolved = Some((engine, image));
        Ok(process)
    }

    async fn release(&self, session: &mut Session) -> anyhow::Result<Value> {
        let Some(running) = &session.running else {
            return Err(user("this connection has no container"));
        };
        super::mounts::unmount_patiently(&running.served.target).await?;
        let stats = self.mounts.end(&running.served).await?;
        session.running = None;
        value(&stats)
    }

    async fn status(&self) -> anyhow::Result<Value> {
        let (engine, mounts, started) = (self.engine(), Arc::clone(&self.mounts), self.started);
        let unpacked = match self.snapshots.get() {
            Some(snapshots) => Some(snapshots.unpacked_bytes().await?),
            None => None,
        };
        blocking(move || value(&super::status::of_daemon(&engine, &mounts, unpacked, started)?)).await
    }

    async fn mount(
        &self,
        image: String,
        wanted: Wanted,
        options: Options,
        progress: &dyn Progress,
    ) -> anyhow::Result<Value> {
        let engine = self.engine_for(&options)?;
        let image = engine.resolve(&image).await?;
        let served = self.mounts.mount(&engine, &image, wanted, progress).await?;
        let intent = Intent {
            target: served.target.clone(),
            image: image.name.clone(),
            manifest: image.digest,
            options,
        };
        if let Err(error) = self.intents.add(intent) {
            // It is mounted, and that is what was asked for.
            tracing::error!("the mount on {} will not be restored: {error}", served.target.display());
        }
        tracing::info!(target = %served.target.display(), image = image.name, "mounted");
        Ok(json!({ "note": unchecked::note(&engine, &image) }))
    }

    async fn run(
        &self,
        session: &mut Session,
        name: String,
        remove: bool,
        runtime: PathBuf,
        progress: &dyn Progress,
    ) -> anyhow::Result<Value> {
        let Some((engine, image)) = &session.resolved else {
            return Err(user("this connection has resolved no image"));
        };
        if session.running.is_some() {
            return Err(user("this connection has a container already"));
        }
        let target = crate::container::image_of(engine.store().root(), &name)?;
        let wanted =
            Wanted { target, purpose: Use::Run, container: Some(name.clone()), lower: false, stats: None };
        let served = self.mounts.mount(engine, image, wanted, progress).await?;
        tracing::info!(container = name, image = image.name, "mounted");
        let facts = Facts { digest: Some(image.digest.to_string()), driver: Some(served.driver.to_owned()) };
        session.running = Some(Running { served, name, remove, runtime });
        value(&facts)
    }

    async fn unmount(&self, target: &Path, lazy: bool) -> anyhow::Result<Value> {
        let Some(served) = self.mounts.get(target) else {
            // A process of its own may serve it.
            self.forget(target);
            return Ok(Value::Bool(false));
        };
        super::mounts::unmount(target, lazy).await?;
        self.forget(target);
        if !lazy {
            self.mounts.end(&served).await?;
        }
        Ok(Value::Bool(true))
    }

    /// The client that wanted a mount went away before it heard of it: it is not to be.
    pub async fn withdraw(&self, target: &Path) {
        if let Some(served) = self.mounts.get(target) {
            tracing::warn!(target = %target.display(), "who asked for this mount is gone: unmounting it");
            self.forget(target);
            match super::mounts::unmount(target, false).await {
                Ok(()) => drop(self.mounts.end(&served).await),
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
    }

    /// A mount is not to be any more.
    pub fn forget(&self, target: &Path) {
        if let Err(error) = self.intents.remove(target) {
            tracing::error!("the mount on {} will come back at the next start: {error}", target.display());
        }
    }

    /// Makes the mounts anew that it is to have and that are not there.
    pub async fn restore(&self) {
        for intent in self.intents.all() {
            let target = intent.target.clone();
            match self.restore_one(intent).await {
                Ok(true) => tracing::info!(target = %target.display(), "mounted as before"),
                Ok(false) => {}
                Err(error) => tracing::error!(
                    target = %target.display(),
                    "a mount can't be restored, and is tried again at the next start: {error:#}"
                ),
            }
        }
    }

    /// False where something is mounted already.
    async fn restore_one(&self, intent: Intent) -> anyhow::Result<bool> {
        let engine = self.engine_for(&intent.options)?;
        if crate::mount_table::mounted_type(&intent.target)?.is_some() {
            let records = engine.store().mounts()?;
            let on_it: Vec<_> = records.iter().filter(|record| record.target == intent.target).collect();
            if on_it.is_empty() || !on_it.iter().all(|record| engine.store().is_dead(record)) {
                return Ok(false);
            }
            tracing::warn!(target = %intent.target.display(), "the processes that served this mount were killed: it is made anew");
            super::mounts::unmount(&intent.target, true).await?;
        }
        let Some(image) = engine.known(&intent.image, intent.manifest).await? else {
            return Err(user(format!("{} is not in the store any more", intent.image)));
        };
        let wanted =
            Wanted { target: intent.target, purpose: Use::Look, container: None, lower: false, stats: None };
        self.mounts.mount(&engine, &image, wanted, &hoist_engine::progress::Silent).await?;
        Ok(true)
    }
}

/// A client may trust less than the daemon does, never more.
fn stricter(a: TrustIndex, b: TrustIndex) -> TrustIndex {
    let looseness = |trust| match trust {
        TrustIndex::None => 0,
        TrustIndex::Local => 1,
        TrustIndex::Registry => 2,
    };
    if looseness(a) <= looseness(b) { a } else { b }
}

fn value<T: Serialize>(of: &T) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(of)?)
}

async fn blocking(work: impl FnOnce() -> anyhow::Result<Value> + Send + 'static) -> anyhow::Result<Value> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_never_widened() {
        use TrustIndex::{Local, None, Registry};
        for (daemon, client, got) in [
            (Registry, Registry, Registry),
            (Registry, None, None),
            (Local, Registry, Local),
            (None, Local, None),
        ] {
            assert_eq!(stricter(daemon, client), got);
        }
    }
}

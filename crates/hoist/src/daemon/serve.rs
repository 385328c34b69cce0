//! `hoist daemon`: from its start to its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use hoist_engine::registry::{CredentialSource, Remembered};
use hoist_engine::{Engine, MountTable, Needs};
use hoist_snapshotter::Channel;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::connection::{self, Connection, Outcome};
use super::credentials::{self, Given};
use super::metrics::{Endpoint, Source};
use super::notify;
use super::protocol::{Greeting, VERSION};
use super::requests::{Daemon, Session};
use super::settings::{MetricsAt, Settings};
use super::socket::{self, Ownership};
use crate::cli::{self, Global};
use crate::failure::user;
use crate::log::LogFilter;
use crate::signals::Signals;

/// Clients that are served at once; more wait for their turn.
const CLIENTS: usize = 1024;

/// Serves until told to end, by SIGTERM or SIGINT.
///
/// # Errors
/// The configuration is wrong, there is a daemon already, or what it needs can't be had.
pub fn run(global: &Global, options: &cli::Daemon) -> anyhow::Result<()> {
    let kept = hoist_sys::stored::take();
    hoist_sys::memory::share_heaps();
    let settings = Settings::of(global, options)?;
    let settings = match &options.config {
        Some(file) => settings.read(file)?,
        None => settings,
    };
    let log = crate::log::start(&settings.log, settings.log_format)?;
    tell_overridden(&settings);
    let runtime = crate::engine_glue::tokio_runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::catch().context("catching signals")?;
        let config = options.config.as_deref().map(std::path::absolute).transpose()?;
        let memory = credentials::memory()?;
        let given = Arc::new(Remembered::in_memory(Arc::clone(&memory))?);
        let engine = open(global, &settings, config.as_deref(), memory, &given)?;
        // Nothing below is relative to the folder this was started in.
        std::env::set_current_dir("/")?;
        let root = engine.store().root().to_owned();
        let _ownership = Ownership::take(&root)?;
        engine.revive(kept);
        let path = socket::path(&root);
        let listener = socket::listen(&path)?;
        let at = settings.metrics.clone();
        let restore = settings.restore;
        let (snapshotter_socket, cri_socket) =
            (settings.snapshotter_socket.clone(), settings.cri_socket.clone());
        let containerd = Channel::new(&settings.containerd_socket);
        let daemon = Arc::new(Daemon::new(engine, settings, given));
        let metrics = Metrics::start(&daemon, at).await?;
        let ending = Arc::<AtomicBool>::default();
        let table = MountTable::watch().context("watching the mount table")?;
        tokio::spawn(watch(Arc::clone(&daemon), table, Arc::clone(&ending)));
        if restore {
            daemon.restore().await;
        }
        if let Some(socket) = &snapshotter_socket {
            tokio::spawn(super::snapshotter::serve(&daemon, socket).await?);
        }
        if let Some(socket) = &cri_socket {
            let keychain = Arc::new(Given(Arc::clone(&daemon.given)));
            tokio::spawn(hoist_snapshotter::serve_images(socket::listen(socket)?, containerd, keychain));
            tracing::info!(socket = %socket.display(), "serving the kubelet's images");
        }
        tokio::spawn(accept(listener, Arc::clone(&daemon)));
        let left = root.clone();
        tokio::spawn(async move { crate::container::remove_left(&left).await });
        tracing::info!(root = %root.display(), socket = %path.display(), "ready");
        notify::ready("serving");
        let mut running = Running { global, options, config, daemon, log, metrics, ending };
        running.until_told(&mut signals).await;
        for socket in [Some(path), snapshotter_socket, cri_socket].iter().flatten() {
            let _ = std::fs::remove_file(socket);
        }
        Ok(())
    });
    // Some threads may wait for what comes no more.
    runtime.shutdown_background();
    outcome
}

/// As options, for a successor is told of them as options; of the rest, by the file.
fn open(
    global: &Global,
    settings: &Settings,
    file: Option<&Path>,
    memory: Arc<File>,
    given: &Arc<Remembered>,
) -> anyhow::Result<Engine> {
    let credentials = credentials::sources(settings, Some(given))?;
    let global = Global {
        root: Some(settings.root.clone()),
        trust_index: settings.trust_index,
        platform: settings.platform.as_ref().map(ToString::to_string),
        plain_http: settings.plain_http,
        read_timeout: settings.read_timeout,
        min_rate: settings.min_rate,
        store_limit: settings.store_limit,
        background: settings.background,
        log: settings.log.clone(),
        ..global.clone()
    };
    crate::engine_glue::open_with(&global, |config| {
        config.certs_dirs.clone_from(&settings.certs_dirs);
        config.credentials = credentials;
        config.bequest = Some(memory);
        config.vault = notify::vault();
        if let (Some(successor), Some(file)) = (&mut config.successor, file) {
            successor.arguments.extend(["--config".into(), file.into()]);
        }
    })
}

/// What a successor of the daemon takes from its memory and its configuration. What is wrong there by now keeps nobody's
/// mounts from being served.
pub fn inherit(
    global: &Global,
    file: Option<&Path>,
    memory: Option<File>,
    config: &mut hoist_engine::Config,
) {
    let memory = memory.map(Arc::new);
    let given = memory.clone().and_then(|memory| {
        let read = Remembered::in_memory(memory).map(Arc::new);
        read.inspect_err(|error| tracing::error!("going on without what pulls were given: {error}")).ok()
    });
    config.bequest = memory;
    config.credentials.extend(given.clone().map(|given| given as Arc<dyn CredentialSource>));
    let Some(file) = file else { return };
    let read = Settings::of_global(global).and_then(|settings| settings.read(file));
    let read = read.and_then(|settings| Ok((credentials::sources(&settings, given.as_ref())?, settings)));
    match read {
        Ok((credentials, settings)) => {
            config.credentials = credentials;
            config.certs_dirs = settings.certs_dirs;
            if let Some(successor) = &mut config.successor {
                successor.arguments.extend(["--config".into(), file.into()]);
            }
        }
        Err(error) => tracing::error!("going on without the daemon's configuration: {error:#}"),
    }
}

/// Says what of the configuration does not count.
fn tell_overridden(settings: &Settings) {
    for key in &settings.overridden {
        tracing::warn!(
            "{key} of the configuration does not count: an option or the environment says otherwise"
        );
    }
}

/// While it hands its mounts over, it looks this often whether any is left.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The daemon between its start and its end.
struct Running<'a> {
    global: &'a Global,
    options: &'a cli::Daemon,
    config: Option<PathBuf>,
    daemon: Arc<Daemon>,
    log: LogFilter,
    metrics: Metrics,
    /// What goes now is not to be forgotten.
    ending: Arc<AtomicBool>,
}

impl Running<'_> {
    async fn until_told(&mut self, signals: &mut Signals) {
        loop {
            let signal = tokio::select! {
                signal = signals.next() => signal,
                () = self.nothing_left(), if self.ending.load(Ordering::Relaxed) => return,
            };
            match signal {
                Signal::HUP => {
                    notify::reloading();
                    match self.reload().await {
                        Ok(()) => tracing::info!("the configuration was read again"),
                        Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
                    }
                    notify::ready("serving");
                }
                signal @ (Signal::TERM | Signal::INT | Signal::QUIT) => {
                    notify::stopping();
                    tracing::info!(?signal, "asked to end");
                    if self.end().await {
                        return;
                    }
                    notify::ready("serving on: mounts are in use");
                }
                // As every process that serves mounts does.
                Signal::USR2 => self.hand_over(),
                _ => {}
            }
        }
    }

    /// What can be changed is; what can't is said. Wrong, it changes nothing.
    async fn reload(&mut self) -> anyhow::Result<()> {
        let file = self.config.as_deref().ok_or_else(|| user("the daemon was started without --config"))?;
        let new = Settings::of(self.global, self.options)?.read(file)?;
        let credentials = credentials::sources(&new, Some(&self.daemon.given))?;
        let old = self.daemon.settings().clone();
        self.log.change(&new.log)?;
        if new.metrics != old.metrics {
            self.metrics.change(&self.daemon, new.metrics.clone()).await?;
        }
        tell_overridden(&new);
        for key in old.fixed_that_differ(&new) {
            tracing::warn!("a reload does not change {key}: it takes a restart");
        }
        self.daemon.change(old.reloaded(new), credentials);
        Ok(())
    }

    /// Unmounts everything, if nothing is in use, for the next daemon to make it anew. What is in use goes on:
    /// a successor takes all over, and with that this process ends. False if it has to stay.
    async fn end(&self) -> bool {
        let mounts = self.daemon.mounts.all();
        let (used, unused): (Vec<_>, Vec<_>) =
            mounts.iter().partition(|served| served.is_held() || is_in_use(&served.target));
        for served in &used {
            tracing::warn!(target = %served.target.display(), image = served.image, "in use");
        }
        self.ending.store(true, Ordering::Relaxed);
        for served in unused {
            if used.is_empty() && hoist_sys::fuse::unmount(&served.target, false).is_ok() {
                let _ = self.daemon.mounts.end(served).await;
            }
        }
        match self.is_needed() {
            true => {
                tracing::warn!("handing the mounts over");
                self.hand_over();
                false
            }
            false => true,
        }
    }

    fn is_needed(&self) -> bool {
        self.daemon.mounts.all().iter().any(|served| served.needs == Needs::Server)
    }

    /// What was to be handed over has gone meanwhile: no successor comes for nothing.
    async fn nothing_left(&self) {
        while self.is_needed() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Has a successor take all mounts; this process ends when that one is ready.
    fn hand_over(&self) {
        if let Err(error) = self.daemon.engine().upgrade() {
            self.ending.store(false, Ordering::Relaxed);
            tracing::error!("the mounts can't be handed over, serving on: {error}");
        }
    }
}

/// Whether anybody is in a mount. The first of two such calls does nothing but say so (umount2(2), MNT_EXPIRE).
fn is_in_use(target: &Path) -> bool {
    rustix::mount::unmount(target, UnmountFlags::EXPIRE | UnmountFlags::NOFOLLOW) == Err(Errno::BUSY)
}

/// The metrics' endpoint, where there is one.
struct Metrics(Option<JoinHandle<()>>);

impl Metrics {
    async fn start(daemon: &Daemon, at: Option<MetricsAt>) -> anyhow::Result<Metrics> {
        let Some(at) = at else { return Ok(Metrics(None)) };
        let source = Source {
            engine: daemon.engine(),
            mounts: Arc::clone(&daemon.mounts),
            prepared: Arc::clone(&daemon.prepared),
        };
        let endpoint = Endpoint::bind(&at).await?;
        if let Some(address) = endpoint.address() {
            tracing::info!(%address, "serving metrics");
        }
        Ok(Metrics(Some(tokio::spawn(endpoint.serve(source)))))
    }

    /// The new one comes first: if it can't be had, the old one stays.
    async fn change(&mut self, daemon: &Daemon, at: Option<MetricsAt>) -> anyhow::Result<()> {
        let new = Metrics::start(daemon, at).await?;
        if let Some(old) = std::mem::replace(self, new).0 {
            old.abort();
        }
        Ok(())
    }
}

/// A mount that somebody unmounts behind its back is not to come back.
async fn watch(daemon: Arc<Daemon>, table: MountTable, ending: Arc<AtomicBool>) {
    let gone = |target: &Path| {
        if !ending.load(Ordering::Relaxed) {
            daemon.forget(target);
        }
    };
    daemon.mounts.watch(table, gone).await;
}

async fn accept(listener: UnixListener, daemon: Arc<Daemon>) {
    let slots = Arc::new(Semaphore::new(CLIENTS));
    let greeting = Greeting {
        protocol: VERSION,
        version: connection::crate_version().to_owned(),
        pid: std::process::id(),
        mount_namespace: socket::mount_namespace().unwrap_or(0),
    };
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (daemon, greeting) = (Arc::clone(&daemon), greeting.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &greeting, &daemon).await {
                        tracing::debug!("a client's connection ended: {error:#}");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::error!("accepting a client: {error}");
                // Out of descriptors, most likely: some come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, greeting: &Greeting, daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    if let Err(uid) = socket::admit(&stream)? {
        let own = rustix::process::geteuid().as_raw();
        tracing::warn!(uid, "a client was refused: it is another user's");
        let refusal = crate::failure::user_hint(
            format!("this daemon serves root and user {own}, not user {uid}"),
            "run it with sudo, or use a store of your own with --root",
        );
        Connection::refuse(stream, &refusal).await;
        return Ok(());
    }
    let mut session = Session::default();
    let outcome = converse(stream, greeting, daemon, &mut session).await;
    if let Some(running) = session.running.take() {
        running.bury(daemon.engine().store().root(), &daemon.mounts).await;
    }
    outcome
}

async fn converse(
    stream: UnixStream,
    greeting: &Greeting,
    daemon: &Arc<Daemon>,
    session: &mut Session,
) -> anyhow::Result<()> {
    let mut connection = Connection::open(stream, greeting).await?;
    loop {
        let Some(request) = connection.request(session.running.is_some()).await? else { return Ok(()) };
        let target = request.mounts();
        let (teller, relay) = connection::relay();
        let work = daemon.handle(session, request, &teller);
        if let Outcome::Gone = connection.answer(work, relay).await? {
            if let Some(target) = target {
                daemon.withdraw(&target).await;
            }
            return Ok(());
        }
    }
}

//! `hoist mount`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use hoist_engine::store::Store;
use hoist_engine::{Progress, Use};

use crate::background::{self, PARENT_GONE, Reporter};
use crate::cli::{Global, Mount};
use crate::failure::{user, user_hint};
use crate::mount_table::mounted_type;
use crate::printer::Printer;
use crate::signals::{Signals, interrupted};
use crate::unchecked;

pub(super) fn run(global: &Global, options: &Mount) -> anyhow::Result<()> {
    crate::stats_file::check(options.stats.path.as_deref())?;
    if !options.foreground {
        let target = free_target(global, &options.target)?;
        if by_daemon(global, options, &target)? {
            return Ok(());
        }
        return background::start(global, options, &Printer::new());
    }
    let runtime = crate::engine_glue::tokio_runtime()?;
    if !options.report {
        return runtime.block_on(serve(global, options, &Printer::new(), None));
    }
    let reporter = Reporter::detach();
    let outcome = runtime.block_on(serve(global, options, &reporter, Some(&reporter)));
    if let Err(error) = &outcome {
        reporter.failed(error);
    }
    outcome
}

/// True if there is a daemon, and it has mounted it.
fn by_daemon(global: &Global, options: &Mount, target: &Path) -> anyhow::Result<bool> {
    let stats = options.stats.path.as_deref().map(std::path::absolute).transpose()?;
    let printer = Printer::new();
    let done = super::block_on(async {
        let mut signals = Signals::catch().context("catching signals")?;
        tokio::select! {
            done = crate::worker::mount(global, &options.image, target, stats, &printer) => done,
            signal = signals.next_fatal() => Err(interrupted(signal)),
        }
    });
    printer.end();
    done
}

/// The mount point's canonical path. Opens the store: what is none is to be told before a log is made in it.
fn free_target(global: &Global, target: &Path) -> anyhow::Result<PathBuf> {
    let store = Store::open(&global.root()?)?;
    free_from(store.root(), target)
}

/// The same for the store at `root`.
pub(crate) fn free_from(root: &Path, target: &Path) -> anyhow::Result<PathBuf> {
    let path = target.canonicalize().map_err(|error| match dead_mount(target) {
        Some(dead) => user_hint(
            format!(
                "can't mount on {}: on {} is a FUSE mount whose server is dead",
                target.display(),
                dead.display()
            ),
            format!("unmount that first: hoist unmount {}", dead.display()),
        ),
        None => user_hint(
            format!("can't mount on {}: {error}", target.display()),
            format!("make the folder first: mkdir -p {}", target.display()),
        ),
    })?;
    if !path.is_dir() {
        return Err(user(format!("can't mount on {}: it is no folder", path.display())));
    }
    if root.starts_with(&path) {
        return Err(user_hint(
            format!("{} has the store in it, which a mount there would hide", path.display()),
            "choose another folder",
        ));
    }
    if let Some(kind) = mounted_type(&path)? {
        return Err(user_hint(
            format!("something ({kind}) is mounted on {} already", path.display()),
            "unmount it first, or choose another folder",
        ));
    }
    if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(user_hint(
            format!("{} is not empty, and a mount there would hide what is in it", path.display()),
            "choose an empty folder",
        ));
    }
    Ok(path)
}

/// The FUSE mount at or above a path of which nobody answers any more.
fn dead_mount(target: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(target).ok()?;
    let is_dead = |path: &&Path| {
        let looked = path.symlink_metadata();
        looked.is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)))
    };
    let above: Vec<_> = absolute.ancestors().collect();
    above.into_iter().rev().find(is_dead).map(Path::to_owned)
}

async fn serve(
    global: &Global,
    options: &Mount,
    progress: &dyn Progress,
    reporter: Option<&Reporter>,
) -> anyhow::Result<()> {
    let target = free_target(global, &options.target)?;
    let stats_path = options.stats.path.as_deref().map(std::path::absolute).transpose()?;
    let mut signals = Signals::catch().context("catching signals")?;
    let parent_gone = async {
        match reporter {
            Some(reporter) => reporter.parent_gone().await,
            None => std::future::pending().await,
        }
    };
    let mounting = async {
        let engine = crate::engine_glue::open(global)?;
        let image = engine.resolve(&options.image).await?;
        unchecked::tell(unchecked::note(&engine, &image).as_deref(), reporter);
        let mount = engine.mount(&image, &target, Use::Look, progress).await?;
        anyhow::Ok((engine, mount))
    };
    let (engine, mut mount) = tokio::select! {
        mount = mounting => mount?,
        signal = signals.next_fatal() => return Err(interrupted(signal)),
        () = parent_gone => anyhow::bail!(PARENT_GONE),
    };
    // Nothing below is relative to the folder this was started in, which must stay free to unmount.
    let announced = std::env::set_current_dir("/").map_err(anyhow::Error::from);
    if let Err(error) = announced.and_then(|()| reporter.map_or(Ok(()), Reporter::ready)) {
        mount.unmount().await?;
        return Err(error);
    }
    crate::serving::until_unmounted(&engine, &mount, &mut signals).await;
    let stats = mount.unmount().await;
    let written = match (&stats_path, &stats) {
        (Some(path), Ok(stats)) => crate::stats_file::write(path, stats),
        _ => Ok(()),
    };
    stats?;
    written
}

//! `hoist mount`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use hoist_engine::{Progress, Use};
use rustix::mount::UnmountFlags;

use crate::background::{self, Reporter};
use crate::cli::{Global, Mount};
use crate::failure::{user, user_hint};
use crate::mount_record::{Records, mounted_type};
use crate::printer::Printer;
use crate::signals::{Signals, interrupted};

pub(super) fn run(global: &Global, options: &Mount) -> anyhow::Result<()> {
    if !options.foreground {
        super::require_mount_privilege()?;
        free_target(&options.target)?;
        return background::start(global, options, &Printer::new());
    }
    let runtime = crate::engine_glue::tokio_runtime()?;
    if !options.report {
        super::require_mount_privilege()?;
        return runtime.block_on(serve(global, options, &Printer::new(), None));
    }
    let reporter = Reporter::detach();
    let outcome = runtime.block_on(serve(global, options, &reporter, Some(&reporter)));
    if let Err(error) = &outcome {
        reporter.failed(error);
    }
    outcome
}

/// The mount point's canonical path.
fn free_target(target: &Path) -> anyhow::Result<PathBuf> {
    let path = target.canonicalize().map_err(|error| {
        user_hint(
            format!("can't mount on {}: {error}", target.display()),
            format!("make the folder first: mkdir -p {}", target.display()),
        )
    })?;
    if !path.is_dir() {
        return Err(user(format!("can't mount on {}: it is no folder", path.display())));
    }
    if let Some(kind) = mounted_type(&path)? {
        return Err(user_hint(
            format!("something ({kind}) is mounted on {} already", path.display()),
            "unmount it first, or choose another folder",
        ));
    }
    Ok(path)
}

async fn serve(
    global: &Global,
    options: &Mount,
    progress: &dyn Progress,
    reporter: Option<&Reporter>,
) -> anyhow::Result<()> {
    let target = free_target(&options.target)?;
    let stats_path = options.stats.path.as_deref().map(std::path::absolute).transpose()?;
    let records = Records::of(&global.root()?);
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
        anyhow::Ok(engine.mount(&image, &target, Use::Look, progress).await?)
    };
    let mount = tokio::select! {
        mount = mounting => mount?,
        signal = signals.next_fatal() => return Err(interrupted(signal)),
        () = parent_gone => anyhow::bail!("the process that asked for the mount is gone"),
    };
    let announced = records.write(&target, &options.image).context("recording the mount").and_then(|()| {
        // Nothing below is relative to the folder this was started in, which must stay free to unmount.
        std::env::set_current_dir("/")?;
        reporter.map_or(Ok(()), Reporter::ready)
    });
    if let Err(error) = announced {
        let _ = records.remove(std::process::id().cast_signed());
        mount.unmount().await?;
        return Err(error);
    }
    loop {
        tokio::select! {
            () = mount.wait_unmounted() => break,
            signal = signals.next_fatal() => match rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                // To leave now would make the reads of those who use it fail.
                Err(error) => tracing::warn!(?signal, target = %target.display(), "still in use, serving on: {error}"),
            },
        }
    }
    let stats = mount.unmount().await;
    let written = match (&stats_path, &stats) {
        (Some(path), Ok(stats)) => crate::stats_file::write(path, stats),
        _ => Ok(()),
    };
    records.remove(std::process::id().cast_signed()).context("removing the mount's record")?;
    stats?;
    written
}

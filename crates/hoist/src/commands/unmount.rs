//! `hoist unmount`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::Context;
use hoist_engine::store::{EndOfMount, Servers, Store};
use hoist_sys::process::{Activity, activity};

use crate::cli::{Global, Unmount};
use crate::failure::{user, user_hint};
use crate::mount_table::mounted_type;

/// After this long a wait is explained.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long it may be in use by what is on its way out: a process that ends, or one that was just forked by a program that has a
/// file of the mount open, and has not executed yet.
const IN_PASSING: Duration = Duration::from_secs(1);

pub(super) fn run(global: &Global, options: &Unmount) -> anyhow::Result<()> {
    if let Some(what) = meant(global, &options.target) {
        return Err(what);
    }
    let target = canonical(&options.target)?;
    super::block_on(end(global, &target, options.lazy))
}

/// Unmounts what another process has mounted on `target`, a canonical path: by the store's daemon, if it serves it; and waits
/// until nobody does any more.
///
/// # Errors
/// It is no mount of this store's, or in use.
pub(super) async fn end(global: &Global, target: &Path, lazy: bool) -> anyhow::Result<()> {
    if crate::worker::unmount(global, target, lazy).await? {
        return Ok(());
    }
    let engine = crate::engine_glue::open_damaged(global)?;
    let records = engine.store().mounts().context("reading the mount records")?;
    let record = records.into_iter().filter(|record| record.target == target).max_by_key(|r| r.before);
    let record = record.ok_or_else(|| {
        user_hint(
            format!("{} is no mount of hoist's", target.display()),
            "mounts belong to a store: is --root the one it was mounted with?",
        )
    })?;
    let end = engine.store().end_of_mount(&record.id)?;
    if mounted_type(target)?.is_some() {
        unmount(target, lazy)?;
    }
    if !lazy {
        wait_for(end, target, || engine.store().servers(&record.id))?;
    }
    Ok(())
}

/// Says what to unmount where an image or a container was named instead of a folder.
fn meant(global: &Global, target: &Path) -> Option<anyhow::Error> {
    let name = target.to_str().filter(|_| target.symlink_metadata().is_err())?;
    let store = Store::open(&global.root().ok()?).ok()?;
    if crate::container::is_running(store.root(), name) {
        let text = format!("{name} is a container, not a folder that an image is mounted on");
        return Some(user_hint(text, format!("end it: hoist stop {name}")));
    }
    let image = crate::worker::absolute_name(name);
    let of_image = store.mounts().ok()?.into_iter().filter(|record| [name, &image].contains(&&*record.image));
    let commands: Vec<_> =
        of_image.map(|record| format!("hoist unmount {}", record.target.display())).collect();
    let text = format!("{name} is an image, not a folder that one is mounted on");
    (!commands.is_empty()).then(|| user_hint(text, commands.join(" or ")))
}

/// Waits until nobody serves the mount any more, and says what that takes if it is long. A process that is stopped cannot
/// notice that the mount is gone, and is not waited for.
fn wait_for(end: EndOfMount, target: &Path, servers: impl Fn() -> Option<Servers>) -> anyhow::Result<()> {
    let (ended, waiting) = std::sync::mpsc::channel();
    // It ends with this process, if the wait is given up.
    std::thread::spawn(move || ended.send(end.wait()));
    let mut told = false;
    loop {
        match waiting.recv_timeout(PATIENCE) {
            Ok(waited) => return waited.context("waiting for the process that served the mount"),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("a waiting thread died"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let stopped = servers().map(|servers| servers.filler_pid);
        if let Some(pid) = stopped.filter(|pid| activity(*pid) == Activity::Stopped) {
            eprintln!(
                "{} is unmounted, but process {pid}, which served it, is stopped and does not notice: it ends what it did for this mount when it goes on (kill -CONT {pid})",
                target.display()
            );
            return Ok(());
        }
        if !std::mem::replace(&mut told, true) {
            eprintln!(
                "{} is unmounted here, but another mount namespace still has it: it is served until that one lets go (interrupt this to wait no longer)",
                target.display()
            );
        }
    }
}

/// Of a mount whose server is dead the folder itself may not answer: its parent does.
pub(super) fn canonical(target: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(target)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if !absolute.is_symlink() => {
            parent.canonicalize().map(|dir| dir.join(name))
        }
        _ => absolute.canonicalize(),
    }
    .map_err(|error| user(format!("can't unmount {}: {error}", target.display())))
}

/// Tries it until it is not refused as busy, or `patience` is over.
fn while_busy(patience: Duration, mut attempt: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
    let since = Instant::now();
    loop {
        match attempt() {
            Err(e) if e.kind() == ErrorKind::ResourceBusy && since.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// Unmounts, or says what keeps it.
pub(crate) fn unmount(target: &Path, lazy: bool) -> anyhow::Result<()> {
    let unmounted = while_busy(IN_PASSING, || hoist_sys::fuse::unmount(target, lazy));
    let Err(error) = unmounted else { return Ok(()) };
    match (error.kind(), error.raw_os_error()) {
        // Someone else has just unmounted it.
        (_, Some(libc::EINVAL)) => Ok(()),
        (ErrorKind::ResourceBusy, _) => Err(user_hint(
            format!("{} is in use", target.display()),
            format!("end what uses it (fuser -vm {} tells), or detach it with --lazy", target.display()),
        )),
        (ErrorKind::NotFound, _) => {
            Err(user_hint(format!("unmounting takes root, or else {error}"), "run it with sudo"))
        }
        _ => Err(error).with_context(|| format!("unmounting {}", target.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn what_is_busy_in_passing_is_tried_again() {
        let attempts = |patience, outcomes: &[i32]| {
            let mut left = outcomes.iter();
            let done = while_busy(patience, || match left.next() {
                Some(errno) => Err(Error::from_raw_os_error(*errno)),
                None => Ok(()),
            });
            (done.map_err(|e| e.raw_os_error().unwrap()), left.len())
        };
        let long = Duration::from_secs(600);
        assert_eq!(attempts(long, &[libc::EBUSY, libc::EBUSY]), (Ok(()), 0));
        assert_eq!(attempts(Duration::ZERO, &[libc::EBUSY, libc::EBUSY]), (Err(libc::EBUSY), 1));
        assert_eq!(attempts(long, &[libc::EPERM, libc::EBUSY]), (Err(libc::EPERM), 1));
    }
}

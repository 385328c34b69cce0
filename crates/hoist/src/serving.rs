//! What a process does while it serves mounts: it waits for them to be gone, and heeds signals.

use hoist_engine::{Engine, Mount, Stats};
use rustix::process::Signal;

use crate::signals::Signals;

/// Serves a mount until it is gone. SIGINT, SIGTERM, SIGHUP and SIGQUIT unmount it, if it is not in use;
/// SIGUSR2 has this process replaced by the program as it now stands on disk.
pub async fn until_unmounted(engine: &Engine, mount: &Mount, signals: &mut Signals) {
    loop {
        tokio::select! {
            () = mount.wait_unmounted() => return,
            signal = signals.next() => heed(engine, &[mount.target().to_owned()], signal),
        }
    }
}

/// The same for several mounts; each is ended as it goes.
pub async fn until_gone(engine: &Engine, mounts: Vec<Mount>, signals: &mut Signals) -> anyhow::Result<()> {
    let targets: Vec<_> = mounts.iter().map(|mount| mount.target().to_owned()).collect();
    let mut serving = tokio::task::JoinSet::<Result<Stats, hoist_engine::Error>>::new();
    for mut mount in mounts {
        serving.spawn(async move {
            mount.wait_unmounted().await;
            mount.unmount().await
        });
    }
    loop {
        tokio::select! {
            ended = serving.join_next() => match ended {
                Some(ended) => {
                    ended??;
                }
                None => return Ok(()),
            },
            signal = signals.next() => heed(engine, &targets, signal),
        }
    }
}

fn heed(engine: &Engine, targets: &[std::path::PathBuf], signal: Signal) {
    match signal {
        Signal::USR2 => {
            if let Err(error) = engine.upgrade() {
                tracing::error!("{error}");
            }
        }
        Signal::INT | Signal::TERM | Signal::HUP | Signal::QUIT => {
            for target in targets {
                match hoist_sys::fuse::unmount(target, false) {
                    Ok(()) => {}
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
                    // To leave now would make the reads of those who use it fail.
                    Err(error) => {
                        tracing::warn!(?signal, target = %target.display(), "still in use, serving on: {error}");
                    }
                }
            }
        }
        _ => {}
    }
}

//! Other processes that are asked too before anybody reads a data file: those that have the layer mounted by the driver
//! `erofs`. One that is stopped does not answer, and whoever reads waits for it, deaf to every signal but SIGKILL. So a
//! file that others may have marked is read aside first, and that is not waited for without end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use hoist_format::extent::BLOCK;
use hoist_sys::process::{Activity, activity};

use crate::error::Error;
use crate::store::{Servers, Store};

/// What is stopped is given so long to go on.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where a data file of so many bytes has nothing any more: whoever is asked for this has nothing to fetch.
pub(super) fn behind(data_size: u64) -> u64 {
    data_size.max(BLOCK).next_multiple_of(BLOCK)
}

/// Returns once everybody who has marked this data file, at `path` in the store, has answered. Blocks.
///
/// # Errors
/// Somebody is stopped, or has not answered for `most`: whoever read the file would wait.
pub(crate) fn all_answer(
    store: &Store,
    (data, path): (&File, &Path),
    data_size: u64,
    most: Duration,
) -> Result<(), Error> {
    let file = data.try_clone().map_err(Error::io("open again", path))?;
    let (done, answered) = channel::<()>();
    let read = move || {
        let _ = file.read_at(&mut [0], behind(data_size));
        drop(done);
    };
    let thread = std::thread::Builder::new().name("hoist-asks".into());
    // It ends with this process, if nobody answers before.
    thread.spawn(read).map_err(Error::io("start a thread to read", path))?;
    let since = Instant::now();
    while answered.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
        if let Some(why) = silent(&servers_of(store, path), since.elapsed() >= most) {
            return Err(Error::Store { path: path.to_owned(), why });
        }
    }
    Ok(())
}

/// Who else serves mounts that read this data file.
fn servers_of(store: &Store, data: &Path) -> Vec<Servers> {
    let records = store.mounts().unwrap_or_default().into_iter();
    let of_it = records.filter(|record| record.lazy && record.data.iter().any(|path| path == data));
    let servers = of_it.filter_map(|record| store.servers(&record.id));
    servers.filter(|servers| servers.filler_pid != std::process::id()).collect()
}

/// Why nothing is to be hoped for; `late`: whoever can answer has had the time to.
fn silent(servers: &[Servers], late: bool) -> Option<String> {
    let advice = |pid| {
        format!(
            "`kill -CONT {pid}` lets it go on; after `kill -9 {pid}` another process takes its mounts over, and reads go on"
        )
    };
    for servers in servers {
        let pid = servers.filler_pid;
        match activity(pid) {
            Activity::Stopped => {
                return Some(format!(
                    "is served by process {pid} too, which is stopped and answers nobody who reads it: {}",
                    advice(pid)
                ));
            }
            Activity::Dead => {
                if let Some(keeper) = servers.keeper_pid.filter(|pid| activity(*pid) == Activity::Stopped) {
                    return Some(format!(
                        "was served by process {pid} too, which is dead, and its keeper {keeper} is stopped and starts no \
                         successor: `kill -CONT {keeper}` lets it"
                    ));
                }
            }
            Activity::Runs => {}
        }
    }
    if !late {
        return None;
    }
    Some(match servers.first() {
        Some(Servers { filler_pid: pid, .. }) => format!(
            "is served by process {pid} too, which runs and does not answer who reads it: see its log; if it hangs, or its control group is frozen, {}",
            advice(*pid)
        ),
        None => {
            "is watched by a program that does not answer who reads it (fanotify; a virus scanner?)".into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_told_by_name() {
        let own = std::process::id();
        let runs = Servers { filler_pid: own, keeper_pid: None };
        // No process has this number.
        let dead = Servers { filler_pid: u32::MAX, keeper_pid: Some(own) };
        assert_eq!(silent(&[runs, dead], false), None);
        assert!(silent(&[runs], true).unwrap().contains(&format!("process {own} too, which runs")));
        assert!(silent(&[], true).unwrap().contains("fanotify"));
    }
}

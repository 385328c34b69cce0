//! Ending a container's program: it is asked first, and killed when its time is over.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;

use super::record::record;
use super::{Program, folder, unknown};
use crate::failure::user_hint;

/// Between two looks whether a container that is being started has a program to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// So long is waited without a word.
const UNSEEN: Duration = Duration::from_secs(1);
/// Of less that is left after that no word is worth the reading.
const TOLD: Duration = Duration::from_secs(1);
/// So long it may be without, while it is started or what it had mounted is unmounted.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends the program of a running container and waits until nobody runs it any more; that of an ended one has ended.
/// The program has `time` to end by itself; with none it is killed at once. What is waited for is told if it takes long.
///
/// # Errors
/// There is no such container, its program may not be signalled, or it has none yet: the user's to mend.
pub fn stop(root: &Path, name: &str, time: Duration, tell: &dyn Fn(&str)) -> anyhow::Result<()> {
    let dir = folder(root, name).ok_or_else(|| unknown(name))?;
    let lock = File::open(dir.join("lock")).with_context(|| format!("opening the container {name}"))?;
    let deadline = Instant::now() + PATIENCE;
    let program = loop {
        if !is_held(&lock)? {
            return Ok(());
        }
        if let Some(program) = Program::of(&dir) {
            break program;
        }
        if Instant::now() > deadline {
            return Err(user_hint(
                format!(
                    "the container {name:?} has no program to stop: it is still being started, or cleaned up"
                ),
                "try again, or end its `hoist run`",
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let told = |signal| {
        program
            .signal(signal)
            .with_context(|| format!("signalling the program of {name}, process {}", program.pid()))
    };
    if !time.is_zero() {
        // Another that an image may name (a real-time one) is no reason not to ask.
        let named = record(&dir).and_then(|record| parse(&record.stop_signal?));
        told(named.unwrap_or(Signal::TERM))?;
    }
    let ended = match time.checked_sub(UNSEEN).filter(|left| *left >= TOLD) {
        None => program.wait(Some(time)),
        Some(left) => {
            program.wait(Some(UNSEEN)) || {
                let kill = format!("it is killed in {:.0} s (--time 0 kills at once)", left.as_secs_f64());
                tell(&format!(
                    "waiting for the program of {name}, process {}, to end; {kill}",
                    program.pid()
                ));
                program.wait(Some(left))
            }
        }
    };
    if !ended {
        told(Signal::KILL)?;
        program.wait(None);
    }
    // Whoever ran it unmounts its image.
    lock.lock_shared().with_context(|| format!("waiting for the end of {name}"))
}

fn is_held(lock: &File) -> anyhow::Result<bool> {
    match lock.try_lock_shared() {
        Ok(()) => Ok(lock.unlock().map(|()| false)?),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error).context("looking whether the container runs"),
    }
}

/// A signal as images name it: `SIGTERM`, `TERM` or `15`.
fn parse(text: &str) -> Option<Signal> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let named = NAMED.iter().find(|(known, _)| *known == name).map(|(_, signal)| *signal);
    named.or_else(|| Signal::from_named_raw(text.parse().ok()?))
}

/// Those that a program can be asked by.
const NAMED: [(&str, Signal); 10] = [
    ("TERM", Signal::TERM),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("HUP", Signal::HUP),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("WINCH", Signal::WINCH),
    ("ALRM", Signal::ALARM),
    ("PWR", Signal::POWER),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, signal) in [("SIGQUIT", Signal::QUIT), ("WINCH", Signal::WINCH), ("15", Signal::TERM)] {
            assert_eq!(parse(text), Some(signal), "{text}");
        }
        for bad in ["", "SIGNONE", "SIGRTMIN+3", "0", "-9", "term"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

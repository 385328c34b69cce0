//! The signals a container's program is told of.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// Streams of the signals that are passed on. While this lives, they no longer end this process.
#[derive(Debug)]
pub struct Signals {
    interrupt: Stream,
    terminate: Stream,
    hangup: Stream,
    quit: Stream,
    user1: Stream,
    user2: Stream,
    window: Stream,
}

impl Signals {
    /// Begins to catch them.
    pub fn catch() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// The next signal. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.user1.recv() => Signal::USR1,
            _ = self.user2.recv() => Signal::USR2,
            _ = self.window.recv() => Signal::WINCH,
        }
    }

    /// The next signal that asks this process to end.
    pub async fn next_fatal(&mut self) -> Signal {
        loop {
            let signal = self.next().await;
            if [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&signal) {
                return signal;
            }
        }
    }
}

/// The failure of having been ended by a signal: 128+N, as a shell has it.
pub fn interrupted(signal: Signal) -> anyhow::Error {
    let number = signal.as_raw();
    let text = format!("error: interrupted by signal {number}");
    crate::failure::Relayed { text, code: u8::try_from(128 + number).unwrap_or(255) }.into()
}

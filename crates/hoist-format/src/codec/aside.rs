//! Windows are reduced and compressed on a thread of their own while decoding goes on: a tenth of its time.
//!
//! Whoever sets the next checkpoint waits for the window before the last, not for the last: between two checkpoints
//! lies a millisecond, and other threads may hold the processors as long as that.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::CodecError;
use super::probe::Probe;
use super::window::Compressor;

/// Deflate data that may wait for the thread, in pieces: each comes from one step of the decoder.
const WAITING: usize = 32;
/// Windows that may be at work while the decoder goes on past the next checkpoint.
pub(super) const LAG: usize = 1;

enum Ask {
    /// A checkpoint: the output before it, and the byte of which the next block has the high bits.
    Start { window: Vec<u8>, bits: u8, byte: u8 },
    /// Deflate data behind it.
    Data(Vec<u8>),
    /// No more data can refer to the window.
    End,
}

/// A window as it is stored, empty if nothing refers to it.
type Stored = Result<Vec<u8>, CodecError>;

/// The thread, which ends when this is dropped.
pub(super) struct Aside {
    ask: SyncSender<Ask>,
    stored: Receiver<Stored>,
}

impl Aside {
    pub fn new() -> Result<Self, CodecError> {
        let (ask, asked) = sync_channel(WAITING);
        let (answer, stored) = sync_channel(LAG + 1);
        let (mut probe, mut compressor) = (Probe::new().map_err(CodecError::Setup)?, Compressor::new()?);
        let run = move || {
            let mut window = Vec::new();
            // The first thing that went wrong with the window at work.
            let mut state = Ok(true);
            for ask in asked {
                match ask {
                    Ask::Start { window: new, bits, byte } => {
                        state = probe.start(new.len(), bits, byte).map(|()| true);
                        window = new;
                    }
                    Ask::Data(data) if state == Ok(true) => state = probe.follow(&data),
                    Ask::Data(_) => {}
                    Ask::End => {
                        let stored = match state.clone() {
                            Err(e) => Err(CodecError::Setup(e)),
                            Ok(_) if probe.clear_unused(&mut window) => compressor.compress(&window),
                            Ok(_) => Ok(Vec::new()),
                        };
                        if answer.send(stored).is_err() {
                            return;
                        }
                    }
                }
            }
        };
        thread::Builder::new().name("hoist-windows".into()).spawn(run).map_err(CodecError::Thread)?;
        Ok(Self { ask, stored })
    }

    /// A window of the `window` before a checkpoint.
    pub fn start(&self, window: &[u8], bits: u8, byte: u8) -> Result<(), CodecError> {
        self.send(Ask::Start { window: window.to_vec(), bits, byte })
    }

    /// The data behind it.
    pub fn follow(&self, data: &[u8]) -> Result<(), CodecError> {
        self.send(Ask::Data(data.to_vec()))
    }

    /// That was all. [`Self::stored`] must follow before [`LAG`] more are ended.
    pub fn end(&self) -> Result<(), CodecError> {
        self.send(Ask::End)
    }

    /// What is to be stored of the window that was ended first, of those not yet taken.
    pub fn stored(&self) -> Stored {
        self.stored.recv().map_err(|_| gone())?
    }

    fn send(&self, ask: Ask) -> Result<(), CodecError> {
        self.ask.send(ask).map_err(|_| gone())
    }
}

fn gone() -> CodecError {
    CodecError::Thread(std::io::Error::other("it has ended"))
}

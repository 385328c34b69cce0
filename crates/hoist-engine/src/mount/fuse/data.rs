//! Reads of the layers' data files, each answered when its bytes are here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hoist_sys::fuse::Answer;
use tokio::sync::Notify;

use super::super::layer::{LazyLayer, MountedLayer};
use super::super::slow::Watch;
use super::Show;
use crate::fill::FillError;

/// The data files of an image's layers, lowest first.
pub(super) struct Data {
    layers: Vec<Held>,
    timeout: Duration,
    runtime: tokio::runtime::Handle,
    /// Reads that wait, by request, to be called off.
    waiting: Mutex<HashMap<u64, Arc<Notify>>>,
}

enum Held {
    Whole(File),
    Lazy(Arc<LazyLayer>),
    /// Taken out of service before this process took over.
    Gone,
}

/// One read that has to wait.
struct Wait {
    layer: Arc<LazyLayer>,
    start: u64,
    len: usize,
    thread: u32,
}

impl Data {
    pub fn open(show: &Show<'_>) -> Result<Arc<Self>, String> {
        let hold = |layer: &MountedLayer| {
            Ok(match layer {
                MountedLayer::Whole(path) => match File::open(path) {
                    Ok(file) => Held::Whole(file),
                    Err(e) if show.resumed && e.kind() == ErrorKind::NotFound => Held::Gone,
                    Err(e) => return Err(format!("opening {}: {e}", path.display())),
                },
                MountedLayer::Lazy(layer) => Held::Lazy(Arc::clone(layer)),
            })
        };
        Ok(Arc::new(Self {
            layers: show.layers.iter().map(hold).collect::<Result<_, String>>()?,
            timeout: show.read_timeout,
            runtime: tokio::runtime::Handle::current(),
            waiting: Mutex::default(),
        }))
    }

    /// Answers with `len` bytes from `start` of a layer's data file, at once if they are here.
    pub fn read(self: &Arc<Self>, layer: usize, start: u64, len: usize, thread: u32, answer: Answer) {
        let layer = match self.layers.get(layer) {
            None | Some(Held::Gone) => return answer.fail(libc::EIO),
            Some(Held::Whole(file)) => return give(file, start, len, answer),
            Some(Held::Lazy(layer)) => layer,
        };
        let end = start.saturating_add(len as u64);
        layer.counts.asked();
        match layer.filling() {
            Some(fill) if fill.condemned().is_none() && fill.is_present(start, end) => {
                give(layer.data(), start, len, answer);
                fill.note_read(start, end);
            }
            _ => {
                let wait = Wait { layer: Arc::clone(layer), start, len, thread };
                let cancel = Arc::default();
                self.waiting().insert(answer.unique(), Arc::clone(&cancel));
                self.runtime.spawn(Arc::clone(self).fill(wait, cancel, answer));
            }
        }
    }

    /// The reader of a request is to be let go.
    pub fn interrupt(&self, unique: u64) {
        if let Some(cancel) = self.waiting().get(&unique) {
            cancel.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fill(self: Arc<Self>, wait: Wait, cancel: Arc<Notify>, answer: Answer) {
        let unique = answer.unique();
        let range = (wait.start, wait.start.saturating_add(wait.len as u64));
        // Who reads through a loop device is not to be told.
        let reader = (!wait.layer.is_read_through_loop()).then_some(wait.thread);
        let time = wait.layer.failed.wait(range, reader, self.timeout);
        if time.repeats && time.left.is_zero() {
            self.waiting().remove(&unique);
            return answer.fail(libc::EIO);
        }
        let watch = Watch::begin(&wait.layer, wait.start, wait.len as u64, wait.thread);
        let outcome = tokio::select! {
            filled = tokio::time::timeout(time.left, wait.fill()) => {
                Some(filled.unwrap_or(Err(FillError::Timeout(self.timeout))))
            }
            () = cancel.notified() => None,
        };
        self.waiting().remove(&unique);
        if let Some(Err(_)) = &outcome {
            wait.layer.failed.note(range, reader, time);
        }
        let Wait { layer, start, len, .. } = wait;
        match outcome {
            None => answer.fail(libc::EINTR),
            Some(Err(e)) => {
                answer.fail(e.errno());
                watch.end(&layer, Err(&e));
            }
            Some(Ok(())) => {
                let given = Arc::clone(&layer);
                let giving = tokio::task::spawn_blocking(move || {
                    give(given.data(), start, len, answer);
                    if let Some(fill) = given.filling() {
                        fill.note_read(start, start + len as u64);
                    }
                });
                let _ = giving.await;
                watch.end(&layer, Ok(()));
            }
        }
    }
}

impl Wait {
    async fn fill(&self) -> Result<(), FillError> {
        let end = self.start.saturating_add(self.len as u64);
        let fill = self.layer.fill().await?;
        // It may have been here all along, under a table that nobody had read yet.
        if fill.condemned().is_some() || !fill.is_present(self.start, end) {
            self.layer.counts.stalled(self.len as u64);
        }
        fill.fill(self.start, end).await
    }
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Answers with bytes that are here. A file that has fewer would be shown as ending early: an error instead.
fn give(data: &File, start: u64, len: usize, answer: Answer) {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        match data.read_exact_at(&mut buffer[..len], start) {
            Ok(()) => answer.with(&buffer[..len]),
            Err(e) => {
                tracing::error!(offset = start, bytes = len, "reading the store failed: {e}");
                answer.fail(libc::EIO);
            }
        }
    });
}

//! Threads that read requests, and what they are answered with.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::device::Device;
use super::request::{Operation, Request};
use super::session::Session;
use crate::keeper::Table;

/// `FUSE_MIN_READ_BUFFER` is 8 KiB; the longest request here, a name, is shorter.
pub(super) const REQUEST_MAX: usize = 16 << 10;

/// A file system: has an answer to each request.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request, now or, by keeping the answer, later. Interrupts too are handed in, and need
    /// no answer.
    fn handle(&self, request: &Request<'_>, answer: Answer);
}

/// The right and duty to answer one request: dropped, as by a panic, it answers EIO.
#[derive(Debug)]
#[must_use = "a request that nobody answers fails"]
pub struct Answer {
    device: Option<Arc<Device>>,
    unique: u64,
    answers: Option<Table>,
}

impl Answer {
    /// Which request.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// Succeeds, with what was asked for.
    pub fn with(mut self, bytes: &[u8]) {
        self.send(0, bytes);
    }

    /// Fails.
    pub fn fail(mut self, errno: i32) {
        self.send(errno, &[]);
    }

    /// There is nothing to answer.
    pub fn none(mut self) {
        self.device = None;
    }

    fn send(&mut self, errno: i32, bytes: &[u8]) {
        let Some(device) = self.device.take() else { return };
        let sent = device.reply(self.unique, errno, bytes);
        // A reply that the kernel does not take leaves the reader waiting: any other is better.
        if let Err(e) = sent
            && e.raw_os_error() != Some(libc::ENOENT)
        {
            let _ = device.reply(self.unique, libc::EIO, &[]);
        }
        if let Some(answers) = &self.answers {
            answers.note_answered();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.send(libc::EIO, &[]);
    }
}

impl Session {
    /// Starts threads, at least one for each queue, that serve until the file system is unmounted.
    ///
    /// # Errors
    /// The kernel's from starting a thread.
    pub fn serve(&self, handler: &Arc<impl Handler>, threads: usize) -> io::Result<Vec<JoinHandle<()>>> {
        let threads = threads.max(self.devices.len());
        let start = |i: usize| {
            let device = Arc::clone(&self.devices[i % self.devices.len()]);
            let (handler, answers) = (Arc::clone(handler), self.answers.clone());
            std::thread::Builder::new()
                .name(format!("hoist-fuse-{i}"))
                .spawn(move || answer_all(&device, &*handler, answers.as_ref()))
        };
        (0..threads).map(start).collect()
    }
}

fn answer_all(device: &Arc<Device>, handler: &impl Handler, answers: Option<&Table>) {
    // Touched before: a page fault in a dying process would lose the request.
    let mut buffer = vec![1; REQUEST_MAX];
    loop {
        let bytes = match device.read(&mut buffer) {
            Ok(bytes) => bytes,
            Err(e) => match e.raw_os_error() {
                // Taken back, or a signal came.
                Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => continue,
                // Unmounted, or aborted through /sys/fs/fuse/connections.
                _ => return,
            },
        };
        match Request::parse(bytes) {
            Ok(request) => {
                let device = Some(Arc::clone(device));
                let answer = Answer { device, unique: request.unique, answers: answers.cloned() };
                match request.operation {
                    Operation::Forget => answer.none(),
                    Operation::Destroy => answer.with(&[]),
                    _ => handler.handle(&request, answer),
                }
            }
            Err(e) => {
                if let Some(unique) = e.unique {
                    let _ = device.reply(unique, libc::EIO, &[]);
                }
            }
        }
    }
}

/// Fails with EIO all that is asked at this moment, of a device that does not [wait](Device::set_waiting).
///
/// # Errors
/// The session is over.
pub(crate) fn refuse_all(device: &Device) -> io::Result<()> {
    let mut buffer = [0; REQUEST_MAX];
    loop {
        let (unique, wants_reply) = match device.read(&mut buffer) {
            Ok(bytes) => match Request::parse(bytes) {
                Ok(Request { unique, operation, .. }) => {
                    (Some(unique), !matches!(operation, Operation::Forget | Operation::Interrupt { .. }))
                }
                Err(e) => (e.unique, true),
            },
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(()),
                // Taken back, or a signal came.
                Some(libc::ENOENT | libc::EINTR) => continue,
                _ => return Err(e),
            },
        };
        if let Some(unique) = unique.filter(|_| wants_reply) {
            // It fails where nobody waits for it any more.
            let _ = device.reply(unique, libc::EIO, &[]);
        }
    }
}

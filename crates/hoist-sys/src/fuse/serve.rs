//! Threads that read requests, and what they are answered with.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::device::Device;
use super::in_work::{INBOXES, InWork, Left, Slot};
use super::request::{Operation, Request};
use super::session::Session;
use crate::keeper::Table;

/// A file system: has an answer to each request.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request: now or, if it is a read, by keeping the answer, later. Interrupts too are handed in, and
    /// need no answer.
    fn handle(&self, request: &Request<'_>, answer: Answer);
}

/// The right and duty to answer one request: dropped, as by a panic, it answers EIO.
#[derive(Debug)]
#[must_use = "a request that nobody answers fails"]
pub struct Answer {
    device: Option<Arc<Device>>,
    unique: u64,
    answers: Option<Table>,
    slot: Option<Slot>,
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

    /// There is nothing to answer. A read stays noted.
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
        self.slot.take().into_iter().for_each(Slot::done);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.send(libc::EIO, &[]);
    }
}

impl Session {
    /// Answers what a dead process has left, and starts threads, at least one for each queue, that serve until the file
    /// system is unmounted.
    ///
    /// # Errors
    /// The kernel's from starting a thread.
    pub fn serve(&self, handler: &Arc<impl Handler>, threads: usize) -> io::Result<Vec<JoinHandle<()>>> {
        let queue = |i: usize| Queue {
            number: i % self.devices.len(),
            device: Arc::clone(&self.devices[i % self.devices.len()]),
            in_work: self.in_work.clone(),
            answers: self.answers.clone(),
        };
        for Left { queue: number, bytes, slot } in self.in_work.left(self.devices.len()) {
            queue(number).hand_in(&**handler, &bytes, slot);
        }
        self.in_work.clear_all();
        let start = |i: usize| {
            let (queue, handler) = (queue(i), Arc::clone(handler));
            std::thread::Builder::new()
                .name(format!("hoist-fuse-{i}"))
                .spawn(move || queue.answer_all(&*handler, i))
        };
        (0..threads.clamp(self.devices.len(), INBOXES)).map(start).collect()
    }
}

/// A queue, as one thread sees it.
struct Queue {
    number: usize,
    device: Arc<Device>,
    in_work: InWork,
    answers: Option<Table>,
}

impl Queue {
    fn answer_all(&self, handler: &impl Handler, inbox: usize) {
        let mut request = Vec::new();
        self.in_work.open(inbox);
        loop {
            match self.in_work.receive(inbox, &self.device, &mut request) {
                Ok(()) => self.hand_in(handler, &request, None),
                Err(e) => match e.raw_os_error() {
                    // Taken back, or a signal came.
                    Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => {}
                    // Unmounted, or aborted through /sys/fs/fuse/connections.
                    _ => return,
                },
            }
            self.in_work.clear(inbox);
        }
    }

    /// Has a request answered. Only reads may be answered later: they are noted, unless they are already, and fail with EIO
    /// where that cannot be: nobody would answer one that is not noted, should this process die.
    fn hand_in(&self, handler: &impl Handler, bytes: &[u8], slot: Option<Slot>) {
        match Request::parse(bytes) {
            Ok(request) => {
                let is_read = matches!(request.operation, Operation::Read { .. });
                let slot =
                    if is_read { slot.or_else(|| self.in_work.note(self.number, bytes)) } else { slot };
                let device = Some(Arc::clone(&self.device));
                let is_refused = is_read && slot.is_none();
                let answer = Answer { device, unique: request.unique, answers: self.answers.clone(), slot };
                match request.operation {
                    _ if is_refused => answer.fail(libc::EIO),
                    Operation::Forget => answer.none(),
                    Operation::Destroy => answer.with(&[]),
                    _ => handler.handle(&request, answer),
                }
            }
            Err(e) => {
                if let Some(unique) = e.unique {
                    let _ = self.device.reply(unique, libc::EIO, &[]);
                }
                slot.into_iter().for_each(Slot::done);
            }
        }
    }
}

/// The number to fail a request by; None for one that nobody waits for.
fn awaited(request: &[u8]) -> Option<u64> {
    match Request::parse(request) {
        Ok(Request { operation: Operation::Forget | Operation::Interrupt { .. }, .. }) => None,
        Ok(Request { unique, .. }) => Some(unique),
        Err(e) => e.unique,
    }
}

/// Does anybody wait for what a dead process has left?
pub(crate) fn is_left_waiting(in_work: &InWork, queues: usize) -> bool {
    in_work.left(queues).iter().any(|left| awaited(&left.bytes).is_some())
}

/// Fails with EIO what a dead process has left, of queues of these descriptors. Each fails where nobody waits for it any more.
pub(crate) fn refuse_left(in_work: &InWork, queues: &[Device]) {
    for Left { queue, bytes, slot } in in_work.left(queues.len()) {
        if let Some(unique) = awaited(&bytes) {
            let _ = queues[queue].reply(unique, libc::EIO, &[]);
        }
        slot.into_iter().for_each(Slot::done);
    }
    in_work.clear_all();
}

/// Fails with EIO all that is asked at this moment, of queues that do not [wait](Device::set_waiting).
///
/// # Errors
/// The session is over.
pub(crate) fn refuse_asked(in_work: &InWork, queues: &[Device]) -> io::Result<()> {
    let mut request = Vec::new();
    for (inbox, queue) in queues.iter().enumerate() {
        in_work.open(inbox);
        loop {
            match in_work.receive(inbox, queue, &mut request) {
                Ok(()) => {
                    if let Some(unique) = awaited(&request) {
                        let _ = queue.reply(unique, libc::EIO, &[]);
                    }
                }
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    // Taken back, or a signal came.
                    Some(libc::ENOENT | libc::EINTR) => {}
                    _ => return Err(e),
                },
            }
            in_work.clear(inbox);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::sync::Mutex;

    use super::*;

    /// Keeps what reads are to be answered with, and answers all else.
    #[derive(Default)]
    struct Slow(Mutex<Vec<Answer>>);

    impl Handler for Slow {
        fn handle(&self, request: &Request<'_>, answer: Answer) {
            match request.operation {
                Operation::Read { .. } => self.0.lock().unwrap().push(answer),
                _ => answer.with(&[]),
            }
        }
    }

    fn request(opcode: u32, unique: u64) -> Vec<u8> {
        let mut bytes = [80, opcode].map(u32::to_ne_bytes).concat();
        bytes.extend(unique.to_ne_bytes());
        bytes.resize(80, 0);
        bytes
    }

    const GETATTR: u32 = 3;
    const READ: u32 = 15;

    /// Errno and number of the next reply.
    fn reply(from: &mut File) -> (i32, u64) {
        let mut bytes = [0; 16];
        from.read_exact(&mut bytes).unwrap();
        let errno = i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        (-errno, u64::from_ne_bytes(std::array::from_fn(|i| bytes[8 + i])))
    }

    #[test]
    fn a_read_too_many_fails_and_all_else_goes_on() {
        let (from, to) = rustix::pipe::pipe().unwrap();
        let mut replies = File::from(from);
        let device = Arc::new(Device::from(to));
        let queue = Queue { number: 0, device, in_work: InWork::new().unwrap(), answers: None };
        let slow = Slow::default();
        let mut others = Vec::new();
        while let Some(slot) = queue.in_work.note(0, &request(READ, 1)) {
            others.push(slot);
        }
        queue.hand_in(&slow, &request(READ, 2), None);
        queue.hand_in(&slow, &request(GETATTR, 3), None);
        assert_eq!([reply(&mut replies), reply(&mut replies)], [(libc::EIO, 2), (0, 3)]);
        assert_eq!(slow.0.lock().unwrap().len(), 0);
        // One that a dead process had noted keeps its slot.
        queue.hand_in(&slow, &request(READ, 1), others.pop());
        slow.0.lock().unwrap().pop().unwrap().with(&[]);
        queue.hand_in(&slow, &request(READ, 4), None);
        slow.0.lock().unwrap().pop().unwrap().with(&[]);
        assert_eq!([reply(&mut replies), reply(&mut replies)], [(0, 1), (0, 4)]);
    }
}

//! FUSE sessions that the keeper holds: what becomes of them while nobody serves them.
//!
//! A session lives as long as somebody has its descriptors, and then what is asked waits in the kernel. What a
//! dead process had read and not answered stands in the session's list, and fails like the rest.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::fuse::{Device, InWork, is_left_waiting, refuse_asked, refuse_left};

/// What the names of a session's descriptors among the deposits begin with.
const PREFIX: &str = "fuse ";
/// The number of the list of requests in work: the first of the descriptors.
const LIST: usize = 0;

/// The name under which one of a session's descriptors is deposited.
pub fn deposit_name(session: &str, number: usize) -> String {
    format!("{PREFIX}{session} {number}")
}

/// Whose is what has this name, and which of its descriptors?
fn parse(name: &str) -> Option<(&str, usize)> {
    let (session, number) = name.strip_prefix(PREFIX)?.rsplit_once(' ')?;
    Some((session, number.parse().ok()?))
}

/// Is what has this name a session's?
pub(super) fn is_part(name: &str) -> bool {
    parse(name).is_some()
}

/// Is what has this name a queue of a session?
pub(super) fn is_queue(name: &str) -> bool {
    parse(name).is_some_and(|(_, number)| number != LIST)
}

fn state(fd: &OwnedFd) -> PollFlags {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    match poll(&mut polled, Some(&at_once)) {
        Ok(_) => polled[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

/// Is the file system of this queue still mounted for anyone? Yes when in doubt.
pub(super) fn is_connected(queue: &OwnedFd) -> bool {
    !state(queue).contains(PollFlags::ERR)
}

/// All of a session's descriptors.
struct Parts<'d> {
    name: &'d str,
    list: Option<&'d OwnedFd>,
    queues: Vec<&'d OwnedFd>,
}

/// The sessions among these deposits.
fn sessions<'d>(deposits: impl Iterator<Item = (&'d String, &'d OwnedFd)>) -> Vec<Parts<'d>> {
    let mut sessions: BTreeMap<&str, BTreeMap<usize, &OwnedFd>> = BTreeMap::new();
    for (name, fd) in deposits {
        if let Some((session, number)) = parse(name) {
            sessions.entry(session).or_default().insert(number, fd);
        }
    }
    let parts = |(name, mut fds): (&'d str, BTreeMap<usize, &'d OwnedFd>)| {
        let list = fds.remove(&LIST);
        Parts { name, list, queues: fds.into_values().collect() }
    };
    sessions.into_iter().map(parts).collect()
}

impl Parts<'_> {
    fn in_work(&self) -> io::Result<InWork> {
        let list = self.list.ok_or(io::ErrorKind::NotFound)?;
        InWork::of(list.as_fd().try_clone_to_owned()?.into())
    }

    fn devices(&self) -> io::Result<Vec<Device>> {
        self.queues.iter().map(|fd| Ok(fd.as_fd().try_clone_to_owned()?.into())).collect()
    }

    /// Does anybody wait for it?
    fn is_asked(&self) -> bool {
        let asked = |fd: &OwnedFd| {
            let state = state(fd);
            state.contains(PollFlags::IN) && !state.contains(PollFlags::ERR)
        };
        self.queues.iter().any(|fd| asked(fd))
            || self.in_work().is_ok_and(|list| is_left_waiting(&list, self.queues.len()))
    }

    fn refuse(&self, also_left: bool) -> io::Result<()> {
        let (in_work, queues) = (self.in_work()?, self.devices()?);
        if also_left {
            queues.iter().try_for_each(|queue| queue.set_waiting(false))?;
            refuse_left(&in_work, &queues);
        }
        refuse_asked(&in_work, &queues)
    }
}

/// Does anybody wait for one of the sessions among these deposits, whose server is dead?
pub(super) fn is_any_asked<'d>(deposits: impl Iterator<Item = (&'d String, &'d OwnedFd)>) -> bool {
    sessions(deposits).iter().any(Parts::is_asked)
}

/// From now on what the sessions among these deposits are asked is refused, what they were asked before included. The names of
/// all descriptors of those that are over.
pub(super) fn begin_refusing<'d>(deposits: impl Iterator<Item = (&'d String, &'d OwnedFd)>) -> Vec<String> {
    let over = |parts: &Parts<'_>| parts.refuse(true).is_err();
    sessions(deposits).into_iter().filter(over).flat_map(|parts| names(&parts)).collect()
}

/// Refuses what is asked now.
pub(super) fn refuse_all<'d>(deposits: impl Iterator<Item = (&'d String, &'d OwnedFd)>) -> Vec<String> {
    let over = |parts: &Parts<'_>| {
        let spoke = parts.queues.iter().any(|fd| !state(fd).is_empty());
        spoke && parts.refuse(false).is_err()
    };
    sessions(deposits).into_iter().filter(over).flat_map(|parts| names(&parts)).collect()
}

fn names(parts: &Parts<'_>) -> Vec<String> {
    (LIST..=parts.queues.len()).map(|number| deposit_name(parts.name, number)).collect()
}

/// Somebody is to serve it again.
pub(super) fn end_refusing(queue: &OwnedFd) -> io::Result<()> {
    Device::from(queue.as_fd().try_clone_to_owned()?).set_waiting(true)
}

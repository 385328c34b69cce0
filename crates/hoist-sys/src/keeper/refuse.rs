//! What a process does that has all of a dead filler's and keeper's descriptors, and cannot start a keeper for them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::session;
use super::table::Table;
use crate::fanotify::{Answer, Group};

/// Fails with EIO what was asked and is asked of the group and of the sessions among the deposits, for so long. Only
/// where nobody else has them.
pub fn refuse_for(
    time: Duration,
    group: Option<&Arc<Group>>,
    table: &Table,
    deposits: &BTreeMap<String, OwnedFd>,
) {
    let until = Instant::now() + time;
    for asked in table.adopt(group, |_| None) {
        // It fails where the reader was killed.
        let _ = asked.answer(Answer::Deny(libc::EIO));
    }
    let mut over = session::begin_refusing(deposits.iter());
    loop {
        let time = until.saturating_duration_since(Instant::now());
        if time.is_zero() {
            break;
        }
        let left = deposits.iter().filter(|(name, _)| !over.contains(name));
        let queues = left.clone().filter(|(name, _)| session::is_queue(name)).map(|(_, fd)| fd.as_fd());
        let fds = group.iter().map(|group| group.as_fd()).chain(queues);
        let mut polled: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        if !matches!(poll(&mut polled, Some(&time)), Ok(1..)) {
            continue;
        }
        if let Some(group) = group.filter(|_| !polled[0].revents().is_empty()) {
            let _ = table.take(group, |asked| drop(asked.answer(Answer::Deny(libc::EIO))));
        }
        over.extend(session::refuse_all(left));
    }
    let queues = deposits.iter().filter(|(name, _)| session::is_queue(name) && !over.contains(name));
    queues.for_each(|(_, fd)| drop(session::end_refusing(fd)));
}

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
    let sessions = deposits.iter().filter(|(name, _)| session::is_one(name)).map(|(_, fd)| fd);
    let mut sessions: Vec<&OwnedFd> = sessions.filter(|fd| session::begin_refusing(fd).is_ok()).collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let fds = group.iter().map(|group| group.as_fd()).chain(sessions.iter().map(|fd| fd.as_fd()));
        let mut polled: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        if !matches!(poll(&mut polled, Some(&left)), Ok(1..)) {
            continue;
        }
        if let Some(group) = group.filter(|_| !polled[0].revents().is_empty()) {
            let _ = table.take(group, |asked| drop(asked.answer(Answer::Deny(libc::EIO))));
        }
        // Those that fail are over.
        sessions.retain(|fd| session::refuse_all(fd).is_ok());
    }
    sessions.iter().for_each(|fd| drop(session::end_refusing(fd)));
}

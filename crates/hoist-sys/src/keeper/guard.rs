//! What runs in the keeper's process: no threads, and nothing that must still be read from disk.
//!
//! There is at most one *filler*, whose turn it is, and at most one *candidate*, who makes ready to be the
//! next: beside a living filler when that asked for one, else because the last one died. Where candidates
//! come to nothing again and again, the keeper denies what is asked with EIO for a while, and tries again.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::MlockAllFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, waitpid};

use super::launch::Launcher;
use super::table::Table;
use super::wire::{self, Word};
use super::{NAME, session};
use crate::fanotify::{Answer, Group};
use crate::presence::{Presence, Snapshot};

/// Table, pidfd of the filler, socket.
const DESCRIPTORS: usize = 3;
/// In the place of a group's number, where there is no group.
pub(super) const NONE: &str = "-";
/// How often to look whether the mounts are still there while nobody serves them.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The socket of a process that is killed is closed a moment before it has ended.
const DYING: Duration = Duration::from_millis(200);
/// A candidate that is not ready by then is of no use.
const PATIENCE: Duration = Duration::from_secs(30);
/// Deaths in vain after which what is asked is denied for a while.
const VAIN_MOST: u32 = 10;
/// A process that somebody kills is not to blame. If the next ones are killed too, all for nothing, for so long,
/// what is asked is denied all the same: half of what a read waits at most.
const KILLED_MOST: Duration = Duration::from_secs(30);
/// Who served for so long has not died in vain.
const LONG: Duration = Duration::from_secs(60);
/// Deaths in vain after which the keeper's own program is started instead of the one named.
const VAIN_SUSPICIOUS: u32 = 3;
/// The first pause between two candidates, doubled with each.
const PAUSE: Duration = Duration::from_millis(5);
/// How long what is asked is denied at first and at most, before another candidate is tried.
const DENY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];

/// A filler or candidate, as the keeper sees it.
struct Peer {
    socket: OwnedFd,
    /// A pidfd.
    life: OwnedFd,
    /// Known of those that were started here, which are reaped here.
    child: Option<Pid>,
    ready: bool,
    since: Instant,
    /// How many events had been answered when its turn began.
    answered: u64,
}

struct Guard {
    group: Option<Arc<Group>>,
    table: Table,
    launcher: Launcher,
    /// This process.
    own_life: OwnedFd,
    filler: Option<Peer>,
    candidate: Option<Peer>,
    deposits: Vec<(String, OwnedFd)>,
    mounts: Vec<Presence>,
    /// Readable with POLLPRI when the mount table has changed.
    changes: File,
    /// Deaths in vain, one after the other.
    vain: u32,
    /// Since when one after the other is killed before it has answered anything.
    killed_since: Option<Instant>,
    /// Before then no candidate is started.
    pause_until: Option<Instant>,
    denying: bool,
}

/// The keeper's life.
///
/// # Errors
/// With what kept it from taking up its post.
pub(super) fn run(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let ([table, filler, socket], group) = take_descriptors(&mut arguments)?;
    let group = group.map(Group::of).transpose()?.map(Arc::new);
    let launcher = Launcher::new(arguments.next().ok_or_else(usage)?, arguments)?;
    let table = Table::of(table.into())?;
    let filler = Peer {
        socket,
        life: filler,
        child: None,
        ready: true,
        since: Instant::now(),
        answered: table.answered(),
    };
    prepare(group.is_some());
    Guard {
        group,
        table,
        launcher,
        own_life: pidfd_open(getpid(), PidfdFlags::empty())?,
        filler: Some(filler),
        candidate: None,
        deposits: Vec::new(),
        mounts: Vec::new(),
        changes: File::open("/proc/self/mountinfo")?,
        vain: 0,
        killed_since: None,
        pause_until: None,
        denying: false,
    }
    .keep()
}

/// What the keeper waits for.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Filler,
    Candidate,
    Mounts,
    Group,
    Sessions,
}

/// What is to be done after a step.
#[derive(PartialEq)]
enum Next {
    GoOn,
    GoHome,
}

impl Guard {
    fn keep(&mut self) -> io::Result<()> {
        let kept = self.keep_on();
        // It was to go on with what is gone.
        if let Some(candidate) = self.candidate.take() {
            reap(&candidate);
        }
        kept
    }

    fn keep_on(&mut self) -> io::Result<()> {
        loop {
            if self.filler.is_none() && self.candidate.is_none() {
                if !self.any_alive() {
                    return Ok(());
                }
                self.replace();
            }
            if self.step()? == Next::GoHome {
                return Ok(());
            }
        }
    }

    /// Is any of the mounts there for anyone? Yes when in doubt.
    fn any_alive(&mut self) -> bool {
        let Ok(now) = Snapshot::take() else { return true };
        self.mounts.iter_mut().for_each(|mount| mount.look(&now));
        self.mounts.iter().any(|mount| mount.is_alive(&now)) || self.queues().any(session::is_connected)
    }

    /// The queues of the FUSE sessions.
    fn queues(&self) -> impl Iterator<Item = &OwnedFd> {
        self.deposits.iter().filter(|(name, _)| session::is_queue(name)).map(|(_, fd)| fd)
    }

    fn named(&self) -> impl Iterator<Item = (&String, &OwnedFd)> {
        self.deposits.iter().map(|(name, fd)| (name, fd))
    }

    /// Starts a candidate if it is time for one.
    fn replace(&mut self) {
        if self.pause_until.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if !self.launcher.can() {
            self.deny_for(DENY[1], "it was started without anybody to take over");
            return;
        }
        self.pause_until = None;
        if let Err(e) = self.start_candidate() {
            say(&format!("starting a successor of the process that served the mounts failed: {e}"));
            self.died_in_vain(false);
        }
    }

    fn start_candidate(&mut self) -> io::Result<()> {
        let (ours, theirs) = wire::pair()?;
        // Whoever hangs must not hang us.
        let patience = Some(Duration::from_secs(10));
        rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Send, patience)?;
        let beside = self.filler.as_ref();
        let reserve = match beside {
            Some(filler) => highest_descriptor(&filler.life)?.saturating_add(256),
            None => self.table.left().max().unwrap_or(0),
        };
        let (pid, life) = self.launcher.start(&theirs, beside.is_none() && self.vain >= VAIN_SUSPICIOUS)?;
        drop(theirs);
        let peer = Peer {
            socket: ours,
            life,
            child: Some(pid),
            ready: false,
            since: Instant::now(),
            answered: self.table.answered(),
        };
        let to = &peer.socket;
        let keeper = self.own_life.try_clone()?;
        let reserve = u64::from(reserve.unsigned_abs()) + 1;
        let told = Word::Hello { keeper, reserve, beside: beside.is_some() }
            .send(to)
            .and_then(|()| wire::lend_table(to, self.table.as_fd()))
            .and_then(|()| self.group.iter().try_for_each(|group| wire::lend_group(to, group.as_fd())))
            .and_then(|()| self.hand_over(to))
            .and_then(|()| Word::All.send(to));
        if let Err(e) = told {
            // Most likely it is dead; if not, it would wait forever. Its death is noticed as any other.
            say(&format!("handing over to a successor failed: {e}"));
            let _ = pidfd_send_signal(&peer.life, Signal::KILL);
        }
        self.stop_denying();
        self.candidate = Some(peer);
        Ok(())
    }

    fn hand_over(&self, to: &OwnedFd) -> io::Result<()> {
        self.mounts.iter().try_for_each(|mount| Word::Watch(mount.clone()).send(to))?;
        self.deposits.iter().try_for_each(|(name, fd)| wire::deposit(to, name, fd.as_fd()))
    }

    /// Waits for something to happen and deals with it.
    fn step(&mut self) -> io::Result<Next> {
        let unserved = self.filler.is_none() && self.candidate.is_none();
        let mut asked = Vec::with_capacity(6);
        for (who, peer) in [(Source::Filler, &self.filler), (Source::Candidate, &self.candidate)] {
            if let Some(peer) = peer {
                asked.push((who, peer.socket.as_fd(), PollFlags::IN));
                asked.push((who, peer.life.as_fd(), PollFlags::IN));
            }
        }
        // Others' mounts are no reason to wake up.
        if self.mounts.iter().any(|m| m.superblocks.is_empty()) {
            asked.push((Source::Mounts, self.changes.as_fd(), PollFlags::PRI));
        }
        if unserved && self.denying {
            asked.extend(self.group.iter().map(|group| (Source::Group, group.as_fd(), PollFlags::IN)));
            asked.extend(self.queues().map(|fd| (Source::Sessions, fd.as_fd(), PollFlags::IN)));
        }
        let mut polled: Vec<_> =
            asked.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        match poll(&mut polled, self.timeout(unserved).as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Next::GoOn),
            other => other?,
        };
        let mut happened: Vec<Source> = asked
            .iter()
            .zip(&polled)
            .filter(|(_, polled)| !polled.revents().is_empty())
            .map(|((who, ..), _)| *who)
            .collect();
        happened.dedup();
        for source in happened {
            let next = match source {
                Source::Filler => self.hear_filler(),
                Source::Candidate => self.hear_candidate(),
                // Here it is learnt which superblocks are ours; a failed look is made up for later.
                Source::Mounts => {
                    self.any_alive();
                    Next::GoOn
                }
                Source::Group => self.deny_next(),
                Source::Sessions => self.refuse_all(),
            };
            if next == Next::GoHome {
                return Ok(next);
            }
        }
        if let Some(late) = self.candidate.as_ref().filter(|c| !c.ready && c.since.elapsed() > PATIENCE) {
            let _ = pidfd_send_signal(&late.life, Signal::KILL);
        }
        Ok(Next::GoOn)
    }

    fn deny_next(&mut self) -> Next {
        // Another's mount on the same data files may ask by now, and its own group answers it.
        if !self.any_alive() {
            return Next::GoHome;
        }
        if let Some(group) = &self.group {
            let _ = self.table.take(group, |asked| drop(asked.answer(Answer::Deny(libc::EIO))));
        }
        Next::GoOn
    }

    /// The same for sessions.
    fn refuse_all(&mut self) -> Next {
        let over = session::refuse_all(self.named());
        self.deposits.retain(|(name, _)| !over.contains(name));
        Next::GoOn
    }

    fn timeout(&self, unserved: bool) -> Option<Timespec> {
        let waiting = self.candidate.as_ref().is_some_and(|c| !c.ready);
        let longest = match (unserved, self.pause_until) {
            (true, Some(at)) => at.saturating_duration_since(Instant::now()).min(LOOK_EVERY),
            (true, None) => LOOK_EVERY,
            (false, _) if waiting => PATIENCE,
            (false, _) => return None,
        };
        // Rounded up, or it would wake up a bit too early, again and again.
        let longest = longest + Duration::from_micros(100);
        Some(Timespec { tv_sec: longest.as_secs().cast_signed(), tv_nsec: longest.subsec_nanos().into() })
    }

    fn hear_filler(&mut self) -> Next {
        loop {
            let Some(filler) = &self.filler else { return Next::GoOn };
            // Looked at first: all that it said before its death counts.
            let dead = ended(&filler.life);
            match wire::receive(&filler.socket, true) {
                Ok(Some(Word::End)) => return Next::GoHome,
                Ok(Some(word)) => self.heed(word),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !dead => return Next::GoOn,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => say(&e.to_string()),
                _ => break,
            }
        }
        if let Some(filler) = self.filler.take() {
            self.lost_filler(&filler);
        }
        Next::GoOn
    }

    fn heed(&mut self, word: Word) {
        match word {
            Word::Watch(mount) => {
                self.mounts.retain(|m| m.target != mount.target);
                self.mounts.push(mount);
            }
            Word::Forget(target) => self.mounts.retain(|m| m.target != target),
            Word::Deposit(name, fd) => {
                self.deposits.retain(|(n, _)| *n != name);
                self.deposits.push((name, fd));
            }
            Word::Withdraw(name) => self.deposits.retain(|(n, _)| *n != name),
            Word::Upgrade(program) => {
                let failed = self.candidate.is_some() || {
                    let started = self.launcher.replace(&program).and_then(|()| self.start_candidate());
                    started
                        .inspect_err(|e| {
                            self.launcher.restore();
                            say(&format!("starting {}: {e}", program.display()));
                        })
                        .is_err()
                };
                if failed {
                    self.tell_filler(&Word::Failed);
                }
            }
            // Nothing else is a filler's to say.
            _ => {}
        }
    }

    fn tell_filler(&self, word: &Word) {
        if let Some(filler) = &self.filler {
            // It fails where the filler has just died, and then its death is the next thing heard.
            let _ = word.send(&filler.socket);
        }
    }

    /// The filler is dead, or has let go of us.
    fn lost_filler(&mut self, filler: &Peer) {
        let killed = reap(filler);
        if self.candidate.is_none() && !self.any_alive() {
            return;
        }
        if self.candidate.is_some() {
            return self.promote();
        }
        say("the process that served the mounts is gone; starting its successor");
        let waited = self.table.left().next().is_some() || session::is_any_asked(self.named());
        let useless = waited && self.table.answered() == filler.answered;
        if useless && filler.child.is_some() && filler.since.elapsed() < LONG {
            self.died_in_vain(killed);
        } else {
            (self.vain, self.killed_since) = (0, None);
        }
    }

    /// The candidate's turn begins, if it is ready and nobody else's is.
    fn promote(&mut self) {
        if self.filler.is_some() || !self.candidate.as_ref().is_some_and(|c| c.ready) {
            return;
        }
        if let Some(mut next) = self.candidate.take() {
            next.answered = self.table.answered();
            next.since = Instant::now();
            self.launcher.keep();
            // It fails where the candidate has just died, and then its death is the next thing heard.
            let _ = self.hand_over(&next.socket).and_then(|()| Word::Go.send(&next.socket));
            self.filler = Some(next);
        }
    }

    fn hear_candidate(&mut self) -> Next {
        loop {
            let Some(candidate) = &mut self.candidate else { return Next::GoOn };
            let dead = ended(&candidate.life);
            match wire::receive(&candidate.socket, true) {
                Ok(Some(Word::Ready)) => {
                    candidate.ready = true;
                    self.tell_filler(&Word::Superseded);
                    self.promote();
                }
                // It found nothing that is still to be served.
                Ok(Some(Word::End)) if self.filler.is_none() => return Next::GoHome,
                Ok(Some(_)) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !dead => return Next::GoOn,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => say(&e.to_string()),
                _ => break,
            }
        }
        if let Some(candidate) = self.candidate.take() {
            let killed = reap(&candidate);
            if self.filler.is_some() {
                self.launcher.restore();
                self.tell_filler(&Word::Failed);
            } else {
                self.died_in_vain(killed);
            }
        }
        Next::GoOn
    }

    /// Someone died without having been of use: the next one comes after a pause, each longer than the
    /// one before, and after many of them a long one in which nobody is left waiting.
    fn died_in_vain(&mut self, killed: bool) {
        if killed && self.killed_since.get_or_insert_with(Instant::now).elapsed() < KILLED_MOST {
            self.pause_until = Some(Instant::now() + PAUSE);
            return;
        }
        self.vain = if killed { VAIN_MOST.max(self.vain + 1) } else { self.vain + 1 };
        let beyond = self.vain.saturating_sub(VAIN_MOST);
        if self.vain >= VAIN_MOST {
            let pause = DENY[0].saturating_mul(1 << beyond.min(8)).min(DENY[1]);
            self.deny_for(pause, "its successors end without having answered anything");
        } else {
            self.pause_until = Some(Instant::now() + PAUSE * (1 << self.vain.min(8)));
        }
    }

    /// Fails what is asked, now and until then.
    fn deny_for(&mut self, pause: Duration, why: &str) {
        if !self.denying {
            say(&format!(
                "nobody serves the mounts ({why}): reads of what is not in the kernel's cache fail with EIO"
            ));
        }
        self.denying = true;
        self.pause_until = Some(Instant::now() + pause);
        for asked in self.table.adopt(self.group.as_ref(), |_| None) {
            // Fails where the reader was killed or already has its answer.
            let _ = asked.answer(Answer::Deny(libc::EIO));
        }
        // Closed by its last holder, what cannot be refused fails for good: better than readers who wait for nobody.
        let over = session::begin_refusing(self.named());
        self.deposits.retain(|(name, _)| !over.contains(name));
    }

    fn stop_denying(&mut self) {
        if std::mem::replace(&mut self.denying, false) {
            self.queues().for_each(|fd| drop(session::end_refusing(fd)));
        }
    }
}

/// Has the process of this pidfd ended?
fn ended(life: &OwnedFd) -> bool {
    ends_within(life, Duration::ZERO)
}

fn ends_within(life: &OwnedFd, time: Duration) -> bool {
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
    matches!(poll(&mut [PollFd::new(life, PollFlags::IN)], Some(&time)), Ok(1..))
}

/// Not eprintln, which panics when standard error is closed.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "{NAME}: {what}");
}

/// Sees to it that a child which is dead, or has let go of us and is of no use, is gone. Had somebody killed it?
fn reap(peer: &Peer) -> bool {
    let by_itself = !ends_within(&peer.life, DYING);
    let Some(pid) = peer.child else { return !by_itself };
    let _ = pidfd_send_signal(&peer.life, Signal::KILL);
    let status = waitpid(Some(pid), WaitOptions::empty());
    let signal = status.ok().flatten().and_then(|(_, status)| status.terminating_signal());
    !by_itself && signal == Some(libc::SIGKILL)
}

/// The highest number of a descriptor that the process has open.
fn highest_descriptor(life: &OwnedFd) -> io::Result<RawFd> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", life.as_raw_fd()))?;
    let pid = about.lines().find_map(|line| line.strip_prefix("Pid:")).map_or("", str::trim);
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    Ok(numbers.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).max().unwrap_or(0))
}

/// Best effort, each for itself: a keeper without them still keeps.
fn prepare(privileged: bool) {
    crate::limits::raise_open_files();
    let _ = rustix::thread::set_name(c"hoist-keeper");
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    if !privileged {
        // With the little that others may lock, what is allocated later would fail.
        return;
    }
    // What it has touched stays. Its code may lie on the very file system whose reads it answers: then all of it is
    // brought here now.
    let touched = if may_be_ours("/proc/self/exe") { MlockAllFlags::empty() } else { MlockAllFlags::ONFAULT };
    let _ = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | touched);
}

/// Could this file be read through a mount of ours? Yes when in doubt.
fn may_be_ours(path: &str) -> bool {
    const EROFS: u64 = 0xe0f5_e1e2;
    const FUSE: u64 = 0x6573_5546;
    const OVERLAY: u64 = 0x794c_7630;
    rustix::fs::statfs(path).map_or(true, |found| [EROFS, FUSE, OVERLAY].contains(&(found.f_type as u64)))
}

fn usage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is started by hoist, not by hand")
}

/// Takes ownership of the inherited descriptors, the last of them the group, and closes all others.
fn take_descriptors(
    arguments: &mut impl Iterator<Item = OsString>,
) -> io::Result<([OwnedFd; DESCRIPTORS], Option<OwnedFd>)> {
    let mut numbers: Vec<RawFd> = Vec::with_capacity(DESCRIPTORS + 1);
    for argument in arguments.take(DESCRIPTORS + 1) {
        if numbers.len() == DESCRIPTORS && argument == NONE {
            break;
        }
        let fd: RawFd = argument.to_str().and_then(|a| a.parse().ok()).ok_or_else(usage)?;
        // SAFETY: F_GETFD only asks whether the number is that of an open descriptor.
        if fd < 3 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(usage());
        }
        numbers.push(fd);
    }
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    if sorted.len() < DESCRIPTORS || sorted.windows(2).any(|w| w[0] == w[1]) {
        return Err(usage());
    }
    let mut next = 3;
    for fd in sorted.into_iter().chain([RawFd::MAX]) {
        if next < fd {
            // SAFETY: at the start of main nobody in this process owns a descriptor of 3 or above.
            unsafe { libc::close_range(next.cast_unsigned(), (fd - 1).cast_unsigned(), 0) };
        }
        next = fd.saturating_add(1);
    }
    for &fd in &numbers {
        // SAFETY: sets the only descriptor flag there is; a successor gets what it is to have by packet.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: open, all different, inherited for us and owned by nobody else in this process.
    let mut taken = numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let first: Vec<OwnedFd> = taken.by_ref().take(DESCRIPTORS).collect();
    Ok((first.try_into().map_err(|_| usage())?, taken.next()))
}

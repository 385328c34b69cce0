//! The first process of a container, by the number that its OCI runtime has noted: signalled and waited for.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// See the module. It is the same process for as long as this is held.
#[derive(Debug)]
pub struct Program {
    pid: i32,
    process: OwnedFd,
}

impl Program {
    /// That of the container in this folder, if it still lives: its number may be another's by now, so its root
    /// is looked at.
    pub fn of(dir: &Path) -> Option<Program> {
        let pid: i32 = fs::read_to_string(dir.join("bundle/pid")).ok()?.trim().parse().ok()?;
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
        let mounts = fs::read(format!("/proc/{pid}/mountinfo")).ok()?;
        let upper = dir.join("upper");
        has_upper(&mounts, &upper).then_some(Program { pid, process })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The process.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The caller may not; that it has ended is none.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.process, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Waits for its end, at most so long; false if it still lives. Its pidfd is readable once it has ended.
    pub fn wait(&self, limit: Option<Duration>) -> bool {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                ended => return ended.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

/// Whether a table of mounts has an overlay that writes to this folder.
fn has_upper(mountinfo: &[u8], upper: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let plain = [b"upperdir=".as_slice(), upper.as_os_str().as_bytes()].concat();
    // As the option was given.
    let escaped: Vec<u8> =
        plain.iter().flat_map(|b| if *b == b'\\' { vec![b'\\'; 2] } else { vec![*b] }).collect();
    mountinfo
        .split(|byte| [b'\n', b' ', b','].contains(byte))
        .map(unescaped)
        .any(|option| option == plain || option == escaped)
}

/// Without the kernel's `\OOO` (proc(5)).
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (plain.push(byte), rest = &after[3..]).1,
            None => (plain.push(*first), rest = after).1,
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upper_folder_of_any_name_is_found() {
        let table =
            br"1 2 0:3 / / rw - overlay none rw,lowerdir=/a,upperdir=/s\040\054\134x/c/web/upper,workdir=/w
";
        assert!(has_upper(table, Path::new(r"/s ,\x/c/web/upper")));
        assert!(!has_upper(table, Path::new(r"/s ,\x/c/web")));
        let twice = br"upperdir=/s\134\134x,workdir=/w";
        assert!(has_upper(twice, Path::new(r"/s\x")));
        assert_eq!(unescaped(br"\04"), br"\04");
    }

    #[test]
    fn the_end_of_a_process_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::NONBLOCK).unwrap();
        let program = Program { pid: pid.as_raw_nonzero().get(), process };
        assert!(!program.wait(Some(Duration::ZERO)));
        program.signal(Signal::KILL).unwrap();
        assert!(program.wait(None) && program.wait(Some(Duration::ZERO)));
        child.wait().unwrap();
        program.signal(Signal::KILL).unwrap();
    }
}

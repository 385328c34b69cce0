//! What the kernel tells of other processes, in `/proc`.

use std::fs;

/// Whether a process can do anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It can.
    Runs,
    /// A signal has stopped it, or a debugger.
    Stopped,
    /// It is not there, or is dead and not yet reaped.
    Dead,
}

/// Whether process `pid` can do anything.
pub fn activity(pid: u32) -> Activity {
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { return Activity::Dead };
    // proc_pid_stat(5): the state stands behind the name, which may have anything in it.
    let behind = stat.iter().rposition(|byte| *byte == b')').and_then(|at| stat.get(at + 2));
    match behind {
        Some(b'T' | b't') => Activity::Stopped,
        None | Some(b'Z' | b'X' | b'x') => Activity::Dead,
        Some(_) => Activity::Runs,
    }
}

/// How many read calls this thread has ended so far. None where that is not told, nor of threads of the kernel, which do
/// not count theirs.
pub fn read_calls(thread: u32) -> Option<u64> {
    // Without `task` it would be the sum of all threads of its process.
    let io = fs::read_to_string(format!("/proc/{thread}/task/{thread}/io")).ok()?;
    let calls = io.lines().find_map(|line| line.strip_prefix("syscr: "))?;
    calls.trim().parse().ok().filter(|calls| *calls > 0)
}

/// The process that a thread is of; its own number where that is not told.
pub fn process_of(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    process.and_then(|number| number.trim().parse().ok()).unwrap_or(thread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
    use std::process::{Command, Stdio};

    #[test]
    fn what_others_do_is_told() {
        let mut other = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_child(&other);
        assert_eq!(activity(other.id()), Activity::Runs);
        kill_process(pid, Signal::STOP).unwrap();
        waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
        assert_eq!(activity(other.id()), Activity::Stopped);
        kill_process(pid, Signal::KILL).unwrap();
        other.wait().unwrap();
        assert_eq!(activity(other.id()), Activity::Dead);
    }

    #[test]
    fn read_calls_are_counted_when_they_end() {
        // Other threads of this process read meanwhile.
        let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        assert_eq!(process_of(thread), std::process::id());
        let own = || read_calls(thread).unwrap();
        let before = own();
        fs::read("/proc/self/stat").unwrap();
        let (first, second) = (own(), own());
        assert!(first > before);
        std::thread::spawn(|| (0..100).for_each(|_| drop(fs::read("/proc/self/stat")))).join().unwrap();
        assert!(own() - second < 100 && second > first, "those of this thread alone");
        // Whoever waits in one has not ended it.
        let mut other = Command::new("sleep").arg("1000000").spawn().unwrap();
        assert!(read_calls(other.id()).is_some());
        other.kill().unwrap();
        other.wait().unwrap();
        // Number 2 is the parent of the kernel's threads.
        assert!(read_calls(2).is_none());
    }
}

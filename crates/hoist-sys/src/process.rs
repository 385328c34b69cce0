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

/// How many read calls process `pid` has ended so far, of all its threads. None where that is not told, nor of threads
/// of the kernel, which do not count theirs.
pub fn read_calls(pid: u32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let calls = io.lines().find_map(|line| line.strip_prefix("syscr: "))?;
    calls.trim().parse().ok().filter(|calls| *calls > 0)
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
        let own = || read_calls(std::process::id()).unwrap();
        let before = own();
        fs::read("/proc/self/stat").unwrap();
        assert!(own() > before);
        // Whoever waits in one has not ended it.
        let mut other = Command::new("sleep").arg("1000000").spawn().unwrap();
        assert!(read_calls(other.id()).is_some());
        other.kill().unwrap();
        other.wait().unwrap();
        // Number 2 is the parent of the kernel's threads.
        assert!(read_calls(2).is_none());
    }
}

//! The processes behind a node's mounts, and their ends.

use std::fs;

use hoist_testkit::process;
use rustix::process::{Pid, Signal, kill_process};

use super::Node;
use super::case::PATIENCE;

/// The only one.
pub fn the_one(pids: Vec<i32>) -> i32 {
    let [pid] = pids[..] else { panic!("{pids:?} serve one mount") };
    pid
}

pub fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// A SIGKILL to filler and keeper at once; returns when both are gone.
pub fn kill_both(node: &Node) {
    let both = [the_one(node.servers()), the_one(node.keepers())];
    // Stopped first, or one would start the other anew.
    both.iter().for_each(|&pid| send(pid, Signal::STOP));
    both.iter().for_each(|&pid| send(pid, Signal::KILL));
    for pid in both {
        process::wait_until("the end of a killed process", PATIENCE, || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            Ok(stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z')))
        })
        .unwrap();
    }
}

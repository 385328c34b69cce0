//! The processes behind a node's mounts, and their ends.

use std::fs::{self, File};
use std::path::PathBuf;

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

/// Waits for another process to be in this one's place.
pub fn wait_for_another(node: &Node, pids: impl Fn(&Node) -> Vec<i32>, than: i32) -> i32 {
    let others = |node| pids(node).into_iter().filter(|pid| *pid != than).collect::<Vec<_>>();
    process::wait_until("a successor", PATIENCE, || Ok(!others(node).is_empty()))
        .unwrap_or_else(|e| panic!("{e}{}", node.logs()));
    the_one(others(node))
}

/// Kills the filler and waits for its successor.
pub fn kill_filler(node: &Node) -> i32 {
    let filler = the_one(node.servers());
    send(filler, Signal::KILL);
    wait_for_another(node, Node::servers, filler)
}

/// A SIGKILL to filler and keeper at once; returns when both are gone.
pub fn kill_both(node: &Node) {
    let both = [the_one(node.servers()), the_one(node.keepers())];
    // Stopped first, or one would start the other anew.
    both.iter().for_each(|&pid| send(pid, Signal::STOP));
    both.iter().for_each(|&pid| send(pid, Signal::KILL));
    // A process looks ended when its first thread is: what it held is free when all are.
    let leases = || fs::read_dir(node.store("mounts")).unwrap().map(|entry| entry.unwrap().path());
    let is_held = |path: &PathBuf| File::open(path).is_ok_and(|file| file.try_lock_shared().is_err());
    process::wait_until("the end of killed processes", PATIENCE, || {
        Ok(!leases().any(|path| path.extension().is_some_and(|e| e == "lease") && is_held(&path)))
    })
    .unwrap();
}

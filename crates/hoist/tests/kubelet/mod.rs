//! A node whose containerd has hoist for the images of all its pods, and what a kubelet asks of it.
// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod client;
pub mod swarm;
pub mod trees;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hoist_testkit::containerd::{self, PODS, Version};
use hoist_testkit::cri::{Cri, Pod};
use hoist_testkit::process;
use hoist_testkit::system::System;
use rustix::process::Signal;

use crate::node::Node;
use crate::node::daemon::Daemon;

/// For what is done in the background.
pub const SOON: Duration = Duration::from_secs(60);

/// See the module.
pub struct Kubelet<'a> {
    node: &'a Node,
    options: Vec<String>,
    /// Ends first, with what it runs.
    pub containerd: containerd::Daemon,
    cri: Cri,
    /// None while it does not run.
    daemon: Option<Daemon<'a>>,
}

/// A node whose folder a system's containerd sees.
pub fn node(system: &System) -> Node {
    Node::within(&system.directory())
}

impl<'a> Kubelet<'a> {
    /// Starts daemon and containerd; `pause` is the image that pods are made of.
    pub fn start(version: Version, system: &Arc<System>, node: &'a Node, pause: &str) -> Self {
        Self::start_with(version, system, node, pause, &[])
    }

    /// The same, whose daemon has these options besides. Where the node has the folder `certs.d`, containerd reads it.
    pub fn start_with(
        version: Version,
        system: &Arc<System>,
        node: &'a Node,
        pause: &str,
        options: &[&str],
    ) -> Self {
        let socket = node.path("snapshotter.sock");
        let mut all = vec!["--log-format", "json", "--snapshotter-socket", socket.to_str().unwrap()];
        all.extend(options);
        let daemon = Daemon::start(node, &all);
        let hoist = (&*socket, &*node.store(""));
        let certs = Some(node.path("certs.d")).filter(|certs| certs.is_dir());
        let besides = (pause, certs.as_deref());
        let containerd = containerd::Daemon::start_deployed(version, system, hoist, besides).unwrap();
        let cri = Cri::connect(&containerd.socket()).unwrap();
        let options = all.into_iter().map(str::to_owned).collect();
        Kubelet { node, options, daemon: Some(daemon), containerd, cri }
    }

    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Of the daemon and containerd.
    pub fn said(&self) -> String {
        format!("{}{}", self.daemon.as_ref().map_or(String::new(), Daemon::said), self.containerd.said())
    }

    /// Layers that the daemon has had without unpacking, and layers that it left to containerd.
    pub fn prepared(&self) -> (usize, usize) {
        let said = self.daemon.as_ref().unwrap().said();
        let count = |how: bool| said.matches(&format!("\"remote-snapshot-prepared\":\"{how}\"")).count();
        (count(true), count(false))
    }

    /// A pod with a container that runs.
    pub fn run(&self, name: &str, image: &str) -> (Pod, String) {
        let ran = self.cri.run_pod(name).and_then(|pod| {
            let container = self.cri.start(&pod, name, image, &["sleep", "1000000"])?;
            Ok((pod, container))
        });
        ran.unwrap_or_else(|e| panic!("{name} of {image}: {e}\n{}", self.said()))
    }

    /// What a program in a container prints, and nothing else.
    pub fn says(&self, container: &str, command: &[&str]) -> String {
        let ran = self.cri.exec(container, command).unwrap();
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{command:?}\n{}", self.said());
        ran.stdout
    }

    /// Both are gone then.
    pub fn remove(&self, (pod, container): (Pod, String)) {
        self.cri.remove(&container).unwrap();
        self.cri.remove_pod(&pod).unwrap();
    }

    /// Kills the daemon; a successor serves what it served.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.signal(Signal::KILL);
        daemon.wait();
    }

    /// Asks it to end.
    pub fn end_daemon(&mut self) {
        self.daemon.take().unwrap().end();
    }

    /// Starts another, with the same options.
    pub fn start_daemon(&mut self) {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::start(self.node, &options));
    }

    /// Kills whoever fills the images' layers.
    pub fn kill_fillers(&self) {
        let fillers = self.node.servers();
        assert!(!fillers.is_empty(), "{}", self.said());
        for pid in fillers.into_iter().collect::<std::collections::BTreeSet<_>>() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Another process of the same containerd.
    pub fn restart_containerd(&mut self, crash: bool) {
        if crash { self.containerd.crash() } else { self.containerd.restart() }.unwrap();
        self.cri = Cri::connect(&self.containerd.socket()).unwrap();
    }

    /// Images that are mounted, and mounts that are served.
    pub fn mounted(&self) -> (usize, usize) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let images = self.node.store("snapshotter/images");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let mounted = points.filter(|point| Path::new(point).starts_with(&images)).count();
        let records = fs::read_dir(self.node.store("mounts")).into_iter().flatten().flatten();
        let is_record = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|e| e == "json");
        (mounted, records.filter(is_record).count())
    }

    /// Waits until of all images nothing is left with containerd, and nothing mounted.
    pub fn wait_nothing_left(&self) {
        let left = || {
            let snapshots = self.containerd.ctr_of_pods(&["snapshots", "--snapshotter", "hoist", "ls"])?;
            let blobs = self.containerd.ctr_of_pods(&["content", "ls", "--quiet"])?;
            let mounted = self.mounted();
            Ok::<_, anyhow::Error>(vec![
                ("snapshots", snapshots.lines().count() - 1),
                ("blobs", blobs.lines().count()),
                ("mounted", mounted.0),
                ("served", mounted.1),
                ("folders of snapshots", entries(&self.node.store("snapshotter/snapshots"))),
                ("folders of images", entries(&self.node.store("snapshotter/images"))),
            ])
        };
        let none = || Ok(left()?.iter().all(|(_, count)| *count == 0));
        let gone = process::wait_until("all images to be gone", SOON, none);
        gone.unwrap_or_else(|e| panic!("{e}: {:?}\n{}", left(), self.said()));
    }

    /// The images of pods, as containerd knows them.
    pub fn remove_images(&self) {
        let names = self.containerd.ctr_of_pods(&["images", "ls", "--quiet"]).unwrap();
        for name in names.lines() {
            // Of an image's three names the first takes the others with it.
            let _ = self.containerd.ctr_of_pods(&["images", "rm", "--sync", name]);
        }
    }

    /// See [`containerd::Daemon::rootfs`].
    pub fn rootfs(&self, container: &str) -> std::path::PathBuf {
        self.containerd.rootfs(PODS, container)
    }
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

//! Pods: a real containerd with its CRI plugin and runc, hoist for all its images.

mod common;
mod node;

use std::fs;
use std::path::Path;
use std::time::Duration;

use hoist_testkit::containerd::Daemon as Containerd;
use hoist_testkit::cri::Cri;
use hoist_testkit::{Fault, FaultKind, When, process};
use node::daemon::Daemon;
use node::{Node, Published};
use rustix::process::Signal;

/// Two layers: programs, and files that nothing reads at a start.
fn layout(dir: &Path) -> std::path::PathBuf {
    let data = |i: usize| i.to_string().repeat(1 << 20);
    common::sleeper(dir, &[vec![("data0", data(0)), ("data1", data(1))]])
}

fn serve(node: &Node) -> Daemon<'_> {
    let socket = node.path("snapshotter.sock");
    Daemon::start(node, &["--log-format", "json", "--snapshotter-socket", socket.to_str().unwrap()])
}

fn prepared(daemon: &Daemon<'_>, how: bool) -> usize {
    daemon.said().matches(&format!("\"remote-snapshot-prepared\":\"{how}\"")).count()
}

/// Images that are mounted, and mounts that are served.
fn mounted(node: &Node) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let images = node.store("snapshotter/images");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(&images)).count()
        + fs::read_dir(node.store("mounts")).map_or(0, Iterator::count)
}

fn says(cri: &Cri, container: &str, command: &[&str]) -> String {
    let ran = cri.exec(container, command).unwrap();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{command:?}");
    ran.stdout
}

#[test]
fn a_pod_starts_before_its_image_is_here_and_outlives_every_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::indexed(&layout(dir.path()));
    let node = Node::new();
    let mut daemon = serve(&node);
    let mut containerd = Containerd::start_for_pods(&node.path("snapshotter.sock"), &image.name).unwrap();
    let cri = Cri::connect(&containerd.socket()).unwrap();
    cri.pull(&image.name).unwrap();
    assert_eq!((prepared(&daemon, true), prepared(&daemon, false)), (2, 0), "{}", daemon.said());

    let pod = cri.run_pod("pod").unwrap_or_else(|e| panic!("{e}{}{}", containerd.said(), daemon.said()));
    let first = cri.start(&pod, "first", &image.name, &["sleep", "1000000"]).unwrap();
    assert_eq!(says(&cri, &first, &["sh", "-c", "echo mine >/new; cat /new"]), "mine\n");

    daemon.signal(Signal::KILL);
    daemon.wait();
    assert_eq!(says(&cri, &first, &["sh", "-c", "cat /data0"]), "0".repeat(1 << 20));
    let mut daemon = serve(&node);
    containerd.restart().unwrap();
    let cri = Cri::connect(&containerd.socket()).unwrap();
    assert_eq!(says(&cri, &first, &["cat", "/new"]), "mine\n");
    let second = cri.start(&pod, "second", &image.name, &["sleep", "1000000"]).unwrap();
    daemon.end();
    assert_eq!(says(&cri, &second, &["sh", "-c", "cat /data1"]), "1".repeat(1 << 20));

    let daemon = serve(&node);
    for container in [first, second] {
        cri.remove(&container).unwrap();
    }
    cri.remove_pod(&pod).unwrap();
    cri.remove_image(&image.name).unwrap();
    let gone =
        process::wait_until("the image to be gone", Duration::from_secs(30), || Ok(mounted(&node) == 0));
    gone.unwrap_or_else(|e| panic!("{e}: {}{}", containerd.said(), daemon.said()));
    // And here again.
    cri.pull(&image.name).unwrap();
    let pod = cri.run_pod("another").unwrap();
    let container = cri.start(&pod, "only", &image.name, &["sleep", "1000000"]).unwrap();
    assert_eq!(says(&cri, &container, &["id", "-u"]), "0\n");
    cri.remove(&container).unwrap();
    cri.remove_pod(&pod).unwrap();
}

#[test]
fn an_image_without_an_index_is_unpacked_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::plain(&layout(dir.path()));
    let node = Node::new();
    let daemon = serve(&node);
    let containerd = Containerd::start_for_pods(&node.path("snapshotter.sock"), &image.name).unwrap();
    let cri = Cri::connect(&containerd.socket()).unwrap();
    cri.pull(&image.name).unwrap();
    assert_eq!((prepared(&daemon, true), prepared(&daemon, false)), (0, 2), "{}", daemon.said());
    let pod = cri.run_pod("pod").unwrap();
    let container = cri.start(&pod, "only", &image.name, &["sleep", "1000000"]).unwrap();
    assert_eq!(says(&cri, &container, &["sh", "-c", "cat /data0"]), "0".repeat(1 << 20));
    cri.remove(&container).unwrap();
    cri.remove_pod(&pod).unwrap();
}

#[test]
fn a_full_pull_returns_when_all_is_here() {
    let dir = tempfile::tempdir().unwrap();
    let image = Published::plain(&layout(dir.path()));
    let node = Node::new();
    let config = node.path("hoist.toml");
    let socket = node.path("snapshotter.sock");
    fs::write(
        &config,
        format!("containerd_images = \"full\"\nsnapshotter_socket = {socket:?}\nlog_format = \"json\""),
    )
    .unwrap();
    let daemon = Daemon::start(&node, &["--config", config.to_str().unwrap()]);
    let containerd = Containerd::start_for_pods(&socket, &image.name).unwrap();
    let cri = Cri::connect(&containerd.socket()).unwrap();
    cri.pull(&image.name).unwrap();
    assert_eq!((prepared(&daemon, true), prepared(&daemon, false)), (2, 0), "{}", daemon.said());
    image.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, Vec::new())));
    let pod = cri.run_pod("pod").unwrap();
    let container = cri.start(&pod, "only", &image.name, &["sleep", "1000000"]).unwrap();
    assert_eq!(says(&cri, &container, &["sh", "-c", "cat /data0"]), "0".repeat(1 << 20));
    cri.remove(&container).unwrap();
    cri.remove_pod(&pod).unwrap();
}

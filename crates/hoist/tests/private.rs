//! A kubelet's node with its whole configuration: private registries, of which the credentials with which an image was
//! pulled, and those that a node has, serve what is read long after; rules for images; what is told of them.

mod common;
mod node;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use hoist_testkit::containerd::Daemon as Containerd;
use hoist_testkit::cri::Cri;
use hoist_testkit::{Fault, FaultKind, When};
use node::daemon::Daemon;
use node::{Node, Published};
use rustix::process::Signal;
use serde_json::json;

const PASSWORDS: [&str; 3] = ["hunter2", "hunter3", "hunter4"];

/// A node of a cluster: containerd, and a daemon that serves it and the kubelet.
struct Kubelet {
    // Dropped first: its containers stand on the other's snapshots.
    containerd: Containerd,
    images: PathBuf,
}

/// What a daemon of `node` is started with.
fn options(node: &Node, keys: &str) -> [String; 2] {
    let path = |name: &str| node.path(name).to_str().unwrap().to_owned();
    let text = format!(
        "log = \"debug\"\nsnapshotter_socket = {:?}\ncri_socket = {:?}\ncontainerd_socket = {:?}\nmetrics = {:?}\n{keys}",
        path("snapshotter.sock"),
        path("cri.sock"),
        path("containerd.sock"),
        format!("unix:{}", path("metrics.sock")),
    );
    fs::write(node.path("hoist.toml"), text).unwrap();
    ["--config".into(), path("hoist.toml")]
}

fn serve<'a>(node: &'a Node, keys: &str) -> Daemon<'a> {
    let options = options(node, keys);
    // No login of whoever runs the tests.
    let mut command = node.hoist(&["daemon", &options[0], &options[1]]);
    for name in ["HOME", "DOCKER_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "REGISTRY_AUTH_FILE"] {
        command.env_remove(name);
    }
    let mut daemon = Daemon::launch(node, command);
    daemon.wait_said("ready");
    daemon
}

impl Kubelet {
    fn start(node: &Node, pause: &str) -> Kubelet {
        let containerd = Containerd::start_for_pods(&node.path("snapshotter.sock"), pause).unwrap();
        symlink(containerd.socket(), node.path("containerd.sock")).unwrap();
        Kubelet { containerd, images: node.path("cri.sock") }
    }

    fn cri(&self) -> Cri {
        Cri::connect_apart(&self.containerd.socket(), &self.images).unwrap()
    }
}

/// In layers of their own, files that nothing reads before the test does.
fn image() -> Published {
    let dir = tempfile::tempdir().unwrap();
    let mut data = ["data0", "data1", "data2"].map(|name| vec![(name, content(name))]);
    // Who has read through a third of an image is brought the rest.
    data[0].push(("unread", "nobody reads this\n".repeat(1_000_000)));
    Published::indexed(&common::sleeper(dir.path(), &data))
}

fn content(name: &str) -> String {
    (0..10_000).map(|line| format!("{name} {line}\n")).collect()
}

fn assert_reads(cri: &Cri, container: &str, name: &str) {
    let ran = cri.exec(container, &["cat", name]).unwrap();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{name}");
    assert!(ran.stdout == content(name), "{name}");
}

/// Nothing that can be seen of a process holds a password.
fn assert_untold(node: &Node, daemon: &Daemon<'_>) {
    let pid = daemon.pid().as_raw_nonzero();
    let metrics = node::daemon::metrics(&node.path("metrics.sock"));
    let seen = [
        daemon.said(),
        fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap(),
        node.says(&["status", "--json"]),
        metrics,
    ];
    for password in PASSWORDS {
        assert!(seen.iter().all(|text| !text.contains(password)), "{seen:?}");
    }
}

#[test]
fn a_kubelet_s_credentials_serve_what_is_read_after_the_token_has_expired() {
    let image = image();
    let node = Node::new();
    let mut daemon = serve(&node, "");
    let kubelet = Kubelet::start(&node, &image.name);
    let cri = kubelet.cri();
    image.proxy.require_login("someone", PASSWORDS[0]);
    cri.pull(&image.name).unwrap_err();
    cri.pull_as(&image.name, "someone", PASSWORDS[1]).unwrap_err();
    cri.pull_as(&image.name, "someone", PASSWORDS[0]).unwrap();
    assert_eq!(daemon.said().matches("remote-snapshot-prepared=\"true\"").count(), 4, "{}", daemon.said());

    let pod = cri.run_pod("pod").unwrap();
    let container = cri.start(&pod, "only", &image.name, &["sleep", "1000000"]).unwrap();
    image.proxy.expire_tokens();
    assert_reads(&cri, &container, "data0");
    // The user's password has changed, and another pull has brought the new one.
    image.proxy.require_login("someone", PASSWORDS[2]);
    cri.pull_as(&image.name, "someone", PASSWORDS[2]).unwrap();
    assert_reads(&cri, &container, "data1");
    assert_untold(&node, &daemon);
    // Who goes on with a dead daemon's mounts knows it too.
    daemon.signal(Signal::KILL);
    daemon.wait();
    image.proxy.expire_tokens();
    assert_reads(&cri, &container, "data2");
    let daemon = serve(&node, "");
    let cri = kubelet.cri();
    cri.remove(&container).unwrap();
    cri.remove_pod(&pod).unwrap();
    // Passed on like everything else.
    cri.remove_image(&image.name).unwrap();
    assert!(PASSWORDS.iter().all(|password| !node.logs().contains(password)), "{}", node.logs());
    drop(daemon);
}

/// A plugin that tells what stands in the file `password`, and writes down what it was asked.
fn plugin(folder: &Path, host: &str) -> String {
    let script = format!(
        "#!/bin/sh\ncat >>{0:?}/asked; echo \"$@ $WHO\" >>{0:?}/asked\n\
         echo '{{\"kind\": \"CredentialProviderResponse\", \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \
         \"cacheKeyType\": \"Registry\", \"cacheDuration\": \"12h\", \"auth\": {{\"{host}\": \
         {{\"username\": \"someone\", \"password\": \"'$(cat {0:?}/password)'\"}}}}}}'\n",
        folder
    );
    let program = folder.join("vault");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = folder.join("providers.yaml");
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: vault\n  \
         matchImages: [\"*.*.*.*:{}\"]\n  defaultCacheDuration: 0s\n  \
         apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get, it]\n  env: [{{name: WHO, value: me}}]\n",
        host.rsplit(':').next().unwrap()
    );
    fs::write(&config, text).unwrap();
    format!("credential_provider_config = {config:?}\ncredential_provider_bin_dir = {folder:?}\n")
}

#[test]
fn a_node_s_plugins_are_asked_anew_when_what_they_said_is_refused() {
    let image = image();
    let node = Node::new();
    let folder = tempfile::tempdir().unwrap();
    let asked = || fs::read_to_string(folder.path().join("asked")).unwrap_or_default();
    let password = |which: usize| {
        fs::write(folder.path().join("password"), PASSWORDS[which]).unwrap();
        image.proxy.require_login("someone", PASSWORDS[which]);
    };
    let mut daemon = serve(&node, &plugin(folder.path(), &image.proxy.host()));
    let kubelet = Kubelet::start(&node, &image.name);
    // The kubelet gives it to containerd alone.
    let cri = Cri::connect(&kubelet.containerd.socket()).unwrap();
    password(0);
    cri.pull_as(&image.name, "someone", PASSWORDS[0]).unwrap();
    let pod = cri.run_pod("pod").unwrap();
    let container = cri.start(&pod, "only", &image.name, &["sleep", "1000000"]).unwrap();
    let request = |image: &str| {
        format!(
            "{{\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"kind\":\"CredentialProviderRequest\",\
             \"image\":\"{image}\"}}get it me\n"
        )
    };
    let repo = image.name.trim_end_matches(":v1");
    assert_eq!(asked(), request(repo), "once");
    image.proxy.expire_tokens();
    assert_reads(&cri, &container, "data2");
    assert_eq!(asked(), request(repo), "what it said is kept");
    password(1);
    assert_reads(&cri, &container, "data0");
    assert_eq!(asked(), request(repo).repeat(2));
    assert_untold(&node, &daemon);
    // Who goes on with a dead daemon's mounts asks it too.
    daemon.signal(Signal::KILL);
    daemon.wait();
    password(2);
    assert_reads(&cri, &container, "data1");
    let daemon = serve(&node, &plugin(folder.path(), &image.proxy.host()));
    cri.remove(&container).unwrap();
    cri.remove_pod(&pod).unwrap();
    assert!(PASSWORDS.iter().all(|password| !node.logs().contains(password)), "{}", node.logs());
    drop(daemon);
}

#[test]
fn each_image_becomes_what_a_rule_says_and_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = [vec![("data0", content("data0"))]];
    let plain = |name: &str, labels: serde_json::Value| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        Published::plain(&common::labelled_sleeper(&folder, &data, labels))
    };
    let (lazy, unpacked) = (image(), plain("unpacked", json!({})));
    let full = plain("full", json!({"start": "slow"}));
    let node = Node::new();
    let rules = "containerd_images = \"auto\"\nfull_below = \"1\"\n[[images]]\nlabel = \"start=slow\"\nmode = \"full\"\n";
    let daemon = serve(&node, rules);
    let kubelet = Kubelet::start(&node, &lazy.name);
    let cri = kubelet.cri();
    let start = |name: &str, image: &Published| {
        cri.pull(&image.name).unwrap();
        let pod = cri.run_pod(name).unwrap();
        let container = cri.start(&pod, name, &image.name, &["sleep", "1000000"]).unwrap();
        (pod, container)
    };
    let started =
        [("lazy", &lazy), ("unpacked", &unpacked), ("full", &full)].map(|(name, image)| start(name, image));
    // By its id, the beginning of it, or the image's name.
    let why = |of: &str| node.says(&["why", of]);
    let id = |which: usize| started[which].1.as_str();
    for told in [why(id(0)), why(&id(0)[..12]), why(&lazy.name)] {
        assert!(told.contains("lazy: a published index is trusted") && told.contains(&lazy.name), "{told}");
    }
    for told in [why(id(1)), why(&unpacked.name)] {
        assert!(told.contains("was left to containerd to fetch and unpack"), "{told}");
        assert!(told.contains("not lazy: ") && told.contains("can't be read lazily"), "{told}");
    }
    assert!(why(id(2)).contains(&full.name), "{}", why(id(2)));
    let told = node::daemon::metrics(&node.path("metrics.sock"));
    for (outcome, reason, count) in [("lazy", "none", 4), ("fallback", "not_lazy", 2), ("full", "none", 2)] {
        let line = format!("hoist_snapshot_layers_total{{outcome={outcome:?},reason={reason:?}}} {count}\n");
        assert!(told.contains(&line), "{line}{told}");
    }
    assert!(told.contains("\nhoist_snapshot_prepare_seconds_count 8\n"), "{told}");
    let status: serde_json::Value = serde_json::from_str(&node.says(&["status", "--json"])).unwrap();
    assert!(status["store"]["unpacked_bytes"].as_u64().unwrap() > 100_000, "{status:#}");
    assert!(!told.contains("hoist_source_bytes_total{source=\"network\"} 0\n"), "{told}");
    // What was pulled whole needs its registry no more.
    full.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, Vec::new())));
    assert_reads(&cri, id(2), "data0");
    for (pod, container) in &started {
        cri.remove(container).unwrap();
        cri.remove_pod(pod).unwrap();
    }
    drop(daemon);
}

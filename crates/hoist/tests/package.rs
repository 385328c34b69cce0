//! The Debian package and what deploy/ has for a cluster: installed into folders, by the tools that nodes have.

mod node;

use std::fs;
use std::path::Path;
use std::process::Command;

use hoist_testkit::process::run;
use node::deb::{build, top};
use serde_json::Value;

/// Without the services that a folder has none of, and without what the package depends on.
fn dpkg(root: &Path) -> Command {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.display()));
    dpkg.args(["--force-script-chrootless", "--force-depends", "--force-confold"]);
    dpkg
}

#[test]
fn the_package_installs_upgrades_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let package = build(dir.path(), "0.1.0");
    let depends = run(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Depends")).unwrap();
    assert!(depends.contains("libc6 (>= ") && depends.contains("init-system-helpers"), "{depends}");

    run(dpkg(&root).arg("--install").arg(&package)).unwrap();
    let status = run(dpkg(&root).args(["--status", "hoist"])).unwrap();
    assert!(status.contains("Status: install ok installed"), "{status}");
    assert!(status.contains("Conffiles:\n /etc/hoist/hoist.toml "), "{status}");
    assert_eq!(run(dpkg(&root).args(["--verify", "hoist"])).unwrap(), "");
    let version = run(Command::new(root.join("usr/bin/hoist")).arg("--version")).unwrap();
    assert!(version.starts_with("hoist "), "{version}");
    // What the unit calls of others' packages.
    fs::create_dir(root.join("bin")).unwrap();
    fs::copy("/bin/kill", root.join("bin/kill")).unwrap();
    // systemd finds nothing wrong with the unit, nor with where its program is.
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(format!("--root={}", root.display()));
    let verified = verify.arg("hoist.service").output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&verified.stdout), node::stderr(&verified));
    assert!(verified.status.success() && !said.contains("hoist.service:"), "{said}");
    for name in ["README.md", "INSTALL.md", "CONFIG.md", "copyright", "examples/kubernetes.yaml"] {
        assert!(root.join("usr/share/doc/hoist").join(name).is_file(), "{name}");
    }

    // What the administrator wrote stays, and what is kept of images goes with the last of the package alone.
    let config = root.join("etc/hoist/hoist.toml");
    fs::write(&config, "log = \"debug\"\n").unwrap();
    fs::create_dir_all(root.join("var/lib/hoist/layers")).unwrap();
    run(dpkg(&root).arg("--install").arg(build(dir.path(), "0.1.1"))).unwrap();
    assert_eq!(fs::read_to_string(&config).unwrap(), "log = \"debug\"\n");
    run(dpkg(&root).args(["--remove", "hoist"])).unwrap();
    assert!(config.exists() && root.join("var/lib/hoist/layers").exists());
    assert!(!root.join("usr/bin/hoist").exists());
    run(dpkg(&root).args(["--purge", "hoist"])).unwrap();
    let left = run(Command::new("find").arg(&root).args(["-name", "*hoist*"])).unwrap();
    assert_eq!(left, "");
}

/// All documents of deploy/kubernetes.yaml.
fn documents() -> Vec<Value> {
    let text = fs::read_to_string(top().join("deploy/kubernetes.yaml")).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

#[test]
fn the_daemon_set_mounts_what_it_names_and_its_configuration_is_one() {
    let documents = documents();
    let of_kind = |kind: &str| documents.iter().find(|one| one["kind"] == kind).unwrap();
    let spec = &of_kind("DaemonSet")["spec"];
    assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]);
    let pod = &spec["template"]["spec"];
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    let install = &pod["initContainers"][0];
    assert_eq!(names(&install["volumeMounts"]), names(&pod["volumes"]));
    assert_eq!(install["volumeMounts"][0]["mountPath"], "/host");
    assert_eq!(pod["volumes"][0]["hostPath"]["path"], "/");
    let config = &of_kind("ConfigMap");
    assert_eq!(pod["volumes"][1]["configMap"]["name"], config["metadata"]["name"]);
    // As on a node: both configurations that we ship are good.
    let ours = fs::read_to_string(top().join("deploy/hoist.toml")).unwrap();
    for text in [config["data"]["hoist.toml"].as_str().unwrap(), &ours] {
        let node = node::Node::new();
        let text = text.replace("/run/hoist", node.path("").to_str().unwrap().trim_end_matches('/'));
        let text = text.replace("127.0.0.1:9464", "127.0.0.1:0");
        fs::write(node.path("hoist.toml"), text).unwrap();
        let daemon =
            node::daemon::Daemon::start(&node, &["--config", node.path("hoist.toml").to_str().unwrap()]);
        assert!(node.path("snapshotter.sock").exists() && node.path("cri.sock").exists());
        drop(daemon);
    }
}

#[test]
fn a_node_is_given_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let (from, root) = (dir.path().join("from"), dir.path().join("root"));
    fs::create_dir(&from).unwrap();
    for name in ["hoist.service", "hoist.toml", "install-on-node"] {
        fs::copy(top().join("deploy").join(name), from.join(name)).unwrap();
    }
    fs::copy(node::user::program(), from.join("hoist")).unwrap();
    let install = || {
        let mut script = Command::new(from.join("install-on-node"));
        run(script.arg(&root).env("HOIST_START", "no")).unwrap()
    };
    let all = "changed: /usr/local/bin/hoist /etc/systemd/system/hoist.service /etc/hoist/hoist.toml\n";
    assert_eq!(install(), all);
    assert_eq!(install(), "changed: nothing\n");
    // Systemd was told of none of it: the next that tells it anything does.
    let pending = fs::read_to_string(root.join("etc/hoist/.pending")).unwrap();
    assert_eq!(all, format!("changed: {}\n", pending.trim_end().replace('\n', " ")));
    // A program that is being run is replaced, not written to.
    let mut daemon = Command::new(root.join("usr/local/bin/hoist"));
    daemon.args(["--root", dir.path().join("store").to_str().unwrap(), "daemon", "--log", "off"]);
    let mut daemon = hoist_testkit::process::Daemon::new(daemon.spawn().unwrap());
    fs::copy("/bin/true", from.join("hoist")).unwrap();
    assert_eq!(install(), "changed: /usr/local/bin/hoist\n");
    assert!(!daemon.has_ended());
    run(&mut Command::new(root.join("usr/local/bin/hoist"))).unwrap();
}

//! What the command line says and the codes it leaves, where no image is needed.
//!
//! After a deliberate change, `HOIST_BLESS=1 cargo test -p hoist --test cli` renews the snapshots.

use std::path::Path;
use std::process::{Command, Output};

fn hoist(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("COLUMNS", "100").args(args);
    command
}

fn run(args: &[&str]) -> Output {
    hoist(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_is_as_reviewed() {
    let commands = [
        "", "run", "mount", "unmount", "pull", "index", "images", "inspect", "ps", "logs", "exec", "stop",
        "rm", "prune", "fsck", "pin", "unpin", "status", "top", "why", "daemon", "doctor",
    ];
    for command in commands {
        let mut args = vec![command, "--help"];
        args.retain(|arg| !arg.is_empty());
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{command}");
        let said = String::from_utf8(output.stdout).unwrap();
        let name = if command.is_empty() { "hoist" } else { command };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/snapshots/help-{name}.txt"));
        if std::env::var_os("HOIST_BLESS").is_some() {
            std::fs::write(&path, &said).unwrap();
        }
        let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(said, reviewed, "{} differs", path.display());
    }
}

/// What `ctr` is told by the environment asks nothing of who does not speak of containerd.
#[test]
fn containerd_s_variables_are_for_who_names_it() {
    let root = tempfile::tempdir().unwrap();
    let pull = ["pull", "--root", root.path().to_str().unwrap(), "oci:/no/such/layout"];
    let mut command = hoist(&pull);
    for (name, value) in [("ADDRESS", "/x"), ("NAMESPACE", "k8s.io"), ("SNAPSHOTTER", "overlayfs")] {
        command.env(format!("CONTAINERD_{name}"), value);
    }
    let said = stderr(&command.output().unwrap());
    assert!(said.contains("/no/such/layout") && !said.contains("--containerd"), "{said}");
}

#[test]
fn wrong_use_is_the_user_s_failure() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let cases: [(&[&str], &str); 16] = [
        (&[], "requires a subcommand"),
        (&["fly"], "unrecognized subcommand"),
        (&["run"], "IMAGE"),
        (&["run", "-v", "bad", "img"], "SOURCE:TARGET"),
        (&["run", "-t", "img"], "-t needs a terminal"),
        (&["run", "--runtime", "no-such-runtime", "img"], "no OCI runtime"),
        (&["run", "-p", "80:80", "img"], "hint: a container has the host's network"),
        (&["run", "-dt", "img"], "cannot be used with"),
        (&["images", "--log", "loud"], "--log can't be \"loud\"; it is a level (\"error\","),
        (&["unmount", "/proc"], "/proc is no mount of hoist's"),
        (&["mount", "img", "/no/such/folder"], "mkdir -p /no/such/folder"),
        (&["mount", "img", "/etc"], "choose an empty folder"),
        (&["rmi", "img"], "no image or container \"img\" here"),
        (&["push", "img"], "hint: hoist leaves images as they are"),
        (&["--root", "/x", "--json", "status"], "Usage: hoist [OPTIONS] <COMMAND>"),
        (&["--root", "/x", "images", "--no-such"], "Usage: hoist images [OPTIONS]"),
    ];
    for (args, wanted) in cases {
        let output = hoist(args).env("HOIST_ROOT", root).stdin(std::process::Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with("error: "), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(wanted), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn doctor_judges_the_driver_that_was_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    for driver in ["erofs", "erofs-fuse", "fuse"] {
        let output = run(&["doctor", "--json", "--driver", driver, "--root", root]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["driver"], driver, "{report}");
        assert!(output.status.success());
    }
    // No store on tmpfs has pre-content events.
    let output = run(&["doctor", "--json", "--driver", "erofs", "--root", "/dev/shm/hoist-doctor"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["driver"]), (Some(1), &serde_json::Value::Null), "{report}");
    let findings = report["findings"].as_array().unwrap();
    let mounting = findings.iter().find(|finding| finding["what"] == "mounting").unwrap();
    assert!(mounting["found"].as_str().unwrap().contains("erofs that was asked for"), "{mounting}");
}

/// A mistyped `--root` is told, and makes no folder.
#[test]
fn who_only_looks_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("none");
    let looking = ["images", "ps", "status", "top"].map(|command| (command, 0));
    let wanting = [
        "fsck",
        "rm x",
        "why x",
        "logs x",
        "exec x sh",
        "stop x",
        "pin x",
        "unpin x",
        "prune",
        "unmount /proc",
    ];
    for (command, code) in looking.into_iter().chain(wanting.map(|command| (command, 1))) {
        let command: Vec<_> = command.split(' ').chain(["--root", root.to_str().unwrap()]).collect();
        let output = run(&command);
        let said = [&output.stdout[..], &output.stderr].concat();
        assert_eq!(output.status.code(), Some(code), "{command:?}");
        assert!(String::from_utf8(said).unwrap().contains("there is no store in "), "{command:?}");
        if code == 0 {
            let output = run(&[&command[..], &["--json"]].concat());
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
        }
        assert!(!root.exists(), "{command:?}");
    }
}

#[test]
fn doctor_tells_machines_too() {
    let root = tempfile::tempdir().unwrap();
    let output = run(&["doctor", "--json", "--root", root.path().to_str().unwrap()]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), report["can_mount"].as_bool().unwrap());
    let findings = report["findings"].as_array().unwrap();
    let of = |what: &str| findings.iter().find(|finding| finding["what"] == what).unwrap();
    let kernel = String::from_utf8(Command::new("uname").arg("-r").output().unwrap().stdout).unwrap();
    assert_eq!(of("kernel")["found"], format!("Linux {}", kernel.trim()));
    let runtime = of("OCI runtime")["found"].as_str().unwrap();
    let has_crun = Command::new("sh").args(["-c", "command -v crun"]).output().unwrap().status.success();
    assert!(!has_crun || runtime.contains("/crun") || runtime.contains("crun is passed over"), "{runtime}");
    for finding in findings {
        assert_eq!(finding["state"] != "ok", finding["change"].is_string(), "{finding}");
    }
}

//! The OCI runtime bundle of a container: `config.json` and the files it binds.
//!
//! Written to the OCI runtime specification 1.0.2 (config.md, config-linux.md); what the specification
//! leaves open is as Docker has it, since that is what images are made for.

pub mod bound;
pub mod limits;
pub mod process;
mod seccomp;
pub mod user;
pub mod volume;

use std::path::Path;

use serde_json::{Value, json};

use self::user::User;
use self::volume::Volume;

/// All that `config.json` depends on.
pub struct Bundle<'a> {
    /// Absolute path of the root file system.
    pub rootfs: &'a Path,
    /// Absolute path of the folder with the files to bind (hosts, hostname, resolv.conf).
    pub files: &'a Path,
    /// Argument vector.
    pub args: &'a [String],
    /// Environment, each `NAME=VALUE`.
    pub env: &'a [String],
    /// Working folder, absolute.
    pub cwd: &'a str,
    /// Who the program runs as.
    pub user: &'a User,
    /// Host name.
    pub hostname: &'a str,
    /// Whether the program gets a terminal.
    pub terminal: bool,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Whether it shares the host's network.
    pub host_network: bool,
    /// Whether to filter system calls.
    pub seccomp: bool,
    /// Bind mounts, in order.
    pub volumes: &'a [Volume],
    /// Capabilities this process may hand down (its bounding set).
    pub allowed_capabilities: &'a dyn Fn(&str) -> bool,
    /// Hard limit of open files this process has.
    pub nofile_limit: u64,
    /// The container's control group, which the runtime places as it would one of its own naming; None where control
    /// groups are not this process's to make.
    pub cgroup: Option<&'a str>,
}

/// Docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Docker's default masked paths.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Docker's default read-only paths.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Soft and hard limit of open files: systemd's defaults, which Docker follows since 25. A huge soft limit
/// makes programs slow that close every descriptor there could be.
const NOFILE: (u64, u64) = (1024, 524_288);

/// The content of `config.json`.
pub fn config(bundle: &Bundle<'_>) -> Value {
    let capabilities: Vec<&str> =
        CAPABILITIES.into_iter().filter(|name| (bundle.allowed_capabilities)(name)).collect();
    // What execve leaves of them to a user who is not root: nothing.
    let effective: &[&str] = if bundle.user.uid == 0 { &capabilities } else { &[] };
    let hard = NOFILE.1.min(bundle.nofile_limit);
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
    ];
    if !bundle.host_network {
        namespaces.push(json!({"type": "network"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
        // Runtimes add the harmless devices (null, zero, tty...) to this.
        "resources": {"devices": [{"allow": false, "access": "rwm"}]},
    });
    if let Some(cgroup) = bundle.cgroup {
        linux["cgroupsPath"] = cgroup.into();
    }
    if bundle.seccomp {
        linux["seccomp"] = seccomp::profile(std::env::consts::ARCH);
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": bundle.terminal,
            "user": {"uid": bundle.user.uid, "gid": bundle.user.gid, "additionalGids": bundle.user.groups},
            "args": bundle.args,
            "env": bundle.env,
            "cwd": bundle.cwd,
            "capabilities": {"bounding": capabilities, "effective": effective, "permitted": effective},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": NOFILE.0.min(hard), "hard": hard}],
            "noNewPrivileges": false,
        },
        "root": {"path": bundle.rootfs, "readonly": bundle.read_only},
        "hostname": bundle.hostname,
        "mounts": mounts(bundle),
        "linux": linux,
    })
}

fn mounts(bundle: &Bundle<'_>) -> Vec<Value> {
    let standard = [
        ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ];
    let mut mounts: Vec<Value> = standard
        .into_iter()
        .map(|(destination, kind, source, options)| {
            let options: Vec<&str> = options.split(',').collect();
            json!({"destination": destination, "type": kind, "source": source, "options": options})
        })
        .collect();
    let bind = |source: &Path, destination: &str, read_only: bool| {
        let access = if read_only { "ro" } else { "rw" };
        let options = ["rbind", "rprivate", access];
        json!({"destination": destination, "type": "bind", "source": source, "options": options})
    };
    // A volume on one of these paths takes its place, as with Docker.
    for (name, target) in bound::FILES {
        if !bundle.volumes.iter().any(|volume| volume.target == target) {
            mounts.push(bind(&bundle.files.join(name), target, false));
        }
    }
    mounts.extend(bundle.volumes.iter().map(|volume| bind(&volume.source, &volume.target, volume.read_only)));
    mounts
}

/// The working folder made absolute, as Docker does: relative ones are taken from `/`.
pub fn absolute_cwd(cwd: &str) -> String {
    if cwd.starts_with('/') { cwd.to_owned() } else { format!("/{cwd}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(uid: u32, volumes: &[Volume]) -> Value {
        config(&Bundle {
            rootfs: Path::new("/r"),
            files: Path::new("/b"),
            args: &["true".into()],
            env: &["A=1".into()],
            cwd: "/",
            user: &User { uid, gid: 7, groups: vec![8], home: "/".into() },
            hostname: "h",
            terminal: false,
            read_only: true,
            host_network: false,
            seccomp: true,
            volumes,
            allowed_capabilities: &|name| name != "CAP_MKNOD",
            nofile_limit: 2048,
            cgroup: None,
        })
    }

    // The fields config.md and config-linux.md call REQUIRED.
    #[test]
    fn required_fields_are_there() {
        let config = sample(0, &[]);
        assert_eq!(config["ociVersion"], "1.0.2");
        assert_eq!(config["process"]["cwd"], "/");
        assert_eq!(config["root"]["path"], "/r");
        assert_eq!(config["process"]["user"], json!({"uid": 0, "gid": 7, "additionalGids": [8]}));
        assert_eq!(
            config["process"]["rlimits"][0],
            json!({"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2048})
        );
        for mount in config["mounts"].as_array().unwrap() {
            assert!(mount["destination"].as_str().unwrap().starts_with('/'));
        }
        assert!(config["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "network"})));
    }

    #[test]
    fn capabilities_are_docker_s_less_what_is_not_ours_to_give() {
        let root = sample(0, &[]);
        let held = root["process"]["capabilities"]["permitted"].as_array().unwrap();
        assert_eq!(held.len(), 13);
        assert!(!held.contains(&json!("CAP_MKNOD")) && !held.contains(&json!("CAP_SYS_ADMIN")));
        let other = sample(5, &[]);
        assert_eq!(other["process"]["capabilities"]["effective"], json!([]));
        assert_eq!(other["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 13);
    }

    #[test]
    fn volumes_come_last_and_replace_bound_files() {
        let volume = Volume { source: "/s".into(), target: "/etc/hosts".into(), read_only: true };
        let config = sample(0, &[volume]);
        let mounts = config["mounts"].as_array().unwrap();
        let hosts: Vec<_> = mounts.iter().filter(|mount| mount["destination"] == "/etc/hosts").collect();
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0]["source"], "/s");
        assert_eq!(hosts[0]["options"], json!(["rbind", "rprivate", "ro"]));
    }
}

//! Bundles against the outsider they are for: runc runs them.

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hoist::bundle::bound::FILES;
use hoist::bundle::limits::own_nofile;
use hoist::bundle::user::{self, User};
use hoist::bundle::volume::Volume;
use hoist::bundle::{Bundle, config};
use hoist::runtime::find_program;

struct Case {
    dir: tempfile::TempDir,
    user: User,
    args: Vec<String>,
    volumes: Vec<Volume>,
    cwd: &'static str,
    read_only: bool,
    host_network: bool,
}

impl Case {
    fn new(script: &str) -> Case {
        let dir = tempfile::tempdir().unwrap();
        common::make_rootfs(&dir.path().join("rootfs"));
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let user = User { uid: 0, gid: 0, groups: vec![], home: "/".into() };
        Case { dir, user, args, volumes: vec![], cwd: "/", read_only: false, host_network: false }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn running_as(mut self, spec: &str) -> Case {
        let read = |name: &str| fs::read(self.path("rootfs/etc").join(name)).unwrap();
        self.user = user::resolve(spec, &read("passwd"), &read("group")).unwrap();
        self
    }

    fn command(&self) -> Command {
        for (name, _) in FILES {
            fs::write(self.path(name), format!("the {name}\n")).unwrap();
        }
        let config = config(&Bundle {
            rootfs: &self.path("rootfs"),
            files: self.dir.path(),
            args: &self.args,
            env: &["PATH=/bin".into(), "SPACED=a b".into()],
            cwd: self.cwd,
            user: &self.user,
            hostname: "inside",
            terminal: false,
            read_only: self.read_only,
            host_network: self.host_network,
            seccomp: true,
            volumes: &self.volumes,
            allowed_capabilities: &|_| true,
            nofile_limit: own_nofile(),
            cgroup: None,
        });
        fs::write(self.path("config.json"), config.to_string()).unwrap();
        let runc = find_program("runc", std::env::var_os("PATH").as_deref()).expect("runc is installed");
        let id =
            format!("hoist-test-{}", self.dir.path().file_name().unwrap().to_string_lossy().replace('.', ""));
        let mut command = Command::new(runc);
        command.arg("--root").arg(self.path("state")).arg("run").arg("--bundle").arg(self.dir.path()).arg(id);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self) -> Output {
        self.command().output().unwrap()
    }

    fn says(&self) -> String {
        let output = self.run();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn exit_code_is_the_program_s() {
    assert_eq!(Case::new("exit 37").run().status.code(), Some(37));
}

#[test]
fn a_signal_ends_in_128_and_its_number() {
    let case = Case::new("echo up; exec sleep 1000");
    let mut child = case.command().stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut up).unwrap();
    let runtime = rustix::process::Pid::from_child(&child);
    // The first process of a pid namespace is deaf to TERM unless it listens; KILL runc can't pass on.
    rustix::process::kill_process(runtime, rustix::process::Signal::TERM).unwrap();
    let root = case.path("state");
    let id = fs::read_dir(&root).unwrap().next().unwrap().unwrap().file_name();
    common::output(Command::new("runc").arg("--root").arg(&root).arg("kill").arg(id).arg("KILL"));
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn users_are_those_the_image_s_own_id_sees() {
    assert_eq!(
        Case::new("id").running_as("app").says(),
        "uid=1000(app) gid=1001(app) groups=1001(app),44(video)\n"
    );
    assert_eq!(Case::new("id -u; id -g; id -G").running_as("4242:44").says(), "4242\n44\n44\n");
    assert_eq!(Case::new("id -u; id -g").running_as("").says(), "0\n0\n");
}

#[test]
fn environment_folder_and_host_name_arrive() {
    let mut case = Case::new("pwd; echo \"$SPACED\"; cat /proc/sys/kernel/hostname /etc/hostname");
    case.cwd = "/tmp";
    assert_eq!(case.says(), "/tmp\na b\ninside\nthe hostname\n");
}

#[test]
fn capabilities_are_docker_s_default_set() {
    let script =
        "while read name value; do case $name in Cap???:) echo $name $value;; esac; done </proc/self/status";
    // What `docker run debian grep Cap /proc/self/status` prints.
    let root = Case::new(script).says();
    assert!(root.contains("CapEff: 00000000a80425fb\nCapBnd: 00000000a80425fb\n"), "{root}");
    let user = Case::new(script).running_as("app").says();
    assert!(user.contains("CapEff: 0000000000000000\nCapBnd: 00000000a80425fb\n"), "{user}");
}

#[test]
fn the_kernel_is_out_of_reach() {
    let script = "unshare -U true 2>/dev/null && echo userns; echo x 2>/dev/null >/proc/sys/kernel/hostname && echo sysctl; \
                  cat /proc/kcore | read line && echo kcore; echo end";
    assert_eq!(Case::new(script).says(), "end\n");
}

#[test]
fn a_read_only_root_is_read_only() {
    let mut case = Case::new("touch /x 2>/dev/null && echo written; touch /dev/shm/x && echo shm");
    case.read_only = true;
    assert_eq!(case.says(), "shm\n");
}

#[test]
fn volumes_are_bound() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), "from outside\n").unwrap();
    let mut case = Case::new("cat /ro/file; touch /ro/no 2>/dev/null && echo bad; echo back >/rw/out");
    for (target, read_only) in [("/ro", true), ("/rw", false)] {
        case.volumes.push(Volume { source: source.path().into(), target: target.into(), read_only });
    }
    assert_eq!(case.says(), "from outside\n");
    assert_eq!(fs::read_to_string(source.path().join("out")).unwrap(), "back\n");
}

#[test]
fn networks() {
    let inside = |host_network| {
        let mut case = Case::new("readlink /proc/self/ns/net");
        case.host_network = host_network;
        case.says().trim().to_owned()
    };
    let ours = fs::read_link(Path::new("/proc/self/ns/net")).unwrap().to_string_lossy().into_owned();
    assert_eq!(inside(true), ours);
    assert_ne!(inside(false), ours);
}

//! A machine that systemd runs, as the first process of namespaces of its own: this machine's files under an overlay, with
//! hoist's package installed, and of services hoist's alone. Its store is a folder of this machine's disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hoist_testkit::process::{run, wait_until};

/// For whatever it does.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module. All of it ends, and goes, when this is dropped.
pub struct Machine {
    dir: tempfile::TempDir,
    /// Becomes the parent of systemd.
    outer: Child,
    /// systemd.
    pid: i32,
}

/// In new mount and process namespaces: makes the root from `$1` and installs the package `$2` there.
const INSTALL: &str = r#"set -e
    d=$1 r=$1/root
    mkdir "$d"/root "$d"/upper "$d"/work "$d"/store "$d"/cgroups
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=/,upperdir=$d/upper,workdir=$d/work" "$r"
    mount -t proc proc "$r/proc"
    mount --rbind /dev "$r/dev"
    mount --bind /dev/null "$r/dev/console"
    mount -t tmpfs tmpfs "$r/run"
    mount -t tmpfs tmpfs "$r/tmp"
    cp "$2" "$r/tmp/hoist.deb"
    chroot "$r" dpkg --force-depends --install /tmp/hoist.deb
    mkdir -p "$r/var/lib/hoist"
    mount --bind "$d/store" "$r/var/lib/hoist"
    mkdir -p "$r/run/units/hoist.service.d" "$r/run/mnt"
    # A folder of units without those of this machine: what hoist.service is ordered by does nothing.
    cp "$r/usr/lib/systemd/system/hoist.service" "$r/run/units"
    for target in sysinit basic shutdown; do
        printf '[Unit]\nDefaultDependencies=no\n' >"$r/run/units/$target.target"
    done
    printf '[Unit]\nDefaultDependencies=no\nWants=hoist.service\n' >"$r/run/units/machine.target"
    printf '[Service]\nStandardError=append:/run/hoist.log\n' >"$r/run/units/hoist.service.d/log.conf"
    # A control group that is the root of all there are.
    mount -t cgroup2 cgroup2 "$d/cgroups"
    mkdir "$d/cgroups/$3"
    echo 0 >"$d/cgroups/$3/cgroup.procs"
    umount "$d/cgroups"
    exec unshare --cgroup sh -c "$4" sh "$r"
"#;

/// In a cgroup namespace too: makes that the root, and systemd the first process. It is told that it is in a container, for
/// else it would set up this machine's kernel.
const BOOT: &str = r#"set -e
    mount -t sysfs -o ro sysfs "$1/sys"
    mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
    cd "$1"
    mkdir run/old
    pivot_root . run/old
    umount -l /run/old
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/run/units \
        /lib/systemd/systemd --system --unit=machine.target --show-status=no
"#;

impl Machine {
    /// Starts one and waits until hoist's daemon is ready there.
    pub fn boot(package: &Path) -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let group = group(dir.path());
        // Whoever is killed takes it all along.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--kill-child", "--fork"]);
        command.args(["--mount", "--pid", "--uts", "--ipc", "sh", "-c", INSTALL, "sh"]);
        command.arg(dir.path()).arg(package).arg(&group).arg(BOOT);
        let said = fs::File::create(dir.path().join("said")).unwrap();
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let outer = command.spawn().unwrap();
        let mut machine = Machine { dir, outer, pid: 0 };
        wait_until("systemd", PATIENCE, || {
            machine.pid = machine.first_process().unwrap_or(0);
            assert!(machine.outer.try_wait()?.is_none(), "{}", machine.said());
            Ok(fs::read_to_string(format!("/proc/{}/comm", machine.pid))
                .is_ok_and(|name| name == "systemd\n"))
        })
        .unwrap_or_else(|e| panic!("{e}: {}", machine.said()));
        machine.wait_for("ActiveState", "active");
        machine
    }

    fn first_process(&self) -> Option<i32> {
        let pid = self.outer.id();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.trim().parse().ok()
    }

    /// A program there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "--root", "--wd=/", program]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// What a program there says, which must succeed.
    pub fn says(&self, program: &str, args: &[&str]) -> String {
        run(self.command(program).args(args)).unwrap_or_else(|e| panic!("{e}: {}", self.said()))
    }

    /// What systemd says of hoist's service.
    pub fn show(&self, property: &str) -> String {
        self.says("systemctl", &["show", "--value", "--property", property, "hoist"]).trim().to_owned()
    }

    /// Waits until it says this.
    pub fn wait_for(&self, property: &str, value: &str) {
        let waited = wait_until(property, PATIENCE, || {
            let mut systemctl = self.command("systemctl");
            let shown = systemctl.args(["show", "--value", "--property", property, "hoist"]).output()?;
            // It does not answer before it is up.
            Ok(shown.status.success() && String::from_utf8_lossy(&shown.stdout).trim() == value)
        });
        waited.unwrap_or_else(|e| panic!("{e}: {property} is {}: {}", self.show(property), self.said()));
    }

    /// A path there, as this machine finds it.
    pub fn seen(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// What was said by those that made it, and by hoist's daemons.
    pub fn said(&self) -> String {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        format!("{}{}", read(self.dir.path().join("said")), read(self.seen("/run/hoist.log")))
    }
}

/// The name of the control group of the machine in this folder.
fn group(dir: &Path) -> String {
    format!("hoist-{}", dir.file_name().unwrap().to_str().unwrap().trim_start_matches('.'))
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
        // With the first process all others of its namespace end, before its parent hears of it.
        let first = self.first_process().and_then(rustix::process::Pid::from_raw);
        match first {
            Some(pid) => drop(rustix::process::kill_process(pid, rustix::process::Signal::KILL)),
            None => drop(self.outer.kill()),
        }
        let _ = self.outer.wait();
        // What systemd has made below it, the deepest first.
        let script = r#"mount -t cgroup2 cgroup2 "$1" && find "$1/$2" -depth -type d -exec rmdir {} +"#;
        let mut clean = Command::new("unshare");
        clean.args(["--mount", "sh", "-c", script, "sh"]).arg(self.dir.path().join("cgroups"));
        if let Err(error) = run(clean.arg(group(self.dir.path()))) {
            eprintln!("{error}");
        }
    }
}

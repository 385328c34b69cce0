//! A daemon and its keeper killed together, under a service manager that holds what they gave it: systemd, and one of the
//! test's own, which speaks systemd's protocol (sd_notify(3), sd_listen_fds(3)) and is looked into.

mod node;
mod systemd;

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hoist_testkit::layout::Compression;
use hoist_testkit::{Fault, FaultKind, When, process};
use node::case::Case;
use node::tree::Source;
use node::{Node, Published};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use systemd::Machine;

const PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    held: Vec<(String, OwnedFd)>,
    ready: bool,
}

impl Manager {
    fn new(path: PathBuf) -> Manager {
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, path, held: Vec::new(), ready: false }
    }

    /// Does what it was told so far.
    fn hear(&mut self) {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let Ok(got) = recvmsg(&self.socket, &mut parts, &mut control, flags) else { return };
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            let text = String::from_utf8(bytes[..got.bytes].to_vec()).unwrap();
            let says = |what: &str| text.lines().any(|line| line == what);
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
            self.ready |= says("READY=1");
            if says("FDSTORE=1") {
                assert!(name.len() <= 255 && !name.contains(':') && name.is_ascii(), "{name:?}");
                self.held.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
            } else if says("FDSTOREREMOVE=1") {
                self.held.retain(|(held, _)| held != name);
            }
        }
    }

    fn hear_until(&mut self, what: &str, mut is: impl FnMut(&Manager) -> bool) {
        let waited = process::wait_until(what, PATIENCE, || {
            self.hear();
            Ok(is(self))
        });
        let held: Vec<_> = self.held.iter().map(|(name, _)| name).collect();
        waited.unwrap_or_else(|e| panic!("{e}: {held:?}"));
    }

    /// Starts a daemon with what is held, as a service manager starts it again, and waits until it is ready.
    fn start(&mut self, node: &Node, log: &Path) -> Started {
        // Away from the numbers that it is to have them by.
        let lent = self.held.iter().map(|(_, fd)| rustix::io::fcntl_dupfd_cloexec(fd, 200).unwrap());
        let lent: Vec<OwnedFd> = lent.collect();
        let mut script = String::new();
        for (n, fd) in lent.iter().enumerate() {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
            let number = fd.as_fd().as_raw_fd();
            script.push_str(&format!("exec {}<&{number} {number}<&-\n", n + 3));
        }
        script.push_str("export LISTEN_PID=$$; exec \"$@\"");
        let hoist = node.hoist(&["daemon", "--log", "info"]);
        let names: Vec<_> = self.held.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]).arg(hoist.get_program()).args(hoist.get_args());
        command.envs(hoist.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("NOTIFY_SOCKET", &self.path);
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        self.ready = false;
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let child = Started(child);
        drop(lent);
        self.hear_until("the daemon to be ready", |manager| manager.ready);
        child
    }
}

/// A daemon; ended when dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn kill_together(daemon: &mut Child, keeper: i32) {
    let keeper = Pid::from_raw(keeper).unwrap();
    // Neither can start the other while both stand still.
    kill_process(keeper, Signal::STOP).unwrap();
    kill_process(Pid::from_child(daemon), Signal::STOP).unwrap();
    kill_process(keeper, Signal::KILL).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let gone = || Ok(!Path::new(&format!("/proc/{}", keeper.as_raw_nonzero())).exists());
    process::wait_until("the keeper's end", PATIENCE, gone).unwrap();
}

/// What the unit of the package promises, by the systemd of this machine.
#[test]
fn under_systemd_the_unit_keeps_its_readers() {
    let case = Case::new();
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::boot(&node::deb::build(dir.path(), "0.1.0"));
    let hoist = |args: &[&str]| machine.says("hoist", args);
    let pids = || {
        let told: Value = serde_json::from_str(&hoist(&["status", "--json"])).unwrap();
        ["filler_pid", "keeper_pid"].map(|name| told["daemon"][name].as_i64().unwrap().to_string())
    };
    let read = |path: &str| {
        let path = machine.seen(&format!("/run/mnt/{path}"));
        std::thread::spawn(move || fs::read(path))
    };
    for driver in ["erofs", "fuse"] {
        hoist(&["--driver", driver, "mount", &case.image.name, "/run/mnt"]);
        let [daemon, keeper] = pids();
        assert_eq!(machine.show("MainPID"), daemon);
        case.image.proxy.reset();
        case.hang();
        let reader = read("lib/d.so");
        case.wait_for_a_request();
        let held: u64 = machine.show("NFileDescriptorStore").parse().unwrap();
        assert!(held > 0, "{driver}: {}", machine.said());
        // Neither can start the other while both stand still.
        machine.says("sh", &["-c", &format!("kill -STOP {keeper} {daemon} && kill -KILL {keeper} {daemon}")]);
        case.image.proxy.clear_faults();
        assert!(
            reader.join().unwrap().unwrap() == case.source.read("lib/d.so"),
            "{driver}: {}",
            machine.said()
        );
        machine.wait_for("ActiveState", "active");
        assert_ne!(machine.show("MainPID"), daemon);
        assert_ne!(machine.show("NFileDescriptorStore"), "0");
        case.source.assert_shown(&machine.seen("/run/mnt"));
        assert!(!machine.said().contains("read as zeros"), "{}", machine.said());
        hoist(&["unmount", "/run/mnt"]);
        machine.wait_for("NFileDescriptorStore", "0");
        hoist(&["rm", &case.image.name]);
        hoist(&["prune"]);
    }
    // However often it dies, it is started again: a unit that has failed for good would lose the descriptors.
    assert_eq!(machine.show("StartLimitIntervalUSec"), "0");
    // Not every machine lets root have it.
    assert_eq!(machine.show("OOMScoreAdjust"), "-900");

    // Started anew and stopped under a reader: others go on.
    hoist(&["mount", &case.image.name, "/run/mnt"]);
    case.image.proxy.reset();
    case.hang();
    let reader = read("lib/c.so");
    case.wait_for_a_request();
    let before = machine.show("MainPID");
    machine.says("systemctl", &["restart", "hoist"]);
    assert_ne!(machine.show("MainPID"), before);
    machine.says("systemctl", &["reload", "hoist"]);
    machine.wait_for("ActiveState", "active");
    machine.says("systemctl", &["stop", "hoist"]);
    assert!(!reader.is_finished(), "a read ended though nobody could answer it: {}", machine.said());
    case.image.proxy.clear_faults();
    assert!(reader.join().unwrap().unwrap() == case.source.read("lib/c.so"), "{}", machine.said());
    assert_eq!(machine.show("ActiveState"), "inactive");
    case.source.assert_shown(&machine.seen("/run/mnt"));
    machine.says("systemctl", &["start", "hoist"]);
    hoist(&["unmount", "/run/mnt"]);
}

/// Where no keeper can be started for what is dead, readers wait until one can.
#[test]
fn what_cannot_be_revived_at_once_is_tried_again() {
    let case = Case::new();
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        let log = node.path("daemon.log");
        let mut manager = Manager::new(node.path("notify"));
        let mut daemon = manager.start(&node, &log);
        let mount = node.mount(&case.image.name, &[]);
        let told: Value = serde_json::from_str(&node.says(&["status", "--json"])).unwrap();
        let keeper = i32::try_from(told["daemon"]["keeper_pid"].as_i64().unwrap()).unwrap();
        manager.hear();
        kill_together(&mut daemon.0, keeper);
        // A keeper needs a log.
        let (logs, aside) = (node.store("log"), node.path("log"));
        fs::rename(&logs, &aside).unwrap();
        fs::write(&logs, "in its place").unwrap();
        let _daemon = manager.start(&node, &log);
        let path = mount.root().join("lib/d.so");
        let reader = std::thread::spawn(move || fs::read(path));
        let said = || fs::read_to_string(&log).unwrap();
        let tried = || Ok(said().matches("nobody serves mounts").count() >= 2);
        process::wait_until("two tries", PATIENCE, tried).unwrap_or_else(|e| panic!("{e}: {}", said()));
        assert!(!reader.is_finished(), "{driver}: a read ended though nobody could answer it");
        fs::remove_file(&logs).unwrap();
        fs::rename(&aside, &logs).unwrap();
        assert!(reader.join().unwrap().unwrap() == case.source.read("lib/d.so"), "{driver}: {}", said());
        case.source.assert_shown(mount.root());
        assert!(!said().contains("read as zeros"), "{}", said());
        node.says(&["unmount", mount.root().to_str().unwrap()]);
    }
}

/// Nobody reads a zero or an error: a read under way waits for the next daemon, and then has its bytes.
#[test]
fn what_it_holds_outlives_daemon_and_keeper() {
    let source = Source::new();
    let layout = source.layout(Compression::Gzip(6));
    let image = Published::indexed(&layout.directory);
    for driver in ["erofs", "erofs-fuse", "fuse"] {
        let node = Node::new().with_driver(driver);
        let log = node.path("daemon.log");
        let mut manager = Manager::new(node.path("notify"));
        let mut daemon = manager.start(&node, &log);
        assert!(manager.held.is_empty());
        let mount = node.mount(&image.name, &[]);
        assert_eq!(mount.read("etc/motd").unwrap(), source.read("etc/motd"));
        image.proxy.reset();
        let matching = format!("GET /v2/{}/blobs/{}", node::REPO, layout.layers[0]);
        image.proxy.inject(Fault::new(matching, When::Always, FaultKind::Hang));
        let path = mount.root().join("lib/d.so");
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map(|_| bytes)
        });
        let asked = || Ok(image.proxy.log().iter().any(|r| r.path.contains(&layout.layers[0])));
        process::wait_until("the request", PATIENCE, asked).unwrap();
        let told: Value = serde_json::from_str(&node.says(&["status", "--json"])).unwrap();
        let keeper = i32::try_from(told["daemon"]["keeper_pid"].as_i64().unwrap()).unwrap();
        manager.hear();
        assert!(manager.held.iter().any(|(name, _)| name.contains(" mount ")), "{driver}");

        kill_together(&mut daemon.0, keeper);
        assert!(!reader.is_finished(), "{driver}: a read ended though nobody could answer it");
        image.proxy.clear_faults();
        let mut daemon = manager.start(&node, &log);
        let read = reader.join().unwrap();
        let said = || format!("{driver}: {}{}", fs::read_to_string(&log).unwrap(), node.logs());
        assert!(read.unwrap_or_else(|e| panic!("{e} {}", said())) == source.read("lib/d.so"), "{}", said());
        source.assert_shown(mount.root());
        assert!(!fs::read_to_string(&log).unwrap().contains("read as zeros"), "{}", said());

        // Others go on with it, and say so when it is over.
        let [server] = node.servers()[..] else { panic!("not one serves: {}", said()) };
        assert_ne!(server, Pid::from_child(&daemon.0).as_raw_nonzero().get());
        node.says(&["unmount", mount.root().to_str().unwrap()]);
        manager.hear_until("it to let go of all", |manager| manager.held.is_empty());
        kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
        assert!(daemon.0.wait().unwrap().success(), "{}", said());
    }
}

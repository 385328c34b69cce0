//! The node daemon, with real mounts, asked by the real commands and by clients that misbehave.

mod common;
mod node;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{Fault, FaultKind, When, process};
use node::case::{Case, PATIENCE};
use node::daemon::{Daemon, metrics};
use node::{Node, Published, count, stderr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn status(node: &Node) -> Value {
    serde_json::from_str(&node.says(&["status", "--json"])).unwrap()
}

fn mounted(node: &Node) -> usize {
    status(node)["mounts"].as_array().unwrap().len()
}

fn wait_until_nothing_is_mounted(node: &Node) {
    process::wait_until("the end of all mounts", PATIENCE, || Ok(mounted(node) == 0)).unwrap();
}

/// What the daemon says to lines that no command of ours would send; the greeting first.
fn say(daemon: &Daemon, bytes: &[u8]) -> Vec<Value> {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may hang up before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?} is no JSON"))).collect()
}

/// Both ways every command says the same, and the mount is the daemon's where there is one.
#[test]
fn commands_say_the_same_with_and_without_it() {
    let case = Case::new();
    let name = case.image.name.as_str();
    let mut answers = Vec::new();
    for with in [false, true] {
        let node = Node::new();
        let daemon = with.then(|| Daemon::start(&node, &[]));
        let mut pulled: Value = serde_json::from_str(&node.says(&["pull", "--json", name])).unwrap();
        pulled["stats"] = Value::Null;
        let failed = node.hoist(&["pull", "127.0.0.1:1/no/such:image"]).output().unwrap();
        let unknown = node.hoist(&["rm", "nothing"]).output().unwrap();
        let mut answer = vec![
            node.says(&["images"]),
            node.says(&["images", "--json"]),
            node.says(&["inspect", "--json", name]),
            node.says(&["rm", name]),
        ];
        let mut pruned: Value = serde_json::from_str(&node.says(&["prune", "--json"])).unwrap();
        // How a file lies on the disk is not for us to say.
        assert!(pruned["bytes"].take().as_u64().unwrap() > 0);
        answer.extend([pulled.to_string(), pruned.to_string()]);
        answers.push((answer, failed.status.code(), unknown.status.code(), stderr(&unknown)));
        assert!(node.hoist(&["images", "--no-daemon"]).output().unwrap().status.success());
        drop(daemon);
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn a_mount_is_the_daemon_s_where_there_is_one() {
    let case = Case::new();
    for with in [false, true] {
        let node = Node::new();
        let daemon = with.then(|| Daemon::start(&node, &[]));
        let mount = node.mount(&case.image.name, &[]);
        case.source.assert_shown(mount.root());
        let [server] = node.servers()[..] else { panic!("{:?} serve", node.servers()) };
        assert_eq!(with, daemon.as_ref().is_some_and(|d| d.pid().as_raw_nonzero().get() == server));
        let told = status(&node);
        assert_eq!((with, 1), (told["daemon"].is_object(), told["mounts"].as_array().unwrap().len()));
        let stats = mount.unmount();
        assert!(count(&stats, "demand_stalls") > 0 && count(&stats, "requests") > 0, "{stats}");
        assert_eq!(mounted(&node), 0);
    }
}

#[test]
fn two_clients_at_once_share_what_is_fetched() {
    let case = Case::new();
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let [one, two] = std::thread::scope(|scope| {
        let mounting = || scope.spawn(|| node.mount(&case.image.name, &[]));
        [mounting(), mounting()].map(|thread| thread.join().unwrap())
    });
    std::thread::scope(|scope| {
        for mount in [&one, &two] {
            scope.spawn(|| case.source.assert_shown(mount.root()));
        }
    });
    let told = status(&node);
    let layer = &told["mounts"][0]["layers"][0];
    assert_eq!(layer["present_bytes"], layer["total_bytes"], "{told}");
    // Fetched twice, the layer alone would be more.
    let size = status(&node)["store"]["disk_bytes"].as_u64().unwrap();
    let stats = one.unmount();
    assert!(count(&stats, "wire_bytes") < size && size > 0, "{stats}");
    drop(two);
}

#[test]
fn fifty_mounts_at_once() {
    let case = Case::new();
    let node = Node::new();
    let daemon = Daemon::start(&node, &[]);
    let mounts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..50).map(|_| scope.spawn(|| node.mount(&case.image.name, &[]))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let told = status(&node);
    assert_eq!(told["mounts"].as_array().unwrap().len(), 50);
    let pid = daemon.pid().as_raw_nonzero().get();
    assert!(told["mounts"].as_array().unwrap().iter().all(|mount| mount["filler_pid"] == pid));
    assert_eq!(told["daemon"]["filler_pid"], pid);
    let keeper = told["daemon"]["keeper_pid"].as_i64().unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{keeper}/comm")).unwrap(), "hoist-keeper\n");
    std::thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(|| assert_eq!(mount.read("usr/last").unwrap(), case.source.read("usr/last")));
        }
    });
    // Half of them by the command, half behind its back.
    for (at, mount) in mounts.iter().enumerate().filter(|(at, _)| at % 2 == 0) {
        assert!(
            at % 2 == 0 && rustix::mount::unmount(mount.root(), rustix::mount::UnmountFlags::empty()).is_ok()
        );
    }
    drop(mounts);
    wait_until_nothing_is_mounted(&node);
}

/// How often any thread of a process was woken or made to wait since its start.
fn switches(pid: i64) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let about = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let counts = |about: String| -> u64 {
        let lines = about.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum()
    };
    about.map(counts).sum()
}

/// Whether neither daemon nor keeper does anything, or will before somebody else does: all their threads wait, and had
/// no turn while they were looked at.
fn is_asleep(daemon: &Daemon, keeper: i64) -> bool {
    let pids = [daemon.pid().as_raw_nonzero().get().into(), keeper];
    let now = || pids.map(switches);
    let before = now();
    pids.into_iter().all(waits_for_others) && now() == before
}

/// Is every thread of a process in a call that does not end before somebody else does something, or not for longer than
/// any pause while there is work?
fn waits_for_others(pid: i64) -> bool {
    /// Milliseconds.
    const LONG: i32 = 700;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut calls = tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
    calls.all(|call| {
        // proc_pid_syscall(5): number and arguments; `running` of who is in none.
        let mut words = call.split_whitespace();
        let number = words.next().and_then(|number| number.parse::<i64>().ok());
        let arguments: Vec<u64> =
            words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap_or(0)).collect();
        let timeout = match number {
            None | Some(libc::SYS_nanosleep | libc::SYS_clock_nanosleep) => return false,
            #[cfg(target_arch = "x86_64")]
            Some(libc::SYS_epoll_wait) => arguments[3],
            #[cfg(target_arch = "x86_64")]
            Some(libc::SYS_poll) => arguments[2],
            Some(libc::SYS_epoll_pwait) => arguments[3],
            Some(_) => return true,
        };
        // A negative one is none.
        let timeout = timeout as i32;
        !(0..=LONG).contains(&timeout)
    })
}

/// Bytes of a file that stand in the page cache, as util-linux says.
fn cached(file: &Path) -> u64 {
    let said = common::output(
        Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file),
    );
    said.trim().parse().unwrap()
}

/// Where nobody reads, nobody wakes up: whether lazily filled or complete, and in whichever way it is shown. What was
/// read of complete layers is held once.
#[test]
fn at_rest_it_sleeps() {
    let case = Case::new();
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        let daemon = Daemon::start(&node, &[]);
        let lazy: Vec<_> = (0..3).map(|_| node.mount(&case.image.name, &[])).collect();
        assert_eq!(lazy[0].read("lib/a.so").unwrap(), case.source.read("lib/a.so"));
        let keeper = status(&node)["daemon"]["keeper_pid"].as_i64().unwrap();
        let sleeps = || Ok(is_asleep(&daemon, keeper));
        process::wait_until("rest while it is lazy", PATIENCE, sleeps).unwrap();
        // Now it is complete, and checked.
        case.source.assert_shown(lazy[1].root());
        let verified = || status(&node)["mounts"][0]["layers"][0]["verified"] == true;
        process::wait_until("the check", PATIENCE, || Ok(verified())).unwrap();
        process::wait_until("rest when it is complete", PATIENCE, sleeps).unwrap();
        let layers = fs::read_dir(node.store("layers")).unwrap().map(|dir| dir.unwrap().path().join("data"));
        let [data] = &layers.collect::<Vec<_>>()[..] else { panic!("not one layer") };
        // By one that has not read it yet, so that it reads the store.
        let again = node.mount(&case.image.name, &[]);
        for mount in [&lazy[2], &again] {
            case.source.assert_shown(mount.root());
            process::wait_until("rest after a read", PATIENCE, sleeps).unwrap();
            // That it had no turn for a moment is no rest.
            process::wait_until("the store's pages to go", PATIENCE, || Ok(cached(data) == 0))
                .unwrap_or_else(|e| panic!("{driver}: {e}"));
        }
    }
}

/// At this rate the first step is paid for in half an hour: after it nothing more is asked for.
#[test]
fn the_background_keeps_to_its_rate() {
    let case = Case::new();
    let node = Node::new();
    let file = node.path("hoist.toml");
    fs::write(&file, "background = \"1K\"\n").unwrap();
    let daemon = Daemon::start(&node, &["--config", file.to_str().unwrap()]);
    let _mount = node.mount(&case.image.name, &[]);
    case.wait_for_a_request();
    let keeper = status(&node)["daemon"]["keeper_pid"].as_i64().unwrap();
    let rests =
        || Ok(is_asleep(&daemon, keeper) && status(&node)["mounts"][0]["layers"][0]["present_bytes"] != 0);
    process::wait_until("rest after the first step", PATIENCE, rests).unwrap();
    let asked = case.image.proxy.log().iter().filter(|r| r.path.contains(&case.layer)).count();
    let layer = &status(&node)["mounts"][0]["layers"][0];
    let here = layer["present_bytes"].as_u64().unwrap();
    assert!(asked <= 2 && here * 2 < layer["total_bytes"].as_u64().unwrap(), "{asked} requests: {layer}");
}

/// Of a layer that the daemon has not read yet, by what an earlier one left in the store.
#[test]
fn what_is_here_is_told_before_anything_is_read() {
    let case = Case::new();
    let node = Node::new();
    let told = [true, false].map(|reads| {
        let _daemon = Daemon::start(&node, &[]);
        let mount = node.mount(&case.image.name, &["--background", "off"]);
        if reads {
            assert!(mount.read("lib/d.so").unwrap() == case.source.read("lib/d.so"));
        }
        let layer = &status(&node)["mounts"][0]["layers"][0];
        ["present_bytes", "total_bytes"].map(|what| count(layer, what))
    });
    let [[here, total], [later, again]] = told;
    assert!(0 < here && here <= later && later < total && total == again, "{told:?}");
}

/// What one mount is to have is passed on; what a daemon has for all is said not to count.
#[test]
fn a_client_s_background_counts_and_its_timeout_does_not() {
    let case = Case::new();
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let point = node.path("point");
    fs::create_dir(&point).unwrap();
    let options = ["mount", "--background", "on", "--read-timeout", "5s"];
    let args = [&options[..], &[&case.image.name, point.to_str().unwrap()]].concat();
    let output = node.hoist(&args).output().unwrap();
    assert!(
        output.status.success() && stderr(&output).contains("not used: --read-timeout:"),
        "{}",
        stderr(&output)
    );
    let complete = || Ok(status(&node)["mounts"][0]["layers"][0]["complete"] == true);
    process::wait_until("all of the layer", PATIENCE, complete).unwrap();
    node.says(&["unmount", point.to_str().unwrap()]);
}

/// Of an image that is here whole nobody takes the server's place: the record goes with the mount.
#[test]
fn a_mount_whose_server_died_is_forgotten_with_it() {
    let case = Case::new();
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let pulled = node.hoist(&["pull", "--store-limit", "1G", &case.image.name]).output().unwrap();
    assert!(
        pulled.status.success() && stderr(&pulled).contains("not used: --store-limit:"),
        "{}",
        stderr(&pulled)
    );
    let mount = node.mount(&case.image.name, &["--no-daemon"]);
    let [server] = node.servers()[..] else { panic!("not one serves") };
    kill_process(Pid::from_raw(server).unwrap(), Signal::KILL).unwrap();
    case.source.assert_shown(mount.root());
    node.says(&["unmount", mount.root().to_str().unwrap()]);
    assert_eq!(mounted(&node), 0);
}

/// It is killed while its request waits for the registry.
#[test]
fn a_client_killed_in_the_middle_of_a_mount_leaves_none() {
    let case = Case::new();
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    case.image.proxy.inject(Fault::new("GET /v2/", When::Always, FaultKind::Hang));
    let point = node.path("point");
    fs::create_dir(&point).unwrap();
    let mut client = node.hoist(&["mount", &case.image.name, point.to_str().unwrap()]).spawn().unwrap();
    process::wait_until("the request", PATIENCE, || Ok(!case.image.proxy.log().is_empty())).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    case.image.proxy.clear_faults();
    // Its place is free again.
    process::wait_until("the next mount", PATIENCE, || {
        Ok(node.hoist(&["mount", &case.image.name, point.to_str().unwrap()]).output()?.status.success())
    })
    .unwrap();
    case.source.assert_shown(&point);
    assert_eq!(mounted(&node), 1);
    node.says(&["unmount", point.to_str().unwrap()]);
}

/// An image with a shell.
fn programs() -> Published {
    let dir = tempfile::tempdir().unwrap();
    let (root, tar) = (dir.path().join("root"), dir.path().join("layer.tar"));
    common::make_rootfs(&root);
    common::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
    let layout = Builder::new(dir.path().join("layout")).unwrap();
    let layout = layout.layer(&tar, Compression::Gzip(6)).unwrap();
    let layout = layout.config("Env", json!(["PATH=/bin"])).write("v1").unwrap();
    Published::indexed(&layout.directory)
}

#[test]
fn it_serves_what_a_client_runs() {
    let image = programs();
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let stats = node.path("run.json");
    let run = ["run", "--rm", "--stats", stats.to_str().unwrap(), &image.name, "sh", "-c", "id -u; exit 7"];
    let output = node.hoist(&run).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(output.stdout, b"0\n");
    let stats: Value = serde_json::from_slice(&fs::read(stats).unwrap()).unwrap();
    assert!(count(&stats, "demand_stalls") > 0, "{stats}");
    assert_eq!(mounted(&node), 0);
    assert_eq!(fs::read_dir(node.store("containers")).unwrap().count(), 0);
    node.says(&["run", "--name", "kept", &image.name, "touch", "/tmp/x"]);
    assert!(node.store("containers/kept/upper/tmp/x").exists());
    node.says(&["rm", "kept"]);
}

/// A container that reads of its image once it is told to by a pipe, and then ends with `code`.
fn waiting(node: &Node, image: &Published, code: u8) -> (Child, PathBuf) {
    let pipe = node.path("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    let volume = format!("{}:/pipe", pipe.display());
    let script =
        format!("echo up; read line </pipe; cat /etc/passwd >/dev/null && echo still read; exit {code}");
    let mut run = node.hoist(&["run", "--rm", "-v", &volume, &image.name, "sh", "-c", &script]);
    let mut client = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    client.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    (client, pipe)
}

/// The container runs on, and when it has ended nothing is left of it.
#[test]
fn a_killed_run_is_cleaned_up_once_its_container_is_gone() {
    let image = programs();
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let (mut client, pipe) = waiting(&node, &image, 0);
    let mut out = client.stdout.take().unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(mounted(&node), 1);
    fs::write(&pipe, "go on\n").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "still read\n");
    wait_until_nothing_is_mounted(&node);
    process::wait_until("the container's folder to go", PATIENCE, || {
        Ok(fs::read_dir(node.store("containers"))?.next().is_none())
    })
    .unwrap();
}

/// Whoever was to remove a container with `--rm` was killed, the daemon too: the next daemon does, or the next `hoist run`, once
/// it has ended and not before.
#[test]
fn what_a_killed_run_and_a_killed_daemon_left_goes_with_the_next() {
    let image = programs();
    for by_daemon in [true, false] {
        let node = Node::new();
        let mut daemon = Daemon::start(&node, &[]);
        let (mut client, pipe) = waiting(&node, &image, 0);
        let mut out = client.stdout.take().unwrap();
        let listed = || -> serde_json::Value { serde_json::from_str(&node.says(&["ps", "--json"])).unwrap() };
        let program = listed()[0]["pid"].as_i64().unwrap();
        let is_there = || fs::read_dir(node.store("containers")).unwrap().next().is_some();
        client.kill().unwrap();
        client.wait().unwrap();
        daemon.signal(Signal::KILL);
        daemon.wait();
        let next =
            |node: &Node| drop(node.says(&["run", "--rm", "--no-daemon", &image.name, "sh", "-c", "exit 0"]));
        match by_daemon {
            true => Daemon::start(&node, &[]).end(),
            false => next(&node),
        }
        assert!(Path::new(&format!("/proc/{program}")).exists() && is_there(), "it runs on");
        fs::write(&pipe, "go on\n").unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "still read\n");
        let runs = || listed().as_array().unwrap().iter().any(|one| one["state"] == "running");
        process::wait_until("its end", PATIENCE, || Ok(!runs())).unwrap();
        assert!(is_there(), "who only looks removes nothing");
        let _daemon = match by_daemon {
            true => Some(Daemon::start(&node, &[])),
            false => {
                next(&node);
                assert!(!is_there());
                None
            }
        };
        process::wait_until("the container's folder to go", PATIENCE, || Ok(!is_there())).unwrap();
        wait_until_nothing_is_mounted(&node);
    }
}

#[test]
fn what_a_run_killed_before_its_mount_left_goes_with_the_next() {
    let image = programs();
    let node = Node::new();
    let layer = image.layers().remove(0);
    image.proxy.inject(Fault::new(format!("/blobs/{layer}"), When::Always, FaultKind::Hang));
    let run = ["run", "--rm", "--trust-index", "none", &image.name, "sh", "-c", "exit 7"];
    let containers = node.store("containers");
    let left = || fs::read_dir(&containers).map_or(0, Iterator::count);
    let mut client = node.hoist(&run).spawn().unwrap();
    process::wait_until("the layer's request", PATIENCE, || {
        Ok(image.proxy.log().iter().any(|request| request.path.contains(&layer)))
    })
    .unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(left(), 1);
    image.proxy.clear_faults();
    let ran = node.hoist(&run).output().unwrap();
    assert_eq!(ran.status.code(), Some(7), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(left(), 0);
}

/// Replaced or gone for good, it costs the program neither its exit code nor its container's end.
#[test]
fn a_daemon_that_goes_away_is_nothing_to_the_program() {
    let image = programs();
    for again in [true, false] {
        let node = Node::new();
        let daemon = Daemon::start(&node, &[]);
        let (client, pipe) = waiting(&node, &image, 6);
        drop(daemon);
        let _new = again.then(|| Daemon::start(&node, &[]));
        fs::write(&pipe, "go on\n").unwrap();
        let ended = client.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(6), "{}", stderr(&ended));
        assert_eq!(String::from_utf8_lossy(&ended.stdout), "still read\n");
        assert_eq!(stderr(&ended), "");
        wait_until_nothing_is_mounted(&node);
        assert!(fs::read_dir(node.store("containers")).unwrap().next().is_none());
    }
}

#[test]
fn another_version_is_refused_by_both_sides() {
    let node = Node::new();
    let daemon = Daemon::start(&node, &[]);
    let said = say(&daemon, b"{\"protocol\":99,\"version\":\"9.9\",\"request\":{\"fly\":{}}}\n");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((said[0]["protocol"].as_u64(), &said[0]["version"]), (Some(1), &json!(version)));
    let text = said[1]["failed"]["text"].as_str().unwrap();
    let wanted = format!(
        "hoist 9.9 speaks version 99 of the daemon's protocol, the running daemon is hoist {version} and speaks version 1"
    );
    assert!(text.contains(&wanted) && text.contains("--no-daemon"), "{text}");

    // A daemon of the future, as far as a client of today gets.
    drop(daemon);
    let future = std::os::unix::net::UnixListener::bind(node.store("hoist.sock")).unwrap();
    let greeting = std::thread::spawn(move || {
        let (mut stream, _) = future.accept().unwrap();
        let greeting = json!({"protocol": 99, "version": "9.9", "pid": 1, "mount_namespace": 1});
        writeln!(stream, "{greeting}").unwrap();
    });
    let said = node.fails(&["images"]);
    assert!(said.contains("hoist 9.9 and speaks version 99") && said.contains("hint: "), "{said}");
    greeting.join().unwrap();
    node.says(&["images", "--no-daemon"]);
    // And nobody at all: the socket is a dead daemon's.
    node.says(&["images"]);
}

#[test]
fn other_users_are_refused() {
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    // Even where somebody has opened the way to the socket.
    for dir in [node.path(""), node.store("")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(daemon.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let program = node.path("hoist");
    fs::copy(env!("CARGO_BIN_EXE_hoist"), &program).unwrap();
    let mut images = Command::new(program);
    images.arg("images").env("HOIST_ROOT", node.store("")).uid(65534).gid(65534);
    let output = images.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("serves root and user 0, not user 65534"), "{}", stderr(&output));
    daemon.wait_said("a client was refused");
}

/// Whatever comes, it answers with an error or hangs up, and goes on.
#[test]
fn garbage_on_the_socket_is_refused() {
    let node = Node::new();
    let daemon = Daemon::start(&node, &[]);
    let call = |request: Value| format!("{}\n", json!({"protocol": 1, "version": "1", "request": request}));
    let cases: [(Vec<u8>, &str); 8] = [
        (b"\n".to_vec(), "no request of hoist's"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "no request of hoist's"),
        (node::tree::noise(1, 3000), "no request of hoist's"),
        (vec![b'['; 1 << 20], "at most 65536 bytes"),
        (b"{\"protocol\":1".to_vec(), "half a request"),
        (call(json!({"fly": {}})).into(), "knows no such request: unknown variant `fly`"),
        (call(json!({"remove": {"image": "x", "really": true}})).into(), "unknown field `really`"),
        (
            call(json!({"run": {"container": "../x", "remove": true, "runtime": "/bin/true"}})).into(),
            "resolved no image",
        ),
    ];
    for (bytes, wanted) in cases {
        let said = say(&daemon, &bytes);
        let text = said.last().unwrap()["failed"]["text"].as_str().unwrap_or_else(|| panic!("{said:?}"));
        assert!(text.contains(wanted), "wanted {wanted:?}: {text}");
    }
    // Several requests, one after another; and silence.
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    lines.next().unwrap().unwrap();
    for _ in 0..3 {
        stream.write_all(call(json!("ping")).as_bytes()).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "{\"done\":null}");
    }
    assert_eq!(say(&daemon, b"").len(), 1);
    assert_eq!(mounted(&node), 0);
}

#[test]
fn a_store_has_one_daemon() {
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    let said = node.fails(&["daemon"]);
    let pid = daemon.pid().as_raw_nonzero();
    assert!(said.contains(&format!("process {pid} is the daemon of the store")), "{said}");
    let beside = Node::new();
    drop(Daemon::start(&beside, &[]));
    daemon.end();
    assert!(!daemon.socket().exists());
    Daemon::start(&node, &[]).end();
}

#[test]
fn a_wrong_configuration_is_no_start() {
    let node = Node::new();
    let file = node.path("hoist.toml");
    fs::write(&file, "restore = true\nmetrics = 9464\n").unwrap();
    let said = node.fails(&["daemon", "--config", file.to_str().unwrap()]);
    let wanted = format!(
        "error: {}:2: metrics can't be 9464; it is \"ADDRESS:PORT\", as \"127.0.0.1:9464\", or \"unix:/PATH\"\n",
        file.display()
    );
    assert_eq!(said, wanted);
    let said = node.fails(&["daemon", "--config", "/no/such/file"]);
    assert!(said.contains("reading the configuration /no/such/file"), "{said}");
}

/// HTTP on a unix socket, as a scraper has it.
#[test]
fn a_reload_changes_what_it_can_and_says_what_it_cannot() {
    let case = Case::new();
    let node = Node::new();
    let (file, socket) = (node.path("hoist.toml"), node.path("metrics.sock"));
    let store = format!("root = {:?}\n", node.store(""));
    fs::write(&file, format!("{store}log = \"info\"\n")).unwrap();
    let mut daemon = Daemon::start(&node, &["--config", file.to_str().unwrap()]);
    let mount = node.mount(&case.image.name, &[]);

    let changed =
        format!("metrics = \"unix:{}\"\ntrust_index = \"none\"\nread_timeout = \"5s\"\n", socket.display());
    fs::write(&file, format!("{store}log = \"info,hoist=debug\"\n{changed}")).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_said("the configuration was read again");
    assert!(daemon.said().contains("does not change read_timeout"), "{}", daemon.said());
    assert!(!daemon.said().contains("does not change root"), "{}", daemon.said());
    let told = metrics(&socket);
    assert!(
        told.contains("\nhoist_mounts 1\n") && told.contains("hoist_layers{state=\"lazy\"} 1\n"),
        "{told}"
    );

    // The client may not trust more than the daemon does now.
    case.source.assert_shown(mount.root());
    let told = metrics(&socket);
    assert!(!told.contains("\nhoist_demand_bytes_total 0\n"), "{told}");
    assert!(!told.contains("hoist_demand_wait_seconds_count 0\n"), "{told}");
    let inspected = node.says(&["inspect", "--json", &case.image.name]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["lazy"], false, "{inspected}");

    fs::write(&file, "metrics = 1\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_said("hoist.toml:1: metrics can't be 1");
    assert!(metrics(&socket).contains("\nhoist_mounts 1\n"));
}

/// A service manager, as far as it is told things.
struct Manager(std::os::unix::net::UnixDatagram);

impl Manager {
    fn new(path: &Path) -> Manager {
        let socket = std::os::unix::net::UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager(socket)
    }

    fn hears(&self) -> String {
        let mut bytes = [0; 1000];
        let length = self.0.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }
}

#[test]
fn the_service_manager_is_told() {
    let node = Node::new();
    let (socket, file) = (node.path("notify"), node.path("hoist.toml"));
    let manager = Manager::new(&socket);
    fs::write(&file, "log = \"info\"\n").unwrap();
    let mut command = node.hoist(&["daemon", "--log-format", "json", "--config", file.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &socket);
    let mut daemon = Daemon::launch(&node, command);
    assert!(manager.hears().contains("READY=1"));
    daemon.signal(Signal::HUP);
    let reloading = manager.hears();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(manager.hears().contains("READY=1"));
    daemon.signal(Signal::TERM);
    assert!(manager.hears().contains("STOPPING=1"));
    assert!(daemon.wait().success());
    for line in daemon.said().lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?} is no JSON"));
        assert!(event["level"].is_string() && event["message"].is_string(), "{event}");
    }
}

/// As after a reboot, the registry being gone: what was mounted is mounted again, from disk alone.
#[test]
fn mounts_come_back_without_the_registry() {
    let case = Case::new();
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    let mount = node.mount(&case.image.name, &[]);
    let other = node.mount(&case.image.name, &[]);
    let read = mount.read("etc/motd").unwrap();
    other.unmount();
    daemon.end();
    assert_eq!(fs::read_dir(mount.root()).unwrap().count(), 0, "what is not in use is unmounted");

    case.image.proxy.reset();
    case.image.proxy.inject(Fault::new("", When::Always, FaultKind::Hang));
    let mut daemon = Daemon::start(&node, &[]);
    assert!(daemon.said().contains("mounted as before"), "{}", daemon.said());
    assert_eq!(mounted(&node), 1);
    assert_eq!(mount.read("etc/motd").unwrap(), read);
    assert!(case.image.proxy.log().is_empty(), "{:?}", case.image.proxy.log());
    node.says(&["unmount", mount.root().to_str().unwrap()]);
    daemon.end();
    let _daemon = Daemon::start(&node, &[]);
    assert_eq!(mounted(&node), 0, "it was unmounted for good");
}

/// Somebody is in the mount when the daemon is asked to end: it goes, and the mount is served on.
#[test]
fn mounts_in_use_are_handed_over_at_the_end() {
    let case = Case::new();
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    let mount = node.mount(&case.image.name, &[]);
    let mut user = Command::new("sleep").arg("1000").current_dir(mount.root()).spawn().unwrap();
    daemon.signal(Signal::TERM);
    daemon.wait();
    assert!(daemon.said().contains("handing the mounts over"), "{}", daemon.said());
    case.source.assert_shown(mount.root());
    let told = status(&node);
    assert!(told["daemon"].is_null() && told["mounts"][0]["filler_pid"].is_number(), "{told}");
    let again = Daemon::start(&node, &[]);
    let told = status(&node);
    assert_eq!(told["mounts"].as_array().unwrap().len(), 1, "{told}");
    assert_ne!(told["mounts"][0]["filler_pid"], again.pid().as_raw_nonzero().get());
    user.kill().unwrap();
    user.wait().unwrap();
    node.says(&["unmount", mount.root().to_str().unwrap()]);
    wait_until_nothing_is_mounted(&node);
}

/// What was to be handed over goes before anybody has taken it: then the daemon ends, and whoever was to come.
#[test]
fn a_handover_of_what_has_gone_meanwhile_comes_to_an_end() {
    let case = Case::new();
    let node = Node::new();
    // Its successor is whatever stands in its place: here nothing that is ever ready.
    let (program, never_ready) = (node.path("program"), node.path("never-ready"));
    fs::copy(node::user::program(), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["daemon", "--log", "info"]).env("HOIST_ROOT", node.store("")).stdin(Stdio::null());
    let mut daemon = Daemon::launch(&node, command);
    daemon.wait_said("ready");
    let started = node.path("started");
    let script =
        format!("#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 1000000\n", started.display());
    fs::write(&never_ready, script).unwrap();
    fs::set_permissions(&never_ready, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&never_ready, &program).unwrap();

    let mount = node.mount(&case.image.name, &["--driver", "erofs"]);
    let mut user = Command::new("sleep").arg("1000000").current_dir(mount.root()).spawn().unwrap();
    daemon.signal(Signal::TERM);
    process::wait_until("a successor", PATIENCE, || Ok(started.exists())).unwrap();
    let successor: i32 = fs::read_to_string(&started).unwrap().trim().parse().unwrap();
    user.kill().unwrap();
    user.wait().unwrap();
    node::unmount_below(mount.root());
    let ended = process::wait_until("the daemon's end", PATIENCE, || Ok(daemon.has_ended())).and_then(|()| {
        let path = format!("/proc/{successor}");
        process::wait_until("the successor's end", PATIENCE, || Ok(!Path::new(&path).exists()))
    });
    if ended.is_err() {
        let _ = kill_process(Pid::from_raw(successor).unwrap(), Signal::KILL);
    }
    ended.unwrap();
    assert!(daemon.said().contains("handing the mounts over"), "{}", daemon.said());
    assert!(!node.logs().contains("error"), "{}", node.logs());
}

/// Readers notice nothing, and the next daemon has its place.
#[test]
fn a_killed_daemon_leaves_its_mounts_to_a_successor() {
    let case = Case::new();
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    let mount = node.mount(&case.image.name, &[]);
    case.hang();
    let path = mount.root().join("lib/d.so");
    let reader = std::thread::spawn(move || fs::read(path));
    case.wait_for_a_request();
    daemon.signal(Signal::KILL);
    daemon.wait();
    case.image.proxy.clear_faults();
    assert_eq!(reader.join().unwrap().unwrap(), case.source.read("lib/d.so"));
    let (file, socket) = (node.path("hoist.toml"), node.path("metrics.sock"));
    fs::write(&file, format!("metrics = \"unix:{}\"\n", socket.display())).unwrap();
    let again = Daemon::start(&node, &["--config", file.to_str().unwrap()]);
    case.source.assert_shown(mount.root());

    // The next daemon shows it, and serves the same layers beside it.
    let told = status(&node);
    let [served] = &told["mounts"].as_array().unwrap()[..] else { panic!("not one") };
    let successor = served["filler_pid"].as_i64().unwrap();
    assert_ne!(successor, i64::from(again.pid().as_raw_nonzero().get()));
    assert_eq!(served["layers"][0]["present_bytes"], served["layers"][0]["total_bytes"], "{served}");
    let told = metrics(&socket);
    assert!(told.contains("\nhoist_mounts 0\n") && told.contains("\nhoist_other_mounts 1\n"), "{told}");
    let beside = node.mount(&case.image.name, &[]);
    case.source.assert_shown(beside.root());
    let told = metrics(&socket);
    assert!(told.contains("\nhoist_mounts 1\n") && told.contains("\nhoist_other_mounts 1\n"), "{told}");
    drop(beside);
    node.says(&["unmount", mount.root().to_str().unwrap()]);
    wait_until_nothing_is_mounted(&node);
}

/// Both are killed: the mount is lost, said to be, and made anew.
#[test]
fn a_mount_that_nobody_guarded_is_replaced() {
    let case = Case::new();
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    let mount = node.mount(&case.image.name, &[]);
    let keeper = status(&node)["daemon"]["keeper_pid"].as_i64().unwrap();
    let keeper = Pid::from_raw(i32::try_from(keeper).unwrap()).unwrap();
    // Neither can start the other while both stand still.
    kill_process(keeper, Signal::STOP).unwrap();
    daemon.signal(Signal::STOP);
    kill_process(keeper, Signal::KILL).unwrap();
    daemon.signal(Signal::KILL);
    daemon.wait();
    process::wait_until("the keeper's end", PATIENCE, || {
        Ok(!Path::new(&format!("/proc/{}", keeper.as_raw_nonzero())).exists())
    })
    .unwrap();
    let again = Daemon::start(&node, &[]);
    assert!(again.said().contains("killed together"), "{}", again.said());
    assert!(again.said().contains("mounted as before"), "{}", again.said());
    case.source.assert_shown(mount.root());
    node.says(&["unmount", mount.root().to_str().unwrap()]);
}

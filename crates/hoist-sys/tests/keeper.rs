//! The kernel itself is the judge: a reader of a real EROFS mount whose filler is killed must get EIO,
//! and never the zeros of a hole.
//!
//! The program under test runs itself anew, so this file has its own `main`. Needs root, `mkfs.erofs` and
//! `unshare`, and a target folder on a file system with pre-content events.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use hoist_sys::fanotify::{Answer, Group};
use hoist_sys::keeper::{Keeper, Table, main_if_asked};
use hoist_sys::mount;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const LEN: usize = 1 << 20;
/// Longer than any of this takes on a loaded machine; nothing is measured by it.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

fn main() {
    main_if_asked();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, how, dir] = &arguments[..]
        && role == "filler"
    {
        return filler(how, Path::new(dir));
    }
    let tests: [(&str, fn()); 6] = [
        ("killed_with_an_event_in_work", || killed("in_work")),
        ("killed_before_the_event_was_noted", || killed("not_noted")),
        ("killed_before_the_event_was_taken", || killed("not_taken")),
        ("a_clean_end_ends_the_keeper", clean_end),
        ("held_for_another_mount_namespace", other_namespace),
        ("not_to_be_started_by_hand", by_hand),
    ];
    let (mut passed, mut failed) = (0, 0);
    let wanted = arguments.get(1).filter(|a| !a.starts_with('-')).map_or("", String::as_str);
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(wanted)) {
        let good = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("{name}: {}", if good { "ok" } else { "FAILED" });
        *(if good { &mut passed } else { &mut failed }) += 1;
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}

/// The process to be killed. Tells its steps on standard output, and goes on by lines on standard input.
fn filler(how: &str, dir: &Path) {
    let say = |what: &str| {
        println!("{what}");
        io::stdout().flush().unwrap();
    };
    let mut told = io::stdin().lines();
    let data = File::options().read(true).write(true).open(dir.join("data")).unwrap();
    let group = Group::new().unwrap();
    group.mark(&data).unwrap();
    let table = Table::new().unwrap();
    let target = dir.join("mount point");
    let keeper = Keeper::spawn(&group, &table, &[&target]).unwrap();
    mount::erofs(&dir.join("image"), &[&dir.join("data")], &target).unwrap();
    say(&keeper.id().to_string());
    let mut buffer = vec![0; 4096];
    match how {
        "in_work" => {
            let event = group.read_events(&mut buffer).unwrap().remove(0);
            let _slot = table.begin(event.fd.as_raw_fd());
            say("asked");
            told.next();
        }
        "not_noted" => {
            let _events = group.read_events(&mut buffer).unwrap();
            say("asked");
            told.next();
        }
        "not_taken" => {
            poll(&mut [PollFd::new(&group, PollFlags::IN)], None).unwrap();
            say("asked");
            told.next();
        }
        "clean" => {
            thread::scope(|scope| {
                let serve = scope.spawn(|| {
                    // Fills and allows until woken.
                    loop {
                        let events = group.read_events(&mut buffer).unwrap();
                        if events.is_empty() {
                            return;
                        }
                        for event in events {
                            let slot = table.begin(event.fd.as_raw_fd());
                            data.write_all_at(&fs::read(dir.join("whole")).unwrap(), 0).unwrap();
                            group.respond(event.fd.as_raw_fd(), Answer::Allow).unwrap();
                            slot.end();
                        }
                    }
                });
                told.next();
                group.wake().unwrap();
                serve.join().unwrap();
            });
            mount::unmount(&target, false).unwrap();
            let id = Pid::from_raw(keeper.id().cast_signed()).unwrap();
            keeper.end();
            assert!(pidfd_open(id, PidfdFlags::empty()).is_err(), "the keeper was not reaped");
            say("ended");
        }
        _ => panic!("{how}?"),
    }
}

fn content() -> Vec<u8> {
    (0..LEN).map(|i| (i / 4096 % 255) as u8 + 1).collect()
}

/// A filler at work on a mount of one file of which no byte is there.
struct Scene {
    dir: tempfile::TempDir,
    filler: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    keeper: Pid,
    keeper_life: OwnedFd,
}

impl Scene {
    fn new(how: &str) -> Scene {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("tree")).unwrap();
        fs::create_dir(path("mount point")).unwrap();
        fs::write(path("tree/file"), content()).unwrap();
        let made = Command::new("mkfs.erofs")
            .args(["--quiet", "--chunksize=4096"])
            .arg(format!("--blobdev={}", path("data").display()))
            .args([path("image"), path("tree")])
            .stdout(Stdio::null())
            .status()
            .expect("mkfs.erofs is needed");
        assert!(made.success());
        // mkfs.erofs stores chunks that are alike only once.
        fs::copy(path("data"), path("whole")).unwrap();
        let data = File::options().write(true).open(path("data")).unwrap();
        let len = data.metadata().unwrap().len();
        data.set_len(0).unwrap();
        data.set_len(len).unwrap();
        let mut filler = Command::new("/proc/self/exe")
            .args(["filler", how])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (filler.stdin.take().unwrap(), filler.stdout.take().unwrap());
        let mut from = BufReader::new(from);
        let keeper = Pid::from_raw(line(&mut from).parse().unwrap()).unwrap();
        let keeper_life = pidfd_open(keeper, PidfdFlags::empty()).unwrap();
        Scene { dir, filler, to, from, keeper, keeper_life }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("mount point")
    }

    /// Reads somewhere in the mounted file.
    fn read(&self, offset: usize) -> JoinHandle<io::Result<Vec<u8>>> {
        let path = self.target().join("file");
        thread::spawn(move || {
            let mut bytes = vec![0; 4096];
            File::open(path)?.read_exact_at(&mut bytes, offset as u64)?;
            Ok(bytes)
        })
    }

    fn keeper_runs(&self, wait: &Timespec) -> bool {
        poll(&mut [PollFd::new(&self.keeper_life, PollFlags::IN)], Some(wait)).unwrap() == 0
    }

    fn kill_filler(&mut self) {
        self.filler.kill().unwrap();
        self.filler.wait().unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.filler.kill();
        let _ = self.filler.wait();
        let _ = mount::unmount(&self.target(), true);
    }
}

fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    assert!(line.ends_with('\n'), "ended early, saying {line:?}");
    line.trim().to_owned()
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[track_caller]
fn assert_eio(reader: JoinHandle<io::Result<Vec<u8>>>) {
    let error = reader.join().unwrap().map(|b| b[0]).expect_err("read what was not there");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
}

fn killed(how: &str) {
    let mut scene = Scene::new(how);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(scene.keeper, signal).unwrap();
    }
    let first = scene.read(0);
    assert_eq!(line(&mut scene.from), "asked");
    scene.kill_filler();
    assert_eio(first);
    for offset in [0, 4096, LEN / 2, LEN - 4096] {
        assert_eio(scene.read(offset));
    }
    assert!(scene.keeper_runs(&NOW));
    mount::unmount(&scene.target(), false).unwrap();
    assert!(!scene.keeper_runs(&PATIENCE), "the keeper outlives the mount");
}

fn clean_end() {
    let mut scene = Scene::new("clean");
    assert!(scene.read(0).join().unwrap().unwrap() == content()[..4096]);
    assert!(scene.read(LEN - 4096).join().unwrap().unwrap() == content()[LEN - 4096..]);
    assert!(scene.keeper_runs(&NOW));
    writeln!(scene.to, "end").unwrap();
    assert_eq!(line(&mut scene.from), "ended");
    assert!(scene.filler.wait().unwrap().success());
    assert!(!scene.keeper_runs(&NOW));
}

fn other_namespace() {
    let mut scene = Scene::new("not_taken");
    let mut container = Command::new("unshare")
        .args(["--mount", "--propagation=private", "sh", "-c", "echo up; read x; cat file; echo $?; read x"])
        .current_dir(scene.target())
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare is needed");
    let mut from = BufReader::new(container.stdout.take().unwrap());
    assert_eq!(line(&mut from), "up");
    let first = scene.read(0);
    assert_eq!(line(&mut scene.from), "asked");
    scene.kill_filler();
    assert_eio(first);
    // Gone here, yet not there.
    mount::unmount(&scene.target(), false).unwrap();
    let two_looks = Timespec { tv_sec: 2, tv_nsec: 0 };
    assert!(scene.keeper_runs(&two_looks), "the keeper left while a container has the mount");
    let mut to = container.stdin.take().unwrap();
    writeln!(to, "go").unwrap();
    assert_eq!(line(&mut from), "1");
    drop(to);
    let mut said = String::new();
    container.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    container.wait().unwrap();
    assert!(said.contains("Input/output error"), "{said}");
    assert!(!scene.keeper_runs(&PATIENCE), "the keeper outlives the mount");
}

fn by_hand() {
    use std::os::unix::process::CommandExt;
    for arguments in [&[][..], &["3", "4", "5", "6", "0"], &["0", "1", "2", "2", "0"], &["x", "/"]] {
        let ended = Command::new("/proc/self/exe").arg0("hoist-keeper").args(arguments).output().unwrap();
        assert_eq!(ended.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&ended.stderr).contains("not by hand"));
    }
}

//! The kernel itself is the judge: a reader of a real EROFS mount whose filler is killed must get the right
//! bytes from its successor, or EIO where there can be none, and never the zeros of a hole.
//!
//! The program under test runs itself anew, so this file has its own `main`. Needs root, `mkfs.erofs` and
//! `unshare`, and a target folder on a file system with pre-content events.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hoist_sys::fanotify::{Answer, Group};
use hoist_sys::keeper::{
    Asked, Inheritance, Keeper, Received, Start, Table, Told, main_if_asked, refuse_for,
};
use hoist_sys::mount;
use hoist_sys::presence::{Presence, Snapshot};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, getpid, kill_process, pidfd_getfd, pidfd_open,
};

const LEN: usize = 1 << 20;
/// Longer than any of this takes on a loaded machine; nothing is measured by it.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// Fillers that are killed one after the other.
const LIVES: u64 = 30;

fn main() {
    let inheritance = main_if_asked();
    let arguments: Vec<String> = std::env::args().collect();
    match (&arguments[..], inheritance) {
        ([_, role, how, dir], Some(inheritance)) if role == "successor" => {
            return successor(how, Path::new(dir), inheritance);
        }
        ([_, role, how, dir], None) if role == "filler" => return filler(how, Path::new(dir)),
        _ => {}
    }
    let tests: [(&str, fn()); 17] = [
        ("killed_with_an_event_in_work", || taken_over("in_work serve")),
        ("killed_between_reading_and_noting_the_event", || taken_over("not_noted serve")),
        ("killed_before_the_event_was_taken", || taken_over("not_taken serve")),
        ("killed_again_and_again", killed_again_and_again),
        ("the_keeper_is_replaced_and_then_the_filler", keeper_killed),
        ("stopped_for_a_while", stopped),
        ("upgraded_while_it_serves", upgraded),
        ("an_upgrade_that_comes_to_nothing", upgrade_fails),
        ("a_program_that_is_gone", || taken_over("in_work gone")),
        ("alone_killed_with_an_event_in_work", || denied("in_work alone")),
        ("alone_killed_between_reading_and_noting_the_event", || denied("not_noted alone")),
        ("alone_killed_before_the_event_was_taken", || denied("not_taken alone")),
        ("successors_that_only_die", || denied("in_work dying")),
        ("refused_by_who_has_the_descriptors", refused),
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

fn start(how: &str, dir: &Path) -> Start {
    let own = std::env::current_exe().unwrap();
    let program = match how {
        "alone" => None,
        "gone" => Some(dir.join("no such program")),
        _ => Some(own),
    };
    let log = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let arguments = ["successor", how].map(Into::into).into_iter().chain([dir.into()]).collect();
    Start { program, arguments, log }
}

/// Tells its steps on standard output, and goes on by lines on standard input.
fn say(what: &str) {
    println!("{what}");
    io::stdout().flush().unwrap();
}

/// The process to be killed.
fn filler(how: &str, dir: &Path) {
    let (how, then) = how.split_once(' ').unwrap();
    let mut told = io::stdin().lines();
    let data = File::options().read(true).write(true).open(dir.join("data")).unwrap();
    let group = Arc::new(Group::new().unwrap());
    group.mark(&data).unwrap();
    let table = Table::new().unwrap();
    let target = dir.join("mount point");
    let heard = |told| match told {
        Told::Replaced(pid) => say(&format!("replaced {pid}")),
        Told::Superseded => std::process::exit(0),
        Told::UpgradeFailed => say("failed"),
        Told::Unguarded(e) => say(&format!("unguarded: {e}")),
    };
    let keeper = Keeper::spawn(Some(Arc::clone(&group)), table.clone(), start(then, dir), heard).unwrap();
    // The data file was opened before it was marked: what is written through this raises no events.
    keeper.deposit("data", data.as_fd()).unwrap();
    let mut presence = Presence::before(&target).unwrap();
    keeper.watch(&presence).unwrap();
    mount::erofs(&dir.join("image"), &[&dir.join("data")], &target).unwrap();
    presence.look(&Snapshot::take().unwrap());
    keeper.watch(&presence).unwrap();
    say(&keeper.id().to_string());
    match how {
        "in_work" => {
            let mut taken = Vec::new();
            while taken.is_empty() {
                group.wait().unwrap();
                table.take(&group, |asked| taken.push(asked)).unwrap();
            }
            say("asked");
            told.next();
        }
        "not_noted" => {
            group.wait().unwrap();
            let received = table.receive(&group).unwrap();
            assert!(!received.is_empty());
            say("asked");
            told.next();
        }
        "not_taken" => {
            group.wait().unwrap();
            say("asked");
            told.next();
        }
        "serve" => {
            let (serving, serving_table, dir) = (Arc::clone(&group), table.clone(), dir.to_owned());
            let serve = thread::spawn(move || serve(&serving, &serving_table, &data, &dir, unharmed));
            loop {
                let line = told.next().unwrap().unwrap();
                match line.split_once(' ') {
                    Some(("upgrade", program)) => keeper.upgrade(Path::new(program)).unwrap(),
                    _ => break,
                }
            }
            mount::unmount(&target, false).unwrap();
            group.wake().unwrap();
            serve.join().unwrap();
            let id = Pid::from_raw(keeper.id().cast_signed()).unwrap();
            keeper.end();
            assert!(pidfd_open(id, PidfdFlags::empty()).is_err(), "the keeper was not reaped");
            say("ended");
        }
        _ => panic!("{how}?"),
    }
}

fn fill(asked: Asked, data: &File, dir: &Path) {
    let whole = File::open(dir.join("whole")).unwrap();
    let (start, end) = asked.range();
    let (start, end) = (start / 4096 * 4096, end.min(whole.metadata().unwrap().len()));
    let mut bytes = vec![0; (end - start) as usize];
    whole.read_exact_at(&mut bytes, start).unwrap();
    data.write_all_at(&bytes, start).unwrap();
    // The reader may have been killed.
    let _ = asked.answer(Answer::Allow);
}

/// Fills and allows until woken.
fn serve(
    group: &Arc<Group>,
    table: &Table,
    data: &File,
    dir: &Path,
    before: impl FnMut(Received<'_>) -> Option<Received<'_>>,
) {
    let mut before = before;
    loop {
        group.wait().unwrap();
        let received = table.receive(group).unwrap();
        if received.is_empty() {
            return;
        }
        if let Some(received) = before(received) {
            received.note(|asked| fill(asked, data, dir));
        }
    }
}

fn unharmed(received: Received<'_>) -> Option<Received<'_>> {
    Some(received)
}

/// Serves until the mount is gone, or dies at a chosen instant.
fn successor(how: &str, dir: &Path, inheritance: Inheritance) {
    let die = || kill_process(getpid(), Signal::KILL).unwrap();
    let lives = File::options().create(true).append(true).open(dir.join("lives")).unwrap();
    (&lives).write_all(b".").unwrap();
    let life = lives.metadata().unwrap().len();
    fs::write(dir.join("program"), std::env::current_exe().unwrap().to_str().unwrap()).unwrap();
    if how == "dying" {
        die();
    }
    let (group, table) = (Arc::clone(inheritance.group().unwrap()), inheritance.table().clone());
    let mut presence = inheritance.mounts()[0].clone();
    let superseded = |told| {
        if matches!(told, Told::Superseded) {
            std::process::exit(0)
        }
    };
    let (keeper, orphans) = inheritance.take_over(start(how, dir), superseded).unwrap();
    let data = File::from(keeper.deposited("data").unwrap().unwrap());
    assert!(orphans.iter().all(|asked| !asked.is_exposed()));
    let stage = if how == "mortal" && life < LIVES { life % 4 } else { 4 };
    if stage == 0 {
        die();
    }
    for asked in orphans {
        fill(asked, &data, dir);
    }
    if stage == 1 {
        die();
    }
    let serving = {
        let (group, dir) = (Arc::clone(&group), dir.to_owned());
        thread::spawn(move || {
            let mut left = life % 5;
            serve(&group, &table, &data, &dir, |received| {
                left = left.saturating_sub(1);
                match stage {
                    2 if left == 0 => {
                        die();
                        None
                    }
                    3 if left == 0 => {
                        // With all that is asked at this moment, and none of it answered.
                        let mut taken = Vec::new();
                        received.note(|asked| taken.push(asked));
                        while {
                            let n = taken.len();
                            table.take(&group, |asked| taken.push(asked)).unwrap();
                            taken.len() > n
                        } {}
                        die();
                        None
                    }
                    _ => Some(received),
                }
            });
        })
    };
    let table = mount::table().unwrap();
    let a_while = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    loop {
        let now = Snapshot::take().unwrap();
        presence.look(&now);
        if !presence.is_alive(&now) {
            break;
        }
        poll(&mut [PollFd::new(&table, PollFlags::PRI)], Some(&a_while)).unwrap();
    }
    group.wake().unwrap();
    serving.join().unwrap();
    keeper.end();
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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn target(&self) -> PathBuf {
        self.path("mount point")
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

    #[track_caller]
    fn assert_right(&self, reader: JoinHandle<io::Result<Vec<u8>>>, offset: usize) {
        let bytes = reader.join().unwrap().unwrap_or_else(|e| panic!("{e}; {}", self.log()));
        assert!(bytes == content()[offset..offset + 4096], "wrong bytes: {}; {}", bytes[0], self.log());
    }

    /// Reads the whole file from its end to its start, by several readers at once.
    #[track_caller]
    fn assert_all_right(&self) {
        let offsets: Vec<usize> = (0..LEN / 4096).rev().map(|page| page * 4096).collect();
        for some in offsets.chunks(8) {
            let readers: Vec<_> = some.iter().map(|&offset| (self.read(offset), offset)).collect();
            readers.into_iter().for_each(|(reader, offset)| self.assert_right(reader, offset));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn keeper_runs(&self, wait: &Timespec) -> bool {
        poll(&mut [PollFd::new(&self.keeper_life, PollFlags::IN)], Some(wait)).unwrap() == 0
    }

    fn kill_filler(&mut self) {
        self.filler.kill().unwrap();
        self.filler.wait().unwrap();
    }

    /// A descriptor that the filler has of something of this kind.
    fn copy_of(&self, kind: &str) -> OwnedFd {
        let mut fds =
            fs::read_dir(format!("/proc/{}/fd", self.filler.id())).unwrap().map(|e| e.unwrap().path());
        let is_one = |path: &PathBuf| fs::read_link(path).unwrap().to_str().unwrap().contains(kind);
        let number = fds.find(is_one).unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        let life = pidfd_open(Pid::from_child(&self.filler), PidfdFlags::empty()).unwrap();
        pidfd_getfd(&life, number, PidfdGetfdFlags::empty()).unwrap()
    }

    fn unmount_and_wait(&self) {
        mount::unmount(&self.target(), false).unwrap();
        assert!(!self.keeper_runs(&PATIENCE), "the keeper outlives the mount: {}", self.log());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.filler.kill();
        let _ = self.filler.wait();
        let _ = mount::unmount(&self.target(), true);
        self.keeper_runs(&PATIENCE);
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

fn taken_over(how: &str) {
    let mut scene = Scene::new(how);
    let first = scene.read(0);
    assert_eq!(line(&mut scene.from), "asked");
    scene.kill_filler();
    scene.assert_right(first, 0);
    scene.assert_all_right();
    assert!(scene.keeper_runs(&NOW));
    scene.unmount_and_wait();
}

/// Each successor kills itself: with an orphan in hand, with an event read and not noted, noted and not
/// answered, or after some of them.
fn killed_again_and_again() {
    let mut scene = Scene::new("in_work mortal");
    let first = scene.read(0);
    assert_eq!(line(&mut scene.from), "asked");
    scene.kill_filler();
    scene.assert_right(first, 0);
    scene.assert_all_right();
    assert_eq!(fs::metadata(scene.path("lives")).unwrap().len(), LIVES, "{}", scene.log());
    scene.unmount_and_wait();
}

fn keeper_killed() {
    let mut scene = Scene::new("serve serve");
    scene.assert_right(scene.read(0), 0);
    kill_process(scene.keeper, Signal::KILL).unwrap();
    let replaced = line(&mut scene.from);
    let pid = replaced.strip_prefix("replaced ").unwrap_or_else(|| panic!("{replaced}"));
    scene.keeper = Pid::from_raw(pid.parse().unwrap()).unwrap();
    scene.keeper_life = pidfd_open(scene.keeper, PidfdFlags::empty()).unwrap();
    scene.kill_filler();
    scene.assert_all_right();
    scene.unmount_and_wait();
}

fn stopped() {
    let mut scene = Scene::new("serve serve");
    let filler = Pid::from_child(&scene.filler);
    kill_process(filler, Signal::STOP).unwrap();
    let reader = scene.read(8192);
    let target = scene.target();
    // The reader is in the kernel by then: it has the file open.
    while fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .all(|e| fs::read_link(e.path()).map_or(true, |path| !path.starts_with(&target)))
    {
        thread::yield_now();
    }
    assert!(!reader.is_finished());
    kill_process(filler, Signal::CONT).unwrap();
    scene.assert_right(reader, 8192);
    writeln!(scene.to, "end").unwrap();
    assert_eq!(line(&mut scene.from), "ended");
}

fn upgraded() {
    let mut scene = Scene::new("serve serve");
    scene.assert_right(scene.read(0), 0);
    let program = scene.path("another version");
    fs::copy("/proc/self/exe", &program).unwrap();
    let readers: Vec<_> = (1..64).map(|page| (scene.read(page * 4096), page * 4096)).collect();
    writeln!(scene.to, "upgrade {}", program.display()).unwrap();
    readers.into_iter().for_each(|(reader, offset)| scene.assert_right(reader, offset));
    assert!(scene.filler.wait().unwrap().success());
    scene.assert_all_right();
    assert_eq!(fs::read_to_string(scene.path("program")).unwrap(), program.to_str().unwrap());
    scene.unmount_and_wait();
}

fn upgrade_fails() {
    let mut scene = Scene::new("serve serve");
    writeln!(scene.to, "upgrade /bin/false").unwrap();
    assert_eq!(line(&mut scene.from), "failed");
    scene.assert_right(scene.read(4096), 4096);
    // The program that failed is not the one to start when it matters.
    scene.kill_filler();
    scene.assert_all_right();
    scene.unmount_and_wait();
}

fn denied(how: &str) {
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
    assert!(scene.log().contains("fail with EIO"), "{}", scene.log());
    assert!(scene.keeper_runs(&NOW));
    scene.unmount_and_wait();
}

/// Both are killed together, and who has copies of what they had, as a service manager has, can start no keeper.
fn refused() {
    let mut scene = Scene::new("in_work alone");
    let first = scene.read(0);
    assert_eq!(line(&mut scene.from), "asked");
    let table = Table::of(scene.copy_of("hoist-events").into()).unwrap();
    let group = Arc::new(Group::of(scene.copy_of("fanotify")).unwrap());
    // Neither can start the other while both stand still.
    kill_process(scene.keeper, Signal::STOP).unwrap();
    kill_process(Pid::from_child(&scene.filler), Signal::STOP).unwrap();
    kill_process(scene.keeper, Signal::KILL).unwrap();
    scene.kill_filler();
    assert!(!scene.keeper_runs(&PATIENCE));
    assert!(!first.is_finished(), "a read ended though nobody could answer it");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let refusing = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                refuse_for(Duration::from_millis(20), Some(&group), &table, &BTreeMap::new());
            }
        });
        assert_eio(first);
        for offset in [0, 4096, LEN / 2, LEN - 4096] {
            assert_eio(scene.read(offset));
        }
        over.store(true, Ordering::Release);
        refusing.join().unwrap();
    });
    mount::unmount(&scene.target(), false).unwrap();
}

fn clean_end() {
    let mut scene = Scene::new("serve serve");
    scene.assert_right(scene.read(0), 0);
    scene.assert_right(scene.read(LEN - 4096), LEN - 4096);
    assert!(scene.keeper_runs(&NOW));
    writeln!(scene.to, "end").unwrap();
    assert_eq!(line(&mut scene.from), "ended");
    assert!(scene.filler.wait().unwrap().success());
    assert!(!scene.keeper_runs(&NOW));
    assert_eq!(scene.log(), "");
}

fn other_namespace() {
    let mut scene = Scene::new("not_taken alone");
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
    for (name, arguments) in [
        ("hoist-keeper", &[][..]),
        ("hoist-keeper", &["3", "4", "5", "6", "0"]),
        ("hoist-keeper", &["0", "1", "2", "2", "0"]),
        ("hoist-keeper", &["x", "/"]),
        ("hoist-successor", &["mount"]),
    ] {
        let ended = Command::new("/proc/self/exe").arg0(name).args(arguments).output().unwrap();
        assert_eq!(ended.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&ended.stderr).contains("not by hand"), "{ended:?}");
    }
}

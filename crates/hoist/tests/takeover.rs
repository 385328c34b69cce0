//! What readers notice of dying processes: nothing, as long as filler and keeper are not killed together.

mod common;
mod node;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{Fault, FaultKind, ProxyOptions, When, process};
use node::case::{Case, PATIENCE};
use node::pids::{kill_both, kill_filler, send, the_one, wait_for_another};
use node::tree::{FILES, Source, noise};
use node::{Node, Published, drivers, user};
use rustix::process::Signal;

/// As often as the promise says (or, on an emulated machine, as `HOIST_TEST_KILLS` says), and for what differs little from it.
const KILLS: usize = 200;
const SOME_KILLS: usize = 12;

/// From now on the registry is slow.
fn slow_down(case: &Case, bytes_per_second: u64) {
    let options = ProxyOptions { rate: Some(bytes_per_second), ..ProxyOptions::default() };
    case.image.proxy.set_options(options);
}

/// Reads all files of a mount over and over, each time from the store and not from the page cache of the
/// mount, until it is told to stop and has read all of them once.
fn read_until(stop: &AtomicBool, tree: &Path, mounted: &Path) {
    let files = files(tree);
    let mut whole = false;
    while !whole || !stop.load(Ordering::Acquire) {
        for path in &files {
            let found = fs::read(mounted.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert!(found == fs::read(tree.join(path)).unwrap(), "{path} has wrong bytes");
            let file = File::open(mounted.join(path)).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        whole = true;
    }
}

/// An image of many files, behind a registry that is slow from now on.
fn slow_case() -> Case {
    let source = Source::new();
    for file in 0..60 {
        source.write(&format!("many/{file}"), &noise(100 + file, 100_000));
    }
    Case::of(source, Compression::Gzip(6))
}

/// The filler is killed again and again, each as soon as it serves, while all is read.
fn kill_while_reading(node: &Node, tree: &Path, mounted: &Path, kills: usize) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(|| read_until(&stop, tree, mounted))).collect();
        for _ in 0..kills {
            kill_filler(node);
        }
        stop.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().unwrap_or_else(|_| panic!("{}", node.logs())));
    });
    // What came before the last kill stands in the store; all of it once more.
    read_until(&AtomicBool::new(true), tree, mounted);
}

fn is_killed_while_an_image_is_read(driver: &'static str, kills: usize) {
    let case = slow_case();
    let node = Node::new().with_driver(driver);
    let mount = node.mount(&case.image.name, &[]);
    slow_down(&case, 3_000_000);
    kill_while_reading(&node, &case.source.root(), mount.root(), kills);
    case.source.assert_shown(mount.root());
}

#[test]
fn killed_again_and_again_while_an_image_is_read() {
    is_killed_while_an_image_is_read("erofs", KILLS);
}

#[test]
fn killed_again_and_again_while_an_image_is_read_through_fuse() {
    let kills = std::env::var("HOIST_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    is_killed_while_an_image_is_read("fuse", kills);
}

#[test]
fn killed_again_and_again_while_an_image_is_read_through_fuse_under_erofs() {
    is_killed_while_an_image_is_read("erofs-fuse", SOME_KILLS);
}

#[test]
fn killed_again_and_again_while_an_ordinary_user_reads() {
    const TEST: &str = "killed_again_and_again_while_an_ordinary_user_reads";
    if let Some(task) = user::task() {
        let (image, tree) = task.split_once(' ').unwrap();
        let node = Node::new();
        let mount = node.mount(image, &[]);
        return kill_while_reading(&node, Path::new(tree), mount.root(), SOME_KILLS);
    }
    let case = slow_case();
    // The user compares with it.
    common::output(Command::new("chmod").args(["-R", "a+rX"]).arg(case.source.root()));
    let above = case.source.root().parent().unwrap().to_owned();
    common::output(Command::new("chmod").arg("a+rx").arg(above));
    slow_down(&case, 3_000_000);
    let tree = case.source.root();
    user::run_test_as_user(TEST, &format!("{} {}", case.image.name, tree.display()), "");
}

#[test]
fn a_read_under_way_waits_for_the_successor() {
    drivers().into_iter().for_each(read_under_way_waits);
}

fn read_under_way_waits(driver: &'static str) {
    let case = Case::new();
    let node = Node::new().with_driver(driver);
    let mount = node.mount(&case.image.name, &[]);
    case.hang();
    let path = mount.root().join("lib/d.so");
    let reader = std::thread::spawn(move || fs::read(path));
    case.wait_for_a_request();
    // Requests that were taken are never answered; a successor's will be.
    case.image.proxy.clear_faults();
    assert!(!reader.is_finished());
    kill_filler(&node);
    assert!(reader.join().unwrap().unwrap() == case.source.read("lib/d.so"));
    case.source.assert_shown(mount.root());
}

#[test]
fn a_stopped_filler_is_waited_for() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    let filler = the_one(node.servers());
    send(filler, Signal::STOP);
    let path = mount.root().join("lib/c.so");
    let (to, from) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        to.send(()).unwrap();
        fs::read(path)
    });
    from.recv().unwrap();
    assert!(!reader.is_finished());
    send(filler, Signal::CONT);
    assert!(reader.join().unwrap().unwrap() == case.source.read("lib/c.so"));
    assert_eq!(node.servers(), [filler]);
}

/// Nobody takes its place, however long that lasts: two who answer would take each other's questions.
#[test]
fn stopped_while_an_image_is_read_nothing_is_lost() {
    drivers().into_iter().for_each(is_stopped_while_an_image_is_read);
}

fn is_stopped_while_an_image_is_read(driver: &'static str) {
    let case = slow_case();
    let node = Node::new().with_driver(driver);
    let mount = node.mount(&case.image.name, &[]);
    let servers = (node.servers(), node.keepers());
    slow_down(&case, 3_000_000);
    let (stop, tree) = (AtomicBool::new(false), case.source.root());
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let reader = |tell: mpsc::Sender<_>| {
            tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            read_until(&stop, &tree, mount.root());
        };
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let tell = tell.clone();
                scope.spawn(move || reader(tell))
            })
            .collect();
        let threads: Vec<_> = told.iter().take(2).collect();
        for _ in 0..3 {
            case.wait_for_a_request();
            let filler = the_one(node.servers());
            send(filler, Signal::STOP);
            process::wait_until("readers that wait", PATIENCE, || {
                Ok(threads.iter().all(|thread| waits_for_data(&thread.to_string())))
            })
            .unwrap();
            assert_eq!((node.servers(), node.keepers()), servers, "{driver}");
            send(filler, Signal::CONT);
        }
        stop.store(true, Ordering::Release);
        readers.into_iter().for_each(|reader| reader.join().unwrap_or_else(|_| panic!("{}", node.logs())));
    });
    case.source.assert_shown(mount.root());
    assert_eq!((node.servers(), node.keepers()), servers, "{driver}");
}

/// Does a thread of ours that does nothing but read wait (proc_pid_stat(5): states D and S)?
fn waits_for_data(thread: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with(['D', 'S'])
}

#[test]
fn a_killed_keeper_is_replaced_and_so_is_the_filler_after_it() {
    for driver in drivers() {
        let case = Case::new();
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&case.image.name, &[]);
        for _ in 0..3 {
            let keeper = the_one(node.keepers());
            send(keeper, Signal::KILL);
            wait_for_another(&node, Node::keepers, keeper);
            kill_filler(&node);
        }
        case.source.assert_shown(mount.root());
    }
}

/// What is here is served without the registry, by a successor too.
#[test]
fn a_successor_needs_no_registry_for_what_is_here() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    let file = File::open(mount.root().join("lib/a.so")).unwrap();
    case.image.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, Vec::new())));
    let before = case.image.proxy.stats().requests;
    kill_filler(&node);
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(mount.read("lib/a.so").unwrap() == case.source.read("lib/a.so"));
    assert_eq!(case.image.proxy.stats().requests, before);
}

#[test]
fn upgraded_to_another_program_under_load() {
    drivers().into_iter().for_each(is_upgraded_under_load);
}

fn is_upgraded_under_load(driver: &'static str) {
    let case = Case::new();
    let node = Node::new().with_driver(driver);
    let program = node.path("hoist");
    fs::copy(env!("CARGO_BIN_EXE_hoist"), &program).unwrap();
    let point = node.path("point");
    fs::create_dir(&point).unwrap();
    let mut mount = Command::new(&program);
    mount.env("HOIST_ROOT", node.store("")).env("HOIST_DRIVER", driver);
    mount.args(["mount", &case.image.name]).arg(&point);
    common::output(&mut mount);
    slow_down(&case, 3_000_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_until(&stop, &case.source.root(), &point));
        for _ in 0..3 {
            let before = the_one(node.servers());
            // As a package manager does: the new file takes the old one's name.
            let new = node.path("new");
            fs::copy(env!("CARGO_BIN_EXE_hoist"), &new).unwrap();
            fs::rename(&new, &program).unwrap();
            send(before, Signal::USR2);
            let after = wait_for_another(&node, Node::servers, before);
            let runs = fs::metadata(format!("/proc/{after}/exe")).unwrap();
            assert_eq!(runs.ino(), fs::metadata(&program).unwrap().ino(), "{}", node.logs());
        }
        stop.store(true, Ordering::Release);
        reader.join().unwrap();
    });
    case.source.assert_shown(&point);
    node.says(&["unmount", point.to_str().unwrap()]);
}

/// Errors and never zeros, where what a successor would serve is gone from the store.
#[test]
fn where_no_successor_can_serve_reads_fail() {
    drivers().into_iter().for_each(reads_fail_without_a_successor);
}

fn reads_fail_without_a_successor(driver: &'static str) {
    let case = Case::new();
    let node = Node::new().with_driver(driver);
    let mount = node.mount(&case.image.name, &[]);
    let first = case.source.read("etc/motd");
    // Or all would be fetched ahead.
    slow_down(&case, 3_000_000);
    assert_eq!(mount.read("etc/motd").unwrap(), first);
    let records = || fs::read_dir(node.store("mounts")).unwrap().map(|e| e.unwrap().path());
    let record = records().find(|path| path.extension().is_some_and(|e| e == "json")).unwrap();
    let aside = node.path("record");
    case.hang();
    let path = mount.root().join("lib/d.so");
    let reader = std::thread::spawn(move || fs::read(path));
    case.wait_for_a_request();
    fs::rename(&record, &aside).unwrap();
    send(the_one(node.servers()), Signal::KILL);
    let read = reader.join().unwrap();
    let read = read.map(|bytes| bytes.len()).map_err(|e| e.raw_os_error());
    assert_eq!(read, Err(Some(libc::EIO)), "{driver}: a read under way");
    case.image.proxy.clear_faults();
    let right = case.source.assert_right_or_failing(mount.root());
    assert!(right < FILES.len(), "all was there before the kill: the test shows nothing");
    assert_eq!(mount.read("etc/motd").unwrap(), first, "what was read is still in the page cache");
    assert!(node.logs().contains("fail with EIO"), "{}", node.logs());
    fs::rename(&aside, &record).unwrap();
    // The next one that is tried finds it, and serves.
    process::wait_until("a successor", PATIENCE, || Ok(mount.read("lib/a.so").is_ok())).unwrap();
    case.source.assert_shown(mount.root());
}

#[test]
fn filler_and_keeper_killed_together_are_found_out() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    let inside = File::open(mount.root().join("lib/d.so")).unwrap();
    kill_both(&node);
    let output = node.hoist(&["images"]).output().unwrap();
    let said = node::stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("killed together") && said.contains("out of service"), "{said}");
    // Nobody enters it any more, and those who are in it get errors for what is absent.
    assert_eq!(fs::read_dir(mount.root()).unwrap().count(), 0);
    let error = inside.read_exact_at(&mut [0; 4096], 1 << 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    // It is said once.
    assert_eq!(node::stderr(&node.hoist(&["images"]).output().unwrap()), "");
    // Whoever is still in it holds up nobody who mounts the image anew.
    let again = node.mount(&case.image.name, &[]);
    case.source.assert_shown(again.root());
    inside.read_exact_at(&mut [0; 4096], 2 << 20).unwrap_err();
    drop(inside);
    again.unmount();
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

/// A container goes on when the `hoist run` that started it is killed.
#[test]
fn a_container_outlives_its_hoist_run() {
    outlives_its_hoist_run("erofs");
}

#[test]
fn a_container_outlives_its_hoist_run_through_fuse() {
    outlives_its_hoist_run("fuse");
}

fn outlives_its_hoist_run(driver: &'static str) {
    let dir = tempfile::tempdir().unwrap();
    let (root, tar) = (dir.path().join("root"), dir.path().join("layer.tar"));
    common::make_rootfs(&root);
    let content = noise(7, 3_000_000);
    fs::write(root.join("late"), &content).unwrap();
    common::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
    let layout = Builder::new(dir.path().join("layout")).unwrap().layer(&tar, Compression::Gzip(6)).unwrap();
    let image = Published::indexed(&layout.write("v1").unwrap().directory);
    let node = Node::new().with_driver(driver);
    let volume = format!("{}:/out", dir.path().display());
    let script = "echo up; read x; cat /late >/out/late; touch /out/done; read x";
    let options = ["run", "--name", "lasting", "-i", "-v", &volume, &image.name, "sh", "-c", script];
    let mut command = node.hoist(&options);
    let mut run = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (run.stdin.take().unwrap(), run.stdout.take().unwrap());
    let mut up = [0; 3];
    from.read_exact(&mut up).unwrap();
    let filler = the_one(node.servers());
    assert_eq!(filler, run.id().cast_signed());
    run.kill().unwrap();
    run.wait().unwrap();
    wait_for_another(&node, Node::servers, filler);
    let said = node.fails(&["rm", "lasting"]);
    assert!(said.contains("still running"), "{said}");
    writeln!(to, "go").unwrap();
    let late = dir.path().join("late");
    process::wait_until("the container's program", PATIENCE, || Ok(dir.path().join("done").exists()))
        .unwrap();
    assert!(fs::read(&late).unwrap() == content);
    writeln!(to, "end").unwrap();
    // End of file: nothing of the container is left that could write.
    let mut rest = String::new();
    from.read_to_string(&mut rest).unwrap();
    let servers = node.servers();
    node.says(&["rm", "lasting"]);
    process::wait_until("the end of the successor", PATIENCE, || Ok(node.servers().is_empty()))
        .unwrap_or_else(|e| panic!("{e} {servers:?}{}", node.logs()));
}

/// The paths of all files below a folder.
fn files(tree: &Path) -> Vec<String> {
    let paths = hoist_testkit::walk(tree).unwrap().into_keys();
    let paths = paths.map(|path| String::from_utf8(path).unwrap().trim_start_matches('/').to_owned());
    paths.filter(|path| tree.join(path).is_file()).collect()
}

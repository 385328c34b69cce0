//! The FUSE drivers hold what the first driver holds, as root and as an ordinary user.

mod common;
mod node;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{Exceptions, FaultKind, When, compare_tree, fixtures_dir, process};
use node::case::Case;
use node::disk;
use node::pids::kill_both;
use node::tree::{FILES, wait_mended};
use node::{Mounted, Node, Published, count, user};
use rustix::process::{Pid, Signal, kill_process};

/// All but the first, which the other tests use.
fn drivers() -> Vec<&'static str> {
    node::drivers().into_iter().filter(|driver| *driver != "erofs").collect()
}

fn assert_right(mount: &Mounted) {
    let differences = compare_tree(mount.root(), &Exceptions::full()).unwrap();
    assert_eq!(differences, [""; 0], "{} differences", differences.len());
}

fn is_right_through_every_driver(format: &str) {
    let image = Published::indexed(&fixtures_dir().unwrap().join(format));
    let nodes: Vec<_> =
        drivers().into_iter().map(|driver| (driver, Node::new().with_driver(driver))).collect();
    for (driver, node) in &nodes {
        let mount = node.mount(&image.name, &[]);
        assert_right(&mount);
        let stats = mount.unmount();
        assert_eq!(stats["driver"], *driver, "{stats}");
        assert!(count(&stats, "demand_stalls") > 0, "{format} was not lazy: {stats}");
        node.says(&["pull", &image.name]);
    }
    let Published { proxy, registry, name, .. } = image;
    drop((proxy, registry));
    for (_, node) in nodes {
        assert_right(&node.mount(&name, &[]));
    }
}

#[test]
fn plain_tar() {
    is_right_through_every_driver("tar");
}

#[test]
fn gzip() {
    is_right_through_every_driver("gzip");
}

#[test]
fn gzip_of_several_members() {
    is_right_through_every_driver("gzip-multimember");
}

#[test]
fn zstd() {
    is_right_through_every_driver("zstd");
}

/// Through the set-user-id helper, in a store of the user's own, lazily and pulled.
#[test]
fn an_ordinary_user_sees_the_image() {
    if let Some(image) = user::task() {
        let node = Node::new();
        let mount = node.mount(&image, &[]);
        assert_right(&mount);
        let stats = mount.unmount();
        assert_eq!(stats["driver"], "fuse", "{stats}");
        assert!(count(&stats, "demand_stalls") > 0, "{stats}");
        node.says(&["pull", &image]);
        return assert_right(&node.mount(&image, &[]));
    }
    for format in ["tar", "gzip", "gzip-multimember", "zstd"] {
        let image = Published::indexed(&fixtures_dir().unwrap().join(format));
        user::run_test_as_user("an_ordinary_user_sees_the_image", &image.name, "");
    }
}

/// On a file system without pre-content events the next driver is taken, and who insists is told why not.
#[test]
fn the_fastest_driver_that_works_is_taken() {
    let case = Case::new();
    let dir = tempfile::tempdir().unwrap();
    process::run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(dir.path())).unwrap();
    let node = Node::with_store(&dir.path().join("store"));
    let doctor: serde_json::Value = serde_json::from_str(&node.says(&["doctor", "--json"])).unwrap();
    assert_eq!((&doctor["driver"], &doctor["can_mount"]), (&"erofs-fuse".into(), &true.into()), "{doctor}");
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    assert_eq!(mount.unmount()["driver"], "erofs-fuse");
    // Nor can EROFS be mounted on files there, so that what is whole stands on loop devices.
    node.says(&["pull", &case.image.name]);
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    assert_eq!(mount.unmount()["driver"], "erofs-fuse");
    let point = node.path("point");
    fs::create_dir(&point).unwrap();
    let said = node.fails(&["mount", "--driver", "erofs", &case.image.name, point.to_str().unwrap()]);
    assert!(said.contains("pre-content events") && said.contains("hoist doctor"), "{said}");
    node::unmount_below(dir.path());
}

/// Nothing of it has to come through FUSE: neither that nor a loop device is in its readers' way, and nobody has to live for it.
#[test]
fn what_is_whole_is_shown_by_the_kernel_alone() {
    let case = Case::new();
    let node = Node::new().with_driver("erofs-fuse");
    node.says(&["pull", &case.image.name]);
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    assert_eq!(node.keepers(), [0; 0]);
    assert_eq!(mount.unmount()["driver"], "erofs");
}

/// What came lazily, too: once it is complete and verified, the device under it reads the layer's own file, past its cache.
#[test]
fn a_layer_that_became_whole_is_read_past_fuse() {
    let case = Case::new();
    let node = Node::new().with_driver("erofs-fuse");
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    let store = fs::canonicalize(node.store("layers")).unwrap();
    let is_past = |device: fs::DirEntry| {
        let told = |what: &str| fs::read_to_string(device.path().join("loop").join(what)).unwrap_or_default();
        Path::new(told("backing_file").trim()).starts_with(&store) && told("dio").trim() == "1"
    };
    let past = || Ok(fs::read_dir("/sys/block")?.flatten().any(is_past));
    process::wait_until("a loop device over a layer's own file", Duration::from_secs(20), past).unwrap();
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    case.source.assert_shown(mount.root());
    assert_eq!(mount.unmount()["driver"], "erofs-fuse");
}

#[test]
fn damage_and_absence_are_errors_that_pass() {
    for driver in drivers() {
        for kind in [FaultKind::FlipBit(70_000), FaultKind::Status(404, vec![]), FaultKind::WrongContentRange]
        {
            let case = Case::new();
            case.inject(When::Always, kind.clone());
            let node = Node::new().with_driver(driver);
            let mount = node.mount(&case.image.name, &[]);
            let right = case.source.assert_right_or_failing(mount.root());
            assert!(right < FILES.len(), "{kind:?} had no effect");
            case.image.proxy.clear_faults();
            wait_mended(mount.root());
            case.source.assert_shown(mount.root());
        }
    }
}

#[test]
fn a_full_disk_fails_reads_until_there_is_room() {
    for driver in drivers() {
        let node = |store: &Path| Node::with_store(store).with_driver(driver);
        disk::reads_fail_until_there_is_room(&Case::new(), node);
    }
}

#[test]
fn filler_and_keeper_killed_together_leave_errors_and_never_zeros() {
    for driver in drivers() {
        let case = Case::new();
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&case.image.name, &[]);
        assert_eq!(mount.read("etc/motd").unwrap(), case.source.read("etc/motd"));
        case.hang();
        let path = mount.root().join("lib/d.so");
        let reader = std::thread::spawn(move || fs::read(path));
        case.wait_for_a_request();
        kill_both(&node);
        let failed = reader.join().unwrap().unwrap_err().raw_os_error();
        assert!(matches!(failed, Some(libc::EIO | libc::ENOTCONN | libc::ECONNABORTED)), "{failed:?}");
        for (path, _) in FILES {
            match mount.read(path) {
                Ok(bytes) => assert!(bytes == case.source.read(path), "{path} has wrong bytes"),
                Err(e) => {
                    assert!(matches!(e.raw_os_error(), Some(libc::EIO | libc::ENOTCONN)), "{path}: {e}")
                }
            }
        }
        case.image.proxy.clear_faults();
        is_told_to_be_dead(&node, &case, driver, mount.root());
        node.says(&["unmount", mount.root().to_str().unwrap()]);
        case.source.assert_shown(node.mount(&case.image.name, &[]).root());
    }
}

/// `status` says so, and who mounts over it is told what to do.
fn is_told_to_be_dead(node: &Node, case: &Case, driver: &str, target: &Path) {
    let text = node.says(&["status"]);
    assert!(
        text.contains("dead") && text.contains("hoist unmount") && !text.contains("lazy"),
        "{driver}: {text}"
    );
    let json: serde_json::Value = serde_json::from_str(&node.says(&["status", "--json"])).unwrap();
    assert_eq!(json["mounts"][0]["dead"], true, "{driver}: {json}");
    let said = node.fails(&["mount", &case.image.name, target.to_str().unwrap()]);
    assert!(said.contains("is mounted on") || said.contains("server is dead"), "{driver}: {said}");
    assert!(said.contains("unmount"), "{driver}: {said}");
}

/// Nobody has to wait for a registry to get rid of a program that reads.
#[test]
fn a_reader_that_waits_can_be_killed() {
    let case = Case::new();
    let node = Node::new().with_driver("fuse");
    let mount = node.mount(&case.image.name, &[]);
    case.hang();
    let mut reader =
        Command::new("cat").arg(mount.root().join("lib/d.so")).stdout(Stdio::null()).spawn().unwrap();
    case.wait_for_a_request();
    kill_process(Pid::from_child(&reader), Signal::KILL).unwrap();
    assert_eq!(reader.wait().unwrap().signal(), Some(libc::SIGKILL));
    case.image.proxy.clear_faults();
}

#[test]
fn many_read_at_once() {
    for driver in drivers() {
        let case = Case::new();
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&case.image.name, &[]);
        std::thread::scope(|scope| {
            for reader in 0..8 {
                let (mount, case) = (&mount, &case);
                scope.spawn(move || {
                    for turn in 0..FILES.len() {
                        let (path, length) = FILES[(turn + reader) % FILES.len()];
                        let at = length / 9 * reader;
                        let wanted = case.source.read(path);
                        let found = mount.read_at(path, at as u64, length - at).unwrap();
                        assert!(found == wanted[at..], "{path} has wrong bytes");
                    }
                });
            }
        });
    }
}

/// An image of this machine's own programs, and the folder with their tree.
fn programs() -> (tempfile::TempDir, Published) {
    let dir = tempfile::tempdir().unwrap();
    let (root, tar) = (dir.path().join("root"), dir.path().join("layer.tar"));
    common::make_rootfs(&root);
    let secret = root.join("etc/secret");
    fs::write(&secret, "for app alone\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&secret, Some(1000), Some(1001)).unwrap();
    fs::create_dir(root.join("home")).unwrap();
    std::os::unix::fs::chown(root.join("home"), Some(1000), Some(1001)).unwrap();
    common::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
    let layout = Builder::new(dir.path().join("layout")).unwrap().layer(&tar, Compression::Gzip(6)).unwrap();
    let layout = layout.config("Env", serde_json::json!(["PATH=/bin"])).write("latest").unwrap();
    let image = Published::indexed(&layout.directory);
    (dir, image)
}

/// Programs run out of the mount, their libraries mapped; and in a container over it.
#[test]
fn programs_run() {
    let (dir, image) = programs();
    let root = dir.path().join("root");
    for driver in drivers() {
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&image.name, &[]);
        let said = common::output(Command::new("chroot").arg(mount.root()).args(["/bin/cat", "/etc/group"]));
        assert_eq!(said, fs::read_to_string(root.join("etc/group")).unwrap());
        mount.unmount();
        let node = Node::new().with_driver(driver);
        let script = "echo new >/tmp/x && cat /tmp/x /etc/group";
        let said = node.says(&["run", "--rm", &image.name, "sh", "-c", script]);
        assert_eq!(said, format!("new\n{}", fs::read_to_string(root.join("etc/group")).unwrap()));
    }
}

/// As root of a user namespace: the program sees root's files, writes, and leaves nothing behind.
#[test]
fn an_ordinary_user_runs_a_container() {
    if let Some(image) = user::task() {
        let node = Node::new();
        let script = "id -u && echo new >/etc/motd && cat /etc/motd && cat /etc/group && touch /tmp/x";
        let said = node.says(&["run", "--rm", &image, "sh", "-c", script]);
        assert!(said.starts_with("0\nnew\nroot:x:0:"), "{said}");
        let stats = node.path("stats.json");
        let code = node.hoist(&[
            "run",
            "--rm",
            "--net",
            "none",
            "--stats",
            stats.to_str().unwrap(),
            &image,
            "sh",
            "-c",
            "exit 7",
        ]);
        assert_eq!({ code }.status().unwrap().code(), Some(7));
        let stats: serde_json::Value = serde_json::from_slice(&fs::read(stats).unwrap()).unwrap();
        assert_eq!(stats["driver"], "fuse");
        assert_eq!(fs::read_dir(node.store("containers")).unwrap().count(), 0);
        node.says(&["run", "--name", "kept", &image, "sh", "-c", "echo mine >/tmp/y"]);
        assert_eq!(fs::read_to_string(node.store("containers/kept/upper/tmp/y")).unwrap(), "mine\n");
        node.says(&["rm", "kept"]);
        let said = node.fails(&["run", "--rm", "-u", "app", &image, "id"]);
        return assert!(said.contains("/etc/subuid"), "{said}");
    }
    let (_dir, image) = programs();
    user::run_test_as_user("an_ordinary_user_runs_a_container", &image.name, "");
}

/// With numbers of its own the user has the container's users, and files are shown as theirs.
#[test]
fn an_ordinary_user_with_subordinate_numbers_has_users() {
    if let Some(image) = user::task() {
        let node = Node::new();
        let script = "id -u && id -G && cat /etc/secret && echo mine >/home/x && cat /home/x";
        let said = node.says(&["run", "--name", "app", "-u", "app", &image, "sh", "-c", script]);
        assert_eq!(said, "1000\n1001 44\nfor app alone\nmine\n");
        let written = fs::metadata(node.store("containers/app/upper/home/x")).unwrap();
        assert_eq!((written.uid(), written.gid()), (100_999, 101_000));
        node.says(&["rm", "app"]);
        node.says(&[
            "run",
            "-d",
            "--name",
            "web",
            "-u",
            "app",
            &image,
            "sh",
            "-c",
            "trap 'exit 3' TERM; while :; do sleep 0.05; done",
        ]);
        assert_eq!(
            node.says(&["exec", "web", "sh", "-c", "id -u; cat /etc/secret"]),
            "1000\nfor app alone\n"
        );
        assert_eq!(node.says(&["exec", "-u", "0", "web", "id", "-u"]), "0\n");
        node.says(&["stop", "web"]);
        assert!(node.says(&["ps"]).contains("exited ("));
        node.says(&["rm", "web"]);
        let said = node.says(&["run", "--rm", &image, "sh", "-c", "id -u && cat /etc/secret"]);
        return assert_eq!(said, "0\nfor app alone\n");
    }
    let (_dir, image) = programs();
    // One file for users and groups alike: the first line is read for both.
    user::run_test_as_user(
        "an_ordinary_user_with_subordinate_numbers_has_users",
        &image.name,
        "someone:1:1\nnobody:100000:65536\n",
    );
}

/// A detached mount is served on for who still has a file of it open.
#[test]
fn detached_in_use_it_is_served_on() {
    node::drivers().into_iter().for_each(is_served_on_when_detached);
}

fn is_served_on_when_detached(driver: &'static str) {
    let case = Case::new();
    let node = Node::new().with_driver(driver);
    let mount = node.mount(&case.image.name, &[]);
    let open = fs::File::open(mount.root().join("lib/c.so")).unwrap();
    // Asked to end while in use, it serves on.
    let [server] = node.servers()[..] else { panic!("{:?} serve one mount", node.servers()) };
    kill_process(Pid::from_raw(server).unwrap(), Signal::TERM).unwrap();
    assert_eq!(mount.read("lib/b.so").unwrap(), case.source.read("lib/b.so"));
    node.says(&["unmount", "--lazy", mount.root().to_str().unwrap()]);
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &open, &mut bytes).unwrap();
    assert!(bytes == case.source.read("lib/c.so"));
    drop(open);
    process::wait_until("the end of the server", Duration::from_secs(20), || Ok(node.servers().is_empty()))
        .unwrap();
}

//! A thousand mounts at once, in one daemon.

mod node;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoist_testkit::layout::Compression;
use hoist_testkit::{process, push_layout};
use node::daemon::Daemon;
use node::tree::Source;
use node::{Node, Published, REPO};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};

const IMAGES: usize = 4;
/// For what takes a loaded machine long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client of the daemon, as the commands are: to start one for each mount would cost more than the mount.
struct Client(BufReader<UnixStream>);

impl Client {
    fn new(daemon: &Daemon<'_>) -> Client {
        let mut client = Client(BufReader::new(UnixStream::connect(daemon.socket()).unwrap()));
        client.line();
        client
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    fn ask(&mut self, request: &Value) -> Value {
        let asked = json!({"protocol": 1, "version": env!("CARGO_PKG_VERSION"), "request": request});
        self.0.get_mut().write_all(format!("{asked}\n").as_bytes()).unwrap();
        loop {
            let mut line = self.line();
            assert!(line.get("failed").is_none(), "{request}: {line}");
            if let Some(done) = line.get_mut("done") {
                return done.take();
            }
        }
    }
}

fn open_files(daemon: &Daemon<'_>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero())).unwrap().count()
}

/// How many file systems are mounted below a folder.
fn mounted_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let prefix = format!("{}/", dir.display());
    table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(&prefix))).count()
}

/// Images that differ in two files of one layer, and their names.
fn images() -> (Published, Vec<Source>, Vec<String>) {
    let sources: Vec<Source> = (0..IMAGES).map(|_| Source::small()).collect();
    for (number, source) in sources.iter().enumerate() {
        source.write("etc/motd", format!("of image {number}\n").repeat(number + 1).as_bytes());
    }
    let layouts: Vec<_> =
        sources.iter().map(|source| source.layout(Compression::Gzip(6)).directory).collect();
    let image = Published::plain(&layouts[0]);
    let name = |number: usize| image.name.replace(":v1", &format!(":v{}", number + 1));
    let names: Vec<String> = (0..IMAGES).map(name).collect();
    let indexer = Node::new();
    for (number, layout) in layouts.iter().enumerate() {
        push_layout(&image.registry.host(), REPO, &format!("v{}", number + 1), layout).unwrap();
        indexer.says(&["index", "--push", &names[number]]);
    }
    (image, sources, names)
}

/// Each shows its own image, whose data nobody fetches twice; and of none is anything left.
fn mounted_at_once(driver: &'static str, count: usize) {
    let (image, sources, names) = images();
    let node = Node::new().with_driver(driver);
    let daemon = Daemon::start(&node, &[]);
    let before = open_files(&daemon);
    let points: Vec<PathBuf> = (0..count).map(|number| node.path(&format!("mounts/{number}"))).collect();
    points.iter().for_each(|point| fs::create_dir_all(point).unwrap());
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (points, names, daemon) = (&points, &names, &daemon);
            scope.spawn(move || {
                let mut client = Client::new(daemon);
                for number in (worker..count).step_by(8) {
                    let (image, target) = (&names[number % IMAGES], &points[number]);
                    let options = json!({"trust_index": "registry", "driver": driver});
                    let asked = json!({"image": image, "target": target, "stats": null, "options": options});
                    client.ask(&json!({ "mount": asked }));
                }
            });
        }
    });
    assert_eq!(mounted_below(&node.path("mounts")), count);
    let mut client = Client::new(&daemon);
    let told = client.ask(&json!("status"));
    let mounts = told["mounts"].as_array().unwrap();
    let pid = daemon.pid().as_raw_nonzero().get();
    assert!(mounts.iter().all(|m| m["filler_pid"] == pid && m["driver"] == driver), "{told}");
    assert_eq!(mounts.len(), count);
    let keepers: BTreeMap<_, _> = mounts.iter().map(|mount| (mount["keeper_pid"].as_i64(), ())).collect();
    assert_eq!(keepers.len(), 1, "{keepers:?}");
    for (number, point) in points.iter().enumerate() {
        let source = &sources[number % IMAGES];
        for file in ["etc/motd", "usr/last"] {
            assert!(fs::read(point.join(file)).unwrap() == source.read(file), "{file} of mount {number}");
        }
    }
    let (requests, few) = (image.proxy.stats().requests, 60 * IMAGES as u64);
    // Each mount asks once what its image's name means.
    assert!(requests <= count as u64 + few, "{requests} requests");
    // Half of them by the daemon, half behind its back.
    for (number, point) in points.iter().enumerate() {
        match number % 2 {
            0 => unmount(point, UnmountFlags::empty()).unwrap(),
            _ => assert_eq!(client.ask(&json!({"unmount": {"target": point, "lazy": false}})), true),
        }
    }
    let none = || Ok(client.ask(&json!("status"))["mounts"].as_array().unwrap().is_empty());
    process::wait_until("the end of all mounts", PATIENCE, none).unwrap();
    assert_eq!(mounted_below(&node.path("mounts")), 0);
    assert_eq!(fs::read_dir(node.store("mounts")).unwrap().count(), 0, "records are left");
    let gone = |pid: i64| !Path::new(&format!("/proc/{pid}")).exists();
    process::wait_until("the keeper's end", PATIENCE, || Ok(keepers.keys().flatten().all(|&pid| gone(pid))))
        .unwrap();
    // The client's connection is one more, and each layer's table may be kept for a while.
    process::wait_until("the files' end", PATIENCE, || Ok(open_files(&daemon) <= before + 40)).unwrap();
}

#[test]
fn a_thousand() {
    mounted_at_once("erofs", 1000);
}

/// Each has threads and descriptors of its own.
#[test]
fn many_through_fuse() {
    mounted_at_once("fuse", 150);
}

//! A command that is killed, by SIGKILL, as it makes one of the calls that change its store: the next one finds nothing
//! wrong, and does all of it, whichever driver shows it. (`power_cut.rs` asks the same of what reaches the disk, after every single call.)

mod common;
mod node;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use hoist_testkit::layout::Compression;
use hoist_testkit::process;
use node::tree::{Source, noise};
use node::{Node, Published, REPO};

/// Names change, bytes are written and made sure of, by these.
const CALLS: [&str; 8] =
    ["rename", "renameat2", "unlink", "unlinkat", "pwrite64", "fsync", "fdatasync", "ftruncate"];
/// At which of them each thread is killed, until there are no more.
const TIMES: [u32; 7] = [1, 2, 3, 4, 6, 9, 14];

/// Was the command killed at its `time`-th such call?
fn is_killed(node: &Node, args: &[&str], call: &str, time: u32) -> bool {
    let hoist = node.hoist(args);
    let mut strace = Command::new("strace");
    // Names that this machine has no call of are passed over.
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace=?{call}")]);
    strace.args(["-e", &format!("inject=?{call}:signal=SIGKILL:when={time}")]);
    strace.arg(hoist.get_program()).args(hoist.get_args());
    strace.envs(hoist.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let done = strace.stdin(Stdio::null()).output().expect("strace is there: `make deps` installs it");
    // It ends as what it watched does.
    let killed = done.status.signal() == Some(libc::SIGKILL);
    assert!(killed || done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    killed
}

/// Kills the command at every call in a store like `like`, and each time has `then` look at what it has left.
fn killed_at_its_calls(like: &Path, args: &[&str], then: impl Fn(&Node, &str)) -> usize {
    let mut kills = 0;
    for call in CALLS {
        for time in TIMES {
            let node = Node::new().with_driver(["erofs", "fuse", "erofs-fuse"][kills % 3]);
            process::run(Command::new("cp").arg("-a").arg(like).arg(node.store(""))).unwrap();
            if !is_killed(&node, args, call, time) {
                break;
            }
            kills += 1;
            let at = format!("{args:?} killed at {call} number {time}");
            let checked = node.hoist(&["fsck", "--json"]).output().unwrap();
            assert!(checked.status.success(), "{at}: {}", String::from_utf8_lossy(&checked.stdout));
            node.says(args);
            then(&node, &at);
            assert!(node.hoist(&["fsck"]).output().unwrap().status.success(), "{at}");
            let gone = fs::read_dir(node.store("gone")).into_iter().flatten().count();
            assert_eq!(gone, 0, "{at}: what was to go is still there");
            let left = common::output(Command::new("find").arg(node.store("")).args(["-name", ".tmp*"]));
            assert_eq!(left, "", "{at}: half a file is left");
        }
    }
    kills
}

fn layers(node: &Node) -> usize {
    fs::read_dir(node.store("layers")).unwrap().count()
}

/// Two images that have no layer in common.
fn two() -> ([Source; 2], Published, [String; 2]) {
    let sources = [Source::small(), Source::small()];
    sources[1].write("lib/a.so", &noise(77, 900_000));
    let image = Published::plain(&sources[0].layout(Compression::Gzip(6)).directory);
    let other = sources[1].layout(Compression::Zstd(3)).directory;
    hoist_testkit::push_layout(&image.registry.host(), REPO, "v2", &other).unwrap();
    let names = [image.name.clone(), image.name.replace(":v1", ":v2")];
    (sources, image, names)
}

#[test]
fn in_a_pull_that_makes_room() {
    let (sources, _image, [first, second]) = two();
    let before = Node::new();
    before.says(&["pull", &first]);
    // Enough for one of them.
    let args = ["pull", "--store-limit", "6M", &second];
    let kills = killed_at_its_calls(&before.store(""), &args, |node, at| {
        sources[1].assert_shown(node.mount(&second, &[]).root());
        assert_eq!(layers(node), 1, "{at}");
        sources[0].assert_shown(node.mount(&first, &[]).root());
    });
    assert!(kills > 12, "{kills}");
}

#[test]
fn in_making_and_publishing_an_index() {
    let (sources, _image, [first, _]) = two();
    let empty = Node::new();
    empty.make_store();
    let kills = killed_at_its_calls(&empty.store(""), &["index", "--push", &first], |node, at| {
        sources[0].assert_shown(node.mount(&first, &[]).root());
        let elsewhere = Node::new();
        let told = elsewhere.says(&["inspect", "--json", &first]);
        assert!(told.contains("\"lazy\":true") || told.contains("\"lazy\": true"), "{at}: {told}");
    });
    assert!(kills > 10, "{kills}");
}

#[test]
fn in_a_pruning() {
    let (sources, _image, [first, second]) = two();
    let before = Node::new();
    before.says(&["pull", &first]);
    before.says(&["pull", &second]);
    before.says(&["rm", &second]);
    let kills = killed_at_its_calls(&before.store(""), &["prune"], |node, at| {
        assert_eq!(layers(node), 1, "{at}");
        sources[0].assert_shown(node.mount(&first, &[]).root());
        node.says(&["pull", &second]);
        sources[1].assert_shown(node.mount(&second, &[]).root());
    });
    assert!(kills > 4, "{kills}");
}

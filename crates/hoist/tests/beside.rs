//! Several processes on one store, a daemon among them: none harms what another does or has.

mod node;

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};

use hoist_testkit::layout::Compression;
use hoist_testkit::push_layout;
use node::daemon::Daemon;
use node::tree::{FILES, Source, noise};
use node::{Node, Published, REPO, stderr};

/// Rounds of each of those who work on the store.
const ROUNDS: usize = 4;

/// Whoever finds another at something that must be done alone may say so, and nothing else.
fn works(node: &Node, args: &[&str]) {
    let output = node.hoist(args).output().unwrap();
    let said = stderr(&output);
    let is_late = said.contains("try again in a moment");
    assert!(
        output.status.success() || is_late,
        "{args:?}: {}{said}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn commands_beside_a_daemon_harm_nothing() {
    let [first, second, third] = [0, 1, 2].map(|seed| {
        let source = Source::small();
        source.write("lib/a.so", &noise(50 + seed, 700_000));
        source
    });
    let image = Published::indexed(&first.layout(Compression::Gzip(6)).directory);
    for (source, tag) in [(&second, "v2"), (&third, "v3")] {
        let layout = source.layout(Compression::Zstd(3)).directory;
        push_layout(&image.registry.host(), REPO, tag, &layout).unwrap();
    }
    let [a, b, c] = ["v1", "v2", "v3"].map(|tag| image.name.replace(":v1", &format!(":{tag}")));
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let mount = node.mount(&a, &[]);
    let over = AtomicBool::new(false);
    let rounds = |work: &dyn Fn()| (0..ROUNDS).for_each(|_| work());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                for (path, _) in FILES {
                    assert!(mount.read(path).unwrap() == first.read(path), "{path} has wrong bytes");
                    let file = File::open(mount.root().join(path)).unwrap();
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                }
            }
        });
        let working = [
            scope.spawn(|| {
                rounds(&|| {
                    works(&node, &["index", &b]);
                    works(&node, &["pin", &b]);
                    works(&node, &["unpin", &b]);
                });
            }),
            scope.spawn(|| {
                rounds(&|| {
                    works(&node, &["fsck"]);
                    works(&node, &["fsck", "--repair"]);
                });
            }),
            scope.spawn(|| {
                rounds(&|| {
                    works(&node, &["pull", "--no-daemon", &c]);
                    works(&node, &["rm", &c]);
                    works(&node, &["prune"]);
                });
            }),
            scope.spawn(|| {
                rounds(&|| {
                    let own = node.mount(&a, &["--no-daemon"]);
                    first.assert_shown(own.root());
                });
            }),
        ];
        let ended = working.map(|thread| thread.join().is_ok());
        over.store(true, Ordering::Release);
        assert!(ended.iter().all(|well| *well), "{}", node.logs());
    });
    first.assert_shown(mount.root());
    node.says(&["pull", &c]);
    for (source, name) in [(&second, &b), (&third, &c)] {
        source.assert_shown(node.mount(name, &[]).root());
    }
    let checked = node.says(&["fsck", "--json"]);
    assert!(checked.contains("\"bad_extents\":0") || checked.contains("\"bad_extents\": 0"), "{checked}");
    assert_eq!(fs::read_dir(node.store("distrusted")).unwrap().count(), 0);
}

//! A node whose registry is down, or hangs (`docs/SEMANTICS.md`, "Offline").

mod node;

use std::process::{Command, Stdio};

use hoist_testkit::layout::Compression;
use hoist_testkit::{Fault, FaultKind, When, process};
use node::case::PATIENCE;
use node::tree::Source;
use node::{Node, Published, REPO, count, stderr};

fn down(image: &Published) {
    image.proxy.inject(Fault::new("", When::Always, FaultKind::CloseAfter(0)));
}

fn hangs(image: &Published) {
    image.proxy.inject(Fault::new("", When::Always, FaultKind::Hang));
}

/// By digest nobody is asked anything; by tag once, in vain, and not for long.
#[test]
fn what_is_here_is_mounted_whatever_the_registry_does() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let by_digest = format!("{}/{REPO}@{}", image.proxy.host(), image.digest);
    for pulled in [true, false] {
        let node = Node::new();
        match pulled {
            true => drop(node.says(&["pull", &image.name])),
            false => source.assert_shown(node.mount(&image.name, &[]).root()),
        }
        for trouble in [down, hangs] {
            trouble(&image);
            image.proxy.reset();
            let mount = node.mount(&by_digest, &[]);
            source.assert_shown(mount.root());
            let stats = mount.unmount();
            assert_eq!((image.proxy.log().len(), count(&stats, "demand_bytes")), (0, 0), "{stats}");
            let mount = node.mount(&image.name, &[]);
            source.assert_shown(mount.root());
            mount.unmount();
            assert!(image.proxy.log().iter().all(|r| r.path.contains("/manifests/v1") || r.path == "/v2/"));
            image.proxy.clear_faults();
        }
    }
}

/// A read that cannot be served fails in bounded time, says why in the log, and is served when the registry
/// is back, through the same mount.
#[test]
fn reads_fail_in_time_and_succeed_when_the_registry_returns() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for trouble in [down, hangs] {
        let node = Node::new();
        let mount = node.mount(&image.name, &["--read-timeout", "1500ms"]);
        trouble(&image);
        let failed = mount.read("lib/b.so").unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::EIO), "{failed}");
        process::wait_until("a word about it", PATIENCE, || Ok(node.logs().contains("a read failed")))
            .unwrap();
        image.proxy.clear_faults();
        source.assert_shown(mount.root());
    }
}

/// What the kernel asks twice, by readahead and then by page, is one read to the program and has one time limit.
#[test]
fn a_read_has_one_time_limit_however_often_the_kernel_asks() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for driver in ["erofs", "fuse"] {
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&image.name, &["--read-timeout", "4s"]);
        mount.read("etc/motd").unwrap();
        hangs(&image);
        // A process that reads once, and nothing else meanwhile.
        let reader = Command::new("head")
            .args(["-c", "1"])
            .arg(mount.root().join("lib/d.so"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let its_own = format!(" pid={} ", reader.id());
        let read = reader.wait_with_output().unwrap();
        assert!(!read.status.success() && stderr(&read).contains("Input/output error"), "{read:?}");
        let failures = || {
            let logs = node.logs();
            logs.lines().filter(|line| line.contains("a read failed") && line.contains(&its_own)).count()
        };
        process::wait_until("a word about it", PATIENCE, || Ok(failures() > 0)).unwrap();
        image.proxy.clear_faults();
        mount.unmount();
        assert_eq!(failures(), 1, "{driver}: {}", node.logs());
    }
}

/// A dead registry costs the first read its patience, and the others next to nothing.
#[test]
fn a_dead_registry_is_not_asked_again_and_again() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    // On a slow line nothing is fetched that nobody reads.
    image.proxy.set_options(hoist_testkit::ProxyOptions { rate: Some(3_000_000), ..Default::default() });
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    // The table is here now.
    mount.read("etc/motd").unwrap();
    down(&image);
    mount.read("lib/d.so").unwrap_err();
    let mut counts = Vec::new();
    // The first file came with what was read before it.
    for file in ["lib/b.so", "lib/c.so", "lib/d.so"] {
        image.proxy.reset();
        for _ in 0..5 {
            let failed = mount.read_at(file, 1_000_000, 1).unwrap_err();
            assert_eq!(failed.raw_os_error(), Some(libc::EIO), "{failed}");
        }
        counts.push(image.proxy.stats().requests);
    }
    // One try for a range of the blob and one for a window, at each read and at the kernel's own repeat of it.
    assert!(counts.iter().all(|count| *count <= 5 * 4), "{counts:?}");
    image.proxy.clear_faults();
    source.assert_shown(mount.root());
}

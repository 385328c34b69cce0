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

/// The same where a loop device reads for who waits, and where many wait for one page: all of them wait once.
#[test]
fn many_who_wait_for_one_page_wait_once() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for driver in ["erofs", "erofs-fuse", "fuse"] {
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&image.name, &["--read-timeout", "6s"]);
        mount.read("etc/motd").unwrap();
        hangs(&image);
        let reader = || {
            Command::new("head")
                .args(["-c", "1"])
                .arg(mount.root().join("lib/d.so"))
                .stderr(Stdio::piped())
                .spawn()
        };
        let readers: Vec<_> = (0..4).map(|_| reader().unwrap()).collect();
        for reader in readers {
            let read = reader.wait_with_output().unwrap();
            assert!(!read.status.success() && stderr(&read).contains("Input/output error"), "{read:?}");
        }
        process::wait_until("a word about it", PATIENCE, || Ok(!waits(&node.logs()).is_empty())).unwrap();
        image.proxy.clear_faults();
        mount.unmount();
        let waits = waits(&node.logs());
        let first_end = waits.iter().map(|(_, end)| *end).min().unwrap();
        // Readahead asks for several ranges at once: those wait side by side. Who is asked after them has a second.
        let anew = waits.iter().filter(|(waited, end)| *waited >= 6000 && end - waited > first_end - 3000);
        assert_eq!(anew.count(), 0, "{driver}: {waits:?}\n{}", node.logs());
    }
}

/// How long each failed read waited, and when it was told to have failed: milliseconds, of the day.
fn waits(logs: &str) -> Vec<(i64, i64)> {
    let failed = logs.lines().filter(|line| line.contains("a read failed"));
    let read = failed.filter_map(|line| {
        // As `2026-11-26T09:28:41.123456Z`.
        let time = line.split_once('T')?.1.split_once('Z')?.0;
        let mut parts = time.splitn(3, ':').map(|part| part.parse::<f64>());
        let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        let end = ((hours * 60.0 + minutes) * 60.0 + seconds) * 1000.0;
        let waited = line.split_once("waited_ms=")?.1.split(' ').next()?.parse().ok()?;
        Some((waited, end as i64))
    });
    read.collect()
}

/// One request that hangs keeps nobody waiting as long as a server may be silent (20 s): what it was to bring is asked for
/// again beside it.
#[test]
fn a_request_that_hangs_is_not_waited_for() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &["--read-timeout", "15s"]);
    mount.read("etc/motd").unwrap();
    for kind in [FaultKind::Hang, FaultKind::HangAfter(10_000)] {
        image.proxy.inject(Fault::new("/blobs/", When::First(1), kind));
    }
    source.assert_shown(mount.root());
    assert!(!node.logs().contains("a read failed"), "{}", node.logs());
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

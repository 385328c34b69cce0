//! A node whose registry is down, or hangs (`docs/SEMANTICS.md`, "Offline").

mod node;

use std::net::TcpStream;
use std::process::{Command, Stdio};

use hoist_testkit::layout::Compression;
use hoist_testkit::{Fault, FaultKind, Proxy, ProxyOptions, When, process, push_layout};
use node::case::PATIENCE;
use node::daemon::Daemon;
use node::tree::Source;
use node::{Node, Published, REPO, count, stderr};
use serde_json::Value;

/// How the line begins that tells of an image whose registry could not be asked.
const ALL_HERE: &str = "note: all of it is here, verified; ";

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

/// What a mount says that must succeed, and what it took.
fn mounted(node: &Node, image: &str, expected: &Source) -> (String, Value) {
    let (point, stats) = (node.path("mnt"), node.path("stats.json"));
    std::fs::create_dir_all(&point).unwrap();
    let (at, stats_at) = (point.to_str().unwrap(), stats.to_str().unwrap());
    let output = node.hoist(&["mount", "--stats", stats_at, image, at]).output().unwrap();
    assert!(output.status.success(), "{}{}", stderr(&output), node.logs());
    expected.assert_shown(&point);
    node.says(&["unmount", at]);
    (stderr(&output), serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap())
}

/// What is here whole starts after one question in vain, and one line says so; a registry that answers again is heard.
#[test]
fn a_registry_that_is_gone_is_asked_once() {
    let (source, other) = (Source::new(), Source::small());
    let Published { mut proxy, registry, name, .. } =
        Published::plain(&source.layout(Compression::Gzip(6)).directory);
    let address = proxy.address();
    for with_daemon in [false, true] {
        push_layout(&registry.host(), REPO, "v1", &source.layout(Compression::Gzip(6)).directory).unwrap();
        let node = Node::new();
        node.says(&["pull", &name]);
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        // Where a connection breaks, which may be chance, it is asked once more.
        for (kind, most) in [(FaultKind::Hang, 1), (FaultKind::CloseAfter(0), 2)] {
            proxy.inject(Fault::new("", When::Always, kind));
            proxy.reset();
            let (said, _) = mounted(&node, &name, &source);
            assert!(said.starts_with(ALL_HERE) && said.lines().count() == 1, "{said}");
            let asked = proxy.log();
            assert!((1..=most).contains(&asked.len()), "{asked:?}");
            proxy.clear_faults();
        }
        drop(proxy);
        process::wait_until("the proxy's end", PATIENCE, || Ok(TcpStream::connect(address).is_err()))
            .unwrap();
        let (said, stats) = mounted(&node, &name, &source);
        assert!(said.starts_with(ALL_HERE) && said.lines().count() == 1, "{said}");
        assert_eq!(count(&stats, "requests"), 1, "{stats}");
        proxy = Proxy::start_on(address, registry.address(), ProxyOptions::default()).unwrap();
        assert_eq!(mounted(&node, &name, &source).0, "");
        push_layout(&registry.host(), REPO, "v1", &other.layout(Compression::Gzip(6)).directory).unwrap();
        assert!(!mounted(&node, &name, &other).0.contains("could not be asked"));
    }
}

/// Who only looks is told who is waited for, and then what is here.
#[test]
fn what_is_here_is_inspected_though_its_registry_hangs() {
    let source = Source::small();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        node.says(&["pull", &image.name]);
        hangs(&image);
        let output = node.hoist(&["inspect", "--json", &image.name]).output().unwrap();
        let said = stderr(&output);
        assert!(said.starts_with(&format!("note: waiting for {} ", image.proxy.host())), "{said}");
        assert!(said.lines().nth(1).unwrap().starts_with(ALL_HERE) && said.lines().count() == 2, "{said}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success() && told["complete"] == true, "{told}");
        image.proxy.clear_faults();
        let output = node.hoist(&["inspect", &image.name]).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", stderr(&output));
    }
}

/// A network's login page, or a proxy that is broken, answers for the registry: that is none, and what is here starts.
#[test]
fn what_is_no_manifest_is_not_believed() {
    let source = Source::new();
    let image = Published::plain(&source.layout(Compression::Gzip(6)).directory);
    let pages = [
        (
            "text/html",
            "<html>\n  <title>Log in to the \u{1b}[31mguest network</title></html>",
            "Log in to the",
        ),
        ("application/json", r#"{"error": "log in first"}"#, "log in first"),
        ("application/vnd.oci.image.manifest.v1+json", r#"{"schemaVersion": 2}"#, "schemaVersion"),
        ("application/json", "", "0 bytes"),
    ];
    for with_daemon in [false, true] {
        let node = Node::new();
        node.says(&["pull", &image.name]);
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        for (media_type, page, shown) in pages {
            image.proxy.inject(Fault::new("", When::Always, FaultKind::Answer(media_type, page.into())));
            image.proxy.reset();
            let (said, _) = mounted(&node, &image.name, &source);
            assert!(said.starts_with(ALL_HERE) && said.lines().count() == 1, "{said}");
            assert!(said.contains("what is no manifest") && said.contains(shown), "{said}");
            assert!((1..=2).contains(&image.proxy.log().len()), "{:?}", image.proxy.log());
            // Where nothing is here there is nothing to go on with.
            let empty = Node::new();
            let output = empty.hoist(&["pull", &image.name]).output().unwrap();
            let said = stderr(&output);
            assert!(!output.status.success() && said.contains("what is no manifest"), "{said}");
            assert!(said.contains(shown) && !said.contains('\u{1b}'), "{said}");
            image.proxy.clear_faults();
        }
    }
}

/// A registry that is in trouble and wants to be left alone for long is told as what it is, not as one that is silent.
#[test]
fn what_a_registry_wishes_is_said() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for all_here in [true, false] {
        let node = Node::new();
        match all_here {
            true => drop(node.says(&["pull", &image.name])),
            false => drop(node.mount(&image.name, &[]).read("etc/motd").unwrap()),
        }
        let headers = vec![("retry-after".to_owned(), "300".to_owned())];
        image.proxy.inject(Fault::new("", When::Always, FaultKind::Status(503, headers)));
        let point = node.path("mnt");
        std::fs::create_dir_all(&point).unwrap();
        let output = node.hoist(&["mount", &image.name, point.to_str().unwrap()]).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success() && said.lines().count() == 1, "{said}");
        assert!(said.contains("answered 503") && said.contains("asked again after 300s"), "{said}");
        node.says(&["unmount", point.to_str().unwrap()]);
        image.proxy.clear_faults();
    }
}

/// The same of what is here in part: it is said that the rest can't be had.
#[test]
fn what_is_here_in_part_is_said_to_be() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        node.mount(&image.name, &[]).read("etc/motd").unwrap();
        down(&image);
        let point = node.path("mnt");
        std::fs::create_dir(&point).unwrap();
        let output = node.hoist(&["mount", &image.name, point.to_str().unwrap()]).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success() && said.lines().count() == 1, "{said}{}", node.logs());
        assert!(said.starts_with("note: ") && said.contains("what is missing can't be read"), "{said}");
        node.says(&["unmount", point.to_str().unwrap()]);
        image.proxy.clear_faults();
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
    image.proxy.set_options(ProxyOptions { rate: Some(3_000_000), ..Default::default() });
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

//! `hoist why` and `hoist top`: what a mount did, told by whoever serves it, with and without a daemon, by
//! every driver, while it lives and after its end.

mod node;

use std::time::Duration;

use hoist_testkit::layout::Compression;
use hoist_testkit::{Fault, FaultKind, Proxy, ProxyOptions, When, fixtures_dir, process};
use node::daemon::Daemon;
use node::tree::Source;
use node::{Node, Published, REPO, count, stderr};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

fn why(node: &Node, of: &str) -> Value {
    serde_json::from_str(&node.says(&["why", "--json", of])).unwrap()
}

/// Waits until what `hoist why` tells of the mount is so.
fn wait_for(node: &Node, of: &str, is: impl Fn(&Value) -> bool) -> Value {
    let mut told = Value::Null;
    let waited = process::wait_until("what is told of a mount", Duration::from_secs(20), || {
        told = why(node, of);
        Ok(is(&told["mount"]))
    });
    assert!(waited.is_ok(), "{told:#}");
    told
}

/// What lives is told, though another was mounted there in the same second, and has ended.
#[test]
fn a_living_mount_is_told_before_one_that_has_ended() {
    let image = Published::indexed(&Source::new().layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let point = tempfile::tempdir().unwrap();
    let point = point.path().to_str().unwrap();
    for driver in ["fuse", "erofs", "fuse", "erofs"] {
        node.says(&["mount", "--driver", driver, &image.name, point]);
        let told = why(&node, point);
        node.says(&["unmount", point]);
        assert_eq!(
            (&told["mount"]["driver"], &told["mount"]["ended"]),
            (&json!(driver), &Value::Null),
            "{told:#}"
        );
    }
}

/// A read that waits is told by the file's name, with who served it, whatever the driver.
#[test]
fn slow_reads_are_told_by_every_driver() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for driver in ["erofs", "erofs-fuse", "fuse"] {
        image.proxy.set_options(ProxyOptions { delay: Duration::from_millis(600), rate: Some(4_000_000) });
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&image.name, &[]);
        assert!(mount.read("lib/d.so").unwrap() == source.read("lib/d.so"));
        let point = mount.root().to_str().unwrap().to_owned();
        let told = wait_for(&node, &point, |mount| mount["slowest"][0]["file"] == "/lib/d.so");
        let mounted = &told["mount"];
        assert_eq!((&mounted["driver"], &mounted["lazy"]), (&json!(driver), &json!(true)), "{told:#}");
        let slowest = &mounted["slowest"][0];
        assert!(count(slowest, "waited_ms") >= 600 && count(slowest, "requests") > 0, "{slowest:#}");
        assert_eq!(slowest["from"], json!([image.proxy.host()]));
        // There is no other server. More may have come between the looks at the two.
        let from_there = count(&mounted["sources"][image.proxy.host()], "bytes");
        assert!(from_there > 0 && from_there <= count(mounted, "wire_bytes"), "{told:#}");
        assert!(
            node.logs().contains("a read was slow") && node.logs().contains("/lib/d.so"),
            "{}",
            node.logs()
        );
        let stats = mount.unmount();
        let ended = why(&node, &point)["mount"].clone();
        assert!(ended["ended"].is_u64(), "{ended:#}");
        assert_eq!(count(&ended, "demand_bytes"), count(&stats, "demand_bytes"), "{ended:#}");
        // What was fetched ahead may still have been on its way.
        for field in ["wire_bytes", "requests"] {
            assert!(count(&ended, field) >= count(&stats, field), "{ended:#} {stats:#}");
        }
        assert_eq!(count(&ended, "stalls"), count(&stats, "demand_stalls"));
        // By the image's name too, for people.
        let text = node.says(&["why", &image.name]);
        assert!(text.contains("/lib/d.so") && text.contains(&image.proxy.host()), "{text}");
        assert!(
            text.contains("lazy: a published index is trusted") && text.contains("would be lazy"),
            "{text}"
        );
    }
}

/// Which mirror failed, and which served.
#[test]
fn a_mirror_s_failures_are_told() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let mirror = Proxy::start(image.registry.address(), ProxyOptions::default()).unwrap();
    let node = Node::new();
    let config = node.mirrored(&image, &mirror);
    let _daemon = Daemon::start(&node, &["--config", config.to_str().unwrap()]);
    let mount = node.mount(&image.name, &[]);
    mirror.inject(Fault::new(format!("GET /v2/{REPO}/blobs"), When::Always, FaultKind::Status(503, vec![])));
    assert!(mount.read("lib/d.so").unwrap() == source.read("lib/d.so"));
    let point = mount.root().to_str().unwrap().to_owned();
    let is_troubled = |read: &Value| !read["trouble"].as_array().unwrap().is_empty();
    let told = wait_for(&node, &point, |mount| mount["slowest"].as_array().unwrap().iter().any(is_troubled));
    let sources = &told["mount"]["sources"];
    assert!(count(&sources[mirror.host()], "failures") > 0, "{sources:#}");
    assert!(sources[mirror.host()]["last_failure"].as_str().unwrap().contains("503"), "{sources:#}");
    assert!(count(&sources[image.proxy.host()], "bytes") > 2_000_000 / 2, "{sources:#}");
    let reads = told["mount"]["slowest"].as_array().unwrap();
    let troubled = reads.iter().find(|read| is_troubled(read)).unwrap();
    assert!(troubled["trouble"][0].as_str().unwrap().starts_with(&mirror.host()), "{troubled:#}");
    assert_eq!(troubled["from"], json!([image.proxy.host()]), "{troubled:#}");
}

#[test]
fn what_was_not_lazy_is_told_and_why() {
    let source = Source::small();
    let layout = source.layout(Compression::Gzip(6)).directory;
    let plain = Published::plain(&layout);
    let node = Node::new();
    drop(node.mount(&plain.name, &[]));
    let told = why(&node, &plain.name);
    assert_eq!(told["mount"]["lazy"], false, "{told:#}");
    assert!(told["mount"]["why"].as_str().unwrap().contains("no index is published beside it"), "{told:#}");
    assert!(told["image"]["why"].as_str().unwrap().contains("nothing is left to fetch"), "{told:#}");

    let indexed = Published::indexed(&layout);
    let node = Node::new();
    drop(node.mount(&indexed.name, &["--trust-index", "none"]));
    let told = why(&node, &indexed.digest);
    assert!(
        told["mount"]["why"].as_str().unwrap().contains("--trust-index=none trusts nothing but whole layers"),
        "{told:#}"
    );

    // An index that could not be asked for.
    let node = Node::new();
    let denied = FaultKind::Status(500, vec![]);
    indexed.proxy.inject(Fault::new(indexed.index_tag(), When::Always, denied.clone()));
    indexed.proxy.inject(Fault::new("referrers", When::Always, denied));
    drop(node.mount(&indexed.name, &[]));
    let told = why(&node, &indexed.name);
    let said = told["mount"]["why"].as_str().unwrap();
    assert!(said.contains("looking for a published index failed") && said.contains("500"), "{told:#}");
    let said = node.fails(&["why", "no-such-thing:1"]);
    assert!(said.contains("nothing is known of"), "{said}");
}

/// Reads that failed come first, with the reason.
#[test]
fn failed_reads_are_told() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    for driver in ["erofs", "fuse"] {
        image.proxy.set_options(ProxyOptions { rate: Some(4_000_000), ..ProxyOptions::default() });
        let node = Node::new().with_driver(driver);
        let mount = node.mount(&image.name, &["--read-timeout", "1s"]);
        mount.read("etc/motd").unwrap();
        image.proxy.inject(Fault::new("", When::Always, FaultKind::Hang));
        mount.read("lib/d.so").unwrap_err();
        let point = mount.root().to_str().unwrap().to_owned();
        let told = wait_for(&node, &point, |mount| mount["slowest"][0]["failed"].is_string());
        assert!(count(&told["mount"], "failed") > 0, "{told:#}");
        let first = &told["mount"]["slowest"][0];
        assert_eq!((&first["file"], first["failed"].is_string()), (&json!("/lib/d.so"), true), "{first:#}");
        assert!(node.logs().contains("a read failed"), "{}", node.logs());
        image.proxy.clear_faults();
        drop(mount);
    }
}

/// Killed and taken over, a mount's history goes on.
#[test]
fn a_successor_goes_on_with_what_was_written() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    image.proxy.set_options(ProxyOptions { rate: Some(4_000_000), ..ProxyOptions::default() });
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("lib/a.so").unwrap() == source.read("lib/a.so"));
    let point = mount.root().to_str().unwrap().to_owned();
    let before = wait_for(&node, &point, |mount| count(mount, "stalls") > 0)["mount"].clone();
    let [filler] = node.servers()[..] else { panic!("no one serves") };
    rustix::process::kill_process(Pid::from_raw(filler).unwrap(), Signal::KILL).unwrap();
    assert!(mount.read("lib/d.so").unwrap() == source.read("lib/d.so"));
    let stalls = count(&before, "stalls");
    let after = wait_for(&node, &point, |mount| count(mount, "stalls") > stalls)["mount"].clone();
    for field in ["id", "why", "since", "seconds_to_mount"] {
        assert_eq!(after[field], before[field], "{after:#}");
    }
    assert!(count(&after, "wire_bytes") > count(&before, "wire_bytes"), "{after:#}");
}

/// A line of JSON a moment, the same with a daemon and without.
#[test]
fn top_tells_what_the_mounts_do() {
    let source = Source::new();
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    image.proxy.set_options(ProxyOptions { rate: Some(4_000_000), ..ProxyOptions::default() });
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let nothing: Value = serde_json::from_str(&node.says(&["top", "--json", "-n", "1"])).unwrap();
        assert_eq!(nothing["mounts"], json!([]));
        let mount = node.mount(&image.name, &[]);
        let point = mount.root().to_str().unwrap().to_owned();
        wait_for(&node, &point, |mount| mount["id"].is_string());
        let top = node.hoist(&["top", "--json", "-n", "6", "--interval", "500ms"]);
        let watching = std::thread::spawn(move || {
            let mut top = top;
            top.output().unwrap()
        });
        assert!(mount.read("lib/c.so").unwrap() == source.read("lib/c.so"));
        let output = watching.join().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let lines = String::from_utf8(output.stdout).unwrap();
        let moments: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(moments.len(), 6);
        let last = &moments[5]["mounts"][0];
        assert_eq!((&last["image"], &last["target"]), (&json!(image.name), &json!(point)), "{last:#}");
        assert!(count(last, "stalls") > 0 && count(last, "reads") >= count(last, "stalls"), "{last:#}");
        let wire = count(last, "wire_bytes");
        assert!(wire > 1_000_000 && count(last, "present_bytes") >= 3_000_000, "{last:#}");
        assert!(moments.iter().any(|moment| count(&moment["mounts"][0], "wire_bytes_per_second") > 0));
        assert_eq!(moments[5]["sources"][0]["source"], json!(image.proxy.host()));
        assert_eq!(moments[5]["slowest"][0]["file"], json!("/lib/c.so"), "{:#}", moments[5]);
        let text = node.says(&["top", "-n", "1"]);
        assert!(text.contains("MOUNT") && text.contains(&image.proxy.host()), "{text}");
        // One look has no rates.
        assert!(!text.contains("B/s") && text.contains(" - "), "{text}");
        assert!(text.contains("/lib/c.so") && !text.contains('\x1b'), "{text}");
    }
}

/// A reason that several layers have is told once, beside no wide table.
#[test]
fn what_holds_for_several_layers_is_told_once() {
    let node = Node::new();
    node.make_store();
    let image = format!("oci:{}", fixtures_dir().unwrap().join("nydus-zran").display());
    for command in ["why", "inspect"] {
        let text = node.says(&[command, "--trust-index=none", &image]);
        let reason = "its original layers are fetched whole instead";
        assert!(text.contains(&format!("\nall 3 layers: {reason}")), "{text}");
        assert_eq!(text.matches(reason).count(), 1, "{text}");
        let table = text.lines().skip_while(|line| !line.starts_with("LAYER ")).take(4);
        assert!(table.into_iter().all(|line| line.len() < 80), "{text}");
    }
}

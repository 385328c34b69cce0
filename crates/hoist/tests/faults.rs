//! What users see when a registry, a disk or a process fails: right bytes or a clear error, nothing else.

mod node;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use hoist_format::table::Table;
use hoist_sys::shm::SharedBits;
use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{Fault, FaultKind, Proxy, ProxyOptions, When, digest, process};
use node::case::{Case, PATIENCE};
use node::daemon::Daemon;
use node::disk::{self, SmallDisk};
use node::tree::{FILES, Source, noise, wait_mended};
use node::{Node, Published, REPO};
use rustix::process::Signal;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A lazy mount and a pull go right in spite of the fault.
fn survives(case: &Case, when: When, kind: FaultKind) {
    case.inject(when, kind.clone());
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    case.image.proxy.clear_faults();
    case.inject(when, kind);
    let node = Node::new();
    node.says(&["pull", &case.image.name]);
    case.image.proxy.clear_faults();
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

/// A lazy mount gives right bytes or EIO, a pull an error that names the layer; both are well again once
/// the registry is.
fn fails_clearly(case: &Case, kind: FaultKind) {
    case.inject(When::Always, kind.clone());
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    let right = case.source.assert_right_or_failing(mount.root());
    assert!(right < FILES.len(), "{kind:?} had no effect");
    // The log says which file it was.
    process::wait_until("the log of a failed read", std::time::Duration::from_secs(20), || {
        let logs = node.logs();
        Ok(logs.contains("a read failed") && FILES.iter().any(|(file, _)| logs.contains(file)))
    })
    .unwrap();
    let other = Node::new();
    let said = other.fails(&["pull", &case.image.name]);
    // Who is refused altogether is told of the repository.
    let told = if said.contains("refused access") { REPO } else { &case.layer };
    assert!(said.contains(told), "{kind:?}: {said}");
    case.image.proxy.clear_faults();
    wait_mended(mount.root());
    case.source.assert_shown(mount.root());
    other.says(&["pull", &case.image.name]);
    case.source.assert_shown(other.mount(&case.image.name, &[]).root());
}

#[test]
fn a_flipped_bit_once_is_fetched_again() {
    for compression in [Compression::None, Compression::Gzip(6)] {
        let case = Case::of(Source::new(), compression);
        case.inject(When::First(1), FaultKind::FlipBit(70_000));
        let node = Node::new();
        let mount = node.mount(&case.image.name, &[]);
        case.source.assert_shown(mount.root());
    }
}

/// What is noted as kept for the check of the whole layer has come: a decoder that gives up early takes no more of it.
#[test]
fn what_never_came_is_not_noted_as_kept() {
    let case = Case::new();
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    // The first byte says that it is gzip.
    case.inject(When::Always, FaultKind::FlipBit(0));
    case.image.proxy.set_options(ProxyOptions { rate: Some(2_000_000), ..Default::default() });
    mount.read("lib/a.so").unwrap_err();
    let layer = fs::read_dir(node.store("layers")).unwrap().next().unwrap().unwrap().path();
    let table = Table::decode(&fs::read(layer.join("table")).unwrap()).unwrap();
    let spans = table.spans.len();
    let kept = SharedBits::open_existing(&layer.join("kept"), spans as u64).unwrap().unwrap();
    let blob = fs::read(layer.join("blob")).unwrap();
    let host = case.image.registry.host();
    let right =
        hoist_testkit::http::get(&host, &format!("/v2/{REPO}/blobs/{}", case.layer), &[]).unwrap().body;
    for span in (0..spans).filter(|&span| kept.get(span as u64)) {
        let range = table.spans.blob_range(span);
        let (start, end) = (range.start as usize + 1, range.end as usize);
        assert!(blob[start..end] == right[start..end], "span {span} of {spans}");
    }
    case.image.proxy.clear_faults();
    wait_mended(mount.root());
    case.source.assert_shown(mount.root());
}

#[test]
fn flipped_bits_are_never_shown() {
    for compression in [Compression::None, Compression::Gzip(6), Compression::Zstd(3)] {
        fails_clearly(&Case::of(Source::new(), compression), FaultKind::FlipBit(70_000));
    }
}

#[test]
fn passing_trouble_is_waited_out() {
    let case = Case::new();
    survives(&case, When::First(2), FaultKind::Status(500, vec![]));
    survives(&case, When::First(1), FaultKind::Status(429, vec![("retry-after".into(), "0".into())]));
    survives(&case, When::First(2), FaultKind::CloseAfter(100_000));
    survives(&case, When::First(1), FaultKind::ShortBody(100_000));
    survives(&case, When::First(1), FaultKind::WrongContentRange);
}

#[test]
fn a_registry_without_ranges_will_do() {
    survives(&Case::new(), When::Always, FaultKind::IgnoreRange);
}

#[test]
fn lying_ranges_fail() {
    fails_clearly(&Case::new(), FaultKind::WrongContentRange);
}

#[test]
fn a_blob_that_is_gone_fails() {
    fails_clearly(&Case::new(), FaultKind::Status(404, vec![]));
}

/// Whatever a registry refuses with, reads fail and succeed again when it does not.
#[test]
fn refusals_fail_reads_until_they_end() {
    for status in [401, 403, 416, 429, 500] {
        fails_clearly(&Case::new(), FaultKind::Status(status, vec![("retry-after".into(), "0".into())]));
    }
}

/// A blob that the registry itself holds wrongly.
#[test]
fn damage_in_the_registry_fails() {
    for damage in ["truncated", "flipped", "grown"] {
        let case = Case::new();
        let stored = case.image.registry.blob_path(&case.layer);
        let whole = fs::read(&stored).unwrap();
        let mut bytes = whole.clone();
        match damage {
            "truncated" => bytes.truncate(whole.len() / 2),
            "flipped" => bytes[whole.len() / 2] ^= 1,
            _ => bytes.extend(noise(1, 5000)),
        }
        fs::write(&stored, bytes).unwrap();
        let (lazy, pulled) = (Node::new(), Node::new());
        let mount = lazy.mount(&case.image.name, &[]);
        let right = case.source.assert_right_or_failing(mount.root());
        assert!(right < FILES.len() || damage == "grown", "{damage}: {right}");
        // Bytes after the blob's end are never asked for.
        if damage != "grown" {
            let said = pulled.fails(&["pull", &case.image.name]);
            assert!(said.contains(&case.layer), "{damage}: {said}");
        }
        fs::write(&stored, whole).unwrap();
        pulled.says(&["pull", &case.image.name]);
        case.source.assert_shown(pulled.mount(&case.image.name, &[]).root());
        wait_mended(mount.root());
        case.source.assert_shown(mount.root());
    }
}

/// Layers that were made up are refused by a pull, with the layer's name and a reason.
fn is_refused(media_type: &str, blob: &[u8], diff_id: &str, because: &str) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Builder::new(dir.path().join("layout")).unwrap();
    let layout = layout.raw_layer(media_type, blob, diff_id).unwrap().write("v1").unwrap();
    let image = Published::plain(&layout.directory);
    let node = Node::new();
    let said = node.fails(&["pull", &image.name]);
    assert!(said.contains(&layout.layers[0]) || said.contains(&layout.manifest), "{said}");
    assert!(said.contains(because), "wanted {because:?}: {said}");
    node.fails(&["index", "--push", &image.name]);
    if let Ok(mount) = node.try_mount(&image.name, &[]) {
        panic!("{because}: mounted at {}", mount.root().display());
    }
}

fn tar_of(args: &[&str], dir: &Path) -> Vec<u8> {
    let out = Command::new("tar").args(["-P", "-cf", "-", "-C"]).arg(dir).args(args).output().unwrap();
    assert!(out.status.success(), "{}", node::stderr(&out));
    out.stdout
}

fn packed(program: &str, bytes: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, bytes).unwrap();
    let out = Command::new(program).arg("-c").arg(&plain).output().unwrap();
    assert!(out.status.success(), "{}", node::stderr(&out));
    out.stdout
}

fn small_tar() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    tar_of(&["file"], dir.path())
}

#[test]
fn a_wrong_diff_id_is_refused() {
    let tar = small_tar();
    let wrong = digest::of_bytes(b"other");
    is_refused(TAR, &tar, &wrong, "diffID");
    is_refused(GZIP, &packed("gzip", &tar), &wrong, "diffID");
}

#[test]
fn blobs_that_are_not_what_they_say_are_refused() {
    let tar = small_tar();
    let id = digest::of_bytes(&tar);
    let gzip = packed("gzip", &tar);
    is_refused(GZIP, &tar, &id, "decoded");
    is_refused(ZSTD, &gzip, &id, "decoded");
    is_refused(GZIP, &gzip[..gzip.len() - 12], &id, "decoded");
    let zstd = packed("zstd", &tar);
    is_refused(ZSTD, &zstd[..zstd.len() - 8], &id, "decoded");
    is_refused("application/x-unknown", &tar, &id, "media type");
}

/// A manifest that gives a layer another length than its blob has.
#[test]
fn a_wrong_size_is_refused() {
    let source = Source::new();
    for change in [-1000, 1000] {
        let layout = source.layout(Compression::Gzip(6));
        let blobs = layout.directory.join("blobs/sha256");
        let rewrite = |path: &Path, digest: &str, edit: &dyn Fn(&mut serde_json::Value)| {
            let old = path.join(digest.trim_start_matches("sha256:"));
            let mut json = serde_json::from_slice(&fs::read(old).unwrap()).unwrap();
            edit(&mut json);
            serde_json::to_vec(&json).unwrap()
        };
        let manifest = rewrite(&blobs, &layout.manifest, &|manifest| {
            let size = manifest["layers"][0]["size"].as_i64().unwrap();
            manifest["layers"][0]["size"] = (size + change).into();
        });
        let digest = digest::of_bytes(&manifest);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), &manifest).unwrap();
        let index = rewrite(&layout.directory, "index.json", &|index| {
            index["manifests"][0]["digest"] = digest.clone().into();
            index["manifests"][0]["size"] = manifest.len().into();
        });
        fs::write(layout.directory.join("index.json"), index).unwrap();
        let image = Published::plain(&layout.directory);
        let said = Node::new().fails(&["pull", &image.name]);
        assert!(said.contains(&layout.layers[0]), "{change}: {said}");
    }
}

/// An image of a file of zeros, little as it is stored.
fn bomb(compression: Compression) -> Published {
    let dir = tempfile::tempdir().unwrap();
    fs::File::create(dir.path().join("zeros")).unwrap().set_len(256 << 20).unwrap();
    let tar = dir.path().join("layer.tar");
    process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(dir.path()).arg("zeros")).unwrap();
    let layout = Builder::new(dir.path().join("layout")).unwrap().layer(&tar, compression).unwrap();
    Published::plain(&layout.write("v1").unwrap().directory)
}

/// A daemon that unpacks one goes on serving others, within bounds of memory; killed at it, it leaves nothing behind.
#[test]
fn a_bomb_does_a_daemon_no_harm() {
    let (case, bomb) = (Case::of(Source::small(), Compression::Gzip(6)), bomb(Compression::Gzip(1)));
    let disk = SmallDisk::new(100);
    let node = Node::with_store(&disk.root().join("store"));
    let daemon = Daemon::start(&node, &[]);
    let mount = node.mount(&case.image.name, &[]);
    case.source.assert_shown(mount.root());
    let before = disk.free();
    let said = node.fails(&["pull", &bomb.name]);
    assert!(said.contains("No space left"), "{said}");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: u64 = peak.unwrap().trim().parse().unwrap();
    assert!(peak < 256 << 10, "{peak} kB");
    let pulling = node.hoist(&["pull", &bomb.name]).stderr(Stdio::piped()).spawn().unwrap();
    process::wait_until("a part of it", PATIENCE, || Ok(disk.free() + (8 << 20) < before)).unwrap();
    daemon.signal(Signal::KILL);
    assert!(!pulling.wait_with_output().unwrap().status.success());
    case.source.assert_shown(mount.root());
    process::wait_until("the room it took", PATIENCE, || {
        node.says(&["images"]);
        Ok(disk.free() + (2 << 20) > before)
    })
    .unwrap();
}

/// What unpacks to more than there is room for takes the room, fails, and gives it back.
#[test]
fn a_bomb_leaves_nothing_behind() {
    for compression in [Compression::Gzip(1), Compression::Zstd(1)] {
        let image = bomb(compression);
        let disk = SmallDisk::new(40);
        let before = disk.free();
        let node = Node::with_store(&disk.root().join("store"));
        node.fails(&["pull", &image.name]);
        let kept = before - disk.free();
        assert!(kept < 1 << 20, "{compression:?}: {kept} bytes are still taken");
    }
}

/// A layer of letters that no tar begins: its end is known after some bytes, not after all that it unpacks to.
#[test]
fn bombs_are_refused() {
    let junk = vec![b'x'; 64 << 20];
    let id = digest::of_bytes(&junk);
    is_refused(GZIP, &packed("gzip", &junk), &id, "decoded");
    is_refused(ZSTD, &packed("zstd", &junk), &id, "decoded");
}

#[test]
fn a_pull_onto_a_full_disk_fails_and_succeeds_when_there_is_room() {
    let case = Case::new();
    let disk = SmallDisk::new(40);
    let node = Node::with_store(&disk.root().join("store"));
    // What surely does not fit is not begun.
    let ballast = disk.fill(2 << 20);
    let said = node.fails(&["pull", &case.image.name]);
    assert!(said.contains(" MiB at least") && said.contains("--root"), "{said}");
    let layer = case.image.layers().remove(0);
    assert!(case.image.proxy.log().iter().all(|request| !request.path.contains(&layer)));
    fs::remove_file(ballast).unwrap();
    // What may is.
    let ballast = disk.fill(7 << 20);
    let said = node.fails(&["pull", &case.image.name]);
    assert!(said.contains("No space left") && said.contains("--root"), "{said}");
    fs::remove_file(ballast).unwrap();
    node.says(&["pull", &case.image.name]);
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

/// What it sends of the layer, and of the windows, which are too many to be fetched at once.
#[test]
fn what_a_mirror_has_wrong_comes_from_the_registry() {
    let source = Source::new();
    source.write("lib/e.so", &noise(99, 14_000_000));
    let image = Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let mirror = Proxy::start(image.registry.address(), ProxyOptions::default()).unwrap();
    mirror.inject(Fault::new(format!("GET /v2/{REPO}/blobs"), When::Always, FaultKind::FlipBit(100)));
    let node = Node::new();
    let config = node.mirrored(&image, &mirror);
    let _daemon = Daemon::start(&node, &["--config", config.to_str().unwrap()]);
    source.assert_shown(node.mount(&image.name, &[]).root());
    assert!(!mirror.log().is_empty());
}

/// A pull keeps the blob that it fetches, to go on after an interruption: but not in the room of the layer.
#[test]
fn a_pull_has_all_the_room_for_what_it_is_to_leave() {
    let case = Case::new();
    let disk = SmallDisk::new(40);
    let node = Node::with_store(&disk.root().join("store"));
    let data: usize = FILES.iter().map(|(_, length)| length).sum();
    disk.fill(data as u64 + (2 << 20));
    node.says(&["pull", &case.image.name]);
    case.source.assert_shown(node.mount(&case.image.name, &[]).root());
}

#[test]
fn reads_that_find_the_disk_full_fail_and_succeed_when_there_is_room() {
    // The log is on the full disk too.
    disk::reads_fail_until_there_is_room(&Case::new(), Node::with_store);
}

/// Not even a byte of room: reads fail, the process goes on, and the log, which stands on that disk, says why.
#[test]
fn a_disk_without_any_room_is_told_of_in_the_log() {
    let case = Case::new();
    let disk = SmallDisk::new(40);
    let node = Node::with_store(&disk.root().join("store"));
    let mount = node.mount(&case.image.name, &[]);
    let server = node.servers();
    let ballast = disk.fill_up();
    assert!(case.source.assert_right_or_failing_for_room(mount.root()) < FILES.len());
    assert_eq!(node.servers(), server, "it was killed: {}", node.logs());
    let logs = node.logs();
    assert!(logs.contains("a read failed") && logs.contains("No space left"), "{logs}");
    fs::remove_file(ballast).unwrap();
    case.source.assert_shown(mount.root());
}

//! What fails while a reader goes straight ahead, who is preceded by large requests: what is damaged, what there is no
//! room for, and nothing beside it.

mod node;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hoist_testkit::ProxyOptions;
use hoist_testkit::layout::Compression;
use node::Node;
use node::case::Case;
use node::disk::SmallDisk;
use node::pids::kill_filler;
use node::tree::{Source, noise, wait_mended};

/// The file, its length, and by how much it is read at a time, bytes.
const FILE: &str = "straight";
const LENGTH: usize = 96 << 20;
const PIECE: usize = 128 << 10;
/// A request is large from here on, blob bytes.
const LARGE: u64 = 2 << 20;
/// The most that damage of one byte may cost: what is decoded from one place on.
const SPAN: usize = 4 << 20;

fn case(compression: Compression) -> Case {
    let source = Source::small();
    source.write(FILE, &noise(77, LENGTH));
    Case::of(source, compression)
}

/// Reads the file from its start, and tells of each piece; gives those that could not be read. What was read is right.
fn failing(mounted: &Path, wanted: &[u8], errors: &[i32], mut tell: impl FnMut(usize)) -> Vec<usize> {
    let file = File::open(mounted.join(FILE)).unwrap();
    let mut failed = Vec::new();
    for (number, piece) in wanted.chunks(PIECE).enumerate() {
        tell(number);
        let mut read = vec![0; piece.len()];
        match file.read_exact_at(&mut read, (number * PIECE) as u64) {
            Ok(()) => assert!(read == piece, "piece {number} has wrong bytes"),
            Err(error) => {
                assert!(errors.contains(&error.raw_os_error().unwrap_or(0)), "piece {number}: {error}");
                failed.push(number);
            }
        }
    }
    failed
}

/// The registry's own copy of the layer, and what it is without the damage.
struct Damaged {
    stored: PathBuf,
    whole: Vec<u8>,
    at: u64,
}

impl Damaged {
    fn new(case: &Case) -> Damaged {
        let stored = case.image.registry.blob_path(&case.layer);
        let whole = fs::read(&stored).unwrap();
        let (mut bytes, at) = (whole.clone(), whole.len() / 4 * 3);
        bytes[at] ^= 1;
        fs::write(&stored, bytes).unwrap();
        Damaged { stored, whole, at: at as u64 }
    }

    fn mend(&self) {
        fs::write(&self.stored, &self.whole).unwrap();
    }
}

/// The parts of the layer that were asked for: first byte and last.
fn asked(case: &Case) -> Vec<(u64, u64)> {
    let of_layer = case.image.proxy.log().into_iter().filter(|request| request.path.contains(&case.layer));
    let part = |range: String| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    of_layer.filter_map(|request| part(request.range?)).collect()
}

/// One byte that is wrong in the registry itself, amid a large request.
#[test]
fn one_flipped_byte_keeps_nothing_else_back() {
    for compression in [Compression::None, Compression::Gzip(1)] {
        let case = case(compression);
        let wanted = case.source.read(FILE);
        for driver in ["erofs", "fuse"] {
            let damaged = Damaged::new(&case);
            let node = Node::new().with_driver(driver);
            let mount = node.mount(&case.image.name, &[]);
            case.image.proxy.reset();
            let failed = failing(mount.root(), &wanted, &[libc::EIO], |_| {});
            let hit = |(first, last): &(u64, u64)| (*first..=*last).contains(&damaged.at);
            let large = asked(&case).into_iter().filter(hit).any(|(first, last)| last - first >= LARGE);
            assert!(large, "no large request met the damage: {:?}", asked(&case));
            let (Some(first), Some(last)) = (failed.first(), failed.last()) else {
                panic!("the damage was not noticed");
            };
            assert!((last - first + 1) * PIECE <= SPAN, "{driver}: {failed:?}{}", node.logs());
            // It is not asked for at each read.
            case.image.proxy.reset();
            let file = File::open(mount.root().join(FILE)).unwrap();
            for _ in 0..50 {
                let error =
                    file.read_exact_at(&mut [0; 512], (first * PIECE + PIECE / 2) as u64).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
            }
            let asked = asked(&case).len();
            assert!(asked < 50, "{driver}: {asked} requests");
            damaged.mend();
            wait_mended(mount.root());
            case.source.assert_shown(mount.root());
        }
    }
}

/// The same while the process that fills is killed again and again.
#[test]
fn killed_amid_damage_it_goes_on() {
    let case = case(Compression::Gzip(1));
    let wanted = case.source.read(FILE);
    let damaged = Damaged::new(&case);
    let node = Node::new();
    let mount = node.mount(&case.image.name, &[]);
    case.image.proxy.set_options(ProxyOptions { rate: Some(30_000_000), ..ProxyOptions::default() });
    let failed = std::thread::scope(|scope| {
        let reader = scope.spawn(|| failing(mount.root(), &wanted, &[libc::EIO], |_| {}));
        for _ in 0..4 {
            kill_filler(&node);
        }
        reader.join().unwrap_or_else(|_| panic!("{}", node.logs()))
    });
    let (first, last) = (failed.first().unwrap(), failed.last().unwrap());
    assert!((last - first + 1) * PIECE <= SPAN, "{failed:?}{}", node.logs());
    damaged.mend();
    wait_mended(mount.root());
    case.source.assert_shown(mount.root());
}

/// A token that expires between one range and the next, all the time.
#[test]
fn tokens_that_expire_are_not_noticed() {
    let case = case(Compression::Gzip(1));
    let wanted = case.source.read(FILE);
    case.image.proxy.require_login("someone", "hunter2");
    let node = Node::new();
    // someone:hunter2
    let config = serde_json::json!({"auths": {case.image.proxy.host(): {"auth": "c29tZW9uZTpodW50ZXIy"}}});
    fs::write(node.path("config.json"), config.to_string()).unwrap();
    let point = node.path("mnt");
    fs::create_dir(&point).unwrap();
    let mut command = node.hoist(&["mount", &case.image.name, point.to_str().unwrap()]);
    let output = command.env("DOCKER_CONFIG", node.path("")).output().unwrap();
    assert!(output.status.success(), "{}", node::stderr(&output));
    let failed = failing(&point, &wanted, &[], |number| {
        if number.is_multiple_of(8) {
            case.image.proxy.expire_tokens();
        }
    });
    assert!(failed.is_empty());
    case.source.assert_shown(&point);
    node.says(&["unmount", point.to_str().unwrap()]);
}

/// What there is no room for fails, and is read once there is; also where the process that fills is killed meanwhile.
#[test]
fn a_disk_that_fills_up_amid_large_requests() {
    let case = case(Compression::Gzip(1));
    let wanted = case.source.read(FILE);
    for killed in [false, true] {
        let disk = SmallDisk::new(300);
        let node = Node::with_store(&disk.root().join("store"));
        let mount = node.mount(&case.image.name, &[]);
        let ballast = disk.fill(60 << 20);
        let errors = [libc::EIO, libc::ENOSPC];
        let failed = std::thread::scope(|scope| {
            let reader = scope.spawn(|| failing(mount.root(), &wanted, &errors, |_| {}));
            if killed {
                kill_filler(&node);
                kill_filler(&node);
            }
            reader.join().unwrap_or_else(|_| panic!("{}", node.logs()))
        });
        assert!(!failed.is_empty() && failed[0] > 0, "{failed:?}");
        fs::remove_file(ballast).unwrap();
        case.source.assert_shown(mount.root());
    }
}

//! Any bytes as a bootstrap of nydus, a blob's contexts, its table of contents or a bootstrap's layer: errors are fine,
//! panics are bugs, and what was decoded keeps its promises. Random bytes hardly get past a magic number, so small real
//! ones (`seeds/`, made by nydus-image 2.4.4 of one layer of a test image) are damaged too: four bytes of the input
//! are a place and what stands there.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hoist_format::rafs::{Beside, Blob, Bootstrap, Contexts, Package, Rafs, Toc};
use hoist_format::tree::Kind;
use libfuzzer_sys::fuzz_target;

fn seed(stored: &[u8]) -> Vec<u8> {
    zstd::bulk::decompress(stored, 1 << 20).expect("it is zstd")
}

static SEEDS: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    [
        seed(include_bytes!("../seeds/rafs-v5.zst")),
        seed(include_bytes!("../seeds/rafs-v6.zst")),
        seed(include_bytes!("../seeds/rafs-zran.zst")),
    ]
});
static CONTEXTS: LazyLock<Vec<u8>> = LazyLock::new(|| seed(include_bytes!("../seeds/rafs-contexts.zst")));

fuzz_target!(|data: &[u8]| {
    bootstrap(data, &BTreeMap::new());
    let _ = Toc::decode(data, 1 << 40, None).map(|toc| toc.entry(b"blob.meta").map(|e| e.open(data)));
    if let Ok(package) = Package::read(data)
        && let Ok(bootstrap) = package.bootstrap()
    {
        let _ = package.contexts(&bootstrap);
    }
    let Some((which, patches)) = data.split_first() else { return };
    let zran = Bootstrap::open(&SEEDS[2]).expect("it is sound").blobs()[0].clone();
    let contexts = packed(damaged(&CONTEXTS, if which & 4 == 0 { &[] } else { patches }), &zran);
    let beside = contexts.map(|contexts| (0, Beside { contexts: Some(contexts), digests: None }));
    let seed = &SEEDS[usize::from(which & 3) % 3];
    bootstrap(&damaged(seed, patches), &beside.into_iter().collect());
});

fn packed(stored: Vec<u8>, blob: &Blob) -> Option<Contexts> {
    Contexts::stored(&stored, blob).ok()
}

fn damaged(seed: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for patch in patches.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]]));
        if let Some(two) = bytes.get_mut(at..at + 2) {
            two.copy_from_slice(&patch[2..]);
        }
    }
    bytes
}

fn bootstrap(bytes: &[u8], beside: &BTreeMap<u32, Beside>) {
    let Ok(bootstrap) = Bootstrap::open(bytes) else { return };
    if let Ok(rafs) = bootstrap.decode(beside) {
        check(&rafs);
    }
}

fn check(rafs: &Rafs) {
    for unit in &rafs.units {
        assert!(unit.stored.start < unit.stored.end);
        assert!(unit.stored.end <= rafs.blobs[unit.blob as usize].data_size && unit.raw_len > 0);
    }
    for piece in &rafs.pieces {
        let end = u64::from(piece.offset) + u64::from(piece.len);
        assert!(piece.len > 0 && end <= rafs.units[piece.unit as usize].raw_len.into());
    }
    for file in &rafs.files {
        let Kind::File { size, .. } = rafs.tree.get(file.inode).kind else { panic!("contents of no file") };
        assert_eq!(file.runs.iter().map(|run| run.len).sum::<u64>(), size);
        for run in &file.runs {
            assert!(run.len > 0 && run.piece.is_none_or(|p| run.len <= rafs.pieces[p as usize].len.into()));
        }
    }
    assert!(rafs.prefetch.iter().all(|id| matches!(rafs.tree.get(*id).kind, Kind::File { .. })));
}

//! overlaybd, read range by range as from a registry.

use std::collections::HashMap;

use hoist_format::build::Described;
use hoist_format::digest::Digest;
use hoist_format::overlaybd::{Image, OverlaybdError, Step};

use crate::fixture::data_file;
use crate::unpacked::{Allowed, compare, layers};

/// What describing took.
#[derive(Default, Debug)]
struct Taken {
    rounds: usize,
    bytes: u64,
}

fn describe(blobs: &[Vec<u8>]) -> Result<(Described, Taken), OverlaybdError> {
    let mut image = Image::new(blobs.iter().map(|b| (Digest::of(b), b.len() as u64)).collect())?;
    let mut taken = Taken::default();
    loop {
        match image.step()? {
            Step::Done(described) => return Ok((*described, taken)),
            Step::Fetch(ranges) => {
                taken.rounds += 1;
                assert!(taken.rounds < 64, "it asks without end");
                for (layer, range) in ranges {
                    assert!(range.start < range.end && range.end <= blobs[layer].len() as u64, "{range:?}");
                    taken.bytes += range.end - range.start;
                    let bytes = blobs[layer][range.start as usize..range.end as usize].to_vec();
                    image.put(layer, range.start, bytes);
                }
            }
        }
    }
}

fn blobs() -> Vec<Vec<u8>> {
    layers("overlaybd").into_iter().map(|(_, bytes)| bytes).collect()
}

#[test]
fn the_fixture_is_what_containerd_unpacks() {
    let blobs = blobs();
    let total: usize = blobs.iter().map(Vec::len).sum();
    let (described, taken) = describe(&blobs).unwrap();
    assert!(taken.rounds <= 6, "{taken:?}");
    assert!(taken.bytes < total as u64 / 8, "{taken:?} of {total}");
    let by_digest: HashMap<_, _> = blobs.into_iter().map(|b| (Digest::of(&b), b)).collect();
    let data = data_file(&described, &by_digest);
    // Its tools keep no ids of more than 21 bits, as debugfs says too.
    let without = |path: &str| path == "ids/big";
    let allowed = Allowed { more: &["lost+found"], without, ..Allowed::default() };
    compare(&described.tree, &allowed, |_, place, size| {
        data[place.offset as usize..(place.offset + size) as usize].to_vec()
    });
}

/// Any flipped byte of what is read is refused, or tells of nothing that is read; never a panic.
#[test]
fn damage_is_refused() {
    let blobs = blobs();
    let (sound, _) = describe(&blobs).unwrap();
    let mut refused = 0;
    let tail = blobs[1].len() - 16384;
    for at in
        (0..2048).step_by(97).chain((tail..blobs[1].len()).step_by(301)).chain((2048..tail).step_by(4999))
    {
        let mut bad = blobs.clone();
        bad[1][at] ^= 0x41;
        match describe(&bad) {
            Err(_) => refused += 1,
            Ok((described, _)) => assert_eq!(described.tree, sound.tree, "byte {at}"),
        }
    }
    assert!(refused > 20, "{refused}");
    for end in [0, 1, 511, 1536, 2047, 4096, blobs[1].len() / 2, blobs[1].len() - 1024, blobs[1].len() - 2000]
    {
        let mut bad = blobs.clone();
        bad[1].truncate(end);
        let message = describe(&bad).map(|_| ());
        assert!(message.is_err() || end >= blobs[1].len() - 1024, "{end}");
    }
}

//! Any bytes as what a registry answers to the readers of other formats: the layer's end, its TOC, the image of its
//! TOC. Errors are fine, panics are bugs; and whatever a reader describes is in bounds, and reads the same when its table
//! was stored.
#![no_main]

use std::collections::BTreeMap;

use hoist_format::digest::Digest;
use hoist_format::formats::{ImageFacts, LayerFacts, Step, Want, hidden, readers};
use hoist_format::table::Table;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    hidden(data);
    // The input is the TOC's JSON, or the end of a blob, or the answer to every question.
    for kind in 0..6 {
        drive(data, kind);
    }
});

fn annotations(data: &[u8], stored: &[u8], kind: u8) -> BTreeMap<String, String> {
    let pairs = match kind {
        // The JSON in a frame of its own, as the manifest says.
        0 => vec![
            ("io.github.containers.zstd-chunked.manifest-checksum", Digest::of(stored).to_string()),
            (
                "io.github.containers.zstd-chunked.manifest-position",
                format!("100:{}:{}:1", stored.len(), data.len()),
            ),
        ],
        1 => {
            vec![("io.containers.zstd-chunked.manifest-position", String::from_utf8_lossy(data).into_owned())]
        }
        2 => vec![("containerd.io/snapshot/stargz/toc.digest", Digest::of(data).to_string())],
        _ => Vec::new(),
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn drive(data: &[u8], kind: u8) {
    let stored = match kind {
        0 => zstd::bulk::compress(data, 1).expect("compressing to memory does not fail"),
        _ => data.to_vec(),
    };
    let codec = if kind < 2 || kind == 5 { "zstd" } else { "gzip" };
    let layer = LayerFacts {
        media_type: format!("application/vnd.oci.image.layer.v1.tar+{codec}"),
        digest: Digest::of(b"layer"),
        size: if kind == 0 { 1 << 20 } else { data.len() as u64 },
        annotations: annotations(data, &stored, kind),
    };
    let digest = Digest::of(b"image");
    let image = ImageFacts { digest, annotations: BTreeMap::new(), layers: vec![layer], unpinned: true };
    for mut reader in readers(&image) {
        let mut answers = Vec::new();
        for _ in 0..8 {
            let wants = match reader.step(answers) {
                Err(_) => break,
                Ok(Step::Done(found)) => {
                    for (_, described) in found.parts {
                        let table = Table::decode(&described.table.encode());
                        assert_eq!(table.as_ref().ok(), Some(&described.table));
                    }
                    break;
                }
                Ok(Step::Fetch(wants)) => wants,
            };
            let answer = |want: &Want| match want {
                Want::Range { range, .. } if kind > 0 => {
                    assert!(range.start <= range.end);
                    data.get(range.start as usize..range.end as usize).map(<[u8]>::to_vec)
                }
                _ => Some(stored.clone()),
            };
            answers = wants.iter().map(answer).collect();
        }
    }
}

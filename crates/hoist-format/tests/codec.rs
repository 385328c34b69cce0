//! Decoding and checkpoints, judged by the tools that made the streams.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hoist_format::codec::{CodecError, Decoded, SpanDecoder, StreamDecoder};
use hoist_format::digest::Digest;
use hoist_format::extent::ExtentTable;
use hoist_format::span::{Codec, Span, SpanTable, Spans};
use hoist_format::table::Table;
use serde_json::Value;

/// Output of a shell command over a scratch folder; a missing tool fails the test.
fn sh(dir: &Path, script: &str) -> Vec<u8> {
    let out = Command::new("bash")
        .args(["-o", "pipefail", "-ec", script])
        .current_dir(dir)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(out.status.success(), "{script}");
    out.stdout
}

/// Bytes a blob here may decode to.
const LIMIT: u64 = 32 << 20;

fn decode(codec: Codec, blob: &[u8], piece: usize) -> Result<(Vec<u8>, Decoded), CodecError> {
    let (mut all, mut decoder) = (Vec::new(), StreamDecoder::with_limit(codec, true, LIMIT)?);
    for part in blob.chunks(piece) {
        decoder.feed::<CodecError>(part, &mut |bytes| {
            all.extend_from_slice(bytes);
            Ok(())
        })?;
    }
    Ok((all, decoder.finish()?))
}

/// The same, taking the memory of every piece along and giving it back for a later one.
fn decode_taking(codec: Codec, blob: &[u8], piece: usize) -> Result<(Vec<u8>, Decoded), CodecError> {
    let (mut all, mut decoder) = (Vec::new(), StreamDecoder::with_limit(codec, true, LIMIT)?);
    let mut taken = VecDeque::new();
    for part in blob.chunks(piece) {
        decoder.feed_taking::<CodecError>(part, &mut |output| {
            let used = if taken.len() > 2 { taken.pop_front() } else { None };
            let piece = output.take(used);
            all.extend_from_slice(&piece);
            taken.push_back(piece);
            Ok(())
        })?;
    }
    Ok((all, decoder.finish()?))
}

fn check(codec: Codec, blob: &[u8], want: &[u8]) -> usize {
    let (got, Decoded { spans, windows }) = decode(codec, blob, 70_001).unwrap();
    assert!(got == want, "decoded bytes differ");
    let (taken, decoded) = decode_taking(codec, blob, 70_001).unwrap();
    assert!(taken == want && decoded.spans == spans && decoded.windows == windows, "taken bytes differ");
    assert_eq!((spans.blob_size, spans.stream_size), (blob.len() as u64, want.len() as u64));
    assert!(windows.len() * 100 <= blob.len(), "windows take {} of {}", windows.len(), blob.len());
    let table = Table { extents: ExtentTable::default(), spans: Spans::Linear(spans.clone()) };
    assert_eq!(Table::decode(&table.encode()).unwrap(), table, "the format can hold it");
    for (i, s) in spans.spans.iter().enumerate() {
        let (from, to) = (spans.blob_range(i), spans.stream_range(i));
        let window = &windows[s.window_offset as usize..][..s.window_len as usize];
        let mut decoder = SpanDecoder::new(&spans, i, Some(window)).unwrap();
        let mut got = Vec::new();
        for part in blob[from.start as usize..from.end as usize].chunks(997) {
            decoder
                .feed::<CodecError>(part, &mut |b| {
                    got.extend_from_slice(b);
                    Ok(())
                })
                .unwrap();
        }
        assert!(decoder.is_done(to.end), "span {i} of {} stops early", spans.spans.len());
        assert!(got[..(to.end - to.start) as usize] == want[to.start as usize..to.end as usize], "span {i}");
    }
    // Across all spans after the second checkpoint, fed contiguously.
    if let Some(s) = spans.spans.get(1) {
        let window = &windows[s.window_offset as usize..][..s.window_len as usize];
        let mut decoder = SpanDecoder::new(&spans, 1, Some(window)).unwrap();
        let mut got = Vec::new();
        let rest = &blob[spans.blob_range(1).start as usize..];
        decoder
            .feed::<CodecError>(rest, &mut |b| {
                got.extend_from_slice(b);
                Ok(())
            })
            .unwrap();
        assert!(got == want[s.stream_offset as usize..], "contiguous from span 1");
    }
    spans.spans.len()
}

/// 12 MB that compress like programs do. `tar` may fail, as `head` stops it.
const CORPUS: &str = "(tar -C / -c usr/lib/x86_64-linux-gnu 2>/dev/null || true) | head -c 12000000 > corpus";

#[test]
fn streams_of_real_tools() {
    let dir = tempfile::tempdir().unwrap();
    sh(dir.path(), CORPUS);
    let want = std::fs::read(dir.path().join("corpus")).unwrap();
    assert_eq!(want.len(), 12_000_000, "too few files to test with");
    for (tool, codec, most) in [
        ("gzip -1", Codec::Gzip, 4),
        ("gzip -9 --rsyncable", Codec::Gzip, 4),
        ("pigz -6", Codec::Gzip, 4),
        ("zstd -q -3", Codec::Zstd, 1),
        ("zstd -q -9 --long=27", Codec::Zstd, 1),
        ("pzstd -q -3 -p 4", Codec::Zstd, 2),
        ("cat", Codec::Plain, 40),
    ] {
        let blob = sh(dir.path(), &format!("{tool} < corpus"));
        let spans = check(codec, &blob, &want);
        assert!(spans >= most, "{tool}: {spans} spans");
    }
    let members = sh(
        dir.path(),
        "split -b 1500000 corpus p.; for p in p.*; do gzip -nc $p; done; head -c 999 /dev/zero",
    );
    assert!(check(Codec::Gzip, &members, &want) > 5);
    let frames =
        sh(dir.path(), "for p in p.*; do zstd -qc $p; printf '\\x50\\x2a\\x4d\\x18\\x01\\0\\0\\0x'; done");
    assert!(check(Codec::Zstd, &frames, &want) > 5);
}

fn fixture(name: &str) -> PathBuf {
    let all = std::env::var_os("HOIST_FIXTURES").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    );
    all.join(name)
}

/// The layers of images that others made, against the diffIDs of their configs.
#[test]
fn layers_of_the_fixtures() {
    for (name, codec, tool) in [
        ("gzip", Codec::Gzip, "gzip -dc"),
        ("gzip-multimember", Codec::Gzip, "gzip -dc"),
        ("zstd", Codec::Zstd, "zstd -qdc"),
        ("tar", Codec::Plain, "cat"),
    ] {
        let dir = fixture(name);
        let read = |path: &str| std::fs::read(dir.join(path)).unwrap();
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let blob = |v: &Value| format!("blobs/{}", v["digest"].as_str().unwrap().replace(':', "/"));
        let manifest = json(&read(&blob(&json(&read("index.json"))["manifests"][0])));
        let config = json(&read(&blob(&manifest["config"])));
        let layers = manifest["layers"].as_array().unwrap();
        assert!(layers.len() > 1, "{name} has lost its layers");
        for (i, layer) in layers.iter().enumerate() {
            let want = sh(&dir, &format!("{tool} < {}", blob(layer)));
            assert_eq!(Some(&*Digest::of(&want).to_string()), config["rootfs"]["diff_ids"][i].as_str());
            check(codec, &read(&blob(layer)), &want);
        }
    }
}

#[test]
fn odd_pieces_and_named_headers() {
    let dir = tempfile::tempdir().unwrap();
    let blob = sh(dir.path(), "seq 1 20000 > name; gzip -N name; cat name.gz");
    let want = sh(dir.path(), "gzip -dc name.gz");
    for piece in [1, 2, 3, 7, 4096] {
        assert!(decode(Codec::Gzip, &blob, piece).unwrap().0 == want, "pieces of {piece}");
    }
}

#[test]
fn damage_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for (tool, codec) in [("gzip", Codec::Gzip), ("zstd -qc --check", Codec::Zstd)] {
        let blob = sh(dir.path(), &format!("seq 1 700 | {tool}"));
        let want = decode(codec, &blob, 999).unwrap().0;
        for cut in 0..blob.len() {
            assert!(decode(codec, &blob[..cut], 999).is_err(), "{tool} cut at {cut}");
        }
        for at in 0..blob.len() {
            let mut bad = blob.clone();
            bad[at] ^= 0x10;
            // Some header bits mean nothing; what decodes must be right.
            assert!(
                decode(codec, &bad, 999).is_ok_and(|(got, _)| got == want)
                    || decode(codec, &bad, 999).is_err()
            );
        }
        let mut garbage = blob.clone();
        garbage.extend_from_slice(b"garbage");
        assert!(decode(codec, &garbage, 999).is_err());
        let bomb = sh(dir.path(), &format!("head -c 40000000 /dev/zero | {tool}"));
        assert!(matches!(decode(codec, &bomb, 65536), Err(CodecError::TooLarge { .. })));
    }
}

#[test]
fn hostile_tables() {
    let dir = tempfile::tempdir().unwrap();
    let blob = sh(dir.path(), "seq 1 1000 | gzip");
    let (_, Decoded { spans, .. }) = decode(Codec::Gzip, &blob, 999).unwrap();
    assert!(SpanDecoder::new(&spans, 9, None).is_err());
    for change in [
        (|t: &mut Span| t.bits = 3) as fn(&mut Span),
        |t: &mut Span| (t.bits, t.raw, t.blob_offset) = (9, true, 5),
        |t: &mut Span| t.blob_offset = u64::MAX,
        |t: &mut Span| t.stream_offset = u64::MAX,
        |t: &mut Span| (t.raw, t.window_len) = (true, 7),
    ] {
        let mut bad = spans.clone();
        change(&mut bad.spans[0]);
        assert!(SpanDecoder::new(&bad, 0, Some(b"not one")).is_err());
    }
}

/// Found by fuzzing: a span near the end of a blob of 2^64 bytes overflowed its offset.
#[test]
fn span_at_the_end_of_64_bits() {
    for codec in [Codec::Plain, Codec::Gzip, Codec::Zstd] {
        let span = Span { blob_offset: u64::MAX, stream_offset: u64::MAX, ..Span::default() };
        let table = SpanTable { codec, blob_size: u64::MAX, stream_size: u64::MAX, spans: vec![span] };
        assert!(matches!(SpanDecoder::new(&table, 0, None), Err(CodecError::Table { .. })));
    }
}

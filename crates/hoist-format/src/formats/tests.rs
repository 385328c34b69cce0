use super::*;
use crate::chunk::ChunkCodec;

fn layer(size: u64) -> LayerFacts {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".into();
    LayerFacts { media_type, digest: Digest::of(b"layer"), size, annotations: BTreeMap::new() }
}

fn describe(entries: &str) -> Result<Described, String> {
    let json = format!(r#"{{"version":1,"entries":[{entries}]}}"#);
    toc::describe(json.as_bytes(), &layer(10_000), ChunkCodec::Gzip, 9_000).map_err(|e| e.to_string())
}

fn sha(n: u8) -> String {
    Digest::from_bytes([n; 32]).to_string()
}

fn reg(name: &str, size: u64, offset: u64) -> String {
    let digest = sha(name.as_bytes()[0]);
    format!(r#"{{"name":"{name}","type":"reg","size":{size},"offset":{offset},"digest":"{digest}"}}"#)
}

fn part(name: &str, offset: u64, at: u64, len: u64) -> String {
    let digest = sha(at as u8);
    format!(
        r#"{{"name":"{name}","type":"chunk","offset":{offset},"chunkOffset":{at},"chunkSize":{len},"chunkDigest":"{digest}"}}"#
    )
}

#[test]
fn a_toc_becomes_a_tree_and_a_table() {
    let first = format!(
        r#"{{"name":"b","type":"reg","size":300,"offset":700,"chunkSize":100,"chunkDigest":"{}","modtime":"2023-11-14T22:13:20Z","mode":2541,"xattrs":{{"user.a":"eWVz"}}}}"#,
        sha(9)
    );
    let inner = format!(
        r#"{{"name":"c","type":"reg","size":7,"offset":800,"innerOffset":512,"digest":"{}"}}"#,
        sha(3)
    );
    let zeros =
        r#"{"name":"b","type":"chunk","chunkType":"zeros","chunkOffset":200,"chunkSize":100}"#.to_owned();
    let landmark = r#"{"name":".prefetch.landmark","type":"reg","size":1,"offset":900}"#.to_owned();
    let all = [reg("d/a", 5, 80), landmark, first, part("b", 800, 100, 100), zeros, inner].join(",");
    let built = describe(&all).unwrap();
    let table = built.table.spans.chunks().unwrap();
    let stored: Vec<_> = (0..table.chunks.len()).map(|i| table.stored_range(i)).collect();
    // The chunk at 800 is used by two files, and the second one's bytes are behind.
    assert_eq!(stored, [80..700, 700..800, 800..900]);
    assert_eq!(table.stream_size, 5 + 100 + 519);
    let b = built.tree.get(built.tree.lookup(b"b").unwrap());
    assert_eq!((b.meta.perm, b.meta.mtime.secs), (0o4755, 1_700_000_000));
    assert_eq!(b.meta.xattrs.get(&b"user.a"[..]).map(|v| &**v), Some(&b"yes"[..]));
    assert_eq!(built.tree.lookup(b".prefetch.landmark"), None);
    assert!(matches!(&built.prefetch[..], [first] if *first == (0..5)));
}

#[test]
fn a_path_that_stands_twice_is_what_was_said_last() {
    let built = describe(&[reg("a", 5, 80), reg("a", 9, 200)].join(",")).unwrap();
    let a = built.tree.get(built.tree.lookup(b"a").unwrap());
    assert!(matches!(a.kind, crate::tree::Kind::File { size: 9, .. }));
}

#[test]
fn lies_of_a_toc_are_refused() {
    let big =
        format!(r#"{{"name":"a","type":"reg","size":{},"offset":80,"digest":"{}"}}"#, 1u64 << 40, sha(1));
    let bomb = format!(r#"{{"name":"a","type":"reg","size":2000000,"offset":8990,"digest":"{}"}}"#, sha(1));
    let overflow = format!(
        r#"{{"name":"a","type":"reg","size":5,"offset":80,"innerOffset":{},"digest":"{}"}}"#,
        u64::MAX - 2,
        sha(1)
    );
    let chunked = |size: u64| {
        format!(
            r#"{{"name":"a","type":"reg","size":{size},"offset":80,"chunkSize":100,"chunkDigest":"{}"}}"#,
            sha(1)
        )
    };
    for bad in [
        // Behind the end, at the end.
        reg("a", 5, 9_500),
        reg("a", 5, 9_000),
        reg("a", 5, u64::MAX),
        big,
        bomb,
        overflow,
        // Chunks that are too few, too many, out of order, of another file, of none, empty.
        chunked(200),
        [chunked(200), part("a", 90, 100, 50)].join(","),
        [chunked(200), part("a", 90, 100, 101)].join(","),
        [chunked(200), part("a", 90, 99, 101)].join(","),
        [chunked(200), part("b", 90, 100, 100)].join(","),
        [chunked(300), part("a", 95, 200, 100), part("a", 90, 100, 100)].join(","),
        part("a", 90, 0, 100),
        [chunked(100), part("a", 90, 100, 0)].join(","),
        // Without a digest, or with one that cannot be checked.
        r#"{"name":"a","type":"reg","size":5,"offset":80}"#.into(),
        r#"{"name":"a","type":"reg","size":5,"offset":80,"digest":"md5:00"}"#.into(),
        [chunked(200).replace("chunkDigest", "noDigest"), part("a", 90, 100, 100)].join(","),
        // Names and attributes that are none.
        reg(&"a".repeat(300), 5, 80),
        r#"{"name":"a\u0000b","type":"dir"}"#.into(),
        r#"{"name":"a","type":"symlink"}"#.into(),
        r#"{"name":"a","type":"socket"}"#.into(),
        r#"{"name":"a","type":"char","devMajor":4096}"#.into(),
        r#"{"name":"a","type":"dir","uid":4294967296}"#.into(),
        r#"{"name":"a","type":"dir","uid":-1}"#.into(),
        r#"{"name":"a","type":"dir","modtime":"yesterday"}"#.into(),
        r#"{"name":"a","type":"dir","xattrs":{"user.a":"*"}}"#.into(),
        r#"{"name":"a","type":"hardlink","linkName":"a"}"#.into(),
        // A link cycle on the way.
        r#"{"name":"a","type":"symlink","linkName":"b"},{"name":"b","type":"symlink","linkName":"a"},{"name":"a/c","type":"dir"}"#.into(),
    ] {
        assert!(describe(&bad).is_err(), "{bad:.300}");
    }
    for json in [
        "",
        "{}",
        "[]",
        r#"{"version":2,"entries":[]}"#,
        r#"{"entries":[],"entries":[]}"#,
        r#"{"entries":[]}x"#,
    ] {
        assert!(toc::describe(json.as_bytes(), &layer(10_000), ChunkCodec::Gzip, 9_000).is_err(), "{json}");
    }
}

#[test]
fn footers_are_told_apart() {
    let mut member = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0];
    member.extend_from_slice(b"SG\x16\x000000000000053716STARGZ");
    assert_eq!(member.len(), 12 + 4 + 22);
    member.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(stargz::has_footer(&member));
    assert_eq!(hidden(&member).len(), 3);
    let mut legacy = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 22, 0];
    legacy.extend_from_slice(b"0000000000053716STARGZ");
    legacy.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(stargz::has_footer(&legacy));
    for cut in 1..member.len() {
        assert!(!stargz::has_footer(&member[cut..]) && !stargz::has_footer(&member[..cut]));
    }
    assert!(hidden(&[0; TAIL]).is_empty());
}

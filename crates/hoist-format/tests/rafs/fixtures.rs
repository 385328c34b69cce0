//! The awkward image as v5 (lz4), v6 (zstd) and zran.

use std::collections::{BTreeMap, HashMap};

use hoist_format::rafs::{Beside, Bootstrap, Contexts, Package, Toc, UnitCodec, Version};
use hoist_format::tree::{InodeId, Tree};

use crate::support::{Image, Reader};
use crate::unpacked::{self, Allowed};

const ALL: [(&str, Version); 3] =
    [("nydus-v5", Version::V5), ("nydus-v6", Version::V6), ("nydus-zran", Version::V6)];

#[test]
fn trees_and_contents_equal_containerds_unpack() {
    for (name, version) in ALL {
        let image = Image::open(name);
        let rafs = image.decode();
        assert_eq!(rafs.version, version, "{name}");
        let mut reader = Reader::new(&rafs, |blob| image.blob(&blob.digest));
        let contents: HashMap<_, _> = rafs.files.iter().map(|f| (f.inode, reader.file(&f.runs))).collect();
        assert!(reader.verified >= rafs.pieces.len(), "every chunk was read");
        assert!(rafs.prefetch.is_empty(), "nydus-image names the root when nothing is chosen");
        compare(&rafs.tree, &contents);
    }
}

#[test]
fn units_are_what_the_image_was_made_with() {
    let kinds = |name| {
        let rafs = Image::open(name).decode();
        let (mut kinds, units) = ([0; 4], rafs.units.len());
        for unit in &rafs.units {
            kinds[match unit.codec {
                UnitCodec::Plain => 0,
                UnitCodec::Lz4Block => 1,
                UnitCodec::Zstd => 2,
                _ => 3,
            }] += 1;
        }
        (kinds, units, rafs.pieces.len())
    };
    let ([plain, lz4, 0, 0], units, pieces) = kinds("nydus-v5") else { panic!("v5 is lz4") };
    assert!(plain > 0 && lz4 > 0 && units == pieces);
    let ([plain, 0, zstd, 0], units, pieces) = kinds("nydus-v6") else { panic!("v6 is zstd") };
    assert!(plain > 0 && zstd > 0 && units == pieces);
    // 15 contexts of the first layer and 1 of the second, as their blobs' headers say.
    assert_eq!((kinds("nydus-zran").0, kinds("nydus-zran").1), ([0, 0, 0, 16], 16));
}

/// The same contexts stand packed at the end of the blobs, found by the bootstrap or by the table of contents there.
#[test]
fn contexts_in_blobs_equal_those_beside_the_bootstrap() {
    for name in ["nydus-v6", "nydus-zran"] {
        let image = Image::open(name);
        let (bytes, beside) = image.parts();
        let bootstrap = Bootstrap::open(&bytes).unwrap();
        assert_eq!(beside.len(), if name == "nydus-zran" { 2 } else { 0 });
        for (index, blob) in (0..).zip(bootstrap.blobs()) {
            let at = blob.contexts.as_ref().unwrap();
            let holder = image.blob(&at.blob);
            let stored = &holder[at.stored.start as usize..at.stored.end as usize];
            let contexts = Contexts::stored(stored, blob).unwrap();
            if let Some(known) = beside.get(&index) {
                assert_eq!(known.contexts.as_ref(), Some(&contexts), "{name} {index}");
            }
            let (size, tail) = (holder.len() as u64, &holder[holder.len() - 4096.min(holder.len())..]);
            let toc = Toc::decode(tail, size, at.toc.as_ref()).unwrap();
            assert_eq!(at.toc.is_some(), name == "nydus-zran");
            let meta = toc.entry(b"blob.meta").unwrap();
            assert_eq!((meta.stored.start, meta.raw_len), (at.stored.start, at.raw_len));
            for part in ["blob.meta", "blob.meta.header", "blob.digest", "image.boot"] {
                let part = toc.entry(part.as_bytes()).unwrap();
                part.open(&holder[part.stored.start as usize..part.stored.end as usize]).unwrap();
            }
        }
    }
}

/// Without the chunk table, chunks and digests come from the blobs, and are the same files.
#[test]
fn a_bootstrap_without_chunks_reads_those_of_its_blobs() {
    for name in ["nydus-v6", "nydus-zran"] {
        let image = Image::open(name);
        let (mut bytes, _) = image.parts();
        bytes[1152 + 32..1152 + 40].fill(0);
        let bootstrap = Bootstrap::open(&bytes).unwrap();
        assert!(!bootstrap.has_chunks());
        let mut beside = BTreeMap::new();
        for (index, blob) in (0..).zip(bootstrap.blobs()) {
            let at = blob.contexts.as_ref().unwrap();
            let holder = image.blob(&at.blob);
            let contexts =
                Contexts::stored(&holder[at.stored.start as usize..at.stored.end as usize], blob).unwrap();
            let tail = &holder[holder.len() - 4096.min(holder.len())..];
            let toc = Toc::decode(tail, holder.len() as u64, at.toc.as_ref()).unwrap();
            let part = toc.entry(b"blob.digest").unwrap();
            let digests = part.open(&holder[part.stored.start as usize..part.stored.end as usize]).unwrap();
            beside.insert(index, Beside { contexts: Some(contexts), digests: Some(digests) });
        }
        let rafs = bootstrap.decode(&beside).unwrap();
        let mut reader = Reader::new(&rafs, |blob| image.blob(&blob.digest));
        let contents: HashMap<_, _> = rafs.files.iter().map(|f| (f.inode, reader.file(&f.runs))).collect();
        compare(&rafs.tree, &contents);
    }
}

/// Two folders and a file twice: a prefetch table of our own in the place of the one that names the root.
#[test]
fn prefetch_tables_name_files_and_folders() {
    let image = Image::open("nydus-v6");
    let (mut bytes, beside) = image.parts();
    let table = u64::from_le_bytes(bytes[1192..1200].try_into().unwrap()) as usize;
    let rafs = Bootstrap::open(&bytes).unwrap().decode(&beside).unwrap();
    let etc = find(&bytes, b"etc");
    bytes[table..table + 4].copy_from_slice(&etc.to_le_bytes());
    let hinted = Bootstrap::open(&bytes).unwrap().decode(&beside).unwrap();
    assert_eq!(hinted.tree, rafs.tree);
    let wanted: Vec<_> = ["etc/passwd", "etc/shadow"].map(|p| rafs.tree.lookup(p.as_bytes()).unwrap()).into();
    assert_eq!(hinted.prefetch, wanted);
}

/// The number of an entry of a bootstrap's root folder, read off its bytes: nid, offset of the name, type.
fn find(bytes: &[u8], name: &[u8]) -> u32 {
    let image = hoist_format::erofs::Image::new(bytes).unwrap();
    let root = image.inode(image.root()).unwrap();
    image.find(&root, name).unwrap().unwrap().nid as u32
}

#[test]
fn a_layer_without_a_bootstrap_says_so() {
    let package = Package::read(&[0; 1024]).unwrap();
    assert!(package.bootstrap().err().unwrap().to_string().contains("image/image.boot"));
}

/// With what the image was made without: a FIFO.
pub fn compare(tree: &Tree, contents: &HashMap<InodeId, Vec<u8>>) {
    assert_eq!(tree.lookup(b"dev/fifo"), None);
    let allowed = Allowed { without: |path| path == "dev/fifo", ..Allowed::default() };
    unpacked::compare(tree, &allowed, |id, _, size| {
        let content = contents.get(&id).cloned().unwrap_or_default();
        assert_eq!(content.len() as u64, size);
        content
    });
}

//! Which extents stand where in the store, by digest, so that what one layer has is not fetched for another.
//!
//! The file `known` holds the layers it speaks of and one record for each of their extents, sorted by
//! digest; it is mapped and searched, so it takes page cache and no memory of ours. It is made from the
//! layers' tables. What has come since is read into memory by each process that looks, and written once it is a
//! good part of the whole: so that many layers, coming one after the other, do not have all of it written each time.
//! Nothing in it is believed: it says where to look, and what is found there is hashed. So it needs no locks and
//! no syncs; of two processes that make it at once, either's will do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoist_format::extent::Extent;
use hoist_format::table::Table;
use hoist_sys::map::FileMap;
use serde::{Deserialize, Serialize};

use crate::error::Error;

const MAGIC: &[u8; 8] = b"hoistkn2";
/// Magic (8), length of the list of layers (4), zeros (4), its BLAKE3 (32).
const HEAD: usize = 48;
/// Digest prefix (16), data offset (8), layer (4), extent (4); numbers little-endian.
const RECORD: usize = 32;
const PREFIX: usize = 16;
type Record = [u8; RECORD];
/// So many records of new tables stay in memory, or of those that the file has one in so many; beyond that the file is
/// written anew.
const MOST_UNWRITTEN: usize = 1 << 12;
const SHARE_UNWRITTEN: usize = 8;
/// Records of new layers are sorted in memory in batches of about this many.
const BATCH: usize = 1 << 19;
/// The tables that are here are looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// No digest of an extent, nor a name.
pub(crate) const NAMELESS: [u8; 32] = [0; 32];
/// Of many places that hold the same bytes, this many are told.
const PLACES: usize = 8;

/// A table that the records come from. Another one under the same name has another size or time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    /// The layer's folder.
    name: String,
    size: u64,
    mtime: (i64, i64),
    /// How many records it has; none if the table cannot be read.
    records: u32,
    /// How many extents: some may have no digest by which they could be found.
    extents: u32,
}

/// The tables that are here, by their layers' folders, with size and time.
type Tables = BTreeMap<String, (u64, (i64, i64))>;

/// Where an extent of a wanted digest may stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The layer's folder.
    pub layer: PathBuf,
    /// Which of its extents.
    pub extent: u32,
    /// How many it has.
    pub extents: u32,
    /// Byte offset in its data file.
    pub data_offset: u64,
}

/// The extents of one store.
#[derive(Debug)]
pub struct Known {
    root: PathBuf,
    /// The last look and its time; none when something new is known to be there.
    now: Mutex<Option<(Arc<Snapshot>, Option<Instant>)>>,
    copied: AtomicU64,
    most_unwritten: usize,
}

impl Known {
    /// Of the store at `root`; nothing is read yet.
    pub fn of(root: &Path) -> Self {
        let (now, copied) = (Mutex::default(), AtomicU64::new(0));
        Self { root: root.to_owned(), now, copied, most_unwritten: MOST_UNWRITTEN }
    }

    /// What is known, brought up to date if that was not done just now. Blocks.
    ///
    /// # Errors
    /// The file system's.
    pub fn look(&self) -> Result<Arc<Snapshot>, Error> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((snapshot, at)) = &*now
            && at.is_some_and(|at| at.elapsed() < LOOK_AGAIN)
        {
            return Ok(Arc::clone(snapshot));
        }
        let last = now.take().map(|(snapshot, _)| snapshot);
        let snapshot = self.bring_up_to_date(last)?;
        *now = Some((Arc::clone(&snapshot), Some(Instant::now())));
        Ok(snapshot)
    }

    /// Has the next look see what is new.
    pub fn stale(&self) {
        if let Some((_, at)) = &mut *self.now.lock().unwrap_or_else(PoisonError::into_inner) {
            *at = None;
        }
    }

    /// Notes that so many bytes were copied and not fetched.
    pub fn copied(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }
    /// Bytes that were copied and not fetched so far.
    pub fn copied_so_far(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }

    fn bring_up_to_date(&self, last: Option<Arc<Snapshot>>) -> Result<Arc<Snapshot>, Error> {
        let wanted = self.tables()?;
        if let Some(last) = last.as_ref().filter(|last| last.is_of(&wanted)) {
            return Ok(Arc::clone(last));
        }
        let (kept, fresh) =
            last.as_ref().map_or((None, &[][..]), |last| (Some(&last.written), &last.fresh[..]));
        let mut written = Written::current(&self.root, kept);
        let mut fresh = self.missing(&written, fresh, &wanted);
        let most = self.most_unwritten.max(written.len() / SHARE_UNWRITTEN);
        let gone = written.sources.iter().filter(|s| !is_wanted(&wanted, s)).map(|s| s.records as usize);
        if fresh.iter().map(|table| table.records.len()).sum::<usize>() > most
            || gone.sum::<usize>() > most.max(written.len() / 2)
        {
            fresh.clear();
            loop {
                written = Arc::new(self.step(&written, &wanted)?);
                if written.sources.len() == wanted.len() {
                    break;
                }
            }
        }
        let gone = written.sources.iter().map(|s| !is_wanted(&wanted, s)).collect();
        Ok(Arc::new(Snapshot { layers: self.root.join("layers"), written, gone, fresh }))
    }

    /// The tables that the file does not name, read, but for those that were read already.
    fn missing(&self, written: &Written, read: &[Arc<Fresh>], wanted: &Tables) -> Vec<Arc<Fresh>> {
        let named = written.sources.iter().filter(|s| is_wanted(wanted, s)).map(|s| &s.name);
        let named: BTreeSet<&String> = named.collect();
        let missing = wanted.iter().filter(|(name, _)| !named.contains(name));
        let had =
            |name: &String| read.iter().find(|f| f.source.name == *name && is_wanted(wanted, &f.source));
        missing
            .map(|(name, stamp)| had(name).map_or_else(|| Arc::new(self.read(name, *stamp, 0)), Arc::clone))
            .collect()
    }

    /// Reads a layer's table; one that cannot be read has no extents.
    fn read(&self, name: &str, (size, mtime): (u64, (i64, i64)), layer: u32) -> Fresh {
        let table = fs::read(self.root.join("layers").join(name).join("table")).ok();
        let table = table.and_then(|bytes| Table::decode(&bytes).ok());
        let extents = table.as_ref().map_or(&[][..], |t| &t.extents.extents);
        let known = extents.iter().zip(0..).filter(|(e, _)| e.digest != NAMELESS);
        let mut records: Vec<Record> = known.map(|(e, i)| record(e, layer, i)).collect();
        records.sort_unstable();
        let (count, extents) = (records.len() as u32, extents.len() as u32);
        Fresh { source: Source { name: name.to_owned(), size, mtime, records: count, extents }, records }
    }

    /// The tables that are here.
    fn tables(&self) -> Result<Tables, Error> {
        let layers = self.root.join("layers");
        let names = super::names(&layers)?;
        let stamp = |name: &String| {
            let meta = fs::metadata(layers.join(name).join("table")).ok()?;
            Some((meta.len(), (meta.mtime(), meta.mtime_nsec())))
        };
        Ok(names.into_iter().filter_map(|n| stamp(&n).map(|s| (n, s))).collect())
    }

    /// Writes the file anew: without what is gone, with one more batch of what is new.
    fn step(&self, old: &Written, wanted: &Tables) -> Result<Written, Error> {
        let mut sources: Vec<Source> = old.sources.iter().filter(|s| is_wanted(wanted, s)).cloned().collect();
        // Where an old layer's records go; none for those that are gone.
        let mut place = 0;
        let renumbered: Vec<Option<u32>> =
            old.sources.iter().map(|s| is_wanted(wanted, s).then(|| (place, place += 1).0)).collect();
        let mut fresh: Vec<Record> = Vec::new();
        for (name, stamp) in wanted {
            if sources.iter().any(|s| s.name == *name) {
                continue;
            }
            let read = self.read(name, *stamp, sources.len() as u32);
            fresh.extend(read.records);
            sources.push(read.source);
            if fresh.len() >= BATCH {
                break;
            }
        }
        fresh.sort_unstable();
        let kept = old.records().filter_map(|record| {
            let layer = renumbered[u32_at(record, 24) as usize]?;
            let mut record: Record = record.try_into().ok()?;
            record[24..28].copy_from_slice(&layer.to_le_bytes());
            Some(record)
        });
        let path = self.root.join("known");
        let file = super::aside::for_place_in(&self.root)?;
        write(file.as_file(), &sources, kept, &fresh).map_err(Error::io("write", &path))?;
        let file = file.persist(&path).map_err(|e| Error::io("rename to", &path)(e.error))?;
        let written = Written::of(&file);
        written.ok_or_else(|| Error::Internal(format!("{} is not what was just written", path.display())))
    }
}

fn is_wanted(wanted: &Tables, source: &Source) -> bool {
    wanted.get(&source.name) == Some(&(source.size, source.mtime))
}

fn record(extent: &Extent, layer: u32, i: u32) -> Record {
    let mut record = [0; RECORD];
    record[..PREFIX].copy_from_slice(&extent.digest[..PREFIX]);
    record[16..24].copy_from_slice(&extent.data_offset.to_le_bytes());
    record[24..28].copy_from_slice(&layer.to_le_bytes());
    record[28..].copy_from_slice(&i.to_le_bytes());
    record
}

fn write(
    file: &File,
    sources: &[Source],
    kept: impl Iterator<Item = Record>,
    fresh: &[Record],
) -> std::io::Result<()> {
    let list = serde_json::to_vec(sources)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(MAGIC)?;
    out.write_all(&(list.len() as u32).to_le_bytes())?;
    out.write_all(&[0; 4])?;
    out.write_all(blake3::hash(&list).as_bytes())?;
    out.write_all(&list)?;
    let mut fresh = fresh.iter().peekable();
    for record in kept {
        while let Some(first) = fresh.next_if(|f| f[..PREFIX] < record[..PREFIX]) {
            out.write_all(first)?;
        }
        out.write_all(&record)?;
    }
    fresh.try_for_each(|record| out.write_all(record))?;
    out.flush()
}

/// What was known at one time.
#[derive(Debug, Default)]
pub struct Snapshot {
    layers: PathBuf,
    written: Arc<Written>,
    /// Which of its layers are not here any more.
    gone: Vec<bool>,
    /// Tables that came since it was written.
    fresh: Vec<Arc<Fresh>>,
}

/// A table whose records are in memory, sorted.
#[derive(Debug)]
struct Fresh {
    source: Source,
    records: Vec<Record>,
}

/// What stands in the file.
#[derive(Debug, Default)]
struct Written {
    sources: Vec<Source>,
    map: Option<FileMap>,
    /// Where the records start.
    start: usize,
    /// Of the file.
    identity: (u64, u64),
}

impl Written {
    /// What stands there now: as it is known, if it is still that file.
    fn current(root: &Path, known: Option<&Arc<Written>>) -> Arc<Written> {
        let Ok(file) = File::open(root.join("known")) else { return Arc::default() };
        let identity = hoist_sys::file::identity(&file).ok();
        match known.filter(|known| Some(known.identity) == identity) {
            Some(known) => Arc::clone(known),
            None => Arc::new(Self::of(&file).unwrap_or_default()),
        }
    }

    /// None where the file is damaged.
    fn of(file: &File) -> Option<Self> {
        let map = FileMap::of(file).ok()?;
        let head = map.get(..HEAD).filter(|head| head[..8] == *MAGIC)?;
        let start = HEAD.checked_add(u32_at(head, 8) as usize)?;
        let list = map.get(HEAD..start).filter(|list| blake3::hash(list).as_bytes()[..] == head[16..])?;
        let sources: Vec<Source> = serde_json::from_slice(list).ok()?;
        let records: usize = sources.iter().map(|s| s.records as usize).sum();
        if map.len() != start + records * RECORD {
            return None;
        }
        let identity = hoist_sys::file::identity(file).ok()?;
        let written = Self { sources, map: Some(map), start, identity };
        // The records are not hashed; but those of an unknown layer cannot be carried on.
        let sound = written.records().all(|r| (u32_at(r, 24) as usize) < written.sources.len());
        sound.then_some(written)
    }

    fn all(&self) -> &[u8] {
        self.map.as_deref().and_then(|map| map.get(self.start..)).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.all().len() / RECORD
    }

    fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.all().chunks_exact(RECORD)
    }
}

impl Snapshot {
    /// Does it speak of just the tables that are here?
    fn is_of(&self, wanted: &Tables) -> bool {
        let written = self.written.sources.iter().zip(&self.gone).filter(|(_, gone)| !**gone);
        let mut named = written.map(|(source, _)| source).chain(self.fresh.iter().map(|f| &f.source));
        named.clone().count() == wanted.len() && named.all(|source| is_wanted(wanted, source))
    }

    /// Where bytes of this digest may stand.
    pub fn places(&self, digest: &[u8; 32]) -> Vec<Place> {
        let written = self.written.all();
        let place = |record: &[u8], source: &Source| Place {
            layer: self.layers.join(&source.name),
            extent: u32_at(record, 28),
            extents: source.extents,
            data_offset: u64_at(record, 16),
        };
        let nth = |i: usize| &written[i * RECORD..][..RECORD];
        let old = alike(written.len() / RECORD, digest, nth).filter_map(|i| {
            let layer = u32_at(nth(i), 24) as usize;
            let here = !self.gone.get(layer)?;
            here.then(|| Some(place(nth(i), self.written.sources.get(layer)?)))?
        });
        let new = self.fresh.iter().flat_map(|table| {
            let found = alike(table.records.len(), digest, |i| &table.records[i]);
            found.map(|i| place(&table.records[i], &table.source))
        });
        old.chain(new).take(PLACES).collect()
    }
}

/// The sorted records whose digests begin like this one.
fn alike<'r>(count: usize, digest: &[u8; 32], nth: impl Fn(usize) -> &'r [u8]) -> std::ops::Range<usize> {
    let first = |is_before: &dyn Fn(&[u8]) -> bool| {
        let (mut from, mut to) = (0, count);
        while from < to {
            let middle = from + (to - from) / 2;
            match is_before(&nth(middle)[..PREFIX]) {
                true => from = middle + 1,
                false => to = middle,
            }
        }
        from
    };
    let prefix = &digest[..PREFIX];
    first(&|record| record < prefix)..first(&|record| record <= prefix)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_format::extent::{BLOCK, ExtentTable, Piece};
    use hoist_format::span::{Codec, Span, SpanTable, Spans};

    /// A layer of `digests.len()` extents of one block each.
    fn add(root: &Path, name: &str, digests: &[[u8; 32]]) {
        let n = digests.len() as u64;
        let at = |i: usize| i as u64 * BLOCK;
        let piece = |i| Piece { stream_offset: at(i), data_offset: at(i), len: BLOCK };
        let extent = |(i, d): (usize, &[u8; 32])| Extent {
            data_offset: at(i),
            len: BLOCK,
            digest: *d,
            first_piece: i as u32,
        };
        let extents = ExtentTable {
            extents: digests.iter().enumerate().map(extent).collect(),
            pieces: (0..digests.len()).map(piece).collect(),
            data_size: n * BLOCK,
        };
        let spans = SpanTable {
            codec: Codec::Plain,
            blob_size: n * BLOCK,
            stream_size: n * BLOCK,
            spans: vec![Span::default()],
        };
        let dir = root.join("layers").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("table"), Table { extents, spans: Spans::Linear(spans) }.encode()).unwrap();
    }

    fn digest(n: u32) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    /// The slow and obvious answer: all layers' tables, looked through.
    fn found(known: &Known, n: u32) -> Vec<(String, u32, u64)> {
        known.stale();
        let places = known.look().unwrap().places(&digest(n));
        let short =
            |p: Place| (p.layer.file_name().unwrap().to_str().unwrap().to_owned(), p.extent, p.data_offset);
        let mut places: Vec<_> = places.into_iter().map(short).collect();
        places.sort();
        places
    }

    /// Nothing new stays in memory.
    fn all_written(root: &Path) -> Known {
        Known { most_unwritten: 0, ..Known::of(root) }
    }

    #[test]
    fn layers_come_and_go_and_damage_is_made_good() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("layers")).unwrap();
        let known = all_written(root);
        assert_eq!(found(&known, 1), []);
        add(root, "a", &[digest(1), digest(2), digest(3)]);
        add(root, "b", &[digest(3), digest(4)]);
        let at = |l: &str, e: u32| (l.to_owned(), e, u64::from(e) * BLOCK);
        assert_eq!((found(&known, 2), found(&known, 5)), (vec![at("a", 1)], vec![]));
        assert_eq!(found(&known, 3), [at("a", 2), at("b", 0)]);

        add(root, "c", &[digest(5), digest(3)]);
        fs::remove_dir_all(root.join("layers/a")).unwrap();
        assert_eq!(found(&known, 3), [at("b", 0), at("c", 1)]);
        assert_eq!(found(&known, 1), []);
        // Another process finds the same without a table being read.
        let before = fs::metadata(root.join("known")).unwrap().ino();
        assert_eq!(found(&all_written(root), 4), [at("b", 1)]);
        assert_eq!(fs::metadata(root.join("known")).unwrap().ino(), before);

        let whole = fs::read(root.join("known")).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            fs::write(root.join("new"), &whole[..cut]).unwrap();
            fs::rename(root.join("new"), root.join("known")).unwrap();
            assert_eq!(found(&all_written(root), 3), [at("b", 0), at("c", 1)], "cut at {cut}");
        }
        for at_byte in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at_byte] ^= 0x81;
            fs::write(root.join("new"), &bytes).unwrap();
            fs::rename(root.join("new"), root.join("known")).unwrap();
            // A flipped record may mislead; whoever follows it hashes what is there.
            found(&all_written(root), 3);
        }
    }

    #[test]
    fn many_layers_one_after_the_other_have_it_written_few_times() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("layers")).unwrap();
        let known = Known { most_unwritten: 20, ..Known::of(root) };
        let (mut written, mut bytes) = (BTreeSet::new(), 0);
        for n in 0..150u32 {
            // One extent in ten is everybody's.
            let digests: Vec<_> = (0..10).map(|i| digest(if i == 0 { 0 } else { n * 10 + i })).collect();
            add(root, &format!("{n:03}"), &digests);
            assert_eq!(found(&known, n * 10 + 9), [(format!("{n:03}"), 9, 9 * BLOCK)]);
            if let Ok(meta) = fs::metadata(root.join("known"))
                && written.insert((meta.ino(), meta.mtime_nsec()))
            {
                bytes += meta.len();
            }
        }
        let last = fs::metadata(root.join("known")).unwrap().len();
        assert!(written.len() < 40 && bytes < 12 * last, "{} times, {bytes} of {last}", written.len());
        assert_eq!(found(&known, 0).len(), PLACES);
        for n in [0, 77, 149] {
            let again = Known { most_unwritten: 20, ..Known::of(root) };
            assert_eq!(found(&again, n * 10 + 5), [(format!("{n:03}"), 5, 5 * BLOCK)]);
        }
        // Those that are gone are told of no more, and take the others' places no more.
        (0..140).for_each(|n| fs::remove_dir_all(root.join(format!("layers/{n:03}"))).unwrap());
        let mut left: Vec<_> = found(&known, 0).into_iter().map(|(name, ..)| name).collect();
        left.dedup();
        assert_eq!(left.len(), PLACES);
        assert!(left.iter().all(|name| **name >= *"140"), "{left:?}");
        assert_eq!(found(&known, 15), []);
    }

    #[test]
    fn a_table_that_cannot_be_read_has_no_extents() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "good", &[digest(1)]);
        add(dir.path(), "bad", &[digest(1)]);
        fs::write(dir.path().join("layers/bad/table"), b"no table").unwrap();
        assert_eq!(found(&Known::of(dir.path()), 1), [("good".to_owned(), 0, 0)]);
    }
}

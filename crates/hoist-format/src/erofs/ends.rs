//! The inode of packed ends, which files share: read once, however many do.

use super::Fault;
use super::image::Image;
use super::inode::NodeKind;
use crate::volume::Stretch;

/// What reading the files of an image may still cost, in bytes of it: indexes and clusters may be shared, but not
/// without end.
#[derive(Debug)]
pub(super) struct Work(u64);

impl Work {
    /// For an image of so many bytes.
    pub fn of(size: u64) -> Self {
        Self(size.saturating_mul(16))
    }

    pub fn charge(&mut self, bytes: u64) -> Result<(), Fault> {
        let left = self.0.checked_sub(bytes);
        self.0 = left.ok_or(Fault::Unsupported("clusters that files share beyond measure"))?;
        Ok(())
    }
}

/// What the packed ends are made of, and where in them each run starts.
#[derive(Debug, Default)]
pub(super) struct Packed {
    runs: Vec<Stretch>,
    starts: Vec<u64>,
    size: u64,
}

/// The ends as a file may use them; the inode of ends itself has none.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a>(pub Option<&'a Packed>);

impl Image<'_> {
    /// Reads the inode of packed ends; None where the image has none.
    pub(super) fn packed_ends(&self, work: &mut Work) -> Result<Option<Packed>, Fault> {
        if !self.foreign || self.sb.packed == 0 {
            return Ok(None);
        }
        let node = self.read_inode(self.sb.packed)?;
        if !matches!(node.kind, NodeKind::File(_)) {
            return Err(Fault::Bad("the inode of packed ends is no file"));
        }
        let runs = self.stretches(&node, Ends(None), work)?;
        Ok(Some(Packed::of(runs)))
    }
}

impl Packed {
    fn of(runs: Vec<Stretch>) -> Self {
        let mut packed = Self { starts: Vec::with_capacity(runs.len()), runs, size: 0 };
        for run in &packed.runs {
            packed.starts.push(packed.size);
            packed.size += run.len();
        }
        packed
    }
}

impl Ends<'_> {
    /// `len` bytes of them from `offset` on.
    pub fn part(self, offset: u64, len: u64) -> Result<Vec<Stretch>, Fault> {
        let packed = self.0.ok_or(Fault::Bad("a file's end is in an inode that is not there"))?;
        let end = offset.checked_add(len).filter(|&end| end <= packed.size);
        let end = end.ok_or(Fault::Bad("a file's end is beyond the packed ones"))?;
        let first = packed.starts.partition_point(|&start| start <= offset).saturating_sub(1);
        let mut out = Vec::new();
        for (run, &at) in packed.runs[first..].iter().zip(&packed.starts[first..]) {
            let (start, to) = (at.max(offset), (at + run.len()).min(end));
            if start >= to {
                break;
            }
            out.push(part(run, start - at, to - start));
        }
        Ok(out)
    }
}

fn part(stretch: &Stretch, skip: u64, len: u64) -> Stretch {
    match stretch.clone() {
        Stretch::Hole { .. } => Stretch::Hole { len },
        Stretch::Plain { offset, .. } => Stretch::Plain { offset: offset + skip, len },
        Stretch::Packed { stored, codec, raw_len, offset, .. } => {
            Stretch::Packed { stored, codec, raw_len, offset: offset + skip, len }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkCodec;

    /// Which byte of which run: the slow and obvious.
    fn bytes(runs: &[Stretch]) -> Vec<(u64, u64)> {
        let one = |run: &Stretch| match *run {
            Stretch::Hole { len } => vec![(0, 0); len as usize],
            Stretch::Plain { offset, len } => (offset..offset + len).map(|at| (1, at)).collect(),
            Stretch::Packed { ref stored, offset, len, .. } => {
                (offset..offset + len).map(|at| (stored.start, at)).collect()
            }
        };
        runs.iter().flat_map(one).collect()
    }

    #[test]
    fn parts_are_what_is_asked_for() {
        let cluster = |start, len| Stretch::Packed {
            stored: start..start + 4,
            codec: ChunkCodec::Lz4,
            raw_len: 9,
            offset: 2,
            len,
        };
        let runs = vec![
            cluster(100, 5),
            Stretch::Plain { offset: 7, len: 3 },
            cluster(200, 7),
            Stretch::Hole { len: 2 },
        ];
        let packed = Packed::of(runs.clone());
        let (ends, all) = (Ends(Some(&packed)), bytes(&runs));
        for from in 0..all.len() {
            for to in from + 1..=all.len() {
                let part = ends.part(from as u64, (to - from) as u64).unwrap();
                assert_eq!(bytes(&part), all[from..to]);
                assert!(part.iter().all(|run| !run.is_empty()));
            }
        }
        assert!(ends.part(0, all.len() as u64 + 1).is_err() && ends.part(u64::MAX, 2).is_err());
        assert!(Ends(None).part(0, 1).is_err());
    }

    #[test]
    fn work_comes_to_an_end() {
        let mut work = Work::of(10);
        assert!(work.charge(150).is_ok() && work.charge(10).is_ok() && work.charge(1).is_err());
    }
}

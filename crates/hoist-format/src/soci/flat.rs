//! As much of flatbuffers as a zTOC needs (FlatBuffers "Internals": tables, vtables, strings, vectors), with every
//! offset checked. Alignment is not: nothing here depends on it.

use super::SociError;
use crate::le::{le16, le32, le64};

type Result<T> = std::result::Result<T, SociError>;

/// Most that is read of one buffer, bytes: parts of it may be named any number of times.
const MOST_READ: u64 = 1 << 30;
/// What naming something costs at least.
const EACH: u64 = 32;

/// A buffer and how much of it may still be read.
pub(super) struct Flat<'a> {
    bytes: &'a [u8],
    left: u64,
}

/// A table: where it and its vtable start, and the vtable's length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    at: usize,
    vtable: usize,
    len: usize,
}

/// The elements of a vector of offsets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    at: usize,
    pub len: usize,
}

impl<'a> Flat<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, left: MOST_READ }
    }

    pub fn root(&mut self) -> Result<Table> {
        let at = self.follow(0)?;
        self.table(at)
    }

    fn get(&self, at: usize, len: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(len);
        end.and_then(|end| self.bytes.get(at..end)).ok_or(SociError::Flat("an offset leads out of it"))
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        let left = self.left.checked_sub(bytes as u64 + EACH);
        self.left = left.ok_or(SociError::Flat("it names the same parts again and again"))?;
        Ok(())
    }

    /// Where the offset at `at` leads.
    fn follow(&self, at: usize) -> Result<usize> {
        let to = at.checked_add(le32(self.get(at, 4)?, 0) as usize);
        to.ok_or(SociError::Flat("an offset leads out of it"))
    }

    fn table(&mut self, at: usize) -> Result<Table> {
        self.charge(0)?;
        let back = le32(self.get(at, 4)?, 0).cast_signed();
        let vtable = usize::try_from(at as i64 - i64::from(back));
        let vtable = vtable.map_err(|_| SociError::Flat("an offset leads out of it"))?;
        let len = usize::from(le16(self.get(vtable, 2)?, 0));
        if len < 4 {
            return Err(SociError::Flat("a table without a list of its fields"));
        }
        self.get(vtable, len)?;
        Ok(Table { at, vtable, len })
    }

    /// Where field `number` of a table stands; None where it has its default.
    fn field(&self, table: Table, number: usize) -> Result<Option<usize>> {
        let slot = 4 + 2 * number;
        if slot + 2 > table.len {
            return Ok(None);
        }
        let offset = usize::from(le16(self.get(table.vtable + slot, 2)?, 0));
        Ok((offset > 0).then_some(table.at + offset))
    }

    pub fn byte(&self, table: Table, number: usize, default: u8) -> Result<u8> {
        self.field(table, number)?.map_or(Ok(default), |at| Ok(self.get(at, 1)?[0]))
    }

    pub fn u32(&self, table: Table, number: usize) -> Result<u32> {
        self.field(table, number)?.map_or(Ok(0), |at| Ok(le32(self.get(at, 4)?, 0)))
    }

    pub fn u64(&self, table: Table, number: usize) -> Result<u64> {
        self.field(table, number)?.map_or(Ok(0), |at| Ok(le64(self.get(at, 8)?, 0)))
    }

    /// A string or a vector of bytes; empty where there is none.
    pub fn bytes(&mut self, table: Table, number: usize) -> Result<&'a [u8]> {
        match self.field(table, number)? {
            Some(at) => self.bytes_at(at),
            None => Ok(&[]),
        }
    }

    fn bytes_at(&mut self, at: usize) -> Result<&'a [u8]> {
        let start = self.follow(at)?;
        let len = le32(self.get(start, 4)?, 0) as usize;
        let bytes = self.get(start + 4, len)?;
        self.charge(len)?;
        Ok(bytes)
    }

    pub fn child(&mut self, table: Table, number: usize) -> Result<Option<Table>> {
        let Some(at) = self.field(table, number)? else { return Ok(None) };
        let at = self.follow(at)?;
        self.table(at).map(Some)
    }

    pub fn vector(&self, table: Table, number: usize) -> Result<Tables> {
        let Some(at) = self.field(table, number)? else { return Ok(Tables { at: 0, len: 0 }) };
        let start = self.follow(at)?;
        let len = le32(self.get(start, 4)?, 0) as usize;
        let bytes = len.checked_mul(4).ok_or(SociError::Flat("a list leads out of it"))?;
        self.get(start + 4, bytes)?;
        Ok(Tables { at: start + 4, len })
    }

    /// Element `i` of a vector, which is a table; `i` is below its length.
    pub fn element(&mut self, vector: Tables, i: usize) -> Result<Table> {
        let at = self.follow(vector.at + 4 * i)?;
        self.table(at)
    }

    /// Element `i` of a vector, which is a string.
    pub fn text(&mut self, vector: Tables, i: usize) -> Result<&'a [u8]> {
        self.bytes_at(vector.at + 4 * i)
    }
}

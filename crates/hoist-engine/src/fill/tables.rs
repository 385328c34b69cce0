//! Decoded tables in memory, each once: images that stand on the same layer mostly have the same table for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hoist_format::digest::Digest;
use hoist_format::table::Table;

/// By the digest of their encoded form. Whoever uses one keeps it in memory.
#[derive(Debug, Default)]
pub struct Tables(Mutex<Weakly>);

type Weakly = HashMap<Digest, Weak<Table>>;

impl Tables {
    /// The table of this digest: as somebody has it already, else as `decode` gives it.
    pub fn get<E>(
        &self,
        digest: &Digest,
        decode: impl FnOnce() -> Result<Table, E>,
    ) -> Result<Arc<Table>, E> {
        let there = |tables: &Weakly| tables.get(digest).and_then(Weak::upgrade);
        if let Some(table) = there(&self.lock()) {
            return Ok(table);
        }
        // Nobody waits for another's table.
        let table = Arc::new(decode()?);
        let mut tables = self.lock();
        if let Some(table) = there(&tables) {
            return Ok(table);
        }
        tables.retain(|_, table| table.strong_count() > 0);
        tables.insert(*digest, Arc::downgrade(&table));
        Ok(table)
    }

    fn lock(&self) -> MutexGuard<'_, Weakly> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoist_format::extent::ExtentTable;
    use hoist_format::span::{Codec, SpanTable, Spans};

    #[test]
    fn a_table_is_in_memory_once_while_it_is_used() {
        let table = || {
            let spans = SpanTable { codec: Codec::Plain, blob_size: 0, stream_size: 0, spans: Vec::new() };
            Ok::<_, ()>(Table { extents: ExtentTable::default(), spans: Spans::Linear(spans) })
        };
        let (tables, digest) = (Tables::default(), Digest::of(b"one"));
        let first = tables.get(&digest, table).unwrap();
        let again = tables.get(&digest, || unreachable!("it is there")).unwrap_or_else(|()| unreachable!());
        assert!(Arc::ptr_eq(&first, &again));
        drop((first, again));
        assert!(tables.get(&digest, || Err(())).is_err(), "nobody has kept it");
        assert!(tables.get(&digest, table).is_ok(), "a failure is not remembered");
    }
}

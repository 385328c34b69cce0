//! The records, in redb: snapshots by key, and who stands on whom.
//!
//! A transaction reads or writes records and does nothing else: folders and mounts wait for no disk but this
//! file's. Every write is on disk when it returns.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};

use crate::error::Error;
use crate::record::{Info, Kind, Labels, Record, Usage, now};

/// Key to record, as JSON.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// Parent and child.
const CHILDREN: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("children");

/// See the module.
pub struct Meta {
    path: PathBuf,
    /// None while it could not be opened anew.
    database: RwLock<Option<Database>>,
}

/// Who fails: the file, or what was asked of it.
enum Failure {
    File(redb::Error),
    Asked(Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::File(error.into())
    }
}

type Done<T> = Result<T, Failure>;

fn asked<T>(error: Error) -> Done<T> {
    Err(Failure::Asked(error))
}

impl Meta {
    /// Opens the records, or begins them.
    ///
    /// # Errors
    /// The file can't be had, or is none of ours.
    pub fn open(path: &Path) -> Result<Meta, Error> {
        let meta = Meta { path: path.to_owned(), database: RwLock::new(None) };
        meta.reopen()?;
        Ok(meta)
    }

    fn reopen(&self) -> Result<(), Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let open = || {
            let database = Database::create(&self.path)?;
            let transaction = database.begin_write()?;
            transaction.open_table(SNAPSHOTS)?;
            transaction.open_table(CHILDREN)?;
            transaction.commit()?;
            Ok::<_, redb::Error>(database)
        };
        *database = Some(open().map_err(|error| self.failed(&error))?);
        Ok(())
    }

    fn failed(&self, error: &redb::Error) -> Error {
        Error::Records { path: self.path.clone(), why: error.to_string() }
    }

    /// After a failed write, as on a full disk, redb does nothing more until it is opened anew.
    fn run<T>(&self, work: impl Fn(&Database) -> Done<T>) -> Result<T, Error> {
        for again in [true, false] {
            let outcome = {
                let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
                database.as_ref().map(&work)
            };
            match outcome {
                Some(Ok(value)) => return Ok(value),
                Some(Err(Failure::Asked(error))) => return Err(error),
                Some(Err(Failure::File(redb::Error::PreviousIo))) | None if again => self.reopen()?,
                Some(Err(Failure::File(error))) => return Err(self.failed(&error)),
                None => return Err(Error::Internal("the records were closed".into())),
            }
        }
        Err(Error::Internal("the records were not opened".into()))
    }

    fn read<T>(
        &self,
        work: impl Fn(&ReadOnlyTable<&'static str, &'static [u8]>) -> Done<T>,
    ) -> Result<T, Error> {
        self.run(|database| {
            let transaction = database.begin_read()?;
            work(&transaction.open_table(SNAPSHOTS)?)
        })
    }

    fn write<T>(&self, work: impl Fn(&mut Tables<'_>) -> Done<T>) -> Result<T, Error> {
        self.run(|database| {
            let transaction = database.begin_write()?;
            let value = work(&mut Tables {
                snapshots: transaction.open_table(SNAPSHOTS)?,
                children: transaction.open_table(CHILDREN)?,
            })?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// One snapshot.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, key: &str) -> Result<Record, Error> {
        self.read(|snapshots| require(snapshots, key))
    }

    /// Is there one?
    ///
    /// # Errors
    /// The records can't be read.
    pub fn has(&self, key: &str) -> Result<bool, Error> {
        self.read(|snapshots| Ok(get(snapshots, key)?.is_some()))
    }

    /// One snapshot, and those it stands on, the nearest first.
    ///
    /// # Errors
    /// There is none.
    pub fn chain(&self, key: &str) -> Result<(Record, Vec<Info>), Error> {
        self.read(|snapshots| {
            let record = require(snapshots, key)?;
            let parents = parents(snapshots, &record.parent)?;
            Ok((record, parents))
        })
    }

    /// All, by name.
    ///
    /// # Errors
    /// The records can't be read.
    pub fn all(&self) -> Result<Vec<Info>, Error> {
        self.read(|snapshots| {
            let mut all = Vec::new();
            for entry in snapshots.range::<&str>(..)? {
                let (key, value) = entry?;
                all.push(Info { name: key.value().to_owned(), record: decode(key.value(), value.value())? });
            }
            Ok(all)
        })
    }

    /// One more. Returns those it stands on, the nearest first.
    ///
    /// # Errors
    /// The key is taken; the parent is not there or not committed.
    pub fn create(&self, key: &str, record: &Record) -> Result<Vec<Info>, Error> {
        if key.is_empty() {
            return Err(Error::Invalid("a snapshot needs a key".into()));
        }
        self.write(|tables| {
            if tables.snapshots.get(key)?.is_some() {
                return asked(Error::Exists(key.to_owned()));
            }
            tables.put_under(key, record)?;
            parents(&tables.snapshots, &record.parent)
        })
    }

    /// Makes an active snapshot a committed one, under another name.
    ///
    /// # Errors
    /// The name is taken; there is no such snapshot, or it is not active; it has another parent.
    pub fn commit(&self, key: &str, name: &str, commit: &Commit) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::Invalid("a committed snapshot needs a name".into()));
        }
        self.write(|tables| {
            if tables.snapshots.get(name)?.is_some() {
                return asked(Error::Exists(name.to_owned()));
            }
            let before = require(&tables.snapshots, key)?;
            if before.kind != Kind::Active {
                let kind = before.kind.name();
                return asked(Error::Precondition(format!(
                    "cannot commit snapshot {key:?}: it is {kind}, not active"
                )));
            }
            let parent = match (before.parent.as_str(), commit.parent.as_str()) {
                (parent, "") | ("", parent) => parent.to_owned(),
                (before, parent) if before == parent => parent.to_owned(),
                (before, parent) => {
                    let why = format!(
                        "cannot commit snapshot {key:?} on {parent:?}: it was prepared on {before:?}"
                    );
                    return asked(Error::Invalid(why));
                }
            };
            tables.take(key, &before)?;
            let created = now();
            let record = Record {
                parent,
                kind: Kind::Committed,
                created,
                updated: created,
                labels: commit.labels.clone(),
                usage: commit.usage,
                ..before
            };
            tables.put_under(name, &record)
        })
    }

    /// Takes a snapshot away that nothing stands on.
    ///
    /// # Errors
    /// There is none, or something stands on it.
    pub fn remove(&self, key: &str) -> Result<Record, Error> {
        self.write(|tables| {
            let record = require(&tables.snapshots, key)?;
            if let Some(child) = tables.child_of(key)? {
                let why =
                    format!("cannot remove snapshot {key:?}: {child:?} stands on it, remove that one first");
                return asked(Error::Precondition(why));
            }
            tables.take(key, &record)?;
            Ok(record)
        })
    }

    /// Changes labels.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn relabel(&self, key: &str, change: impl Fn(&mut Labels)) -> Result<Record, Error> {
        self.write(|tables| {
            let mut record = require(&tables.snapshots, key)?;
            change(&mut record.labels);
            record.updated = now();
            tables.put(key, &record)?;
            Ok(record)
        })
    }
}

/// How a snapshot becomes a committed one.
pub struct Commit {
    /// Its labels from then on.
    pub labels: Labels,
    /// What it takes.
    pub usage: Usage,
    /// What it stands on, where that was left open.
    pub parent: String,
}

struct Tables<'t> {
    snapshots: Table<'t, &'static str, &'static [u8]>,
    children: Table<'t, (&'static str, &'static str), ()>,
}

impl Tables<'_> {
    fn put(&mut self, key: &str, record: &Record) -> Done<()> {
        let text = serde_json::to_vec(record).or_else(|e| asked(Error::Internal(e.to_string())))?;
        self.snapshots.insert(key, text.as_slice())?;
        Ok(())
    }

    /// The same below its parent, which has to be there.
    fn put_under(&mut self, key: &str, record: &Record) -> Done<()> {
        if !record.parent.is_empty() {
            if require(&self.snapshots, &record.parent)?.kind != Kind::Committed {
                let why =
                    format!("snapshot {key:?} can't stand on {:?}: that one is not committed", record.parent);
                return asked(Error::Invalid(why));
            }
            self.children.insert((record.parent.as_str(), key), ())?;
        }
        self.put(key, record)
    }

    fn take(&mut self, key: &str, record: &Record) -> Done<()> {
        self.snapshots.remove(key)?;
        if !record.parent.is_empty() {
            self.children.remove((record.parent.as_str(), key))?;
        }
        Ok(())
    }

    fn child_of(&self, key: &str) -> Done<Option<String>> {
        match self.children.range((key, "")..)?.next().transpose()? {
            Some((pair, _)) if pair.value().0 == key => Ok(Some(pair.value().1.to_owned())),
            _ => Ok(None),
        }
    }
}

/// In a transaction that reads, or in one that writes.
trait Snapshots: ReadableTable<&'static str, &'static [u8]> {}

impl<T: ReadableTable<&'static str, &'static [u8]>> Snapshots for T {}

fn decode(key: &str, value: &[u8]) -> Done<Record> {
    let wrong = |e| Error::Internal(format!("the record of snapshot {key:?} is damaged: {e}"));
    serde_json::from_slice(value).or_else(|e| asked(wrong(e)))
}

fn get(snapshots: &impl Snapshots, key: &str) -> Done<Option<Record>> {
    snapshots.get(key)?.map(|value| decode(key, value.value())).transpose()
}

fn require(snapshots: &impl Snapshots, key: &str) -> Done<Record> {
    get(snapshots, key)?.ok_or_else(|| Failure::Asked(Error::NotFound(key.to_owned())))
}

fn parents(snapshots: &impl Snapshots, nearest: &str) -> Done<Vec<Info>> {
    let mut parents = Vec::new();
    let mut name = nearest.to_owned();
    while !name.is_empty() {
        let record = require(snapshots, &name)?;
        let next = record.parent.clone();
        parents.push(Info { name, record });
        name = next;
    }
    Ok(parents)
}

//! What is known of a snapshot.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::part::{Part, TARGET};

/// Of a snapshot; none has an empty value.
pub type Labels = BTreeMap<String, String>;

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// To be looked at.
    View,
    /// To be written to.
    Active,
    /// A layer: others may stand on it.
    Committed,
}

impl Kind {
    /// As filters have it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }
}

/// What a snapshot takes, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub size: u64,
    /// Files, folders and all else.
    pub inodes: u64,
}

/// A time, nanoseconds since 1970.
pub type Time = u64;

/// Now.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// A snapshot, as it is kept under its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Names its folder.
    pub id: u64,
    /// What it stands on; empty: nothing.
    pub parent: String,
    /// See [`Kind`].
    pub kind: Kind,
    /// When it was made, or committed.
    pub created: Time,
    /// When its labels were changed last.
    pub updated: Time,
    /// See [`Labels`].
    pub labels: Labels,
    /// Of a committed one.
    pub usage: Usage,
    /// Is it mounted with its owners mapped, by its labels?
    #[serde(default)]
    pub mapped: bool,
    /// Of what image it is a layer, if it was not unpacked: it has no folder then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

impl Record {
    /// Is a layer being unpacked into it that stands on nothing?
    pub fn is_unpacked_alone(&self) -> bool {
        self.kind == Kind::Active && self.parent.is_empty() && self.labels.contains_key(TARGET)
    }
}

/// A snapshot with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its key.
    pub name: String,
    /// All else.
    pub record: Record,
}

//! What client and daemon say to each other (`docs/PROTOCOL.md`): JSON, one message a line.
//!
//! The daemon greets first, with its version; each request is answered by any number of progress lines and
//! one last line. A side that does not know the other's version of the protocol says so and leaves.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::{BackgroundFetch, Driver, Global, TrustIndex};

/// The version of all that follows. It grows with every change that the other side could misread.
pub const VERSION: u32 = 1;
/// Most bytes of a request.
pub const MAX_REQUEST: usize = 64 << 10;
/// Most bytes of one line of an answer: the status of thousands of mounts.
pub const MAX_ANSWER: u64 = 64 << 20;

/// The daemon's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Its version of the protocol.
    pub protocol: u32,
    /// Its own version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its mount namespace (the inode of `/proc/PID/ns/mnt`): a mount made in another is not seen here.
    pub mount_namespace: u64,
}

/// A client's line. The request is read once the version has been found good.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// The client's version of the protocol.
    pub protocol: u32,
    /// The client's own version.
    pub version: String,
    /// A [`Request`].
    pub request: Value,
}

/// What the daemon can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Is it there? Answered by `null`.
    Ping,
    /// Mount an image. Answered once the mount is ready, by a `note` for the user or null.
    Mount {
        /// The image's name; of a layout with an absolute path.
        image: String,
        /// The folder, canonical.
        target: PathBuf,
        /// Where to write what it took, at the end.
        stats: Option<PathBuf>,
        /// See [`Options`].
        options: Options,
    },
    /// Find out what an image is, for `run`. Answered by how it says it is run, and
    /// a `note` for the user or null.
    Resolve {
        /// The image's name.
        image: String,
        /// See [`Options`].
        options: Options,
    },
    /// Mount what this connection has resolved for a container, whose folders the client has made in the
    /// store. The mount lives as long as this connection, and is ended by `release`. Answered by
    /// the image's `digest` and the `driver` that shows it.
    Run {
        /// The container's name.
        container: String,
        /// Whether what it wrote is thrown away should the client die.
        remove: bool,
        /// The OCI runtime, should the client die.
        runtime: PathBuf,
    },
    /// Unmount the image of this connection's container. Answered by what it took.
    Release,
    /// Unmount. Answered by `true`, or by `false` if it is no mount of the daemon's.
    Unmount {
        /// The mount point, canonical.
        target: PathBuf,
        /// Detach it though it is in use.
        lazy: bool,
    },
    /// Fetch the whole of an image. Answered by what `hoist pull --json` prints.
    Pull {
        /// The image's name.
        image: String,
        /// See [`Options`].
        options: Options,
    },
    /// Answered by what `hoist images --json` prints.
    Images,
    /// Answered by what `hoist inspect --json` prints.
    Inspect {
        /// The image's name.
        image: String,
        /// See [`Options`].
        options: Options,
    },
    /// What a container of containerd's stands on. Answered by [`Standing`], or `null`.
    Snapshot {
        /// Its name, or the beginning of its id.
        name: String,
    },
    /// Forget an image's name. Answered by `null`.
    Remove {
        /// The name.
        image: String,
    },
    /// Answered by what `hoist prune --json` prints.
    Prune,
    /// Answered by what `hoist status --json` prints.
    Status,
    /// Answered by requests and bytes of the daemon's whole life.
    Stats,
}

/// An image that a snapshot of containerd's stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Its name.
    pub image: String,
    /// Where it is mounted; None: containerd has unpacked it.
    pub folder: Option<PathBuf>,
}

impl Request {
    /// The target of a mount that nobody is to have should its client not hear of it.
    pub fn mounts(&self) -> Option<PathBuf> {
        match self {
            Request::Mount { target, .. } => Some(target.clone()),
            _ => None,
        }
    }
}

/// Which of an image, and how far an index is believed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// `--trust-index`.
    pub trust_index: TrustIndex,
    /// `--platform`.
    pub platform: Option<String>,
    /// `--plain-http`.
    pub plain_http: Option<bool>,
    /// `--driver`.
    pub driver: Option<Driver>,
    /// `--background`, where it is not off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<String>,
}

impl Options {
    /// Those of the command line.
    pub fn of(global: &Global) -> Options {
        Options {
            trust_index: global.trust_index,
            platform: global.platform.clone(),
            plain_http: global.plain_http,
            driver: global.driver,
            background: (global.background != BackgroundFetch::Off).then(|| global.background.to_string()),
        }
    }
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A piece of work of so many bytes starts.
    Begin {
        /// What it is, for people.
        what: String,
        /// Its bytes; 0 if not known.
        total_bytes: u64,
    },
    /// So many more bytes of it are done.
    Advance(u64),
    /// It is done.
    End,
    /// Something that the user should know.
    Note(String),
    /// The last line: it was done.
    Done(Value),
    /// The last line: it failed.
    Failed {
        /// What `hoist` prints.
        text: String,
        /// Its exit code.
        code: u8,
    },
}

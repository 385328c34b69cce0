//! What a caller decides once for all of the engine.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::registry::CredentialSource;

/// How far an index is believed (`docs/SEMANTICS.md`, "Trust").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// Also one published in the image's registry; checked when a layer is complete.
    #[default]
    Registry,
    /// Only one made here, in a pass that verified blob digest and diffID.
    Local,
    /// None: every layer is fetched and verified whole before the first mount.
    None,
}

/// How an image is shown to programs (`docs/decisions/drivers.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's EROFS over the layers' data files, which fanotify's pre-content events fill.
    Erofs,
    /// The kernel's EROFS over data files that FUSE serves.
    ErofsFuse,
    /// A FUSE file system.
    Fuse,
}

impl Driver {
    /// All of them, the fastest first.
    pub const ALL: [Self; 3] = [Self::Erofs, Self::ErofsFuse, Self::Fuse];

    /// What it is called on the command line and in statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::ErofsFuse => "erofs-fuse",
            Self::Fuse => "fuse",
        }
    }
}

/// Who is shown as the owner of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owners {
    /// Those of the image.
    #[default]
    Image,
    /// Always root, for a user namespace that has no other user: files of others could be neither written
    /// nor, where they are private, read in it.
    Root,
}

/// Which image of a multi-arch index is wanted, in OCI's words (`linux`, `amd64`, `v8`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// CPU architecture, in Go's spelling.
    pub architecture: String,
    /// CPU variant.
    pub variant: Option<String>,
}

impl Default for Platform {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }
}

impl std::str::FromStr for Platform {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(arch), variant, None)
                if !os.is_empty() && !arch.is_empty() && variant != Some("") =>
            {
                // As uname(1) says it.
                let arch = match arch {
                    "x86_64" => "amd64",
                    "aarch64" => "arm64",
                    "i386" => "386",
                    other => other,
                };
                Ok(Self { os: os.into(), architecture: arch.into(), variant: variant.map(Into::into) })
            }
            _ => Err(format!("{text:?} is no platform: expected os/architecture[/variant], as linux/arm64")),
        }
    }
}

impl Platform {
    /// Does an image of this system, architecture and variant run on it? What an image does not say is no
    /// hindrance.
    pub fn takes(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let alike = |wanted: &str, has: &str| has.is_empty() || has == wanted;
        let variant = match (&self.variant, variant) {
            (Some(wanted), Some(has)) => alike(wanted, has),
            _ => true,
        };
        variant && alike(&self.os, os) && alike(&self.architecture, architecture)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|v| write!(f, "/{v}"))
    }
}

/// How a process is started that goes on with the mounts of this one, should it die: it is to call
/// [`crate::Engine::resume`]. It gets this process's environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Successor {
    /// The program.
    pub program: PathBuf,
    /// Its arguments. Everybody can read them: no secrets.
    pub arguments: Vec<OsString>,
}

/// Somebody who holds descriptors beside this process and its keeper, and gives them to a later process should both be
/// dead: a service manager. What fails is the vault's to tell.
pub trait Vault: std::fmt::Debug + Send + Sync {
    /// Holds a copy under this name: at most 255 printable ASCII characters, no colon.
    fn hold(&self, name: &str, fd: BorrowedFd<'_>);
    /// Lets go of what it holds under this name.
    fn release(&self, name: &str);
}

/// How what nobody has read is fetched all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Background {
    /// Once nobody has waited for anything for this long.
    pub after: Duration,
    /// At most this fast, blob bytes a second; None: as fast as the line.
    pub bytes_per_second: Option<u64>,
}

impl Background {
    /// Unlimited, after a time in which a start will be over.
    pub const DEFAULT: Self = Self { after: Duration::from_secs(10), bytes_per_second: None };
}

/// Settings of an [`crate::Engine`].
#[derive(Debug, Clone)]
pub struct Config {
    /// The store.
    pub root: PathBuf,
    /// How far an index is believed.
    pub trust: Trust,
    /// Which image of a multi-arch index is wanted.
    pub platform: Platform,
    /// The user has asked for it: an image that is for another one alone is not what is wanted.
    pub platform_asked: bool,
    /// Plain HTTP or not, whatever the host; None: only for loopback.
    pub plain_http: Option<bool>,
    /// Folders of containerd's `hosts.toml` files; empty: the usual places.
    pub certs_dirs: Vec<PathBuf>,
    /// Who knows credentials beside Docker's and podman's files; asked in order.
    pub credentials: Vec<Arc<dyn CredentialSource>>,
    /// How images are shown; None: the fastest way that this machine has.
    pub driver: Option<Driver>,
    /// Who is shown as the owner of files; other than the image's only with [`Driver::Fuse`].
    pub owners: Owners,
    /// How long a read may wait for absent data before it fails with EIO.
    pub read_timeout: Duration,
    /// Least that a registry must send, bytes a second, before it is given up.
    pub min_rate: u64,
    /// Most that layers may take on disk, bytes; None: as much as there is.
    pub store_limit: Option<u64>,
    /// Whether lazy mounts are completed while nobody waits, and how; None: only what is read is fetched.
    pub background: Option<Background>,
    /// A layer's table that nobody has used for so long, or up to twice that, is forgotten until it is wanted again.
    pub tables_for: Duration,
    /// Who goes on with the mounts should this process die; None: nobody, and their reads fail.
    pub successor: Option<Successor>,
    /// A file in memory that the keeper holds too: what is written there, a successor of this process finds by
    /// [`crate::bequeathed`].
    pub bequest: Option<Arc<File>>,
    /// Who holds what mounts need, should this process and its keeper die together; None: nobody.
    pub vault: Option<Arc<dyn Vault>>,
}

impl Config {
    /// Defaults for the store `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            trust: Trust::default(),
            platform: Platform::default(),
            platform_asked: false,
            plain_http: None,
            certs_dirs: Vec::new(),
            credentials: Vec::new(),
            driver: None,
            owners: Owners::default(),
            read_timeout: Duration::from_secs(60),
            min_rate: crate::registry::Timeouts::default().slowest,
            store_limit: None,
            background: None,
            tables_for: Duration::from_secs(20),
            successor: None,
            bequest: None,
            vault: None,
        }
    }
}

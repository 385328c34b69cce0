//! The options that every command takes, and where the store is.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// Options every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Store of layers, indexes and mounts [default: /var/lib/hoist; for an ordinary user
    /// $XDG_DATA_HOME/hoist or ~/.local/share/hoist]
    #[arg(long, global = true, env = "HOIST_ROOT", hide_env_values = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// How to show the image's files: erofs, erofs-fuse or fuse [default: the first that works here; `hoist
    /// doctor` tells]
    #[arg(
        long,
        global = true,
        env = "HOIST_DRIVER",
        hide_env_values = true,
        value_enum,
        hide_possible_values = true
    )]
    pub driver: Option<Driver>,
    /// Platform to choose from a multi-arch image, as OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, global = true, env = "HOIST_PLATFORM", hide_env_values = true, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Which indexes to believe before the layer itself was verified: also those found in the registry beside
    /// the image (checked once the layer is complete), those made here alone (local), or none
    #[arg(
        long,
        global = true,
        env = "HOIST_TRUST_INDEX",
        hide_env_values = true,
        value_enum,
        value_name = "registry|local|none",
        hide_possible_values = true,
        default_value = "registry"
    )]
    pub trust_index: TrustIndex,
    /// Fetch the rest of what is mounted too, while nobody waits for anything: all of it, or at most so many
    /// bytes a second, as 20M
    #[arg(
        long,
        global = true,
        env = "HOIST_BACKGROUND",
        hide_env_values = true,
        value_name = "off|on|RATE",
        default_value = "off"
    )]
    pub background: BackgroundFetch,
    /// How long a read waits for data that is not here before it fails with EIO, as 90s, 2m or 500ms
    #[arg(
        long,
        global = true,
        env = "HOIST_READ_TIMEOUT",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "60s",
        value_parser = crate::units::time
    )]
    pub read_timeout: std::time::Duration,
    /// Least that a registry must send in a second, over a minute of waiting, before it is given up, as 10K
    #[arg(
        long,
        global = true,
        env = "HOIST_MIN_RATE",
        hide_env_values = true,
        value_name = "RATE",
        default_value = "1K",
        value_parser = crate::units::size
    )]
    pub min_rate: u64,
    /// Most that the store's layers may take on disk, as 20G: those not used for longest are removed
    /// [default: no limit]
    #[arg(
        long,
        global = true,
        env = "HOIST_STORE_LIMIT",
        hide_env_values = true,
        value_name = "SIZE",
        value_parser = crate::units::size
    )]
    pub store_limit: Option<u64>,
    /// Talk plain HTTP to the registry; `=false` demands TLS [default: plain on loopback only]
    #[arg(
        long,
        global = true,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub plain_http: Option<bool>,
    /// Do the work in this process, though a daemon runs
    #[arg(long, global = true, env = "HOIST_NO_DAEMON", hide_env_values = true, action = ArgAction::SetTrue, value_parser = clap::builder::FalseyValueParser::new())]
    pub no_daemon: bool,
    /// What to log to stderr: a level (error, warn, info, debug, trace) or target=level filters
    #[arg(
        long,
        global = true,
        env = "HOIST_LOG",
        hide_env_values = true,
        value_name = "FILTER",
        default_value = "warn"
    )]
    pub log: String,
    /// What the command line or the environment has said, of these and of the command's own options.
    #[arg(skip)]
    pub given: Given,
}

/// Names of options that were given, and not left to their defaults, as the fields that hold them.
pub type Given = std::collections::BTreeSet<String>;

impl Global {
    /// The store's folder, absolute.
    pub fn root(&self) -> anyhow::Result<PathBuf> {
        let root = match &self.root {
            Some(root) => root.clone(),
            None => default_root(
                rustix::process::geteuid().is_root(),
                std::env::var_os("XDG_DATA_HOME").map(PathBuf::from),
                std::env::var_os("HOME").map(PathBuf::from),
            )
            .ok_or_else(|| {
                crate::failure::user_hint(
                    "no place for the store: HOME is not set",
                    "name one with --root DIR",
                )
            })?,
        };
        Ok(std::path::absolute(root)?)
    }
}

/// See `--background`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackgroundFetch {
    /// Only what is read is fetched.
    Off,
    /// All of it, as fast as the line.
    On,
    /// All of it, at most so many bytes a second.
    AtMost(u64),
}

impl std::str::FromStr for BackgroundFetch {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::Off),
            "on" => return Ok(Self::On),
            _ => {}
        }
        let rate = crate::units::size(text).ok().filter(|rate| *rate > 0);
        rate.map(Self::AtMost).ok_or_else(|| "expected off, on, or bytes a second such as 20M".to_owned())
    }
}

impl std::fmt::Display for BackgroundFetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::AtMost(rate) => rate.fmt(f),
        }
    }
}

/// See `--trust-index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustIndex {
    /// Those found in the registry beside the image, checked against the layer when it is complete
    Registry,
    /// Only those made on this machine in a pass that verified the layer
    Local,
    /// None: a layer is fetched whole and verified before it is used
    None,
}

/// See `--driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel's EROFS, filled by fanotify: Linux 6.14, root, a store on ext4, xfs or btrfs
    Erofs,
    /// The kernel's EROFS on data files that FUSE serves: Linux 5.16, root
    ErofsFuse,
    /// A FUSE file system: any user who may open /dev/fuse
    Fuse,
}

/// The store of the machine.
pub const ROOT_STORE: &str = "/var/lib/hoist";

/// `None` if an ordinary user has neither of the folders. A relative XDG_DATA_HOME is ignored, as the XDG
/// base directory specification demands.
fn default_root(is_root: bool, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    if is_root {
        return Some(ROOT_STORE.into());
    }
    let data = xdg.filter(|dir| dir.is_absolute()).or_else(|| home.map(|home| home.join(".local/share")));
    data.map(|data| data.join("hoist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_folder() {
        let home = Some(PathBuf::from("/home/u"));
        assert_eq!(default_root(true, None, home.clone()), Some("/var/lib/hoist".into()));
        assert_eq!(default_root(false, Some("/x".into()), home.clone()), Some("/x/hoist".into()));
        assert_eq!(default_root(false, Some("x".into()), home), Some("/home/u/.local/share/hoist".into()));
        assert_eq!(default_root(false, None, None), None);
    }
}

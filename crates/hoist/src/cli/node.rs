//! A machine and its mounts: what they do, who serves them, and what it can do.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Tell what is mounted from the store, and how much of it is here
#[derive(Debug, Args)]
pub struct Status {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Watch the mounts of the store: what is here of each, what is fetched, who waits for what
///
/// A table anew each second, until it is interrupted; it is told what the processes that serve the mounts write
/// down each second, with or without a daemon.
#[derive(Debug, Args)]
pub struct Top {
    /// Print a line of JSON each time
    #[arg(long)]
    pub json: bool,
    /// Time between two looks, as 2s or 500ms
    #[arg(short = 'd', long, value_name = "TIME", default_value = "1s", value_parser = crate::commands::top::interval)]
    pub interval: std::time::Duration,
    /// Look so many times, then end
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// Tell why something was not lazy, or was slow
///
/// Of the latest mount: whether it was lazy and why not, which driver showed it and what is missing for a faster
/// one, what its readers waited for (the slowest reads by the file's name, which server served them, what went wrong
/// meanwhile), and how much came from where. Of the image: whether a mount would be lazy now. Mounts are remembered
/// for a while after their end.
#[derive(Debug, Args)]
pub struct Why {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// A container, a folder that an image is or was mounted on, or an image by name or digest
    #[arg(value_name = "CONTAINER|DIR|IMAGE")]
    pub of: String,
}

/// Serve a store and all its mounts from one process
///
/// Every other command uses it where its socket is there: /run/hoist/hoist.sock for the store
/// /var/lib/hoist, hoist.sock in the store for any other. It stays in the foreground and logs to stderr.
/// What `hoist mount` mounted through it comes back when it starts again.
#[derive(Debug, Args)]
#[command(after_long_help = crate::daemon::settings::help())]
pub struct Daemon {
    /// Configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Form of the log
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Serve containerd as a snapshotter, on this socket
    #[arg(long, value_name = "SOCKET")]
    pub snapshotter_socket: Option<PathBuf>,
}

/// Go on with the mounts of another process.
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration of the daemon that served them
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// See `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

/// Tell what this machine can do, and what to change
///
/// Exits with 1 if images can't be mounted here.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

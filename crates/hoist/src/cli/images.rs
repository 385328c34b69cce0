//! Images, and the store that has them.

use std::path::PathBuf;

use clap::Args;

/// See `--stats`.
#[derive(Debug, Clone, Args)]
pub struct StatsFile {
    /// Write what it took (requests, bytes, seconds) to this file as JSON at the end
    #[arg(long = "stats", value_name = "FILE")]
    pub path: Option<PathBuf>,
}

/// Mount an image read-only on a folder
///
/// Returns as soon as the mount is ready; a process in the background fetches what is read until
/// `hoist unmount DIR` (or umount) ends it. Its log is kept in the store's `log` folder.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hoist mount debian:12 /mnt && ls /mnt && hoist unmount /mnt")]
pub struct Mount {
    #[command(flatten)]
    pub stats: StatsFile,
    /// Stay in the foreground and serve until unmounted or interrupted
    #[arg(long)]
    pub foreground: bool,
    /// Report to the process that started this one, on standard output
    #[arg(long, hide = true, requires = "foreground")]
    pub report: bool,
    /// The image to mount
    pub image: String,
    /// The folder to mount it on
    #[arg(value_name = "DIR")]
    pub target: PathBuf,
}

/// Unmount an image and wait until nobody serves it any more
#[derive(Debug, Args)]
#[command(visible_alias = "umount")]
pub struct Unmount {
    /// Detach the mount though it is in use; it is served until the last user has ended
    #[arg(long)]
    pub lazy: bool,
    /// The folder it is mounted on
    #[arg(value_name = "DIR")]
    pub target: PathBuf,
}

/// Fetch the whole of an image, verified
///
/// With `--containerd`, have containerd know it: its record, its manifest and configuration, and a snapshot for
/// each layer by hoist's snapshotter. Then only what is needed first is fetched, if the image can be read lazily.
#[derive(Debug, Args)]
pub struct Pull {
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub stats: StatsFile,
    /// For containerd, as `ctr run --snapshotter hoist` or nerdctl run it
    #[arg(long)]
    pub containerd: bool,
    /// For containerd, but fetch all of it now
    #[arg(long, requires = "containerd")]
    pub full: bool,
    /// containerd's socket, or what CONTAINERD_ADDRESS says
    #[arg(
        long,
        requires = "containerd",
        value_name = "SOCKET",
        default_value_os_t = said("CONTAINERD_ADDRESS", crate::daemon::settings::CONTAINERD).into()
    )]
    pub address: PathBuf,
    /// containerd's namespace, or what CONTAINERD_NAMESPACE says; Kubernetes has k8s.io
    #[arg(
        long,
        requires = "containerd",
        value_name = "NAME",
        default_value_t = said("CONTAINERD_NAMESPACE", "default")
    )]
    pub namespace: String,
    /// What containerd calls hoist's snapshotter, or what CONTAINERD_SNAPSHOTTER says
    #[arg(
        long,
        requires = "containerd",
        value_name = "NAME",
        default_value_t = said("CONTAINERD_SNAPSHOTTER", "hoist")
    )]
    pub snapshotter: String,
    /// The image to fetch
    pub image: String,
}

/// What the environment has under the name, as `ctr` reads it. A default, so that it asks for no `--containerd`.
fn said(name: &str, otherwise: &str) -> String {
    std::env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| otherwise.to_owned())
}

/// Build the index that makes an image lazy
///
/// One pass over the layers, which verifies them as it goes. With `--push` the index is published beside
/// the image as an OCI referrer (which leaves the image's digest as it is), so that every other node
/// starts it lazily.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hoist index --push registry/app:1")]
pub struct Index {
    /// Publish the index in the image's repository
    #[arg(long)]
    pub push: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
    /// The image to index
    pub image: String,
}

/// List the images the store knows
#[derive(Debug, Args)]
pub struct Images {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
    /// What others need to be told: all of them are listed in any case
    #[arg(short, long, hide = true)]
    pub all: bool,
}

/// Tell an image's layers, their formats, what is present, and whether it will be lazy
#[derive(Debug, Args)]
pub struct Inspect {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// The image to inspect
    pub image: String,
}

/// Keep an image's data whatever the store's limit; `hoist unpin` lets it go
///
/// Images that are mounted need no pin while they are.
#[derive(Debug, Args)]
pub struct Pin {
    /// Image names, as `hoist images` lists them
    #[arg(required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
}

/// Check everything in the store against its digests
///
/// Every document and tree is decoded, every extent that is here is read from the disk and hashed. Exits
/// with 1 if something is wrong and was not mended. What is mounted is reported on and left as it is.
#[derive(Debug, Args)]
pub struct Fsck {
    /// Mend what is wrong: bad extents are fetched again when they are read, what is of no use is removed
    #[arg(long)]
    pub repair: bool,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// Free the data that no image in the store and no mount uses
///
/// Works while images are mounted: what they use stays.
#[derive(Debug, Args)]
pub struct Prune {
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

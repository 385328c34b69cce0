//! The daemon as containerd's snapshotter.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use hoist_snapshotter::{Service, Snapshotter};

use super::socket;

/// Begins to listen; what it returns serves containerd, and never ends. Snapshots are in the store at `root`.
///
/// # Errors
/// The snapshots can't be had, or the socket.
pub async fn serve(root: &Path, socket: &Path) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let folder = root.join("snapshotter");
    let opened = tokio::task::spawn_blocking(move || Snapshotter::open(&folder)).await?;
    let snapshotter = opened.context("opening the snapshots")?;
    let listener = socket::listen(socket)?;
    tracing::info!(socket = %socket.display(), "serving containerd");
    Ok(hoist_snapshotter::serve(listener, Service::new(Arc::new(snapshotter))))
}

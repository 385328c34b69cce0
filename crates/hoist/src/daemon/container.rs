//! The image of a container that a client runs: mounted while it runs, and cleaned up in the place of a
//! client that was killed.
//!
//! The client's connection is the lease. The OCI runtime inherits it, so that it ends when both are gone; a
//! container that has outlived both is waited for by the process that the runtime has noted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::mounts::{Mounts, Served};
use crate::container::{Container, Program};
use crate::runtime::Runtime;

/// A container whose client may be killed.
pub struct Running {
    /// Its image.
    pub served: Arc<Served>,
    /// Its name.
    pub name: String,
    /// Whether what it wrote is thrown away.
    pub remove: bool,
    /// Its OCI runtime.
    pub runtime: PathBuf,
}

impl Running {
    /// Its client and runtime are gone: waits for the container, then does what the client would have done.
    pub async fn bury(self, root: &Path, mounts: &Arc<Mounts>) {
        tracing::warn!(
            container = self.name,
            "the `hoist run` of a container was killed: cleaning up after it"
        );
        if let Err(error) = self.try_bury(root, mounts).await {
            tracing::error!(container = self.name, "cleaning up after a killed `hoist run`: {error:#}");
        }
    }

    async fn try_bury(&self, root: &Path, mounts: &Arc<Mounts>) -> anyhow::Result<()> {
        let dir = root.join("containers").join(&self.name);
        if let Some(program) = Program::of(&dir) {
            aside(move || program.wait(None)).await?;
        }
        let (folder, name) = (root.to_owned(), self.name.clone());
        let container = aside(move || Container::reopen(&folder, &name)).await?;
        let Ok(container) = container else {
            // Its client was only interrupted, and has removed it itself.
            super::mounts::unmount_patiently(&self.served.target).await?;
            mounts.end(&self.served).await?;
            return Ok(());
        };
        if container.state().join(&self.name).exists() {
            Runtime::find(self.runtime.to_str())?.delete(&self.name, &container.state()).await;
        }
        container.unmount_overlay()?;
        super::mounts::unmount_patiently(&self.served.target).await?;
        mounts.end(&self.served).await?;
        container.clean(self.remove)
    }
}

/// Waits on a thread of its own, which the end of the daemon does not wait for.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    let (done, waited) = oneshot::channel();
    std::thread::Builder::new().name("hoist-waits".into()).spawn(move || drop(done.send(work())))?;
    Ok(waited.await?)
}

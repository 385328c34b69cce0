//! The image of a container: mounted by the store's daemon where there is one, else by this process.

use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use hoist_engine::{Engine, Image, Mount, Progress, Use};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::background::Reporter;
use crate::bundle::process::ImageProcess;
use crate::cli::Global;
use crate::container::Container;
use crate::daemon::client::Client;
use crate::daemon::protocol::{Options, Request};
use crate::rootless::Root;
use crate::{unchecked, worker};

/// An image that is known, and who is to mount it.
pub enum Resolved {
    /// This process.
    Own(Box<(Engine, Image)>),
    /// The daemon, which remembers it for this connection.
    Daemon(Box<Client>),
}

/// What a mounted image turned out to be.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Its manifest.
    pub digest: Option<String>,
    /// What shows it.
    pub driver: Option<String>,
}

/// A mounted one.
pub enum Mounted {
    /// By this process.
    Own(Box<Mount>),
    /// By the daemon.
    Daemon {
        /// As long as anybody has this connection, the container counts as running.
        client: Box<Client>,
        /// What the OCI runtime inherits of it: so the daemon waits for the container, should this process be
        /// killed.
        _inherited: OwnedFd,
    },
}

impl Resolved {
    /// Finds out what `image` is, and how it says it is run.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn find(
        global: &Global,
        root: Root,
        image: &str,
        reporter: Option<&Reporter>,
    ) -> anyhow::Result<(Resolved, ImageProcess)> {
        match worker::daemon(global).await? {
            Some(mut client) => {
                worker::tell_what_is_the_daemon_s(global);
                let options = Options::of(global);
                let request = Request::Resolve { image: worker::absolute_name(image), options };
                let process = client.ask(&request, &hoist_engine::progress::Silent).await?;
                unchecked::tell(unchecked::of_answer(&process), reporter);
                Ok((Resolved::Daemon(Box::new(client)), serde_json::from_value(process)?))
            }
            None => {
                let engine = crate::engine_glue::open_as(global, root)?;
                let image = engine.resolve(image).await?;
                unchecked::tell(unchecked::note(&engine, &image).as_deref(), reporter);
                let process = crate::engine_glue::process_of(&image);
                Ok((Resolved::Own(Box::new((engine, image))), process))
            }
        }
    }

    /// Mounts it in the container's folder. `remove` and `runtime` are for who cleans up after this process,
    /// should it be killed.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn mount(
        self,
        container: &Container,
        remove: bool,
        runtime: &Path,
        progress: &dyn Progress,
    ) -> anyhow::Result<(Mounted, Facts)> {
        match self {
            Resolved::Own(resolved) => {
                let (engine, image) = &*resolved;
                let mount = engine.mount(image, &container.image(), Use::Run, progress).await?;
                let facts = Facts {
                    digest: Some(image.digest.to_string()),
                    driver: Some(mount.driver().name().to_owned()),
                };
                Ok((Mounted::Own(Box::new(mount)), facts))
            }
            Resolved::Daemon(mut client) => {
                let (container, runtime) = (container.name().to_owned(), runtime.to_owned());
                let answer = client.ask(&Request::Run { container, remove, runtime }, progress).await?;
                let inherited = client.inheritable().context("passing the daemon's connection on")?;
                // An older daemon says nothing.
                let facts = serde_json::from_value(answer).unwrap_or_default();
                Ok((Mounted::Daemon { client, _inherited: inherited }, facts))
            }
        }
    }
}

impl Mounted {
    /// Unmounts it; gives what it took.
    ///
    /// # Errors
    /// It is still in use.
    pub async fn unmount(&mut self) -> anyhow::Result<Value> {
        match self {
            Mounted::Own(mount) => Ok(serde_json::to_value(mount.unmount().await?)?),
            Mounted::Daemon { client, .. } => {
                client.ask(&Request::Release, &hoist_engine::progress::Silent).await
            }
        }
    }
}

//! Who does a command's work on a store: its daemon where there is one, else this process. Both give the same
//! answers, as the JSON that `--json` prints.

use std::path::{Path, PathBuf};

use hoist_engine::{Engine, Progress};
use serde_json::Value;

use crate::cli::Global;
use crate::daemon::client::Client;
use crate::daemon::protocol::{Options, Request, Standing};
use crate::daemon::status;
use crate::unchecked;

/// See the module.
pub enum Worker {
    /// This process.
    Own(Box<Engine>),
    /// The store's daemon.
    Daemon(Box<Client>, Options),
}

/// The store's daemon, unless there is none or it is not wanted.
///
/// # Errors
/// It speaks another version, or does not let this user ask.
pub async fn daemon(global: &Global) -> anyhow::Result<Option<Client>> {
    if global.no_daemon {
        return Ok(None);
    }
    Client::find(&store(global)?).await
}

/// Options that a daemon cannot have for one mount.
const OF_THE_DAEMON: [&str; 3] = ["read_timeout", "min_rate", "store_limit"];

/// Says of those that were given that they do not count.
pub fn tell_what_is_the_daemon_s(global: &Global) {
    let given: Vec<_> = OF_THE_DAEMON.iter().filter(|name| global.given.contains(**name)).collect();
    if given.is_empty() {
        return;
    }
    let names: Vec<_> = given.iter().map(|name| format!("--{}", name.replace('_', "-"))).collect();
    eprintln!(
        "note: not used: {}: the daemon of this store goes by its own; set it there, or use --no-daemon",
        names.join(", ")
    );
}

/// The store's folder, as the daemon spells it.
fn store(global: &Global) -> anyhow::Result<PathBuf> {
    let root = global.root()?;
    Ok(root.canonicalize().unwrap_or(root))
}

/// An image's name that means the same in another folder.
pub fn absolute_name(name: &str) -> String {
    let path = name.strip_prefix("oci:").and_then(|path| std::path::absolute(path).ok());
    path.map_or_else(|| name.to_owned(), |path| format!("oci:{}", path.display()))
}

impl Worker {
    /// Finds the one there is.
    ///
    /// # Errors
    /// The store can't be opened, or its daemon is of another version.
    pub async fn find(global: &Global) -> anyhow::Result<Worker> {
        Ok(match daemon(global).await? {
            Some(client) => Worker::Daemon(Box::new(client), Options::of(global)),
            None => Worker::Own(Box::new(crate::engine_glue::open(global)?)),
        })
    }

    async fn ask(client: &mut Client, request: Request) -> anyhow::Result<Value> {
        client.ask(&request, &hoist_engine::progress::Silent).await
    }

    /// `hoist pull`.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn pull(&mut self, image: &str, progress: &dyn Progress) -> anyhow::Result<Value> {
        match self {
            Worker::Own(engine) => {
                let image = engine.resolve(image).await?;
                Ok(serde_json::to_value(engine.pull(&image, progress).await?)?)
            }
            Worker::Daemon(client, options) => {
                let (image, options) = (absolute_name(image), options.clone());
                client.ask(&Request::Pull { image, options }, progress).await
            }
        }
    }

    /// `hoist images`.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn images(&mut self) -> anyhow::Result<Value> {
        match self {
            Worker::Own(engine) => Ok(serde_json::to_value(engine.images()?)?),
            Worker::Daemon(client, _) => Self::ask(client, Request::Images).await,
        }
    }

    /// `hoist inspect`.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn inspect(&mut self, image: &str) -> anyhow::Result<Value> {
        match self {
            Worker::Own(engine) => {
                let image = engine.look_up(image).await?;
                Ok(serde_json::to_value(engine.inspect(&image).await?)?)
            }
            Worker::Daemon(client, options) => {
                let (image, options) = (absolute_name(image), options.clone());
                Self::ask(client, Request::Inspect { image, options }).await
            }
        }
    }

    /// What a container of containerd's stands on, as only the daemon knows.
    ///
    /// # Errors
    /// The daemon can't tell.
    pub async fn standing(&mut self, name: &str) -> anyhow::Result<Option<Standing>> {
        match self {
            Worker::Own(_) => Ok(None),
            Worker::Daemon(client, _) => {
                let said = Self::ask(client, Request::Snapshot { name: name.to_owned() }).await?;
                Ok(serde_json::from_value(said)?)
            }
        }
    }

    /// Forgets an image's name.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn remove(&mut self, image: &str) -> anyhow::Result<()> {
        match self {
            Worker::Own(engine) => Ok(engine.remove(image).map(drop)?),
            Worker::Daemon(client, _) => {
                Self::ask(client, Request::Remove { image: image.to_owned() }).await.map(drop)
            }
        }
    }

    /// `hoist prune`.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn prune(&mut self) -> anyhow::Result<Value> {
        match self {
            Worker::Own(engine) => Ok(serde_json::to_value(engine.prune()?)?),
            Worker::Daemon(client, _) => Self::ask(client, Request::Prune).await,
        }
    }

    /// `hoist status`.
    ///
    /// # Errors
    /// Those of the engine.
    pub async fn status(&mut self) -> anyhow::Result<Value> {
        match self {
            Worker::Own(engine) => Ok(serde_json::to_value(status::of_store(engine)?)?),
            Worker::Daemon(client, _) => Self::ask(client, Request::Status).await,
        }
    }
}

/// Has the daemon mount an image, where there is one. False if the caller has to do it.
///
/// # Errors
/// Those of the mount.
pub async fn mount(
    global: &Global,
    image: &str,
    target: &Path,
    stats: Option<PathBuf>,
    progress: &dyn Progress,
) -> anyhow::Result<bool> {
    let Some(mut client) = daemon(global).await? else { return Ok(false) };
    tell_what_is_the_daemon_s(global);
    let (image, target) = (absolute_name(image), target.to_owned());
    let request = Request::Mount { image, target, stats, options: Options::of(global) };
    let answer = client.ask(&request, progress).await?;
    unchecked::tell(unchecked::of_answer(&answer), None);
    Ok(true)
}

/// Has the daemon unmount what it has mounted on `target`. False if the caller has to do it.
///
/// # Errors
/// Those of the unmounting.
pub async fn unmount(global: &Global, target: &Path, lazy: bool) -> anyhow::Result<bool> {
    let Some(mut client) = daemon(global).await? else { return Ok(false) };
    let done = Worker::ask(&mut client, Request::Unmount { target: target.to_owned(), lazy }).await?;
    Ok(done == Value::Bool(true))
}

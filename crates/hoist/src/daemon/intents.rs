//! The mounts that the daemon is to have, kept in the store (`daemon.json`): what `hoist mount` asked for and
//! nobody has unmounted. From this and the store alone they are made anew after a reboot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hoist_format::digest::Digest;
use serde::{Deserialize, Serialize};

use super::protocol::Options;

/// A mount that is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Intent {
    /// The mount point.
    pub target: PathBuf,
    /// The image's name.
    pub image: String,
    /// What the name meant: the very image that comes back.
    pub manifest: Digest,
    /// How it was asked for.
    pub options: Options,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    mounts: Vec<Intent>,
}

/// See the module.
#[derive(Debug)]
pub struct Intents {
    path: PathBuf,
    file: Mutex<File>,
}

impl Intents {
    /// Those of the store at `root`. A file that can't be read is said, and counts as none.
    pub fn of(root: &Path) -> Intents {
        let path = root.join("daemon.json");
        let read = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(File::default()),
            Err(error) => Err(error),
        };
        let file = read.unwrap_or_else(|error| {
            tracing::error!("{} can't be read, no mount is restored: {error}", path.display());
            File::default()
        });
        Intents { path, file: Mutex::new(file) }
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Intent> {
        self.lock().mounts.clone()
    }

    /// One more, in the place of any other on its target.
    ///
    /// # Errors
    /// It can't be written: it counts for this process alone.
    pub fn add(&self, intent: Intent) -> anyhow::Result<()> {
        let mut file = self.lock();
        file.mounts.retain(|other| other.target != intent.target);
        file.mounts.push(intent);
        write(&self.path, &file)
    }

    /// One less.
    ///
    /// # Errors
    /// It can't be written.
    pub fn remove(&self, target: &Path) -> anyhow::Result<()> {
        let mut file = self.lock();
        let before = file.mounts.len();
        file.mounts.retain(|intent| intent.target != target);
        if file.mounts.len() == before { Ok(()) } else { write(&self.path, &file) }
    }
}

/// Whole or not at all, and on disk: it is for reboots that nobody announced.
fn write(path: &Path, file: &File) -> anyhow::Result<()> {
    Ok(hoist_engine::store::write_durable(path, &serde_json::to_vec_pretty(file)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::TrustIndex;

    #[test]
    fn they_outlive_the_process_and_damage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            trust_index: TrustIndex::Local,
            platform: None,
            plain_http: Some(true),
            driver: None,
            background: Some("1000".to_owned()),
        };
        let intent = |target: &str| Intent {
            target: target.into(),
            image: "app:1".into(),
            manifest: Digest::of(b"x"),
            options: options.clone(),
        };
        let intents = Intents::of(dir.path());
        intents.add(intent("/a")).unwrap();
        intents.add(intent("/b")).unwrap();
        intents.add(intent("/a")).unwrap();
        intents.remove(Path::new("/b")).unwrap();
        intents.remove(Path::new("/c")).unwrap();
        let [found] = &Intents::of(dir.path()).all()[..] else { panic!("not one") };
        assert_eq!((found.target.to_str(), found.manifest), (Some("/a"), Digest::of(b"x")));
        assert_eq!((found.options.trust_index, found.options.plain_http), (TrustIndex::Local, Some(true)));
        assert_eq!(found.options.background.as_deref(), Some("1000"));
        std::fs::write(dir.path().join("daemon.json"), "{").unwrap();
        assert!(Intents::of(dir.path()).all().is_empty());
    }
}

//! What the program of a container's image will read first, fetched while containerd makes the container ready.
//!
//! containerd says which snapshot a container gets, not yet what runs in it: the image's own program is the best guess.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoist_engine::oci::RunConfig;
use hoist_engine::{Files, Image};

use crate::bundle::process::DEFAULT_PATH;
use crate::program::{self, Found, Over, Start};
use crate::rootdir::RootDir;

/// The folders of images that are read ahead in, and what calls it off.
#[derive(Default)]
pub struct Ahead {
    under_way: Mutex<HashMap<PathBuf, Arc<Over>>>,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Over>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads for the program of `image`, which is mounted on `folder`: of several containers that start at once, for one.
    /// Blocks until it is done or called off.
    pub fn read(&self, folder: &Path, image: &Image, files: &Files) {
        let over = Arc::<Over>::default();
        {
            let mut under_way = self.lock();
            if under_way.contains_key(folder) {
                return;
            }
            under_way.insert(folder.to_owned(), Arc::clone(&over));
        }
        if let Err(error) = warm(folder, &image.config.config.clone().unwrap_or_default(), files, &over) {
            tracing::debug!(image = image.name, "nothing is read ahead: {error}");
        }
        self.lock().remove(folder);
    }

    /// What is mounted there is to go.
    pub fn call_off(&self, folder: &Path) {
        self.lock().get(folder).iter().for_each(|over| over.say());
    }
}

fn warm(folder: &Path, config: &RunConfig, files: &Files, over: &Arc<Over>) -> std::io::Result<()> {
    let words = config.entrypoint.iter().chain(&config.cmd).flatten();
    let Some(name) = words.into_iter().next() else { return Ok(()) };
    let variable = |name: &str| {
        let mut all = config.env.iter().flatten();
        all.find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    };
    let path = variable("PATH").unwrap_or(DEFAULT_PATH);
    let root = Arc::new(RootDir::open(folder)?);
    let cwd = Path::new("/").join(&config.working_dir);
    if let Found::Program(program) = program::find(&root, name, path, &cwd.to_string_lossy())? {
        let (path, library_path) = (path.to_owned(), variable("LD_LIBRARY_PATH").map(str::to_owned));
        let runtime = tokio::runtime::Handle::current();
        let fetch = |paths: &[PathBuf]| {
            // What was asked for comes all the same; who waits for it is what keeps the mount.
            runtime.block_on(async {
                tokio::select! {
                    fetched = files.fetch(paths, program::MAX_FILE) => fetched
                        // Who reads it hears of it.
                        .inspect_err(|error| tracing::debug!("fetching ahead: {error}"))
                        .is_ok(),
                    () = over.said() => false,
                }
            })
        };
        program::warm(Start { root, program, path, library_path }, Some(&fetch), over);
    }
    Ok(())
}

//! What stands on disk, and where (`docs/ARCHITECTURE.md`, "Store").
//!
//! Files appear whole or not at all: written aside, synced, renamed. A layer's folder is named by
//! its blob digest and, where the layout comes from a published index, by that index too, because
//! another index may lay the same layer out otherwise.

mod aside;
mod digests;
pub mod history;
mod kept;
mod known;
mod layer;
mod log;
pub(crate) mod mounts;
mod names;
mod record;
mod tree;
pub(crate) mod usage;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use hoist_format::digest::Digest;
use tempfile::NamedTempFile;

use crate::error::Error;

pub(crate) use digests::{DIGESTS, Digests, recorded};
pub use kept::{Begun, Kept};
pub(crate) use known::NAMELESS;
pub use known::{Known, Place};
pub use layer::{LayerDir, LayerState, Parts};
pub use log::new_log;
pub use mounts::{EndOfMount, MountRecord, Servers};
pub(crate) use names::Names;
pub use record::{ImageDir, RefRecord};

const VERSION: &str = "hoist store 1\n";
/// What a new store has.
const FOLDERS: [&str; 5] = [aside::FOLDER, "images", "layers", "refs", "distrusted"];

/// The store's root folder.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store, or makes one in an absent or empty folder. A folder of anything else is refused:
    /// what is not ours must never be pruned.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let (store, damage) = Self::open_damaged(root)?;
        match damage {
            None => Ok(store),
            Some(why) => Err(Error::Store {
                why: format!("{why}; `hoist fsck --repair` mends that, and `hoist unmount` works without"),
                path: store.root,
            }),
        }
    }

    /// The same, but a store of ours is opened though its `version` is damaged or gone: gives what is wrong with that.
    pub fn open_damaged(root: &Path) -> Result<(Self, Option<String>), Error> {
        use std::os::unix::fs::DirBuilderExt;
        let utf8 = |root: PathBuf| {
            match root.to_str() {
            Some(_) => Ok(root),
            None => Err(Error::Store {
                why: "its path is not UTF-8, so no record could name what is mounted from it; name another folder with --root".into(),
                path: root,
            }),
        }
        };
        let root = utf8(std::path::absolute(root).map_err(Error::io("find the store", root))?)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(Error::io("create the store", &root))?;
        let root = utf8(root.canonicalize().map_err(Error::io("find the store", &root))?)?;
        let version = root.join("version");
        let mut damage = None;
        match fs::read(&version) {
            Ok(bytes) if bytes == VERSION.as_bytes() => {}
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
                if is_a_version(&text) || !has_our_folders(&root) {
                    return Err(Error::Store {
                        path: root,
                        why: format!(
                            "is of version {text:?}, this hoist reads {VERSION:?}; use another with --root"
                        ),
                    });
                }
                damage = Some(format!("has a damaged file `version`: it says {text:?}"));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && has_our_folders(&root) => {
                damage = Some("has lost its file `version`".to_owned());
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if let Some(foreign) = first_foreign(&root)? {
                    return Err(Error::Store {
                        why: format!(
                            "is no store of hoist's: it has {foreign:?} in it; name an empty or new folder with --root"
                        ),
                        path: root,
                    });
                }
                for dir in FOLDERS {
                    let dir = root.join(dir);
                    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
                }
                write_atomic(&version, VERSION.as_bytes())?;
            }
            Err(e) => return Err(Error::io("read", &version)(e)),
        }
        aside::clear(&root);
        Ok((Self { root }, damage))
    }

    /// Writes the file that says that this is a store.
    pub(crate) fn mend_version(&self) -> Result<(), Error> {
        write_durable(&self.root.join("version"), VERSION.as_bytes())
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A layer's folder; `index` is the published index that its layout comes from, None for our own.
    pub fn layer(&self, blob: &Digest, index: Option<&Digest>) -> LayerDir {
        let name = match index {
            None => blob.hex(),
            Some(index) => format!("{}.{}", blob.hex(), index.short()),
        };
        LayerDir::new(self.root.join("layers").join(name), *blob)
    }

    /// An image's folder.
    pub fn image(&self, manifest: &Digest) -> ImageDir {
        ImageDir::new(self.root.join("images").join(manifest.hex()))
    }

    /// All images here.
    pub fn image_digests(&self) -> Result<Vec<Digest>, Error> {
        let dir = self.root.join("images");
        let names = names(&dir)?;
        Ok(names.iter().filter_map(|n| format!("sha256:{n}").parse().ok()).collect())
    }

    /// Folder names under `layers`.
    pub fn layer_names(&self) -> Result<Vec<String>, Error> {
        names(&self.root.join("layers"))
    }

    /// The file that remembers what a name meant.
    pub fn ref_path(&self, name: &str) -> PathBuf {
        let safe: String = name
            .bytes()
            .map(|b| match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => (b as char).to_string(),
                _ => format!("%{b:02x}"),
            })
            .collect();
        let name = if safe.len() <= 200 { safe } else { Digest::of(name.as_bytes()).hex() };
        self.root.join("refs").join(format!("{name}.json"))
    }

    /// Remembers that an index lied: it is never used again.
    pub fn distrust(&self, index: &Digest, why: &str) -> Result<(), Error> {
        write_durable(&self.root.join("distrusted").join(index.hex()), why.as_bytes())
    }

    /// Why an index is not used any more.
    pub fn distrusted(&self, index: &Digest) -> Option<String> {
        fs::read_to_string(self.root.join("distrusted").join(index.hex())).ok()
    }
}

/// Is it the version of a store, of this hoist's or another's?
fn is_a_version(text: &str) -> bool {
    let number = text.strip_prefix("hoist store ").and_then(|rest| rest.strip_suffix('\n'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Has it all folders that a store has, with something of ours in them?
fn has_our_folders(root: &Path) -> bool {
    let holds = |folder: &str, mark: &str| {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join(mark)).any(|mark| mark.exists())
    };
    FOLDERS.iter().all(|folder| root.join(folder).is_dir())
        && (holds("images", "manifest.json") || holds("layers", "table"))
}

/// What in a folder without a version keeps it from becoming a store. Empty folders of ours do not: whoever
/// made them may have been killed before writing the version.
fn first_foreign(root: &Path) -> Result<Option<std::ffi::OsString>, Error> {
    let list = |dir: &Path| fs::read_dir(dir).map_err(Error::io("list", dir));
    for entry in list(root)?.flatten() {
        let name = entry.file_name();
        // In one of them the version itself, as it was being written.
        let unfinished = |of: fs::DirEntry| of.file_name().to_string_lossy().starts_with(".tmp");
        let ours =
            FOLDERS.iter().any(|folder| name == *folder) && list(&entry.path())?.flatten().all(unfinished);
        if !ours && name != "log" {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The names in a folder that are UTF-8; ours all are.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
    let mut names: Vec<_> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// [`write_atomic`], but for what stands there already: a start need not wait for the disk to hear the same
/// thing again.
pub(crate) fn write_if_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|old| old == bytes) { Ok(()) } else { write_atomic(path, bytes) }
}

/// Writes a file whole or not at all. Its bytes are on disk when it returns; that its name is too is for
/// [`write_durable`]: what can be fetched again need not wait for it.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    place(write_aside(path, bytes)?, path)
}

/// Writes what is to be a file of a store, and syncs it.
fn write_aside(path: &Path, bytes: &[u8]) -> Result<NamedTempFile, Error> {
    let dir = path.parent().expect("a store path has a parent");
    let mut file = aside::for_place_in(dir)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.as_file().sync_data().map_err(Error::io("sync", path))?;
    Ok(file)
}

/// Gives it its name.
fn place(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    file.persist(path).map_err(|e| Error::io("rename to", path)(e.error))?;
    Ok(())
}

/// Writes a file of a store whole or not at all, so that a power cut brings back neither the old one nor an earlier name
/// in its folder.
///
/// # Errors
/// The file system's.
pub fn write_durable(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_atomic(path, bytes)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the names in a folder outlive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_anything_else_is_no_store() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["layers/cake", "holiday.jpg"] {
            let root = dir.path().join(name.replace('/', "-"));
            let foreign = root.join(name);
            fs::create_dir_all(foreign.parent().unwrap()).unwrap();
            fs::write(&foreign, "mine").unwrap();
            let said = Store::open(&root).unwrap_err().to_string();
            assert!(said.contains("no store of hoist's") && said.contains("--root"), "{said}");
            assert_eq!(fs::read_to_string(foreign).unwrap(), "mine");
            assert!(!root.join("version").exists() && !root.join("refs").exists());
        }
        // Begun and not finished.
        let root = dir.path().join("begun");
        fs::create_dir_all(root.join("layers")).unwrap();
        fs::create_dir_all(root.join("aside")).unwrap();
        fs::write(root.join("aside/.tmpversion"), "hoist").unwrap();
        Store::open(&root).unwrap();
        assert_eq!(fs::read_dir(root.join("aside")).unwrap().count(), 0);
        Store::open(&root).unwrap();
    }

    #[test]
    fn a_damaged_version_is_told_from_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let version = dir.path().join("version");
        let opened = |text: &[u8]| {
            fs::write(&version, text).unwrap();
            Store::open_damaged(dir.path()).map(|(_, damage)| damage)
        };
        // With nothing of ours in it, it could be anybody's.
        assert!(opened(b"garbage").is_err());
        store.image(&Digest::of(b"")).save(b"{}", b"{}").unwrap();
        assert!(opened(b"hoist store 2\n").unwrap_err().to_string().contains("version"));
        for text in [&b""[..], b"\xff\xfe", b"hoist store 1", b"hoist st\0re 1\n"] {
            let said = opened(text).unwrap().unwrap();
            assert!(said.contains("damaged"), "{said}");
            let said = Store::open(dir.path()).unwrap_err().to_string();
            assert!(said.contains("fsck --repair"), "{said}");
        }
        fs::remove_file(&version).unwrap();
        let (store, damage) = Store::open_damaged(dir.path()).unwrap();
        assert!(damage.unwrap().contains("lost"));
        store.mend_version().unwrap();
        Store::open(dir.path()).unwrap();
    }
}

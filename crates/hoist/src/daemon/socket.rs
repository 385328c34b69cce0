//! Where a store's daemon listens, who may be it, and who may ask it.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::net::{UnixListener, UnixStream};

use crate::failure::user_hint;

/// The socket of the daemon of the store at `root`.
pub fn path(root: &Path) -> PathBuf {
    match root == Path::new(crate::cli::ROOT_STORE) {
        true => "/run/hoist/hoist.sock".into(),
        false => root.join("hoist.sock"),
    }
}

/// The right to be the one daemon of a store, for as long as it lives.
#[derive(Debug)]
pub struct Ownership {
    _lock: File,
}

impl Ownership {
    /// Takes it.
    ///
    /// # Errors
    /// There is a daemon already: the user's to mend.
    pub fn take(root: &Path) -> anyhow::Result<Ownership> {
        let path = root.join("daemon.lock");
        let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut lock = open.with_context(|| format!("opening {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {
                lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()))?;
                Ok(Ownership { _lock: lock })
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                lock.rewind().and_then(|()| lock.read_to_string(&mut pid))?;
                Err(user_hint(
                    format!("process {} is the daemon of the store {} already", pid.trim(), root.display()),
                    "end that one first, or use another store with --root",
                ))
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("locking {}", path.display()))
            }
        }
    }
}

/// Listens on the socket, in the place of any dead daemon's. To be called by the owner alone.
///
/// # Errors
/// The socket can't be made; a path of more than 107 bytes is the user's to mend.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if path.as_os_str().len() > 107 {
        return Err(user_hint(
            format!("the path {} is too long for a socket", path.display()),
            "choose a store with a shorter path (--root)",
        ));
    }
    let dir = path.parent().context("a socket has a folder")?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("making the folder {}", dir.display()))?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("making the socket {}", path.display()))?;
    // The folder has kept others out until here, and every peer is looked at besides.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether the process at the other end may ask: root, and the daemon's own user. Else who it is.
pub fn admit(stream: &UnixStream) -> io::Result<Result<(), u32>> {
    let peer = stream.peer_cred()?.uid();
    let allowed = peer == 0 || peer == rustix::process::geteuid().as_raw();
    Ok(if allowed { Ok(()) } else { Err(peer) })
}

/// The inode of this process's mount namespace.
pub fn mount_namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/mnt")?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_owner_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let first = Ownership::take(root.path()).unwrap();
        let said = Ownership::take(root.path()).unwrap_err().to_string();
        assert!(said.contains(&format!("process {} is the daemon", std::process::id())), "{said}");
        drop(first);
        Ownership::take(root.path()).unwrap();
    }

    #[test]
    fn each_store_has_its_socket() {
        assert_eq!(path(Path::new("/var/lib/hoist")), Path::new("/run/hoist/hoist.sock"));
        assert_eq!(path(Path::new("/x")), Path::new("/x/hoist.sock"));
    }
}

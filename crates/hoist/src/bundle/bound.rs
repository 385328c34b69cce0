//! Files that a container has from the host, or instead of it: its names and where names are asked for.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Files of the bundle bound into the container, `(name in the bundle, path in the container)`.
pub const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hosts", "/etc/hosts"), ("hostname", "/etc/hostname")];

/// The container's host name: the one given, else the host's on its network, else the container's own.
///
/// # Errors
/// The one given is none.
pub fn hostname(given: Option<&str>, is_on_host_network: bool, container: &str) -> anyhow::Result<String> {
    match given {
        // HOST_NAME_MAX of limits.h
        Some(name) if name.is_empty() || name.len() > 64 => {
            Err(crate::failure::user(format!("{name:?} is no host name: 1 to 64 bytes")))
        }
        Some(name) => Ok(name.to_owned()),
        None if is_on_host_network => Ok(rustix::system::uname().nodename().to_string_lossy().into_owned()),
        None => Ok(container.to_owned()),
    }
}

/// Writes them.
///
/// # Errors
/// The file system's.
pub fn write(dir: &Path, hostname: &str, is_on_host_network: bool) -> anyhow::Result<()> {
    let host_file = |path: &str| std::fs::read(path).unwrap_or_default();
    let (resolv, hosts) = match is_on_host_network {
        true => (host_file("/etc/resolv.conf"), host_file("/etc/hosts")),
        false => (Vec::new(), format!("127.0.0.1 localhost {hostname}\n::1 localhost\n").into_bytes()),
    };
    let contents =
        [("resolv.conf", resolv), ("hosts", hosts), ("hostname", format!("{hostname}\n").into_bytes())];
    for (name, content) in contents {
        let path: PathBuf = dir.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

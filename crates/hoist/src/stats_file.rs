//! `--stats FILE`: what a command took, as JSON, replaced at once so that no reader sees half of it.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Says before the work what would only fail after it.
pub fn check(path: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !path.exists() && !dir.is_dir() {
        return Err(crate::failure::user_hint(
            format!("can't write statistics to {}: there is no folder {}", path.display(), dir.display()),
            format!("make it first: mkdir -p {}", dir.display()),
        ));
    }
    Ok(())
}

/// Writes `stats` to `path`.
pub fn write<T: Serialize>(path: &Path, stats: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(stats)?;
    text.push(b'\n');
    write_atomically(path, &text).with_context(|| format!("writing the statistics to {}", path.display()))
}

/// Replaces the file `path` by one with this content.
pub fn write_atomically(path: &Path, content: &[u8]) -> std::io::Result<()> {
    // A device or pipe, such as /dev/stderr, is written to, not replaced.
    if path.metadata().is_ok_and(|meta| !meta.is_file()) {
        return std::fs::OpenOptions::new().write(true).open(path)?.write_all(content);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".hoist-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_files_and_writes_to_devices() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        write(&path, &1).unwrap();
        write(&path, &2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        write(Path::new("/dev/null"), &3).unwrap();
    }
}

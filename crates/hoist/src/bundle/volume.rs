//! `-v SOURCE:TARGET[:ro|rw]`: folders and files of the host inside the container.

use std::path::{Path, PathBuf};

use crate::failure::{user, user_hint};

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Absolute path on the host, there.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// Parses one `-v` option; a relative source is taken from `cwd`.
///
/// # Errors
/// A malformed option, a target that is not absolute, a source that is not there.
pub fn parse(option: &str, cwd: &Path) -> anyhow::Result<Volume> {
    let malformed = || {
        user_hint(format!("-v {option:?} is not SOURCE:TARGET[:ro|rw]"), "for example -v /srv/data:/data:ro")
    };
    let mut parts = option.split(':');
    let (source, target) = (parts.next().unwrap_or(""), parts.next().ok_or_else(malformed)?);
    let mut read_only = false;
    for flag in parts.next().unwrap_or("rw").split(',') {
        match flag {
            "ro" => read_only = true,
            "rw" | "z" | "Z" => {}
            _ => return Err(malformed()),
        }
    }
    if source.is_empty() || parts.next().is_some() {
        return Err(malformed());
    }
    if !target.starts_with('/') || Path::new(target).components().count() < 2 {
        return Err(user(format!("the target {target:?} of -v must be an absolute path below /")));
    }
    if !source.contains('/') && source != "." && source != ".." {
        return Err(user_hint(
            format!("named volumes are not supported: {source:?}"),
            format!("for a folder of the host write -v ./{source}:{target}"),
        ));
    }
    let source = cwd.join(source);
    let source = source
        .canonicalize()
        .map_err(|error| user(format!("the source {} of -v can't be used: {error}", source.display())))?;
    Ok(Volume { source, target: target.to_owned(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cwd = Path::new("/usr");
        let volume = parse("./bin:/x:ro", cwd).unwrap();
        assert_eq!((volume.target.as_str(), volume.read_only), ("/x", true));
        assert!(parse("/tmp:/t", cwd).is_ok());
        for bad in
            ["", "/tmp", ":/x", "/tmp:x", "/tmp:/", "/tmp:/x:rx", "/tmp:/x:ro:y", "named:/x", "/nonesuch:/x"]
        {
            assert!(parse(bad, cwd).is_err(), "{bad}");
        }
    }
}

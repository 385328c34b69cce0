//! The Debian package of the program under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use hoist_testkit::process::run;

/// The top of the repository.
pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Makes it in the folder `out`.
pub fn build(out: &Path, version: &str) -> PathBuf {
    let mut script = Command::new(top().join("scripts/deb"));
    script.arg(super::user::program()).arg(out).env("HOIST_DEB_VERSION", version);
    PathBuf::from(run(&mut script).unwrap().trim())
}

//! An ordinary user of this machine: nobody, with no more rights than any other.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Set for the test that runs as the user: what it is to work on.
const TASK: &str = "HOIST_TEST_TASK";
/// The same: where hoist is, as the user can reach it.
const PROGRAM: &str = "HOIST_TEST_PROGRAM";

/// The hoist under test.
pub fn program() -> OsString {
    std::env::var_os(PROGRAM).unwrap_or_else(|| env!("CARGO_BIN_EXE_hoist").into())
}

/// What the test was given by [`run_test_as_user`], if it is run by that.
pub fn task() -> Option<String> {
    std::env::var(TASK).ok()
}

/// Runs a test of this program anew as the user, in a mount namespace where anybody may open /dev/fuse, as
/// distributions have it, and where /etc/subuid and /etc/subgid read as `subordinate`. Fails with it.
pub fn run_test_as_user(test: &str, task: &str, subordinate: &str) {
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let (device, hoist, this) = (dir.path().join("fuse"), dir.path().join("hoist"), dir.path().join("test"));
    fs::write(&hoist, "").unwrap();
    fs::write(&this, "").unwrap();
    let numbers = dir.path().join("subordinate");
    fs::write(&numbers, subordinate).unwrap();
    // Bound rather than copied: the programs are large.
    let script = r#"set -e
        mknod -m 666 "$1" c 10 229; mount --bind "$1" /dev/fuse
        mount --bind "$2" "$3"; mount --bind "$4" "$5"; cd /
        mount --bind "$7" /etc/subuid; mount --bind "$7" /etc/subgid
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "$5" --exact "$6" --nocapture"#;
    let mut again = Command::new("unshare");
    again.args(["--mount", "sh", "-c", script, "sh"]).arg(&device);
    again.arg(env!("CARGO_BIN_EXE_hoist")).arg(&hoist).arg(std::env::current_exe().unwrap()).arg(&this);
    let output = again
        .arg(test)
        .arg(&numbers)
        .env(TASK, task)
        .env(PROGRAM, &hoist)
        .env_remove("HOME")
        .output()
        .unwrap();
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "as an ordinary user: {said}{failed}");
    assert!(said.contains("1 passed"), "{said}");
}

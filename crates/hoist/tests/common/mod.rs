//! A small root file system of this machine's own programs, with the libraries ldd(1) names.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Programs the tests run.
const PROGRAMS: [&str; 9] = ["sh", "cat", "id", "env", "pwd", "sleep", "touch", "unshare", "readlink"];

/// Output of a program that must succeed.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn copy(from: &Path, root: &Path, to: &str) {
    let to = root.join(to.trim_start_matches('/'));
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, &to)
        .unwrap_or_else(|error| panic!("copying {} to {}: {error}", from.display(), to.display()));
}

/// Fills `root`.
pub fn make_rootfs(root: &Path) {
    for program in PROGRAMS {
        let found = hoist::runtime::find_program(program, std::env::var_os("PATH").as_deref());
        let path = found.unwrap_or_else(|| panic!("{program} is not installed")).canonicalize().unwrap();
        copy(&path, root, &format!("bin/{program}"));
        for word in output(Command::new("ldd").arg(&path)).split_whitespace() {
            if word.starts_with('/') {
                copy(&Path::new(word).canonicalize().unwrap(), root, word);
            }
        }
    }
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1001:\nvideo:x:44:app\n").unwrap();
}

//! A small root file system of this machine's own programs, with the libraries ldd(1) names.
// Each test program uses its own part of this.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::process;
use serde_json::json;

/// Programs the tests run.
const PROGRAMS: [&str; 10] =
    ["sh", "cat", "id", "env", "pwd", "sleep", "sha256sum", "touch", "unshare", "readlink"];

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

/// A file of an image, by name.
pub type Data = (&'static str, String);

/// The layout of an image that sleeps: a layer of programs, and one for each of `data`, which nothing reads at a start.
pub fn sleeper(dir: &Path, data: &[Vec<Data>]) -> PathBuf {
    labelled_sleeper(dir, data, json!({}))
}

/// The same with labels in its configuration.
pub fn labelled_sleeper(dir: &Path, data: &[Vec<Data>], labels: serde_json::Value) -> PathBuf {
    let programs = dir.join("programs");
    make_rootfs(&programs);
    let mut roots = vec![programs];
    for (i, files) in data.iter().enumerate() {
        let root = dir.join(format!("data{i}"));
        fs::create_dir(&root).unwrap();
        files.iter().for_each(|(name, text)| fs::write(root.join(name), text).unwrap());
        roots.push(root);
    }
    let mut builder = Builder::new(dir.join("layout")).unwrap().config("Cmd", json!(["sleep", "1000000"]));
    for root in roots {
        // Two images made in the same second share no layer.
        fs::write(root.join("made-in"), dir.as_os_str().as_encoded_bytes()).unwrap();
        let tar = root.with_extension("tar");
        process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(6)).unwrap();
    }
    builder.config("Labels", labels).config("Env", json!(["PATH=/bin"])).write("v1").unwrap().directory
}

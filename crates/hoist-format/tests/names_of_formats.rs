//! No code outside this crate knows of another system's format: a name that leaks would be the first sign.

use std::path::{Path, PathBuf};

/// In lower case, as they would stand in an identifier, a media type, an annotation or a comment.
const NAMES: [&str; 10] = [
    "stargz",
    "zstd:chunked",
    "zstd_chunked",
    "zstd-chunked",
    "nydus",
    "rafs",
    "overlaybd",
    "turbooci",
    "zfile",
    "amazon.soci",
];
/// By labels of this name clients say which image they mean, whatever its format.
const LABELS: &str = "containerd.io/snapshot/remote/stargz.";
/// Crates that tests alone use.
const TESTS: [&str; 1] = ["hoist-testkit"];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn no_code_outside_names_a_format() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for entry in std::fs::read_dir(crates).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name != env!("CARGO_PKG_NAME") && !TESTS.contains(&name.as_str()) {
            sources(&entry.path().join("src"), &mut files);
        }
    }
    assert!(files.len() > 100, "{} files", files.len());
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase().replace(LABELS, "");
            if let Some(name) = NAMES.iter().find(|name| lower.contains(*name)) {
                found.push(format!("{}:{}: {name}: {line}", file.display(), number + 1));
            }
        }
    }
    assert_eq!(found, [""; 0]);
}

//! Finds the program to run in the image before the runtime does: a missing one is told plainly, and what
//! its start will read is on its way while the bundle is still being made.

mod elf;
mod warm;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::rootdir::RootDir;

pub use warm::warm;

/// Most that Linux reads of a script's first line (`BINPRM_BUF_SIZE`).
const FIRST_LINE: usize = 256;
/// Where linkers look last (ld.so(8); those of musl and Fedora among them).
const LIBRARY_PATH: [&str; 5] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"];

/// Finds `program` as execvp(3) would, with this PATH and working folder. `None` if there is none.
pub fn find(root: &RootDir, program: &str, path: &str, cwd: &str) -> io::Result<Option<PathBuf>> {
    for candidate in search(program, path, cwd) {
        if root.open_program(&candidate)?.is_some() {
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// Where execvp(3) looks.
fn search(program: &str, path: &str, cwd: &str) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![Path::new(cwd).join(program)];
    }
    path.split(':').map(|dir| Path::new(cwd).join(dir).join(program)).collect()
}

/// The words of a script's `#!` line; `None` if it is no script.
fn interpreter_of_script(file: &File) -> io::Result<Option<Vec<String>>> {
    let mut head = [0; FIRST_LINE];
    let length = file.read_at(&mut head, 0)?;
    let line = head[..length].strip_prefix(b"#!").and_then(|rest| rest.split(|b| *b == b'\n').next());
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    Ok(line.map(|line| line.split_whitespace().map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts() {
        let words = |text: &str| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
            interpreter_of_script(&file).unwrap()
        };
        assert_eq!(words("#! /usr/bin/env python3\nx").unwrap(), ["/usr/bin/env", "python3"]);
        assert_eq!(words("#!").unwrap(), [""; 0]);
        assert_eq!(words("\x7fELF"), None);
        assert_eq!(words(""), None);
    }

    #[test]
    fn is_found_on_path_and_relative_to_the_working_folder() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        for (name, mode) in [("tool", 0o755), ("data", 0o644)] {
            let path = dir.path().join("usr/bin").join(name);
            std::fs::write(&path, "#!/none\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let root = RootDir::open(dir.path()).unwrap();
        let find = |name: &str, cwd: &str| find(&root, name, "/bin:/usr/bin", cwd).unwrap().is_some();
        assert!(find("tool", "/") && find("/usr/bin/tool", "/") && find("./tool", "/usr/bin"));
        assert!(!find("data", "/") && !find("none", "/") && !find("./tool", "/"));
    }
}

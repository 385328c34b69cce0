//! What a program's start reads besides itself and its libraries, by the customs of systems: files of the C library, and
//! those of an interpreter's own folder.

use std::io;
use std::path::{Path, PathBuf};

use crate::rootdir::RootDir;

/// By these whoever makes a container finds its user, before anything runs.
pub const ACCOUNTS: [&str; 2] = ["/etc/passwd", "/etc/group"];
/// What the C library reads for almost any program (ld.so(8), nsswitch.conf(5), tzset(3), setlocale(3)).
pub const OF_THE_C_LIBRARY: [&str; 5] = [
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/usr/lib/locale/C.utf8/LC_CTYPE",
    "/usr/lib/locale/locale-archive",
];
/// The same, in a folder of libraries.
pub const CONVERSIONS: &str = "gconv/gconv-modules.cache";

/// Larger files of an own folder are data, or not for the start.
const MAX_FILE: u64 = 256 << 10;
/// Most bytes of an own folder.
const MAX_ALL: u64 = 8 << 20;
/// Names looked at in one folder, `.` and `..` among them, and folders looked into: images are hostile.
const MAX_NAMES: usize = 1024;
const MAX_FOLDERS: usize = 64;

/// The files of a program's own folder (hier(7): `/usr/lib/NAME` of `/usr/bin/NAME`), in which an interpreter has what
/// it begins with: those in it, then those in its folders. `program` is a path through no links. Fewer once it `is_over`.
pub fn own_files(root: &RootDir, program: &Path, is_over: &dyn Fn() -> bool) -> io::Result<Vec<PathBuf>> {
    let (Some(name), Some(prefix)) = (program.file_name(), program.parent().and_then(Path::parent)) else {
        return Ok(Vec::new());
    };
    let own = prefix.join("lib").join(name);
    let top = root.list(&own, MAX_NAMES)?;
    let mut files = top.files;
    for folder in top.folders.iter().take(MAX_FOLDERS) {
        if is_over() {
            break;
        }
        files.extend(root.list(folder, MAX_NAMES)?.files);
    }
    let mut room = MAX_ALL;
    files.retain(|(_, size)| {
        let fits = (1..=MAX_FILE.min(room)).contains(size);
        room -= if fits { *size } else { 0 };
        fits
    });
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_s_folder_is_beside_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("usr/lib/python3.11");
        std::fs::create_dir_all(lib.join("encodings/deeper")).unwrap();
        std::fs::write(lib.join("os.py"), "os").unwrap();
        std::fs::write(lib.join("encodings/utf_8.py"), "utf").unwrap();
        std::fs::write(lib.join("encodings/deeper/no.py"), "no").unwrap();
        std::fs::write(lib.join("large"), vec![0; MAX_FILE as usize + 1]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", lib.join("link")).unwrap();
        let root = RootDir::open(dir.path()).unwrap();
        let of = |program: &str| own_files(&root, Path::new(program), &|| false).unwrap();
        let own = ["/usr/lib/python3.11/os.py", "/usr/lib/python3.11/encodings/utf_8.py"];
        assert_eq!(of("/usr/bin/python3.11"), own.map(PathBuf::from));
        assert!(of("/usr/bin/sh").is_empty());
        for i in 0..2 * MAX_NAMES {
            std::fs::write(lib.join(format!("{i}")), "x").unwrap();
        }
        assert!((MAX_NAMES - 10..=MAX_NAMES).contains(&of("/usr/bin/python3.11").len()));
        assert!(of("/python3.11").is_empty());
    }
}

//! Finds the program to run in the image before the runtime does: a missing one is told plainly, and what
//! its start will read is on its way while the bundle is still being made.

mod beside;
mod elf;
#[cfg(test)]
mod made;
mod missing;
mod over;
mod warm;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::failure::{EXIT_NO_PROGRAM, EXIT_NOT_RUNNABLE};
use crate::rootdir::RootDir;

pub use missing::{is_of_reading, not_found, why_not};
pub use over::Over;
pub use warm::{MAX_FILE, Start, warm};

/// Most that Linux reads of a script's first line (`BINPRM_BUF_SIZE`).
const FIRST_LINE: usize = 256;
/// Where linkers look last (ld.so(8); those of musl and Fedora among them).
const LIBRARY_PATH: [&str; 5] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"];

/// Folders of a PATH that are looked through: an image may name millions.
const MAX_FOLDERS: usize = 1024;

/// What execvp(3) would find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A file with an execute bit.
    Program(PathBuf),
    /// Something of that name that can't be run: a folder, or a file without an execute bit.
    NotRunnable(PathBuf),
    /// Nothing.
    Nothing,
}

/// Finds `program` as execvp(3) would, with this PATH and working folder.
pub fn find(root: &RootDir, program: &str, path: &str, cwd: &str) -> io::Result<Found> {
    let mut found = Found::Nothing;
    for candidate in search(program, path, cwd) {
        if root.open_program(&candidate)?.is_some() {
            return Ok(Found::Program(candidate));
        }
        if found == Found::Nothing && root.has(&candidate)? {
            found = Found::NotRunnable(candidate);
        }
    }
    Ok(found)
}

/// Why the kernel would refuse to run a file that has an execute bit, and the exit code for it; `None` where
/// nothing is wrong with it.
///
/// # Errors
/// Those of reading it, and the beginning of its interpreter.
pub fn trouble(root: &RootDir, program: &Path) -> io::Result<Option<(String, u8)>> {
    let Some(file) = root.open_program(program)? else { return Ok(None) };
    if runs_foreign_programs() {
        return Ok(None);
    }
    let name = program.display();
    let interpreter = match elf::Elf::read(&file)? {
        Some(elf) if !runs_here(elf.machine()) => {
            let why = format!("{name} is for another kind of processor (ELF machine {})", elf.machine());
            return Ok(Some((why, EXIT_NOT_RUNNABLE)));
        }
        Some(elf) => elf.interpreter(),
        None => match interpreter_of_script(&file)? {
            Some(words) => words.into_iter().next(),
            None => {
                let why = format!("{name} is neither an ELF program nor a script with a #! line");
                return Ok(Some((why, EXIT_NOT_RUNNABLE)));
            }
        },
    };
    let Some(interpreter) = interpreter else { return Ok(None) };
    let Some(file) = root.open_program(Path::new(&interpreter))? else {
        let why = format!("{name} names the interpreter {interpreter}, which the image does not have");
        return Ok(Some((why, EXIT_NO_PROGRAM)));
    };
    file.read_at(&mut [0], 0).map(|_| None)
}

/// Whether this machine has handlers for programs that the kernel itself does not run (binfmt_misc).
fn runs_foreign_programs() -> bool {
    let names = std::fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    names.map(|entry| entry.file_name()).any(|name| name != "register" && name != "status")
}

/// 32-bit programs may run on a 64-bit processor: only what surely does not is said.
fn runs_here(machine: u16) -> bool {
    use ::elf::abi::{EM_386, EM_AARCH64, EM_ARM, EM_X86_64};
    match std::env::consts::ARCH {
        "x86_64" => matches!(machine, EM_X86_64 | EM_386),
        "aarch64" => matches!(machine, EM_AARCH64 | EM_ARM),
        _ => true,
    }
}

/// Where execvp(3) looks.
fn search(program: &str, path: &str, cwd: &str) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![Path::new(cwd).join(program)];
    }
    path.split(':').take(MAX_FOLDERS).map(|dir| Path::new(cwd).join(dir).join(program)).collect()
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
        let find = |name: &str, cwd: &str| find(&root, name, "/bin:/usr/bin", cwd).unwrap();
        for (name, cwd) in [("tool", "/"), ("/usr/bin/tool", "/"), ("./tool", "/usr/bin")] {
            assert!(matches!(find(name, cwd), Found::Program(_)), "{name}");
        }
        for name in ["data", "/usr/bin", "/usr/bin/data"] {
            assert!(matches!(find(name, "/"), Found::NotRunnable(_)), "{name}");
        }
        for name in ["none", "./tool"] {
            assert_eq!(find(name, "/"), Found::Nothing, "{name}");
        }
        let (why, code) = trouble(&root, Path::new("/usr/bin/tool")).unwrap().unwrap();
        assert!(why.contains("/none") && code == EXIT_NO_PROGRAM, "{why}");
    }
}

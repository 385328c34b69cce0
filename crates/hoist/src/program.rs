//! Finds the program to run in the image before the runtime does: a missing one is told plainly, and its
//! first blocks and its loader's are on their way while the bundle is still being made.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::rootdir::RootDir;

/// Bytes of a program read to find its interpreter: ELF header, program headers and PT_INTERP come first.
const HEAD: usize = 4096;

/// Finds `program` as execvp(3) would, with this PATH and working folder, and reads its head and that of
/// its interpreter. `None` if there is none.
pub fn find(root: &RootDir, program: &str, path: &str, cwd: &str) -> io::Result<Option<PathBuf>> {
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![Path::new(cwd).join(program)]
    } else {
        path.split(':').map(|dir| Path::new(cwd).join(dir).join(program)).collect()
    };
    for candidate in candidates {
        if let Some(file) = root.open_program(&candidate)? {
            let mut head = vec![0; HEAD];
            let length = file.read_at(&mut head, 0)?;
            head.truncate(length);
            if let Some(interpreter) = interpreter(&head)
                && let Some(file) = root.open_program(Path::new(&interpreter))?
            {
                let _ = file.read_at(&mut [0; HEAD], 0)?;
            }
            return Ok(Some(candidate));
        }
    }
    Ok(None)
}

/// The interpreter a file's first bytes name: of a script, or of a 64-bit little-endian ELF program
/// (elf(5): e_phoff at 32, e_phentsize at 54, e_phnum at 56; p_type 3 is PT_INTERP, p_offset at 8,
/// p_filesz at 32).
fn interpreter(head: &[u8]) -> Option<String> {
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = std::str::from_utf8(line.split(|byte| *byte == b'\n').next()?).ok()?;
        return line.split_whitespace().next().map(str::to_owned);
    }
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(size)?)?;
        let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, entry_size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let entry = table.checked_add(index.checked_mul(entry_size)?)?;
        if number(entry, 4)? == 3 {
            let start = number(entry.checked_add(8)?, 8)?;
            let end = start.checked_add(number(entry.checked_add(32)?, 8)?)?;
            let name = head.get(start..end)?.strip_suffix(b"\0")?;
            return std::str::from_utf8(name).ok().map(str::to_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters() {
        assert_eq!(interpreter(b"#! /usr/bin/env python3\nx").as_deref(), Some("/usr/bin/env"));
        assert_eq!(interpreter(b"#!"), None);
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None);
        let mut hostile = vec![0xff; 128];
        hostile[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(interpreter(&hostile), None);
        // The outsider: what the dynamic linker of this machine is, as ldd tells.
        let head = std::fs::read("/bin/sh").unwrap();
        let ldd = std::process::Command::new("ldd").arg("/bin/sh").output().unwrap();
        let name = interpreter(&head[..HEAD]).unwrap();
        assert!(String::from_utf8_lossy(&ldd.stdout).contains(&name), "{name}");
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

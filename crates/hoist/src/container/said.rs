//! What the program of a container in the background has said, read while it may go on to speak.
//!
//! Its beginning may be given back meanwhile (`output.rs`), or another put in its place: both are noticed, and reading
//! goes on with what is new. Who is behind by more than is kept misses what is gone.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::output::{UNIT, beginning};
use super::{OUTPUT, folder, unknown};

/// Read at once while looking for the beginning of a line.
const BLOCK: u64 = 64 << 10;

/// See the module.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: File,
    at: u64,
}

impl Output {
    /// That of the container of this name; None where none is kept.
    ///
    /// # Errors
    /// There is no such container (the user's to mend), or it can't be read.
    pub fn open(root: &Path, name: &str) -> anyhow::Result<Option<Output>> {
        let path = folder(root, name).ok_or_else(|| unknown(name))?.join(OUTPUT);
        match File::open(&path) {
            Ok(file) => Ok(Some(Output { path, file, at: 0 })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("opening {}", path.display())),
        }
    }

    /// Goes on with the last so many lines alone. A line that has not ended yet is one.
    ///
    /// # Errors
    /// Those of reading.
    pub fn skip_to_last(&mut self, lines: usize) -> io::Result<()> {
        let (length, first) = (self.file.metadata()?.len(), beginning(&self.file)?);
        let (mut end, mut found) = (length, 0);
        self.at = if lines == 0 { length } else { first };
        while end > first && lines > 0 {
            let start = end.saturating_sub(BLOCK).max(first);
            let mut block = vec![0; (end - start) as usize];
            let read = self.file.read_at(&mut block, start)?;
            block.truncate(read);
            for (place, byte) in block.iter().enumerate().rev() {
                let after = start + place as u64 + 1;
                // What ends the last line begins none.
                if *byte == b'\n' && after < length {
                    found += 1;
                    if found == lines {
                        self.at = after;
                        return Ok(());
                    }
                }
            }
            end = start;
        }
        Ok(())
    }

    /// Writes what is there and was not written yet.
    ///
    /// # Errors
    /// Those of reading, and of `to`.
    pub fn copy_to(&mut self, to: &mut impl Write) -> io::Result<()> {
        loop {
            // What is cut away at its beginning is a multiple of this.
            let missing = self.at.saturating_sub(self.file.metadata()?.len());
            self.at = self.at.saturating_sub(missing.div_ceil(UNIT) * UNIT);
            self.copy_rest(to)?;
            // What was put in its place begins where this one ends. A removed container has none.
            match File::open(&self.path) {
                Ok(file) if file.metadata()?.ino() != self.file.metadata()?.ino() => {
                    // Written between the two looks.
                    self.copy_rest(to)?;
                    (self.file, self.at) = (file, 0);
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn copy_rest(&mut self, to: &mut impl Write) -> io::Result<()> {
        let mut block = vec![0; BLOCK as usize];
        loop {
            let read = self.file.read_at(&mut block, self.at)?;
            // What was given back before or while it was read is nothing that was said.
            let first = beginning(&self.file)?;
            if first > self.at {
                self.at = first;
            } else if read == 0 {
                return Ok(());
            } else {
                to.write_all(&block[..read])?;
                self.at += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Container;
    use super::*;

    #[test]
    fn it_is_followed_through_cuts_and_replacements() {
        let root = tempfile::tempdir().unwrap();
        let container = Container::create(root.path(), Some("web")).unwrap();
        assert!(Output::open(root.path(), "none").is_err());
        assert!(Output::open(root.path(), "web").unwrap().is_none());
        let mut said = container.output().unwrap();
        let mut output = Output::open(root.path(), "web").unwrap().unwrap();
        let mut read = |says: &[u8], said: &mut File| {
            said.write_all(says).unwrap();
            let mut shown = Vec::new();
            output.copy_to(&mut shown).unwrap();
            String::from_utf8(shown).unwrap()
        };
        assert_eq!(read(b"one\n", &mut said), "one\n");
        assert_eq!(read(b"", &mut said), "");
        assert_eq!(read(b"two\n", &mut said), "two\n");
        said.set_len(0).unwrap();
        assert_eq!(read(b"3\n", &mut said), "3\n");
        said.write_all(b"last words\n").unwrap();
        let path = container.output_path();
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        let mut other = container.output().unwrap();
        assert_eq!(read(b"anew\n", &mut other), "last words\nanew\n");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(b"unseen? no\n", &mut other), "unseen? no\n");
    }

    #[test]
    fn what_was_given_back_is_not_said() {
        use rustix::fs::{FallocateFlags, fallocate};
        let root = tempfile::tempdir().unwrap();
        let container = Container::create(root.path(), Some("web")).unwrap();
        let mut said = container.output().unwrap();
        let text: String = (0..1_000_000).map(|line| format!("line {line}\n")).collect();
        said.write_all(text.as_bytes()).unwrap();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(File::options().write(true).open(container.output_path()).unwrap(), hole, 0, 4 * UNIT)
            .unwrap();
        for (lines, wanted) in [(2, "line 999998\nline 999999\n"), (usize::MAX, &text[4 * UNIT as usize..])] {
            let mut output = Output::open(root.path(), "web").unwrap().unwrap();
            output.skip_to_last(lines).unwrap();
            let mut shown = Vec::new();
            output.copy_to(&mut shown).unwrap();
            assert!(shown == wanted.as_bytes(), "{lines} lines: {}", shown.len());
        }
    }

    #[test]
    fn the_last_lines_are_found() {
        let root = tempfile::tempdir().unwrap();
        let container = Container::create(root.path(), Some("web")).unwrap();
        let mut text: String = (0..50_000).map(|line| format!("line {line}\n")).collect();
        for end in ["", "not yet ended"] {
            text.push_str(end);
            std::fs::write(container.output_path(), &text).unwrap();
            for lines in [0, 1, 2, 7, 30_000, 49_999, 60_000] {
                let mut output = Output::open(root.path(), "web").unwrap().unwrap();
                output.skip_to_last(lines).unwrap();
                let mut shown = Vec::new();
                output.copy_to(&mut shown).unwrap();
                let all: Vec<_> = text.split_inclusive('\n').collect();
                let wanted = all[all.len().saturating_sub(lines)..].concat();
                assert!(shown == wanted.as_bytes(), "{lines} lines, {end:?}");
            }
        }
    }
}

//! Reads what the dynamic linker will map, while the OCI runtime is still starting.
//!
//! A program's start is a chain of small reads, each of which shows what the next one will be: program,
//! linker, library after library. On a lazy mount every link of the chain costs a round trip. Here each
//! file's needs are looked up as soon as its first blocks are there, all files side by side. It is a
//! guess: nothing fails where it is wrong, and it reads no more than the limits below.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::elf::Elf;
use super::{LIBRARY_PATH, interpreter_of_script, search};
use crate::rootdir::RootDir;

/// Of a larger file this much from its start is read whole; of the rest what the start itself needs.
const MAX_FILE: u64 = 8 << 20;
/// Files looked at.
const MAX_FILES: usize = 64;
/// Files looked at at once: each takes a thread that mostly waits.
const THREADS: usize = 8;

/// Reads ahead for `program` (a path in the image) until all it needs was looked at, or `over` is set, so
/// that no open file keeps the mount from going. Blocks.
pub fn warm(
    root: &Arc<RootDir>,
    program: &Path,
    path: &str,
    library_path: Option<&str>,
    over: &Arc<AtomicBool>,
) {
    let work = Work {
        over: Arc::clone(over),
        root: Arc::clone(root),
        path: path.to_owned(),
        library_path: library_path.unwrap_or_default().to_owned(),
        seen: Mutex::default(),
    };
    let mut level = vec![program.to_owned()];
    // Level by level: what a level's files need is the next one.
    while !level.is_empty() {
        let next = Mutex::new(Vec::new());
        let queue = Mutex::new(level);
        let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let threads = queue.lock().unwrap_or_else(PoisonError::into_inner).len().min(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(file) = take() {
                        let found = work.look_at(&file).unwrap_or_else(|error| {
                            tracing::debug!(path = %file.display(), "not read ahead: {error}");
                            Vec::new()
                        });
                        next.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
                    }
                });
            }
        });
        level = next.into_inner().unwrap_or_else(PoisonError::into_inner);
    }
}

struct Work {
    over: Arc<AtomicBool>,
    root: Arc<RootDir>,
    path: String,
    library_path: String,
    seen: Mutex<BTreeSet<PathBuf>>,
}

impl Work {
    /// Is this file new, and may it be looked at?
    fn is_new(&self, path: &Path) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        !self.over.load(Ordering::Relaxed) && seen.len() < MAX_FILES && seen.insert(path.to_owned())
    }

    /// Reads a program or library ahead; gives what it needs in turn.
    fn look_at(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        if !self.is_new(path) {
            return Ok(Vec::new());
        }
        let Some(file) = self.root.open_file(path)? else { return Ok(Vec::new()) };
        let Some(elf) = Elf::read(&file)? else {
            let script = interpreter_of_script(&file)?;
            return Ok(script.into_iter().flat_map(|words| self.of_script(&words)).collect());
        };
        // The rest of it comes beside its tables, which stand near its end.
        let (needs, ()) = std::thread::scope(|scope| {
            let rest = scope.spawn(|| read_ahead(&file));
            (elf.needs(&file), rest.join().unwrap_or(()))
        });
        let needs = needs?;
        let mut found: Vec<PathBuf> = elf.interpreter().map(PathBuf::from).into_iter().collect();
        let origin = path.parent().unwrap_or(Path::new("/"));
        let own = needs.search.unwrap_or_default();
        let own = own.replace("$ORIGIN", &origin.to_string_lossy());
        let own = own.replace("${ORIGIN}", &origin.to_string_lossy());
        let folders: Vec<&str> = own
            .split(':')
            .chain(self.library_path.split(':'))
            .chain(multiarch(elf.machine()).iter().copied())
            .chain(LIBRARY_PATH.iter().copied())
            .filter(|folder| folder.starts_with('/'))
            .collect();
        for library in needs.libraries {
            let places = folders.iter().map(|folder| Path::new(folder).join(&library));
            let mut places = places.filter(|place| matches!(self.root.open_file(place), Ok(Some(_))));
            found.extend(places.next());
        }
        Ok(found)
    }

    /// `#! /usr/bin/env python3` runs both.
    fn of_script(&self, words: &[String]) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = words.first().map(PathBuf::from).into_iter().collect();
        if let [env, program, ..] = words
            && env.ends_with("/env")
            && !program.starts_with('-')
        {
            let places = search(program, &self.path, "/");
            found.extend(places.into_iter().find(|p| matches!(self.root.open_program(p), Ok(Some(_)))));
        }
        found
    }
}

/// Has the kernel read a file into its cache, which waits for what is not there.
fn read_ahead(file: &File) {
    let size = file.metadata().map_or(0, |meta| meta.len());
    let _ = rustix::fs::fadvise(
        file,
        0,
        std::num::NonZeroU64::new(size.min(MAX_FILE)),
        rustix::fs::Advice::WillNeed,
    );
}

/// Debian's folders of libraries for a processor (`/etc/ld.so.conf.d` of its libc6).
fn multiarch(machine: u16) -> &'static [&'static str] {
    match machine {
        elf::abi::EM_X86_64 => &["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"],
        elf::abi::EM_AARCH64 => &["/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu"],
        elf::abi::EM_386 => &["/lib/i386-linux-gnu", "/usr/lib/i386-linux-gnu"],
        elf::abi::EM_ARM => &["/lib/arm-linux-gnueabihf", "/usr/lib/arm-linux-gnueabihf"],
        elf::abi::EM_RISCV => &["/lib/riscv64-linux-gnu", "/usr/lib/riscv64-linux-gnu"],
        elf::abi::EM_PPC64 => &["/lib/powerpc64le-linux-gnu", "/usr/lib/powerpc64le-linux-gnu"],
        elf::abi::EM_S390 => &["/lib/s390x-linux-gnu", "/usr/lib/s390x-linux-gnu"],
        _ => &[],
    }
}

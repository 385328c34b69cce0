//! Reads what the dynamic linker will map, while the OCI runtime is still starting.
//!
//! A program's start is a chain of small reads, each of which shows what the next one will be: program,
//! linker, library after library. On a lazy mount every link of the chain costs a round trip. Here each
//! file's needs are looked up as soon as its first blocks are there, all files side by side. It is a
//! guess: nothing fails where it is wrong, and it reads no more than the limits below. Who serves the mount
//! fetches each file whole, before it is looked at, and with it what starts read besides.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::beside::{self, ACCOUNTS, CONVERSIONS, OF_THE_C_LIBRARY};
use super::elf::Elf;
use super::{LIBRARY_PATH, Over, interpreter_of_script, search};
use crate::rootdir::RootDir;

/// Of a larger file this much from its start is read whole; of the rest what the start itself needs.
pub const MAX_FILE: u64 = 8 << 20;
/// Files looked at.
const MAX_FILES: usize = 64;
/// Folders in which one file's libraries are looked for, and files looked for in all.
const MAX_FOLDERS: usize = 32;
const MAX_OPENS: usize = 4096;
/// `PATH_MAX`.
const MAX_PATH: usize = 4096;
/// Programs whose own folders are fetched: a script's interpreter, what that runs.
const MAX_PROGRAMS: usize = 4;
/// Files looked at at once: each takes a thread that mostly waits.
const THREADS: usize = 8;

/// A program that is about to start.
pub struct Start {
    /// The image's root.
    pub root: Arc<RootDir>,
    /// Its path there.
    pub program: PathBuf,
    /// The variable PATH that it gets.
    pub path: String,
    /// LD_LIBRARY_PATH, if it gets one.
    pub library_path: Option<String>,
}

/// Fetches the first [`MAX_FILE`] bytes of files of the image, side by side. Paths are through no links. Blocks until they
/// are here, can't be had, or it is called off; false then.
pub type Fetch<'a> = &'a (dyn Fn(&[PathBuf]) -> bool + Sync);

/// Reads ahead until all that the start needs was looked at, or it is called off, so that no open file keeps the mount from
/// going. Blocks.
pub fn warm(start: Start, fetch: Option<Fetch<'_>>, over: &Arc<Over>) {
    let (program, work) = Work::of(start, fetch, over);
    work.run(program);
}

struct Work<'a> {
    over: Arc<Over>,
    root: Arc<RootDir>,
    path: String,
    library_path: String,
    fetch: Option<Fetch<'a>>,
    seen: Mutex<BTreeSet<PathBuf>>,
    /// Those among them that are run, by paths through no links.
    programs: Mutex<Vec<PathBuf>>,
    /// Files looked for.
    opens: AtomicUsize,
}

impl<'a> Work<'a> {
    fn of(start: Start, fetch: Option<Fetch<'a>>, over: &Arc<Over>) -> (PathBuf, Self) {
        let Start { root, program, path, library_path } = start;
        let library_path = library_path.unwrap_or_default();
        let (seen, programs, opens) = (Mutex::default(), Mutex::default(), AtomicUsize::new(0));
        let over = Arc::clone(over);
        (program, Work { over, root, path, library_path, fetch, seen, programs, opens })
    }

    fn run(&self, program: PathBuf) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.fetch_all(self.there(ACCOUNTS.iter().map(PathBuf::from)));
                self.fetch_all(self.of_the_c_library());
            });
            self.look_through(program);
            let programs = std::mem::take(&mut *self.programs.lock().unwrap_or_else(PoisonError::into_inner));
            for program in programs.into_iter().take(MAX_PROGRAMS) {
                let own =
                    beside::own_files(&self.root, &program, &|| self.is_over()).unwrap_or_else(|error| {
                        tracing::debug!(path = %program.display(), "its folder is not read ahead: {error}");
                        Vec::new()
                    });
                self.fetch_all(own);
            }
        });
    }

    /// Looks at a program, and at all that it needs.
    fn look_through(&self, program: PathBuf) {
        let mut level = vec![program];
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
                            let found = self.look_at(&file).unwrap_or_else(|error| {
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

    fn is_over(&self) -> bool {
        self.over.is()
    }

    /// Fetches files if they can be fetched other than by reading them. False where it is of no use to read them: they could
    /// not be had, or nobody wants them any more.
    fn fetch_all(&self, paths: Vec<PathBuf>) -> bool {
        !self.is_over() && (paths.is_empty() || self.fetch.is_none_or(|fetch| fetch(&paths)))
    }

    fn of_the_c_library(&self) -> Vec<PathBuf> {
        let conversions = multiarch(own_machine()).iter().chain(&LIBRARY_PATH);
        let conversions = conversions.map(|folder| Path::new(folder).join(CONVERSIONS));
        self.there(OF_THE_C_LIBRARY.iter().map(PathBuf::from).chain(conversions))
    }

    /// Those that are in the image, through no links.
    fn there(&self, paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
        let there = |path: PathBuf| self.root.path_of(&self.root.open_file(&path).ok()??).ok()?;
        paths.filter_map(there).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Is this file new, and may it be looked at?
    fn is_new(&self, path: &Path) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_over() && seen.len() < MAX_FILES && seen.insert(path.to_owned())
    }

    /// Reads a program or library ahead; gives what it needs in turn.
    fn look_at(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        if !self.is_new(path) {
            return Ok(Vec::new());
        }
        let Some(file) = self.root.open_file(path)? else { return Ok(Vec::new()) };
        let own = self.root.path_of(&file)?;
        // A read of it can't be called off.
        if !self.fetch_all(own.iter().cloned().collect()) {
            return Ok(Vec::new());
        }
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
        if elf.interpreter().is_some() {
            self.programs.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
        }
        let mut found: Vec<PathBuf> = elf.interpreter().map(PathBuf::from).into_iter().collect();
        let origin = path.parent().unwrap_or(Path::new("/"));
        let own = needs.search.unwrap_or_default();
        let own = own.split(':').filter_map(|folder| with_origin(folder, &origin.to_string_lossy()));
        let folders: Vec<String> = own
            .chain(self.library_path.split(':').map(str::to_owned))
            .filter(|folder| folder.starts_with('/'))
            .take(MAX_FOLDERS)
            .chain(multiarch(elf.machine()).iter().copied().map(str::to_owned))
            .chain(LIBRARY_PATH.map(str::to_owned))
            .collect();
        for library in needs.libraries {
            let mut places = folders.iter().map(|folder| Path::new(folder).join(&library));
            found.extend(places.find(|place| self.has(|| self.root.open_file(place))));
        }
        Ok(found)
    }

    /// Is such a file there? No, too, once enough was looked for.
    fn has(&self, open: impl FnOnce() -> io::Result<Option<File>>) -> bool {
        let may_look = !self.is_over() && self.opens.fetch_add(1, Ordering::Relaxed) < MAX_OPENS;
        may_look && matches!(open(), Ok(Some(_)))
    }

    /// `#! /usr/bin/env python3` runs both.
    fn of_script(&self, words: &[String]) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = words.first().map(PathBuf::from).into_iter().collect();
        if let [env, program, ..] = words
            && env.ends_with("/env")
            && !program.starts_with('-')
        {
            let places = search(program, &self.path, "/");
            found.extend(places.into_iter().find(|place| self.has(|| self.root.open_program(place))));
        }
        found
    }
}

/// A folder of DT_RUNPATH, `$ORIGIN` in it being the program's own (ld.so(8)); None for one that is too long.
fn with_origin(folder: &str, origin: &str) -> Option<String> {
    let mut parts = folder.split('$');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.strip_prefix("ORIGIN").or_else(|| part.strip_prefix("{ORIGIN}"));
        whole.push_str(if rest.is_some() { origin } else { "$" });
        whole.push_str(rest.unwrap_or(part));
        if whole.len() > MAX_PATH {
            return None;
        }
    }
    Some(whole)
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

/// This machine's processor.
fn own_machine() -> u16 {
    match std::env::consts::ARCH {
        "x86_64" => elf::abi::EM_X86_64,
        "aarch64" => elf::abi::EM_AARCH64,
        _ => elf::abi::EM_NONE,
    }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::made::Made;
    use super::*;

    /// An image whose `/bin/tool` is hostile; gives how many files were looked at, and looked for, and the paths that were
    /// asked for.
    fn work_of(fill: impl FnOnce(&Path)) -> (usize, usize, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "lib", "usr/lib"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fill(dir.path());
        let root = Arc::new(RootDir::open(dir.path()).unwrap());
        let asked = Mutex::new(Vec::new());
        let fetch = |paths: &[PathBuf]| {
            asked.lock().unwrap().extend_from_slice(paths);
            true
        };
        let path = "/bin:".repeat(5000);
        let start = Start { root: Arc::clone(&root), program: "/bin/tool".into(), path, library_path: None };
        let (program, work) = Work::of(start, Some(&fetch), &Arc::default());
        work.run(program);
        let seen = work.seen.lock().unwrap().len();
        (seen, root.looked.load(Ordering::Relaxed), asked.into_inner().unwrap())
    }

    fn put(root: &Path, at: &str, bytes: &[u8]) {
        fs::create_dir_all(root.join(at).parent().unwrap()).unwrap();
        fs::write(root.join(at), bytes).unwrap();
        fs::set_permissions(root.join(at), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn needs(names: impl IntoIterator<Item = String>) -> Made {
        Made { needed: names.into_iter().map(String::into_bytes).collect(), ..Made::default() }
    }

    /// By what a program names, no more is looked for, looked at or asked for than docs/SPECIFICATION.md has.
    #[test]
    fn a_hostile_program_has_little_looked_for() {
        type Fill = Box<dyn Fn(&Path)>;
        let many = |prefix: &'static str, count: usize| (0..count).map(move |i| format!("{prefix}{i}.so"));
        let wide = move |made: Made| Made { search: Some("$ORIGIN/x:".repeat(400).into_bytes()), ..made };
        let cases: Vec<(&str, usize, Fill)> = vec![
            ("folders without end", 1, {
                let made =
                    Made { search: Some("$ORIGIN:".repeat(5000).into_bytes()), ..needs(many("lib", 3)) };
                Box::new(move |root| put(root, "bin/tool", &made.bytes()))
            }),
            ("an origin that grows", 1, {
                let made = Made { search: Some("$ORIGIN".repeat(580).into_bytes()), ..needs(many("lib", 3)) };
                Box::new(move |root| put(root, "bin/tool", &made.bytes()))
            }),
            ("names without end", 1, {
                let made = wide(needs(many("none", 100_000)));
                Box::new(move |root| put(root, "bin/tool", &made.bytes()))
            }),
            ("names of a megabyte", 1, {
                let made = needs((0..4).map(|_| "x".repeat(200_000)));
                Box::new(move |root| put(root, "bin/tool", &made.bytes()))
            }),
            ("libraries that want more libraries", 64, {
                let library = wide(needs(many("none", 128).chain(many("lib", 300)))).bytes();
                let tool = wide(needs(many("lib", 128))).bytes();
                Box::new(move |root| {
                    put(root, "bin/tool", &tool);
                    (0..128).for_each(|i| put(root, &format!("lib/lib{i}.so"), &library));
                })
            }),
            ("a chain of libraries", 64, {
                Box::new(move |root| {
                    put(root, "bin/tool", &needs(["lib0.so".to_owned()]).bytes());
                    for i in 0..200 {
                        put(root, &format!("lib/lib{i}.so"), &needs([format!("lib{}.so", i + 1)]).bytes());
                    }
                })
            }),
            // By ever longer ways.
            ("one that needs itself", 64, {
                let made = Made {
                    interpreter: Some(b"/bin/tool".to_vec()),
                    search: Some(b"$ORIGIN".to_vec()),
                    ..needs(["tool".to_owned(), "tool".to_owned(), "../bin/tool".to_owned()])
                };
                Box::new(move |root| put(root, "bin/tool", &made.bytes()))
            }),
            ("links that lead in circles", 1, {
                let made = needs(["a.so".to_owned(), "b.so".to_owned(), "own.so".to_owned()]);
                Box::new(move |root| {
                    put(root, "bin/tool", &made.bytes());
                    for (link, to) in [("a.so", "b.so"), ("b.so", "a.so"), ("own.so", "own.so")] {
                        symlink(to, root.join("lib").join(link)).unwrap();
                    }
                })
            }),
            ("a script that runs itself", 1, Box::new(|root| put(root, "bin/tool", b"#!/bin/tool\n"))),
            ("a script that is looked for everywhere", 2, {
                Box::new(|root| {
                    put(root, "bin/tool", b"#!/bin/env none\n");
                    put(root, "bin/env", b"#!/bin/env none\n");
                })
            }),
        ];
        for (what, files, fill) in cases {
            let (seen, looked, asked) = work_of(fill);
            assert!((1..=files).contains(&seen), "{what}: {seen} files");
            // Beside what was looked for by name: files looked at, folders of programs, what any start reads.
            assert!(looked <= MAX_OPENS + MAX_FILES + 20, "{what}: looked {looked} times");
            assert!(asked.len() <= MAX_FILES, "{what}: {} asked for", asked.len());
        }
    }

    /// Nor by what stands in the folder of its name.
    #[test]
    fn a_hostile_folder_has_little_asked_for() {
        let made = Made { interpreter: Some(b"/none".to_vec()), ..Made::default() };
        let (_, looked, asked) = work_of(|root| {
            put(root, "usr/bin/tool", &made.bytes());
            symlink("/usr/bin/tool", root.join("bin/tool")).unwrap();
            for i in 0..3000 {
                put(root, &format!("usr/lib/tool/{i}"), b"x");
            }
            for i in 0..100 {
                put(root, &format!("usr/lib/tool/of-{i}/file"), &[b'x'; 200 << 10]);
            }
            symlink("tool", root.join("usr/lib/tool/circle")).unwrap();
        });
        assert!(looked <= 65 + 20, "looked {looked} times");
        // At most 1,024 names of the folder, and 8 MiB.
        assert!(asked.len() <= 1 + 1024 + 40, "{} asked for", asked.len());
    }

    #[test]
    fn the_origin_stands_for_the_program_s_folder_once() {
        let of = |folder| with_origin(folder, "/a/${ORIGIN}");
        assert_eq!(of("$ORIGIN/../lib").unwrap(), "/a/${ORIGIN}/../lib");
        assert_eq!(of("/x/${ORIGIN}$LIB").unwrap(), "/x//a/${ORIGIN}$LIB");
        assert_eq!(of("/plain").unwrap(), "/plain");
        assert_eq!(of(&"$ORIGIN".repeat(1000)), None);
    }
}

//! What a program did to a store, as `strace` has seen it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Node;

/// A change of the store; paths are relative to it, files are numbers, as they may change their names.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    Folder(PathBuf),
    Create(PathBuf, u64),
    Write(u64, u64, Vec<u8>),
    Resize(u64, u64),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncFile(u64),
    SyncFolder(PathBuf),
}

impl Op {
    /// The folder in which it changes names.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Op::Folder(path)
            | Op::Create(path, _)
            | Op::Rename(_, path)
            | Op::Link(_, path)
            | Op::Remove(path) => path.parent(),
            _ => None,
        }
    }
}

const CALLS: &str = "openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,\
                     mkdir,mkdirat,rmdir,link,linkat,writev,pwritev,copy_file_range,fallocate,sendfile,ioctl";

/// Runs hoist on the node's empty store, does `meanwhile`, and waits for its end.
pub fn record(node: &Node, args: &[&str], meanwhile: impl FnOnce()) -> Vec<Op> {
    record_from(&[], node, args, meanwhile)
}

/// The same on a store that `before` has led to.
pub fn record_from(before: &[Op], node: &Node, args: &[&str], meanwhile: impl FnOnce()) -> Vec<Op> {
    let log = node.path("strace.log");
    let hoist = node.hoist(args);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-xx", "-s", "4000000", "-e", &format!("trace={CALLS}"), "-o"]).arg(&log);
    strace.arg(hoist.get_program()).args(hoist.get_args()).env("HOIST_ROOT", node.store(""));
    strace.env_remove("HOIST_TRUST_INDEX").stdin(std::process::Stdio::null());
    strace.stdout(std::process::Stdio::null());
    let mut running = strace.spawn().expect("strace is there: `make deps` installs what tests need");
    meanwhile();
    assert!(running.wait().unwrap().success(), "{args:?}: {}", node.logs());
    let root = node.store("").canonicalize().unwrap();
    let mut reader = Reader { root, ..Reader::default() };
    for op in before {
        reader.names(op);
    }
    let text = fs::read_to_string(&log).unwrap();
    let mut unfinished: HashMap<&str, String> = HashMap::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, start.to_owned());
        } else if let Some((_, rest)) = call.split_once(" resumed>") {
            let start = unfinished.remove(thread).unwrap_or_default();
            reader.call(&(start + rest));
        } else {
            reader.call(call);
        }
    }
    reader.ops
}

#[derive(Default)]
struct Reader {
    root: PathBuf,
    ops: Vec<Op>,
    files: BTreeMap<PathBuf, u64>,
    next: u64,
    /// Where the next `write` goes, by descriptor.
    positions: HashMap<String, u64>,
}

impl Reader {
    fn call(&mut self, line: &str) {
        let (Some((name, rest)), Some((_, result))) = (line.split_once('('), line.rsplit_once(" = ")) else {
            return;
        };
        if result.starts_with('-') {
            return;
        }
        let Some(end) = rest.rfind(") ") else { return };
        let args: Vec<&str> = rest[..end].split(", ").collect();
        let number = |at: usize| args[at].parse::<u64>().unwrap();
        match name {
            "openat" => self.open(&args, result),
            "mkdir" | "mkdirat" => self.named(&args, name == "mkdirat", Op::Folder),
            "rmdir" | "unlink" | "unlinkat" => self.named(&args, name == "unlinkat", Op::Remove),
            "rename" => self.two(args[0], args[1], "", "", Op::Rename),
            "link" => self.two(args[0], args[1], "", "", Op::Link),
            "renameat" | "renameat2" => self.two(args[1], args[3], args[0], args[2], Op::Rename),
            "linkat" => self.two(args[1], args[3], args[0], args[2], Op::Link),
            "write" | "pwrite64" => {
                let Some(file) = self.file_of(args[0]) else { return };
                let bytes = bytes(args[1]);
                let done = result.trim().parse::<usize>().unwrap();
                let bytes = bytes[..done].to_vec();
                let offset = match name {
                    "pwrite64" => number(3),
                    _ => {
                        let at = self.positions.entry(descriptor(args[0]).to_owned()).or_default();
                        *at += done as u64;
                        *at - done as u64
                    }
                };
                self.push(Op::Write(file, offset, bytes));
            }
            "ftruncate" => {
                if let Some(file) = self.file_of(args[0]) {
                    self.push(Op::Resize(file, number(1)));
                }
            }
            "fsync" | "fdatasync" => match (self.file_of(args[0]), self.path_of(args[0])) {
                (Some(file), _) => self.push(Op::SyncFile(file)),
                (None, Some(path)) => self.push(Op::SyncFolder(path)),
                _ => {}
            },
            // The kept blob is emptied so; nothing rests on it.
            "fallocate" | "ioctl" => {}
            other => {
                assert!(self.path_of(args[0]).is_none(), "{other} on the store is not replayed: {line:.200}");
            }
        }
    }

    fn open(&mut self, args: &[&str], result: &str) {
        let fd = result.split('<').next().unwrap_or_default().trim().to_owned();
        self.positions.insert(fd, 0);
        let Some(path) = self.path_of(result) else { return };
        let created = args[2].contains("O_CREAT") && !self.files.contains_key(&path);
        if created {
            self.next += 1;
            let op = Op::Create(path, self.next);
            self.push(op);
        } else if args[2].contains("O_TRUNC")
            && let Some(&file) = self.files.get(&path)
        {
            self.push(Op::Resize(file, 0));
        }
    }

    fn named(&mut self, args: &[&str], at: bool, op: impl Fn(PathBuf) -> Op) {
        let (folder, name) = if at { (args[0], args[1]) } else { ("", args[0]) };
        if let Some(path) = self.resolve(folder, name) {
            self.push(op(path));
        }
    }

    fn two(&mut self, a: &str, b: &str, in_a: &str, in_b: &str, op: impl Fn(PathBuf, PathBuf) -> Op) {
        if let (Some(a), Some(b)) = (self.resolve(in_a, a), self.resolve(in_b, b)) {
            self.push(op(a, b));
        }
    }

    fn push(&mut self, op: Op) {
        self.names(&op);
        self.ops.push(op);
    }

    /// Follows the names of files.
    fn names(&mut self, op: &Op) {
        match op {
            Op::Create(path, file) => {
                self.next = self.next.max(*file);
                self.files.insert(path.clone(), *file);
            }
            Op::Rename(from, to) => {
                let moved: Vec<_> =
                    self.files.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in moved {
                    let file = self.files.remove(&path).unwrap();
                    let rest = path.strip_prefix(from).unwrap();
                    let to = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    self.files.insert(to, file);
                }
            }
            Op::Link(from, to) => {
                if let Some(&file) = self.files.get(from) {
                    self.files.insert(to.clone(), file);
                }
            }
            Op::Remove(path) => {
                self.files.remove(path);
            }
            _ => {}
        }
    }

    /// The path that `-y` shows beside a descriptor, in the store.
    fn path_of(&self, shown: &str) -> Option<PathBuf> {
        let path = text(shown.split_once('<')?.1.rsplit_once('>')?.0);
        Some(Path::new(&path).strip_prefix(&self.root).ok()?.to_owned())
    }

    fn file_of(&self, shown: &str) -> Option<u64> {
        self.files.get(&self.path_of(shown)?).copied()
    }

    fn resolve(&self, folder: &str, name: &str) -> Option<PathBuf> {
        let name = String::from_utf8(bytes(name)).unwrap();
        let path = match folder.split_once('<').filter(|_| !name.starts_with('/')) {
            Some((_, folder)) => Path::new(&text(folder.trim_end_matches('>'))).join(name),
            None => PathBuf::from(name),
        };
        Some(path.strip_prefix(&self.root).ok()?.to_owned())
    }
}

fn descriptor(shown: &str) -> &str {
    shown.split('<').next().unwrap_or_default()
}

/// A string in quotes, all of it as `\xNN`.
fn bytes(quoted: &str) -> Vec<u8> {
    assert!(!quoted.ends_with("..."), "cut off: {quoted:.100}");
    let inner = quoted.trim_matches('"');
    inner.split("\\x").skip(1).map(|hex| u8::from_str_radix(&hex[..2], 16).unwrap()).collect()
}

/// A path, as it is or as `\xNN`.
fn text(shown: &str) -> String {
    match shown.contains("\\x") {
        true => String::from_utf8(bytes(shown)).unwrap(),
        false => shown.to_owned(),
    }
}

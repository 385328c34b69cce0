//! A session with the real kernel: what programs see of a tiny file system.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use hoist_sys::fuse::{
    Answer, Attributes, Entry, FileSystem, Handler, Listing, MountOptions, Operation, ROOT, Request, Session,
    attributes, entry, mount, negative_entry, statfs, xattr_size,
};
use hoist_sys::mount::unmount;
use rustix::fs::{Mode, OFlags, open};

const FILE: u64 = 7;
const LINK: u64 = 8;
const CONTENT: &[u8] = b"what the file holds";

/// `file`, and `link` to it. The first reads of the file are taken and never answered.
#[derive(Default)]
struct Tiny {
    to_lose: AtomicU32,
    lost: AtomicU32,
    opens: AtomicU32,
}

fn shown(node: u64) -> Attributes {
    let (mode, size) = match node {
        ROOT => (0o040_755, 0),
        FILE => (0o100_640, CONTENT.len() as u64),
        _ => (0o120_777, 4),
    };
    Attributes {
        ino: node,
        mode,
        size,
        nlink: 1,
        uid: 70_000,
        gid: 70_001,
        seconds: -5,
        nanoseconds: 6,
        ..Attributes::default()
    }
}

impl Handler for Tiny {
    fn handle(&self, request: &Request<'_>, answer: Answer) {
        match request.operation {
            Operation::Lookup { name } => match name {
                b"file" => answer.with(&entry(&Entry { node: FILE, attributes: shown(FILE) })),
                b"link" => answer.with(&entry(&Entry { node: LINK, attributes: shown(LINK) })),
                _ => answer.with(&negative_entry()),
            },
            Operation::Getattr => answer.with(&attributes(&shown(request.node))),
            Operation::Readlink => answer.with(b"file"),
            Operation::Read { offset, size } => {
                if self.to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
                {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    return answer.none();
                }
                let rest = &CONTENT[(offset as usize).min(CONTENT.len())..];
                answer.with(&rest[..rest.len().min(size as usize)]);
            }
            Operation::Readdir { offset, size, plus } => {
                let mut listing = Listing::new(size);
                for (i, (name, node)) in
                    [(&b"file"[..], FILE), (b"link", LINK)].into_iter().enumerate().skip(offset as usize)
                {
                    let (kind, next) = (shown(node).mode >> 12, i as u64 + 1);
                    let entry = Entry { node, attributes: shown(node) };
                    let added = match plus {
                        true => listing.add_plus(name, Some(&entry), node, kind, next),
                        false => listing.add(name, node, kind, next),
                    };
                    assert!(added);
                }
                answer.with(&listing.finish());
            }
            Operation::Statfs => answer.with(&statfs(&FileSystem { blocks: 3, files: 2 })),
            Operation::Getxattr { name: b"user.word", size: 0 } => answer.with(&xattr_size(5)),
            Operation::Getxattr { name: b"user.word", .. } => answer.with(b"value"),
            Operation::Getxattr { .. } => answer.fail(libc::ENODATA),
            Operation::Open | Operation::Opendir => {
                self.opens.fetch_add(1, Ordering::SeqCst);
                answer.fail(libc::ENOSYS);
            }
            _ => answer.fail(libc::ENOSYS),
        }
    }
}

/// A mounted one; unmounted and its threads gone at its end.
struct Mounted {
    point: tempfile::TempDir,
    session: Session,
    tiny: Arc<Tiny>,
    threads: Vec<JoinHandle<()>>,
}

impl Mounted {
    fn new(queues: usize) -> Mounted {
        let point = tempfile::tempdir().unwrap();
        let options = MountOptions { source: "tiny", allow_other: true, nosuid: true, nodev: false };
        let device = mount(point.path(), &options).unwrap();
        let session = Session::start(device, queues, true).unwrap();
        let tiny = Arc::new(Tiny::default());
        let threads = session.serve(&tiny, 2).unwrap();
        Mounted { point, session, tiny, threads }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(self.point.path(), true).unwrap();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn programs_see_what_the_handler_says() {
    let mounted = Mounted::new(2);
    // The list of requests, and two queues.
    assert_eq!(mounted.session.fds().count(), 3);
    let meta = fs::metadata(mounted.path("link")).unwrap();
    assert_eq!((meta.mode(), meta.len(), meta.ino()), (0o100_640, CONTENT.len() as u64, FILE));
    assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()), (70_000, 70_001, -5, 6));
    assert_eq!(fs::read(mounted.path("file")).unwrap(), CONTENT);
    assert_eq!(fs::read_link(mounted.path("link")).unwrap(), Path::new("file"));
    let mut names: Vec<_> =
        fs::read_dir(mounted.point.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "link"]);
    assert_eq!(fs::metadata(mounted.path("none")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert_eq!(rustix::fs::statfs(mounted.point.path()).unwrap().f_blocks, 3);
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(mounted.path("file"), "user.word", &mut value).unwrap();
    assert_eq!(&value[..length], b"value");
    let written = fs::set_permissions(mounted.path("file"), fs::Permissions::from_mode(0o777)).unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EROFS));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|l| l.contains(mounted.point.path().to_str().unwrap())).unwrap();
    assert!(
        line.contains("ro,nosuid")
            && line.contains("- fuse.hoist tiny")
            && line.contains("default_permissions"),
        "{line}"
    );
}

/// The kernel asks once whether files and folders are to be opened, and never again.
#[test]
fn opens_cost_nothing() {
    let mounted = Mounted::new(1);
    assert!(mounted.session.negotiated().without_opens());
    for _ in 0..5 {
        fs::File::open(mounted.path("file")).unwrap();
        fs::read_dir(mounted.point.path()).unwrap();
    }
    assert_eq!(mounted.tiny.opens.load(Ordering::SeqCst), 2);
}

/// A read that a dead process had taken is answered by who goes on with the session's descriptors.
#[test]
fn a_successor_answers_what_was_left() {
    let mounted = Mounted::new(2);
    mounted.tiny.to_lose.store(1, Ordering::SeqCst);
    let path = mounted.path("file");
    let reader = std::thread::spawn(move || fs::read(path).unwrap());
    while mounted.tiny.lost.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert!(!reader.is_finished());
    let fds = mounted.session.fds().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    let successor = Session::from_fds(fds, mounted.session.negotiated()).unwrap();
    let _threads = successor.serve(&mounted.tiny, 2).unwrap();
    assert_eq!(reader.join().unwrap(), CONTENT);
}

/// Any number of programs wait for bytes, and names are answered all the same; who goes on answers them all.
#[test]
fn names_go_on_while_very_many_reads_wait() {
    const READS: u32 = 1500;
    let mounted = Mounted::new(2);
    mounted.tiny.to_lose.store(READS, Ordering::SeqCst);
    // Past the page cache, as one page is asked for once.
    let flags = OFlags::RDONLY | OFlags::DIRECT;
    let file = Arc::new(open(mounted.path("file"), flags, Mode::empty()).unwrap());
    let read = |_| {
        let file = Arc::clone(&file);
        let read = move || {
            let mut bytes = [0; 64];
            rustix::io::pread(&file, &mut bytes, 0).map(|n| bytes[..n].to_vec())
        };
        std::thread::Builder::new().stack_size(64 << 10).spawn(read).unwrap()
    };
    let readers: Vec<_> = (0..READS).map(read).collect();
    while mounted.tiny.lost.load(Ordering::SeqCst) < READS {
        std::thread::yield_now();
    }
    let names = [
        fs::read_link(mounted.path("link")),
        fs::canonicalize(mounted.path("link")).map(|p| p.file_name().unwrap().into()),
    ];
    let fds = mounted.session.fds().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    let successor = Session::from_fds(fds, mounted.session.negotiated()).unwrap();
    let _threads = successor.serve(&mounted.tiny, 2).unwrap();
    readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap().unwrap(), CONTENT));
    names.into_iter().for_each(|name| assert_eq!(name.unwrap(), Path::new("file")));
}

/// Once the last holder of the descriptors is gone, reads fail: nothing is made up.
#[test]
fn without_a_server_reads_fail() {
    let point = tempfile::tempdir().unwrap();
    let options = MountOptions { source: "tiny", allow_other: false, nosuid: true, nodev: true };
    let device = mount(point.path(), &options).unwrap();
    drop(Session::start(device, 1, false).unwrap());
    let failed = fs::read(point.path().join("file")).unwrap_err();
    unmount(point.path(), false).unwrap();
    // The second where a process that another test has just forked still had the descriptor when it was asked.
    assert!(matches!(failed.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)), "{failed}");
}

#[test]
fn an_ordinary_user_mounts_by_the_helper() {
    // The helper goes by the user who calls it, so this very test runs itself as one.
    if let Some(point) = std::env::var_os("HOIST_TEST_POINT") {
        return as_a_user(Path::new(&point));
    }
    let point = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(point.path(), Some(65534), Some(65534)).unwrap();
    // Where anybody may run it from; and a /dev/fuse that anybody may open, as distributions have it, in a
    // mount namespace of the test's own.
    let open = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let (copy, device) = (open.path().join("test"), open.path().join("fuse"));
    fs::copy("/proc/self/exe", &copy).unwrap();
    let script = r#"mknod -m 666 "$1" c 10 229 && mount --bind "$1" /dev/fuse && cd / &&
        exec setpriv --reuid 65534 --regid 65534 --clear-groups "$2" --exact an_ordinary_user_mounts_by_the_helper"#;
    let mut again = std::process::Command::new("unshare");
    again
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([&device, &copy])
        .env("HOIST_TEST_POINT", point.path());
    let output = again.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn as_a_user(point: &Path) {
    use hoist_sys::fuse::{mount_by_helper, unmount_by_helper};
    let options = MountOptions { source: "a, b", allow_other: false, nosuid: true, nodev: true };
    let session = Session::start(mount_by_helper(point, &options).unwrap(), 2, false).unwrap();
    let threads = session.serve(&Arc::new(Tiny::default()), 1).unwrap();
    let meta = fs::metadata(point.join("file")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777), (70_000, 0o640));
    // Shown as another's, but nobody else can see it: what the user serves it may read.
    assert_eq!(fs::read(point.join("file")).unwrap(), CONTENT);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(table.contains("- fuse.hoist a_\\040b"), "{table}");
    unmount_by_helper(point, false).unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(unmount_by_helper(point, false).is_err());
}

//! The system that a containerd runs in: this machine, or another Debian, which `scripts/chroots` made.
//!
//! The other's files are the lower folder of an overlay, so that they stay as they were made. It has a mount namespace
//! of its own, whose root it is: runc enters containers by their namespace's root, which a chroot does not change.
//! One folder is of this machine's disk. What this machine mounts there is seen in the system too, by the same path:
//! where the root is here, a link to `/` stands there.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use tempfile::TempDir;

use crate::process::{self, Daemon};

/// See the module. What is mounted in it is unmounted when it is dropped.
#[derive(Debug)]
pub struct System {
    directory: TempDir,
    /// None: it is this machine.
    other: Option<Other>,
}

#[derive(Debug)]
struct Other {
    /// Where this machine has its root.
    root: PathBuf,
    pid: u32,
    /// Keeps its mount namespace, until its standard input ends: see [`ENTER`].
    keeper: Mutex<(Daemon, Option<ChildStdin>)>,
}

/// For what runs in it to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What it has of this machine.
const SHARED: [&str; 3] = ["proc", "sys", "dev"];

/// In a new mount namespace, which hears of this machine's mounts: makes its folder the root, and stays until its
/// standard input ends, as it does when whoever started it is killed. Then whatever runs in the namespace ends, with
/// all that it has started: a containerd's shims would go on for ever.
const ENTER: &str = r#"cd "$0" && pivot_root . mnt && exec chroot . sh -c '
    umount -l /mnt && echo there || exit 1
    read -r _
    end() {
        for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do end "$child"; done
        kill -KILL "$1" 2>/dev/null
    }
    here=$(readlink /proc/$$/ns/mnt)
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" = $$ ] || [ "$(readlink "$process/ns/mnt")" != "$here" ] || end "$pid"
    done
'"#;

impl System {
    /// This machine.
    ///
    /// # Errors
    /// There is no room for a folder.
    pub fn this() -> Result<System> {
        Ok(System { directory: folder()?, other: None })
    }

    /// A Debian, below what else lies over it.
    ///
    /// # Errors
    /// One was not made; the caller is not root.
    pub fn of(folders: &[&str]) -> Result<System> {
        let lower: Vec<_> = folders.iter().map(|folder| chroots().join(folder)).collect();
        for folder in &lower {
            ensure!(
                folder.is_dir(),
                "there is no {}: `make chroots` makes what tests need",
                folder.display()
            );
        }
        // From here on whatever is mounted goes with it.
        let mut system = Self::this()?;
        let root = mount_root(&lower, system.directory.path())?;
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
        let link = root.join(root.strip_prefix("/")?);
        fs::create_dir_all(link.parent().context("a root has a parent")?)?;
        std::os::unix::fs::symlink("/", &link)?;
        let (keeper, alive) = enter(&root)?;
        system.other = Some(Other { root, pid: keeper.pid(), keeper: Mutex::new((keeper, alive)) });
        Ok(system)
    }

    /// A folder on this machine's disk, which has the same path in the system.
    pub fn directory(&self) -> PathBuf {
        self.other.as_ref().map_or_else(|| self.directory.path().to_owned(), |other| other.root.join("data"))
    }

    /// What the system itself calls a path: without the link, which runc does not follow.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let below = self.other.as_ref().and_then(|other| path.strip_prefix(&other.root).ok());
        below.map_or_else(|| path.to_owned(), |below| Path::new("/").join(below))
    }

    /// A path as the system's own processes see it, with what they have mounted there.
    pub fn seen(&self, path: &Path) -> PathBuf {
        match &self.other {
            None => path.to_owned(),
            Some(other) => {
                let inside = self.inside(path);
                let inside = inside.strip_prefix("/").unwrap_or(&inside);
                Path::new(&format!("/proc/{}/root", other.pid)).join(inside)
            }
        }
    }

    /// Ends whatever runs in it, if it is not this machine: nothing can be started in it any more.
    pub fn end(&self) {
        let Some(other) = &self.other else { return };
        let mut keeper = other.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        drop(keeper.1.take());
        let ended = || Ok(keeper.0.has_ended());
        let _ = process::wait_until("the end of a mount namespace", PATIENCE, ended);
    }

    /// The process that keeps its mount namespace, if it has one of its own.
    pub fn keeper(&self) -> Option<u32> {
        self.other.as_ref().map(|other| other.pid)
    }

    /// A program of the system, to be started in it.
    pub fn command(&self, program: &str) -> Command {
        let Some(other) = &self.other else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", other.pid)).arg(program);
        // As the system has them.
        command.env("PATH", "/usr/sbin:/usr/bin").env("TMPDIR", "/tmp");
        command
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.end();
        unmount_below(self.directory.path());
    }
}

/// Mounts a root in `directory`, over these, the uppermost first.
fn mount_root(lower: &[PathBuf], directory: &Path) -> Result<PathBuf> {
    let path = |name: &str| directory.join(name);
    for name in ["root", "changed", "work", "data"] {
        fs::create_dir(path(name))?;
    }
    let root = path("root");
    let (upper, work) = (path("changed"), path("work"));
    let lower: Vec<_> = lower.iter().map(|folder| folder.display().to_string()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mounting an overlay on {}", root.display()))?;
    // Nothing that is shared can become a root.
    rustix::mount::mount_change(&root, MountPropagationFlags::PRIVATE)?;
    for name in SHARED {
        let (from, to) = (Path::new("/").join(name), root.join(name));
        rustix::mount::mount_bind_recursive(&from, &to)
            .with_context(|| format!("showing {} in {}", from.display(), root.display()))?;
        // Or unmounting it here would unmount it there.
        rustix::mount::mount_change(&to, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    }
    rustix::mount::mount("tmpfs", root.join("run"), "tmpfs", MountFlags::empty(), c"mode=0755")?;
    fs::create_dir(root.join("data"))?;
    rustix::mount::mount_bind(path("data"), root.join("data"))?;
    rustix::mount::mount_change(root.join("data"), MountPropagationFlags::PRIVATE)?;
    rustix::mount::mount_change(root.join("data"), MountPropagationFlags::SHARED)?;
    Ok(root)
}

fn enter(root: &Path) -> Result<(Daemon, Option<ChildStdin>)> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=slave", "/bin/sh", "-c", ENTER]).arg(root);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("starting unshare")?;
    let (out, alive) = (child.stdout.take().context("unshare has no output")?, child.stdin.take());
    let keeper = Daemon::new(child);
    let mut said = [0; 6];
    let there = out.take(6).read_exact(&mut said);
    ensure!(
        there.is_ok() && &said == b"there\n",
        "a mount namespace with the root {} could not be made",
        root.display()
    );
    Ok((keeper, alive))
}

/// Detaches every mount below a folder, the newest first.
pub fn unmount_below(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(folder) {
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
        }
    }
}

fn folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("hoist-system-").tempdir()?;
    // Containers may be run by others than root.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

/// Where `scripts/chroots` has made them.
fn chroots() -> PathBuf {
    if let Some(given) = std::env::var_os("HOIST_CHROOTS") {
        return given.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    target.join("chroots")
}

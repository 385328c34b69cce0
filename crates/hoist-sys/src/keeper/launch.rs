//! Starting a successor of a dead filler, out of the keeper's process: all that it takes was made ready
//! before, and between fork and exec only system calls are made.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// `argv[0]` of a successor.
pub(super) const NAME: &CStr = c"hoist-successor";
/// The number under which it finds its socket.
pub(super) const SOCKET: RawFd = 3;

/// How successors are started.
#[derive(Debug)]
pub(super) struct Launcher {
    /// None: nobody is to take over.
    program: Option<CString>,
    /// The one before it, while it is tried.
    before: Option<CString>,
    arguments: Vec<CString>,
    /// The keeper's own program, for when the other is gone or no good.
    own: OwnedFd,
    /// What the keeper had before it was made the last to be killed.
    oom_score_adj: Vec<u8>,
}

fn c(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

impl Launcher {
    /// To be made before anything about the process is changed. An empty program is none.
    pub fn new(program: OsString, arguments: impl Iterator<Item = OsString>) -> io::Result<Self> {
        let program = if program.is_empty() { None } else { Some(c(program)?) };
        let arguments =
            std::iter::once(Ok(NAME.to_owned())).chain(arguments.map(c)).collect::<io::Result<_>>()?;
        let own = std::fs::File::open("/proc/self/exe")?;
        // Above the socket's number, which is overwritten in the child.
        let own = rustix::io::fcntl_dupfd_cloexec(&own, SOCKET + 1)?;
        let oom_score_adj = std::fs::read("/proc/self/oom_score_adj").unwrap_or_default();
        Ok(Self { program, before: None, arguments, own, oom_score_adj })
    }

    /// Is anybody to take over?
    pub fn can(&self) -> bool {
        self.program.is_some()
    }

    /// The program of this path is the one to start from now on; to be followed by [`Launcher::keep`] or
    /// [`Launcher::restore`].
    pub fn replace(&mut self, program: &Path) -> io::Result<()> {
        let program = CString::new(program.as_os_str().as_bytes())?;
        self.before = self.program.replace(program);
        Ok(())
    }

    /// The program is good.
    pub fn keep(&mut self) {
        self.before = None;
    }

    /// The program is not good: the one before is.
    pub fn restore(&mut self) {
        if let Some(before) = self.before.take() {
            self.program = Some(before);
        }
    }

    /// Starts the program, or the keeper's own where it is gone or `own` says so. The child is told the
    /// rest through `socket`.
    pub fn start(&self, socket: &OwnedFd, own: bool) -> io::Result<(Pid, OwnedFd)> {
        let program = self.program.as_deref().filter(|_| !own).unwrap_or(c"");
        let mut arguments: Vec<_> = self.arguments.iter().map(|a| a.as_ptr()).collect();
        arguments.push(std::ptr::null());
        // SAFETY: this process has one thread, and the child makes only system calls until it execs.
        match unsafe { libc::fork() } {
            // SAFETY: in the child.
            0 => unsafe { self.become_successor(program, &arguments, socket.as_raw_fd()) },
            -1 => Err(io::Error::last_os_error()),
            pid => {
                let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no pid"))?;
                // Nobody else reaps it, so the number is its own.
                Ok((pid, pidfd_open(pid, PidfdFlags::empty())?))
            }
        }
    }

    /// # Safety
    /// Only in a forked child; `arguments` are C strings and a null behind them.
    unsafe fn become_successor(&self, program: &CStr, arguments: &[*const libc::c_char], socket: RawFd) -> ! {
        unsafe extern "C" {
            static environ: *const *const libc::c_char;
        }
        // SAFETY: system calls on values of this process; pointers are to live, terminated strings.
        unsafe {
            libc::setsid();
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
                libc::signal(signal, libc::SIG_DFL);
            }
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, self.oom_score_adj.as_ptr().cast(), self.oom_score_adj.len());
            }
            let placed = if socket == SOCKET {
                libc::fcntl(SOCKET, libc::F_SETFD, 0)
            } else {
                libc::dup2(socket, SOCKET)
            };
            if placed >= 0 {
                if !program.is_empty() {
                    libc::execve(program.as_ptr(), arguments.as_ptr(), environ);
                }
                let own = self.own.as_fd().as_raw_fd();
                let flags = libc::c_long::from(libc::AT_EMPTY_PATH);
                libc::syscall(
                    libc::SYS_execveat,
                    libc::c_long::from(own),
                    c"".as_ptr(),
                    arguments.as_ptr(),
                    environ,
                    flags,
                );
            }
            libc::_exit(127)
        }
    }
}

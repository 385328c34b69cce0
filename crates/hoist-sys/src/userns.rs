//! User namespaces: where an ordinary user is root.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use rustix::mount::MountPropagationFlags;

/// Whether this process is in the machine's first user namespace, so that its privileges are real.
pub fn is_initial() -> bool {
    // user_namespaces(7): the first maps all numbers to themselves.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Numbers that the administrator has given a user beside its own (subuid(5)): a first and a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The range given to a user in `/etc/subuid` or `/etc/subgid`, by name or number; the first of several.
pub fn subordinate(file: &str, name: Option<&str>, uid: u32) -> Option<Range> {
    find_range(&std::fs::read_to_string(file).ok()?, name, uid)
}

fn find_range(text: &str, name: Option<&str>, uid: u32) -> Option<Range> {
    let number = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (who == number || Some(who) == name).then_some(Range { first, count }).filter(|r| r.count > 0)
    })
}

/// Makes this process root of a user namespace of its own, with a mount namespace in which it may mount
/// what such a root may. The user is root in it; `others`, for users and groups, are its users from 1 on.
/// They take `newuidmap` and `newgidmap` (package uidmap). To be called while the process has one thread.
///
/// # Errors
/// EPERM or ENOSPC where user namespaces are not for ordinary users; EINVAL with more than one thread.
pub fn enter(others: Option<(Range, Range)>) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // The helpers must be started by the user as it is outside; what they wait for is that it is inside.
    let helper = others.map(|(users, groups)| start_helper(uid, gid, users, groups)).transpose()?;
    // SAFETY: shares no memory or descriptors anew; the process has one thread, or the kernel refuses.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } < 0 {
        let e = io::Error::last_os_error();
        return Err(io::Error::new(e.kind(), format!("making a user namespace: {e}")));
    }
    match helper {
        Some(mut helper) => {
            if let Some(mut go) = helper.stdin.take() {
                go.write_all(b"go\n")?;
            }
            let output = helper.wait_with_output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(io::Error::other(format!("newuidmap failed: {}", said.trim())));
            }
        }
        None => {
            std::fs::write("/proc/self/setgroups", "deny")?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        }
    }
    // What is mounted here stays here.
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?)
}

fn start_helper(uid: u32, gid: u32, users: Range, groups: Range) -> io::Result<std::process::Child> {
    const SCRIPT: &str =
        r#"read go && newuidmap "$1" 0 "$2" 1 1 "$4" "$5" && newgidmap "$1" 0 "$3" 1 1 "$6" "$7""#;
    let numbers = [std::process::id(), uid, gid, users.first, users.count, groups.first, groups.count];
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", SCRIPT, "sh"]).args(numbers.map(|n| n.to_string()));
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_number() {
        let text = "root:1:0\nanna:100000:65536\n1001:300000:10\nanna:500000:3\n";
        let range = |first, count| Some(Range { first, count });
        assert_eq!(find_range(text, Some("anna"), 1000), range(100_000, 65536));
        assert_eq!(find_range(text, None, 1001), range(300_000, 10));
        assert_eq!(find_range(text, Some("root"), 0), None);
        assert_eq!(find_range("junk\nanna:x:1\n", Some("anna"), 0), None);
    }
}

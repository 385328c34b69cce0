//! Containers of ordinary users: the whole command becomes root of a user namespace first.
//!
//! With numbers of its own in `/etc/subuid` and `/etc/subgid` the user has all of a container's users;
//! without, only root, and files of others are shown as root's.

use std::path::Path;

use anyhow::Context;
use hoist_sys::userns::{self, Range};

use crate::cli::Global;
use crate::failure::user_hint;

/// What kind of root this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The machine's, or that of a namespace somebody else made.
    Given,
    /// Of a user namespace with many users.
    Many,
    /// Of a user namespace that has no other user.
    Alone,
}

impl Root {
    /// Whether the kernel lets this root do what only the machine's may.
    pub fn is_rootless(self) -> bool {
        self != Self::Given || !userns::is_initial()
    }
}

/// Becomes root of a user namespace unless this process may mount already. The options that come back hold
/// what depends on who the user is outside. To be called before threads are started.
///
/// # Errors
/// User namespaces are not for ordinary users here: the administrator's to mend.
pub fn enter(global: &Global) -> anyhow::Result<(Global, Root)> {
    let global = Global { root: Some(global.root()?), ..global.clone() };
    if crate::doctor::may_mount() {
        return Ok((global, Root::Given));
    }
    let others = subordinate();
    userns::enter(others).map_err(|error| {
        user_hint(
            format!("an ordinary user's container takes a user namespace: {error}"),
            "run it with sudo, or have the administrator allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)",
        )
    })?;
    Ok((global, if others.is_some() { Root::Many } else { Root::Alone }))
}

/// The user's numbers, if it has any and the helpers to use them.
fn subordinate() -> Option<(Range, Range)> {
    let path = std::env::var_os("PATH");
    let helper = |name| crate::runtime::find_program(name, path.as_deref());
    helper("newuidmap").and(helper("newgidmap"))?;
    let uid = rustix::process::getuid().as_raw();
    let name = user_name(uid);
    let range = |file| userns::subordinate(file, name.as_deref(), uid);
    Some((range("/etc/subuid")?, range("/etc/subgid")?))
}

fn user_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut names = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    names.next()
}

/// Makes a bundle's configuration one that a namespace's root can have, as `runc spec --rootless` does.
pub fn adapt(config: &mut serde_json::Value, root: Root, host_network: bool) {
    if let Some(mounts) = config["mounts"].as_array_mut() {
        // Control groups are not this root's to show.
        mounts.retain(|mount| mount["type"] != "cgroup");
        for mount in mounts {
            if mount["type"] == "sysfs" && host_network {
                // Only the owner of the network may mount its sysfs.
                let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
                *mount = serde_json::json!({
                    "destination": "/sys", "type": "none", "source": "/sys", "options": options
                });
            }
            if root == Root::Alone
                && let Some(options) = mount["options"].as_array_mut()
            {
                options.retain(|option| option != "gid=5");
            }
        }
    }
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("resources");
    }
    if root == Root::Alone
        && let Some(user) = config["process"]["user"].as_object_mut()
    {
        // setgroups(2) is denied where the user has one group.
        user.remove("additionalGids");
    }
}

/// The shortest way for a runtime to be told that control groups are not to be had.
pub fn runtime_options(program: &Path) -> &'static [&'static str] {
    match program.file_name().and_then(|name| name.to_str()) {
        Some("crun") => &["--cgroup-manager", "disabled"],
        Some("runc") => &["--rootless", "true"],
        _ => &[],
    }
}

/// Says what a user namespace without other users can't do.
///
/// # Errors
/// The program is to run as somebody who is not there.
pub fn check_user(root: Root, uid: u32, gid: u32) -> anyhow::Result<()> {
    if root != Root::Alone || (uid, gid) == (0, 0) {
        return Ok(());
    }
    Err(user_hint(
        format!("the program is to run as user {uid}:{gid}, but there is only root in your user namespace"),
        "run it as root with -u 0:0, or have the administrator give you numbers in /etc/subuid and /etc/subgid (package uidmap)",
    ))
    .context("choosing the container's user")
}

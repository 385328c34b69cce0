//! `hoist doctor`: what this kernel and machine can do, and what to change.

use std::path::Path;

use hoist_engine::{Driver, DriverState};
use rustix::fs::{Access, AtFlags, CWD};
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::cli::Global;

/// How much of hoist a finding takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Something is worse for it, or may be later.
    Warning,
    /// Images can't be mounted.
    Missing,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, state: State::Ok, found: found.into(), change: None }
    }

    fn worse(
        what: &'static str,
        state: State,
        found: impl Into<String>,
        change: impl Into<String>,
    ) -> Finding {
        Finding { what, state, found: found.into(), change: Some(change.into()) }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    can_mount: bool,
    /// The driver that is taken; None where none works, or the one that was asked for does not.
    driver: Option<&'static str>,
    findings: &'a [Finding],
}

/// Prints the findings; the exit code is 1 if images can't be mounted here.
pub fn run(global: &Global, json: bool) -> anyhow::Result<u8> {
    let root = global.root()?;
    let states = hoist_engine::drivers(&root);
    let [erofs, erofs_fuse, fuse] = &states;
    let asked = global.driver.map(crate::engine_glue::driver);
    let usable =
        |state: &&DriverState| state.missing.is_none() && asked.is_none_or(|asked| asked == state.driver);
    let driver = states.iter().find(usable).map(|state| state.driver.name());
    let findings = [
        kernel(),
        privilege(),
        driver_finding("driver erofs", erofs, driver),
        driver_finding("driver erofs-fuse", erofs_fuse, driver),
        driver_finding("driver fuse", fuse, driver),
        any_driver(driver, asked),
        file_system("overlayfs", "overlay", "CONFIG_OVERLAY_FS"),
        store_file_system(&root),
        space(&root),
        runtime(),
        certificates(),
        credentials(),
    ];
    let can_mount = findings.iter().all(|finding| finding.state != State::Missing);
    if json {
        crate::commands::print_json(&Report { can_mount, driver, findings: &findings })?;
    } else {
        crate::commands::print(&table(&findings, can_mount))?;
    }
    Ok(if can_mount { 0 } else { crate::failure::EXIT_USER })
}

fn table(findings: &[Finding], can_mount: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "MISSING",
        };
        text.push_str(&format!("{state:<8} {:<20} {}\n", finding.what, finding.found));
        if let Some(change) = &finding.change {
            text.push_str(&format!("{:29} -> {change}\n", ""));
        }
    }
    text.push_str(if can_mount {
        "\nImages can be mounted here."
    } else {
        "\nImages can't be mounted here."
    });
    text
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    Finding::ok("kernel", format!("Linux {}", name.release().to_string_lossy()))
}

/// Whether this process may mount.
pub fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|held| held.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn privilege() -> Finding {
    Finding::ok("privilege", if may_mount() { "CAP_SYS_ADMIN" } else { "an ordinary user's" })
}

/// A driver that does not work is no harm as long as a faster one does.
fn driver_finding(what: &'static str, state: &DriverState, chosen: Option<&'static str>) -> Finding {
    let name = state.driver.name();
    match &state.missing {
        None if chosen == Some(name) => Finding::ok(what, "works, and is taken unless another is asked for"),
        None => Finding::ok(what, format!("works: --driver {name}")),
        Some(missing) if chosen == Some(hoist_engine::Driver::ALL[0].name()) => {
            Finding::ok(what, format!("not needed here ({missing})"))
        }
        Some(missing) => Finding::worse(what, State::Warning, missing, needs(state.driver)),
    }
}

fn needs(driver: Driver) -> &'static str {
    match driver {
        Driver::Erofs => {
            "the fastest: Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS and CONFIG_EROFS_FS_BACKED_BY_FILE, root outside of containers, a store on ext4, xfs or btrfs"
        }
        Driver::ErofsFuse => {
            "needs Linux 5.16 with CONFIG_EROFS_FS, loop devices, and root outside of containers"
        }
        Driver::Fuse => {
            "needs a /dev/fuse that this user may open, and root or fusermount3 (apt install fuse3)"
        }
    }
}

fn any_driver(chosen: Option<&'static str>, asked: Option<Driver>) -> Finding {
    match (chosen, asked) {
        (Some(name), None) => Finding::ok("mounting", format!("by the driver {name}")),
        (Some(name), Some(_)) => Finding::ok("mounting", format!("by the driver {name}, as asked for")),
        (None, Some(asked)) => Finding::worse(
            "mounting",
            State::Missing,
            format!("the driver {} that was asked for does not work here", asked.name()),
            "see above for what it needs, or leave out --driver",
        ),
        (None, None) => Finding::worse(
            "mounting",
            State::Missing,
            "no driver works here",
            "make one of the three above work; the last needs the least",
        ),
    }
}

fn file_system(what: &'static str, name: &str, options: &str) -> Finding {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().next_back() == Some(name)) {
        return Finding::ok(what, "known to the kernel");
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules = format!("/lib/modules/{release}/modules.dep");
    let loadable = std::fs::read_to_string(modules)
        .is_ok_and(|list| list.lines().any(|line| line.contains(&format!("/{name}.ko"))));
    if loadable {
        return Finding::ok(what, "a module, loaded at the first mount");
    }
    Finding::worse(what, State::Missing, "not in this kernel", format!("use a kernel with {options}"))
}

/// The store's folder, or the nearest of its parents that is there.
fn existing(root: &Path) -> &Path {
    root.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"))
}

// File system magics of linux/magic.h.
fn store_file_system(root: &Path) -> Finding {
    const WHAT: &str = "store";
    let named = |name: &str| format!("{} on {name}", root.display());
    let nearest = existing(root);
    if let Err(error) = rustix::fs::accessat(
        CWD,
        nearest,
        Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    ) {
        return Finding::worse(
            WHAT,
            State::Missing,
            format!("{}: {} can't be read and written: {error}", root.display(), nearest.display()),
            "be its owner, or choose another store with --root",
        );
    }
    let magic = match rustix::fs::statfs(nearest) {
        // f_type is a signed word on some machines, and btrfs' magic has the sign bit.
        Ok(stat) => u32::try_from(i128::from(stat.f_type) & 0xffff_ffff).unwrap_or(0),
        Err(error) => {
            return Finding::worse(
                WHAT,
                State::Missing,
                format!("{}: {error}", root.display()),
                "choose one with --root",
            );
        }
    };
    let other = match magic {
        0xef53 => return Finding::ok(WHAT, named("ext4")),
        0x5846_5342 => return Finding::ok(WHAT, named("xfs")),
        0x9123_683e => return Finding::ok(WHAT, named("btrfs")),
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x6969 => "NFS",
        _ => "a file system not known to work",
    };
    let change = "the fastest driver wants ext4, xfs or btrfs: --root DIR or HOIST_ROOT";
    Finding::worse(WHAT, State::Warning, named(other), change)
}

fn space(root: &Path) -> Finding {
    const WHAT: &str = "disk space";
    const LITTLE: u64 = 2 << 30;
    match rustix::fs::statvfs(existing(root)) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let found = format!("{} free", crate::human::bytes(free));
            if free >= LITTLE {
                return Finding::ok(WHAT, found);
            }
            Finding::worse(
                WHAT,
                State::Warning,
                found,
                "free some with `hoist prune`, or choose a larger disk with --root",
            )
        }
        Err(error) => {
            Finding::worse(WHAT, State::Warning, error.to_string(), "choose another store with --root")
        }
    }
}

fn runtime() -> Finding {
    match crate::runtime::Runtime::find(None) {
        Ok(runtime) => {
            let found = runtime.program().display().to_string();
            let instead = runtime.instead().map_or(String::new(), |why| format!(" ({why})"));
            Finding::ok("OCI runtime", found + &instead)
        }
        Err(_) => Finding::worse(
            "OCI runtime",
            State::Warning,
            "none on PATH: `hoist run` won't work",
            "apt install crun (or runc, or youki)",
        ),
    }
}

fn certificates() -> Finding {
    let dirs = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];
    let there: Vec<&str> = dirs.into_iter().filter(|dir| Path::new(dir).is_dir()).collect();
    if there.is_empty() {
        return Finding::ok("registry settings", "no certs.d: the system's certificates, no mirrors");
    }
    Finding::ok("registry settings", there.join(", "))
}

fn credentials() -> Finding {
    let dir = std::env::var_os("DOCKER_CONFIG")
        .map(Into::into)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")));
    let file = dir.map(|dir: std::path::PathBuf| dir.join("config.json"));
    match file.filter(|file| file.is_file()) {
        None => Finding::ok("credentials", "none: registries are read anonymously"),
        Some(file) => {
            match std::fs::read(&file).map(|text| serde_json::from_slice::<serde_json::Value>(&text)) {
                Ok(Ok(_)) => Finding::ok("credentials", file.display().to_string()),
                _ => Finding::worse(
                    "credentials",
                    State::Warning,
                    format!("{} can't be read as JSON", file.display()),
                    "mend it, or log in again with docker login",
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_file_system_is_missing() {
        assert_eq!(file_system("x", "nosuchfs", "y").state, State::Missing);
        assert_eq!(file_system("proc", "proc", "y").state, State::Ok);
    }

    #[test]
    fn the_nearest_folder_is_asked() {
        assert_eq!(existing(Path::new("/proc/none/such")), Path::new("/proc"));
    }
}

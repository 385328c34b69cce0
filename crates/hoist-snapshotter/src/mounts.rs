//! What a snapshot is mounted from: overlayfs over the folders of the snapshots it stands on.

use std::path::Path;

use crate::api::Mount;
use crate::ids::Mapping;
use crate::record::Kind;

/// Options of every overlay that this kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    writable: Vec<String>,
    view: Vec<String>,
}

impl Options {
    /// As the kernel's module says.
    pub fn of_kernel() -> Options {
        // A module that is not loaded says nothing yet.
        let _ = hoist_sys::mount::knows("overlay");
        Options::known(|option| Path::new("/sys/module/overlay/parameters").join(option).exists())
    }

    /// - `index` would tie an upper folder to the very lower ones it was first mounted with, and refuse to
    ///   mount it over the same layers elsewhere.
    /// - `redirect_dir`: without it a folder of a lower layer can't be renamed (EXDEV), as programs expect
    ///   to be able to. A layer made so has to be followed by those that stand on it.
    /// - `metacopy`: attributes of one file over the content of another, by names that a layer chooses.
    fn known(is_known: impl Fn(&str) -> bool) -> Options {
        let with = |redirect: &str| {
            let all = [("index", "off"), ("redirect_dir", redirect), ("metacopy", "off")];
            let known = all.into_iter().filter(|(option, _)| is_known(option));
            known.map(|(option, value)| format!("{option}={value}")).collect()
        };
        Options { writable: with("on"), view: with("follow") }
    }
}

/// Where a snapshot's own folders are.
pub struct Own<'a> {
    /// What it changes.
    pub upper: &'a Path,
    /// See [`Folders`](crate::folders::Folders).
    pub work: &'a Path,
}

/// The mount of a snapshot: `lower` are the folders it stands on, the nearest first.
pub fn mount(
    options: &Options,
    kind: Kind,
    own: &Own<'_>,
    lower: &[&Path],
    mapping: Option<&Mapping>,
) -> Mount {
    let mut chosen: Vec<String> = mapping.iter().flat_map(|mapping| mapping.options()).collect();
    let bind = |source: &Path, access: &str, mut chosen: Vec<String>| {
        chosen.extend([access.to_owned(), "rbind".to_owned()]);
        Mount {
            r#type: "bind".into(),
            source: source.display().to_string(),
            target: String::new(),
            options: chosen,
        }
    };
    match (kind, lower) {
        (Kind::View, []) => return bind(own.upper, "ro", chosen),
        (_, []) => return bind(own.upper, "rw", chosen),
        (Kind::View, [only]) => return bind(only, "ro", chosen),
        _ => {}
    }
    if kind == Kind::Active {
        chosen.push(format!("workdir={}", own.work.display()));
        chosen.push(format!("upperdir={}", own.upper.display()));
    }
    let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
    chosen.push(format!("lowerdir={}", lower.join(":")));
    chosen.extend_from_slice(if kind == Kind::Active { &options.writable } else { &options.view });
    Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options: chosen }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, lower: &[&str]) -> (String, String, String) {
        let own = Own { upper: Path::new("/9/fs"), work: Path::new("/9/work") };
        let lower: Vec<&Path> = lower.iter().map(Path::new).collect();
        let mount = mount(&Options::known(|option| option != "metacopy"), kind, &own, &lower, None);
        (mount.r#type, mount.source, mount.options.join(","))
    }

    #[test]
    fn mounts_by_kind_and_depth() {
        let bind = |source: &str, options: &str| ("bind".into(), source.into(), options.into());
        let overlay = |options: &str| ("overlay".into(), "overlay".into(), options.into());
        assert_eq!(of(Kind::Active, &[]), bind("/9/fs", "rw,rbind"));
        assert_eq!(of(Kind::View, &[]), bind("/9/fs", "ro,rbind"));
        assert_eq!(of(Kind::View, &["/1/fs"]), bind("/1/fs", "ro,rbind"));
        assert_eq!(
            of(Kind::Active, &["/2/fs", "/1/fs"]),
            overlay("workdir=/9/work,upperdir=/9/fs,lowerdir=/2/fs:/1/fs,index=off,redirect_dir=on")
        );
        assert_eq!(
            of(Kind::View, &["/2/fs", "/1/fs"]),
            overlay("lowerdir=/2/fs:/1/fs,index=off,redirect_dir=follow")
        );
    }
}

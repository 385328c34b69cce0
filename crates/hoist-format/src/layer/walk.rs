//! Paths within a tree as a chroot sees them: symbolic links in the way are followed, absolute
//! targets and `..` never leave the root (containerd's fs.RootPath).

use crate::tree::{InodeId, Kind, Name, ROOT, Tree};

/// Linux's MAXSYMLINKS.
const MAX_LINKS: u32 = 40;
/// As many folders as a PATH_MAX path can name.
const MAX_DEPTH: usize = 2048;

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// More than 40 links in one path, or too much work over the whole tree.
    #[error("too many levels of symbolic links")]
    Links,
    /// More than 2048 folders deep.
    #[error("more than 2048 folders deep")]
    Depth,
    /// Something in mid-path is no folder.
    #[error("a parent of it is not a folder")]
    NotDir,
}

/// A path with no link left in it: names from the root on, with the inode where there is one.
pub(crate) type Resolved<'a> = Vec<(Option<InodeId>, &'a [u8])>;

/// The components of `path` as `filepath.Clean("/" + path)` leaves them: no link is looked at.
pub(crate) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    for part in components(path) {
        match part {
            b".." => drop(out.pop()),
            _ => out.push(part),
        }
    }
    out
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".")
}

/// Resolves `path`, every component of it. `budget` bounds the steps that links cause over a whole
/// tree, lest a small hostile layer cost hours.
pub(crate) fn resolve<'a>(
    tree: &'a Tree,
    path: &[&'a [u8]],
    budget: &mut u64,
) -> Result<Resolved<'a>, WalkError> {
    let mut todo: Vec<&[u8]> = path.iter().rev().copied().collect();
    let mut at: Resolved<'a> = Vec::with_capacity(todo.len());
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if links > 0 {
            *budget = budget.checked_sub(1).ok_or(WalkError::Links)?;
        }
        if name == b".." {
            at.pop();
            continue;
        }
        // Also where nothing is yet: folders are made there.
        if at.len() == MAX_DEPTH {
            return Err(WalkError::Depth);
        }
        let Some(dir) = at.last().map_or(Some(ROOT), |last| last.0) else {
            at.push((None, name));
            continue;
        };
        let found = match &tree.get(dir).kind {
            Kind::Dir(entries) => entries.get(name).copied(),
            // Hidden here, so there is nothing below it.
            Kind::Whiteout => None,
            _ => return Err(WalkError::NotDir),
        };
        if let Some(Kind::Symlink(target)) = found.map(|id| &tree.get(id).kind) {
            links += 1;
            if links > MAX_LINKS {
                return Err(WalkError::Links);
            }
            if target.starts_with(b"/") {
                at.clear();
            }
            todo.extend(components(target).rev());
            continue;
        }
        at.push((found, name));
    }
    Ok(at)
}

/// A resolved path for people and for links that a merge resolves.
pub(crate) fn join<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Name {
    parts.into_iter().collect::<Vec<_>>().join(&b'/').into()
}

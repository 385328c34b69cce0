//! Who the program runs as: `USER[:GROUP]` looked up in the image's passwd and group files.
//!
//! The rules are Docker's (moby/sys/user, GetExecUser): a name must be found; a number need not be, but
//! if it is, its entry gives the group and the home; an explicit group drops the supplementary ones.

use crate::failure::{user, user_hint};

/// The largest id, as Docker and runc have it (ids are signed there).
const MAX_ID: u32 = i32::MAX as u32;

/// The user a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids, in the group file's order.
    pub groups: Vec<u32>,
    /// Home folder, `/` if none is known.
    pub home: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: Vec<&'a str>,
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

// passwd(5): name:password:uid:gid:gecos:home:shell
fn passwd(file: &[u8]) -> impl Iterator<Item = Passwd<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd { name, uid, gid, home })
    })
}

// group(5): name:password:gid:member,member
fn group(file: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields.next().unwrap_or("").split(',').filter(|name| !name.is_empty()).collect();
        Some(Group { name, gid, members })
    })
}

fn number(text: &str) -> anyhow::Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(user(format!("the id {text} is larger than {MAX_ID}"))),
    }
}

/// Resolves `spec` (empty: root) with the contents of the image's passwd and group files.
///
/// # Errors
/// A name that is not in its file, or an id out of range; both are the user's to mend.
pub fn resolve(spec: &str, passwd_file: &[u8], group_file: &[u8]) -> anyhow::Result<User> {
    let (who, which) = spec.split_once(':').unwrap_or((spec, ""));
    let who = if who.is_empty() { "0" } else { who };
    let who_id = number(who)?;
    let entry = passwd(passwd_file).find(|entry| Some(entry.uid) == who_id || entry.name == who);
    let (uid, mut gid, name, home) = match (entry, who_id) {
        (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name), entry.home),
        (None, Some(uid)) => (uid, 0, None, ""),
        (None, None) => {
            return Err(user_hint(
                format!("the image has no user {who:?} in its /etc/passwd"),
                "give a numeric id with -u UID[:GID]",
            ));
        }
    };
    if uid > MAX_ID || gid > MAX_ID {
        return Err(user(format!("user {who:?} of the image has an id larger than {MAX_ID}")));
    }
    let mut groups = Vec::new();
    if which.is_empty() {
        let member = |group: &Group<'_>| name.is_some_and(|name| group.members.contains(&name));
        groups = group(group_file).filter(member).map(|group| group.gid).filter(|id| *id <= MAX_ID).collect();
        let mut seen = std::collections::HashSet::new();
        groups.retain(|gid| seen.insert(*gid));
    } else {
        let which_id = number(which)?;
        let entry = group(group_file).find(|entry| Some(entry.gid) == which_id || entry.name == which);
        gid = match (entry, which_id) {
            (Some(entry), _) if entry.gid <= MAX_ID => entry.gid,
            (Some(_), _) => return Err(user(format!("group {which:?} has an id larger than {MAX_ID}"))),
            (None, Some(gid)) => gid,
            (None, None) => {
                return Err(user_hint(
                    format!("the image has no group {which:?} in its /etc/group"),
                    "give a numeric id with -u UID:GID",
                ));
            }
        };
    }
    let home = if home.is_empty() { "/".to_owned() } else { home.to_owned() };
    Ok(User { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# c\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:app,app\nagain:x:44:app";

    fn of(spec: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve(spec, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn as_docker_resolves_them() {
        assert_eq!(of(""), (0, 0, vec![10], "/root".into()));
        assert_eq!(of("app"), (1000, 1001, vec![10, 44], "/home/app".into()));
        assert_eq!(of("1000"), (1000, 1001, vec![10, 44], "/home/app".into()));
        assert_eq!(of("app:wheel"), (1000, 10, vec![], "/home/app".into()));
        assert_eq!(of("app:7"), (1000, 7, vec![], "/home/app".into()));
        assert_eq!(of("4242"), (4242, 0, vec![], "/".into()));
        assert_eq!(of("4242:4243"), (4242, 4243, vec![], "/".into()));
        assert_eq!(of(":video"), (0, 44, vec![], "/root".into()));
    }

    #[test]
    fn refuses_what_is_not_there() {
        for spec in ["nobody", "app:nogroup", "4294967295", "0:99999999999", "-1", "+5"] {
            assert!(resolve(spec, PASSWD, GROUP).is_err(), "{spec}");
        }
        assert_eq!(resolve("", b"", b"").unwrap().home, "/");
        assert!(resolve("", b"\xff\xff:::\n:::", b"\n\n:").is_ok());
    }
}

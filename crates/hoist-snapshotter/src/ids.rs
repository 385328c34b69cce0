//! Users of a container that are others outside: labels, as `0:100000:65536` (inside, outside, how many).

use crate::error::Error;
use crate::record::Labels;

/// containerd's core/snapshots/snapshotter.go.
const USERS: &str = "containerd.io/snapshot/uidmapping";
const GROUPS: &str = "containerd.io/snapshot/gidmapping";

/// How owners are mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    users: String,
    groups: String,
    /// User and group that the container's root is outside.
    pub root: (u32, u32),
}

impl Mapping {
    /// What labels ask for.
    ///
    /// # Errors
    /// They are wrong, or only half there.
    pub fn of(labels: &Labels) -> Result<Option<Mapping>, Error> {
        let (users, groups) = match (labels.get(USERS), labels.get(GROUPS)) {
            (None, None) => return Ok(None),
            (Some(users), Some(groups)) => (users.clone(), groups.clone()),
            _ => return Err(Error::Invalid(format!("the labels {USERS} and {GROUPS} go together"))),
        };
        let root = (outside(USERS, &users)?, outside(GROUPS, &groups)?);
        Ok(Some(Mapping { users, groups, root }))
    }

    /// Options of the mount, which containerd makes something of.
    pub fn options(&self) -> [String; 2] {
        [format!("uidmap={}", self.users), format!("gidmap={}", self.groups)]
    }
}

/// Who the container's root is.
fn outside(label: &str, text: &str) -> Result<u32, Error> {
    let wrong = || Error::Invalid(format!("the label {label} is no mapping of root: {text:?}"));
    let mut root = None;
    for part in text.split(',') {
        let numbers: Vec<u32> =
            part.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let [inside, outside, count] = numbers[..] else { return Err(wrong()) };
        if inside == 0 && count > 0 {
            root = Some(outside);
        }
    }
    root.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: &str, groups: &str) -> Result<Option<Mapping>, Error> {
        Mapping::of(&[(USERS.to_owned(), users.to_owned()), (GROUPS.to_owned(), groups.to_owned())].into())
    }

    #[test]
    fn mappings() {
        assert_eq!(Mapping::of(&Labels::new()).unwrap(), None);
        let mapping = of("1:9:1,0:1000:65536", "0:2000:10").unwrap().unwrap();
        assert_eq!(mapping.root, (1000, 2000));
        assert_eq!(mapping.options(), ["uidmap=1:9:1,0:1000:65536", "gidmap=0:2000:10"]);
        for wrong in ["", "0:1", "0:1:2:3", "a:1:2", "1:1000:1", "0:1000:0", "0:4294967296:1", "-0:1:1"] {
            of(wrong, "0:0:1").unwrap_err();
        }
        Mapping::of(&[(USERS.to_owned(), "0:0:1".to_owned())].into()).unwrap_err();
    }
}

//! How many files this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as it goes without privilege. The usual 1024 is for programs that call select(2);
/// whoever serves many mounts has several descriptors for each.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // It cannot fail, but for a policy that forbids it: then the old limit holds.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

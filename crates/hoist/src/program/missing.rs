//! A program that can't have run, told plainly, with the codes that shells and container engines have for it.

use std::io;

use super::{Found, find, trouble};
use crate::failure::{EXIT_NO_PROGRAM, EXIT_NOT_RUNNABLE, user_code};
use crate::rootdir::RootDir;

/// It is not there, or is none. `whose` it would be: the image's or the container's.
pub fn not_found(found: &Found, whose: &str, program: &str, path: &str) -> anyhow::Error {
    match found {
        Found::NotRunnable(at) => user_code(
            format!(
                "the {whose}'s {} can't be run: it has no execute permission, or is a folder",
                at.display()
            ),
            "name a program; a script can be given to its interpreter: sh SCRIPT",
            EXIT_NOT_RUNNABLE,
        ),
        _ if program.contains('/') => user_code(
            format!("the {whose} has no program {program}"),
            match whose {
                "image" => "list the image's files with `hoist mount`",
                _ => "name one that it has",
            },
            EXIT_NO_PROGRAM,
        ),
        _ => user_code(
            format!("the {whose} has no program {program:?} in its PATH"),
            format!("its PATH is {path}"),
            EXIT_NO_PROGRAM,
        ),
    }
}

/// Why a program below `root` can't have run: where that is its own fault, or it can't be read.
///
/// # Errors
/// Those of looking for it.
pub fn why_not(
    root: &RootDir,
    whose: &str,
    program: &str,
    path: &str,
    cwd: &str,
) -> anyhow::Result<Option<anyhow::Error>> {
    let found = match find(root, program, path, cwd)? {
        Found::Program(found) => found,
        missing => return Ok(Some(not_found(&missing, whose, program, path))),
    };
    match trouble(root, &found) {
        Ok(trouble) => Ok(trouble.map(|(why, code)| {
            user_code(why, "is the image complete, and for this machine (--platform)?", code)
        })),
        // What a running program was started from is here.
        Err(e) if is_of_reading(&e) => {
            let what = format!("the {whose}'s {} or its interpreter can't be read", found.display());
            Ok(Some(anyhow::Error::new(e).context(what)))
        }
        Err(e) => Err(e.into()),
    }
}

/// Is it what a read says that could not be served?
pub fn is_of_reading(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOSPC | libc::EDQUOT))
}

//! A program that can't have run, told plainly, with the codes that shells and container engines have for it.

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

/// Why a program below `root` can't have run, where that is its own fault.
///
/// # Errors
/// Those of reading.
pub fn why_not(
    root: &RootDir,
    whose: &str,
    program: &str,
    path: &str,
    cwd: &str,
) -> anyhow::Result<Option<anyhow::Error>> {
    Ok(match find(root, program, path, cwd)? {
        Found::Program(found) => trouble(root, &found)?.map(|(why, code)| {
            user_code(why, "is the image complete, and for this machine (--platform)?", code)
        }),
        missing => Some(not_found(&missing, whose, program, path)),
    })
}

//! Options of `docker run` and `podman run` that hoist has not: what to do instead.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Names of one option, and what is said of it.
const KNOWN: [(&[&str], &str); 8] = [
    (
        &["-p", "--publish", "-P", "--publish-all", "--expose"],
        "a container has the host's network: what its program listens on is reached there; leave it out",
    ),
    (&["--network"], "--net host or --net none"),
    (
        &["--init"],
        "leave it out; for a first process that reaps others, name one of the image's own: --entrypoint tini",
    ),
    (&["--mount"], "-v SOURCE:TARGET[:ro] binds a file or folder"),
    (&["--env-file"], "-e NAME=VALUE, once for each"),
    (
        &["--privileged", "--cap-add", "--cap-drop", "--device", "--security-opt"],
        "--seccomp none allows every system call; a container has Docker's default capabilities, no more",
    ),
    (
        &["-m", "--memory", "--cpus", "-c", "--cpu-shares", "--pids-limit"],
        "limits are those of whoever starts it: systemd-run --scope -p MemoryMax=1G hoist run ...",
    ),
    (&["--restart"], "a service of systemd's restarts what ends: ExecStart=hoist run ..., Restart=always"),
];

/// What to do about a command line that clap has refused, where there is more to say than clap does.
pub fn hint(error: &Error) -> Option<&'static str> {
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else { return None };
    let known = KNOWN.iter().find(|(names, _)| names.contains(&given.as_str()));
    known.filter(|_| error.kind() == ErrorKind::UnknownArgument).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_others_have_are_explained() {
        let hint_of = |args: &[&str]| {
            let line = ["hoist"].iter().chain(args);
            crate::cli::command().try_get_matches_from(line).map_err(|error| hint(&error)).unwrap_err()
        };
        for option in ["-p", "--publish=80:80", "--init", "--privileged", "--network=none"] {
            assert!(hint_of(&["run", option, "img"]).is_some(), "{option}");
        }
        assert_eq!(hint_of(&["run", "--no-such-option", "img"]), None);
        // What stands for itself and for nothing of Docker's is known here.
        for names in KNOWN.iter().flat_map(|(names, _)| *names) {
            assert!(hint_of(&["run", names, "img"]).is_some(), "{names} is an option by now");
        }
    }
}

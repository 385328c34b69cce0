//! What other container engines have and hoist has not, commands and options: what to do instead.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Names of one option, and what is said of it.
const OPTIONS: [(&[&str], &str); 8] = [
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

/// The same of commands.
const COMMANDS: [(&[&str], &str); 15] = [
    (&["image"], "hoist images lists them; hoist inspect, pull, rm and prune are commands of their own"),
    (&["container"], "hoist ps lists them; hoist run, exec, logs, stop and rm are commands of their own"),
    (&["kill"], "hoist stop --time 0 NAME"),
    (
        &["start", "restart", "create", "attach", "pause", "unpause", "wait", "commit", "rename", "update"],
        "a container runs once: hoist run -d IMAGE begins another, hoist logs -f NAME shows what it says until it ends",
    ),
    (
        &["build", "buildx"],
        "hoist makes no images: build with podman, docker or buildah, push, then hoist index --push IMAGE makes it lazy",
    ),
    (
        &["push", "tag", "manifest"],
        "hoist leaves images as they are: push with what built them, then hoist index --push IMAGE makes them lazy",
    ),
    (
        &["login", "logout"],
        "hoist reads what `docker login` and `podman login` write, and their credential helpers",
    ),
    (&["load", "import"], "an OCI layout is read where it lies, a folder or a tar: hoist run oci:PATH"),
    (&["save", "export", "cp"], "hoist mount IMAGE DIR shows all files, as cp and tar read them"),
    (&["diff", "port", "stats", "events"], "hoist top shows what the mounts do, hoist ps the containers"),
    (
        &["info", "system"],
        "hoist doctor tells of the machine, hoist status of the store, hoist prune frees room",
    ),
    (&["version"], "hoist --version"),
    (&["search"], "hoist has no catalogue; hoist inspect IMAGE tells of one by its name"),
    (&["volume"], "-v SOURCE:TARGET[:ro] of hoist run binds a file or folder"),
    (
        &["network", "compose", "pod"],
        "a container has the host's network: --net host or --net none of hoist run",
    ),
];

/// What to do about a command line that clap has refused, where there is more to say than clap does, whose guess is
/// taken back.
pub fn hint(error: &mut Error) -> Option<&'static str> {
    let (context, known, guess) = match error.kind() {
        ErrorKind::UnknownArgument => (ContextKind::InvalidArg, &OPTIONS[..], ContextKind::SuggestedArg),
        ErrorKind::InvalidSubcommand => {
            (ContextKind::InvalidSubcommand, &COMMANDS[..], ContextKind::SuggestedSubcommand)
        }
        _ => return None,
    };
    let Some(ContextValue::String(given)) = error.get(context) else { return None };
    let (_, hint) = known.iter().find(|(names, _)| names.contains(&given.as_str()))?;
    error.remove(guess);
    // That it could be the program's own.
    error.remove(ContextKind::Suggested);
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_others_have_are_explained() {
        let hint_of = |args: &[&str]| {
            let line = ["hoist"].iter().chain(args);
            crate::cli::command()
                .try_get_matches_from(line)
                .map_err(|mut error| hint(&mut error))
                .unwrap_err()
        };
        for option in ["-p", "--publish=80:80", "--init", "--privileged", "--network=none"] {
            assert!(hint_of(&["run", option, "img"]).is_some(), "{option}");
            let refused = crate::cli::command().try_get_matches_from(["hoist", "run", option, "img"]);
            let mut error = refused.unwrap_err();
            hint(&mut error);
            assert!(!error.to_string().contains("tip:"), "{error}");
        }
        assert_eq!(hint_of(&["run", "--no-such-option", "img"]), None);
        // What stands for itself and for nothing of Docker's is known here.
        for names in OPTIONS.iter().flat_map(|(names, _)| *names) {
            assert!(hint_of(&["run", names, "img"]).is_some(), "{names} is an option by now");
        }
    }

    #[test]
    fn commands_that_others_have_are_explained() {
        for name in COMMANDS.iter().flat_map(|(names, _)| *names) {
            let refused = crate::cli::command().try_get_matches_from(["hoist", name, "x"]);
            let mut error = refused.expect_err("a command by now");
            assert!(hint(&mut error).is_some(), "{name}");
            let said = error.to_string();
            assert!(said.contains("unrecognized subcommand") && !said.contains("similar"), "{said}");
        }
        let mut error = crate::cli::command().try_get_matches_from(["hoist", "imagse"]).unwrap_err();
        assert_eq!(hint(&mut error), None);
        assert!(error.to_string().contains("'images'"), "{error}");
    }
}

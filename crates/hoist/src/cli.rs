//! The command line: every command, option and environment variable, said once.

mod containers;
mod global;
mod images;
mod node;

use clap::builder::StyledStr;
use clap::{CommandFactory, Parser, Subcommand};

pub use containers::{Exec, Logs, Net, Ps, Rm, Run, Seccomp, Stop};
pub use global::{BackgroundFetch, Driver, Given, Global, ROOT_STORE, TrustIndex};
pub use images::{Fsck, Images, Index, Inspect, Mount, Pin, Prune, Pull, StatsFile, Unmount};
pub use node::{Daemon, Doctor, LogFormat, Serve, Status, Top, Why};

/// Start any container image at once: its files are fetched when they are read, verified before they can be
/// read, and served by the kernel at native speed from then on
#[derive(Debug, Parser)]
#[command(name = "hoist", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES, override_usage = "hoist [OPTIONS] <COMMAND>")]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  hoist run --rm -it debian:12 bash          a shell, before the image is fetched
  hoist index --push registry/app:1          publish the index once: every node starts app lazily
  hoist mount registry/app:1 /mnt/app        the image as a read-only folder
  hoist run --rm oci:./layout python3 -V     from an OCI layout, a folder or a tar
  hoist doctor                               what this machine can do, and what to change

IMAGE is [REGISTRY/]NAME[:TAG][@DIGEST] (Docker Hub short names too), or oci:PATH[:TAG] for an OCI layout.
Exit code: 1 if you can mend it, 2 if the fault is hoist's or the machine's; `run` passes on the program's.";

/// The command line, with the options that every command takes told once.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    // From here on the commands have the global options.
    command.build();
    let globals: Vec<String> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect();
    let hint = format!("Global options (`hoist help` tells of them): {}", globals.join(" "));
    command.mut_subcommands(|mut sub| {
        // Of a wrong command line clap would show what was given of the options as if all of it were needed.
        let usage = sub.render_usage().to_string();
        let sub = sub.override_usage(usage.trim_start_matches("Usage: ").to_owned());
        let with_hint = |text: Option<&StyledStr>| match text {
            Some(text) => format!("{text}\n\n{hint}"),
            None => hint.clone(),
        };
        let short = with_hint(sub.get_after_help());
        let long = sub.get_after_long_help().map(|text| with_hint(Some(text)));
        let sub = sub.mut_args(|arg| match arg.is_global_set() {
            true => arg.hide(true),
            false => arg,
        });
        let sub = sub.after_help(short);
        match long {
            Some(long) => sub.after_long_help(long),
            None => sub,
        }
    })
}

impl Cli {
    /// What was parsed.
    ///
    /// # Errors
    /// clap's.
    pub fn of(found: &clap::ArgMatches) -> Result<Cli, clap::Error> {
        let mut cli = <Cli as clap::FromArgMatches>::from_arg_matches(found)?;
        let mut level = Some(found);
        while let Some(matches) = level {
            let given = |id: &&clap::Id| {
                let source = matches.value_source(id.as_str());
                source.is_some_and(|source| source != clap::parser::ValueSource::DefaultValue)
            };
            cli.global.given.extend(matches.ids().filter(given).map(ToString::to_string));
            level = matches.subcommand().map(|(_, below)| below);
        }
        Ok(cli)
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<Run>),
    Mount(Mount),
    Unmount(Unmount),
    Pull(Pull),
    Index(Index),
    Images(Images),
    Inspect(Inspect),
    Ps(Ps),
    Logs(Logs),
    Exec(Exec),
    Stop(Stop),
    Rm(Rm),
    Prune(Prune),
    Fsck(Fsck),
    Pin(Pin),
    /// Let an image's data go when the store's limit asks for it
    Unpin(Pin),
    Status(Status),
    Top(Top),
    Why(Why),
    Daemon(Daemon),
    Doctor(Doctor),
    /// Go on with the mounts of a process that has died; started by its keeper alone
    #[command(hide = true)]
    Serve(Serve),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn options_after_the_image_belong_to_the_program() {
        let cli = Cli::parse_from(["hoist", "run", "--rm", "-it", "img", "-u", "ls", "-e", "--rm"]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!((run.image(), run.command().join(" ")), ("img", "-u ls -e --rm".to_owned()));
        assert!(Cli::try_parse_from(["hoist", "run", "--no-such-option", "img"]).is_err());
        assert!(run.rm && run.interactive && run.tty && run.env.is_empty());
    }
}

//! `hoist run --detach`: a process in the background runs the container; this one prints its name once its program runs.

use std::ffi::OsString;
use std::process::Command;

use crate::cli::{Global, Net, Run, Seccomp, StatsFile};
use crate::container;
use crate::printer::Printer;

pub(super) fn start(global: &Global, options: &Run) -> anyhow::Result<()> {
    // What is no store is told before anything is started.
    hoist_engine::store::Store::open(&global.root()?)?;
    let name = options.name.clone().map_or_else(container::random_name, Ok)?;
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments(global, options, &name)?);
    crate::background::await_ready(command, &Printer::new())??;
    crate::commands::print(&name)
}

/// The same command line for the process in the background.
fn arguments(global: &Global, options: &Run, name: &str) -> anyhow::Result<Vec<OsString>> {
    // All of them, so that none is forgotten.
    let Run {
        env,
        volume,
        workdir,
        user,
        entrypoint,
        rm,
        read_only,
        name: _,
        detach: _,
        report: _,
        interactive: _,
        tty: _,
        hostname,
        net,
        seccomp,
        runtime,
        stats: StatsFile { path: stats },
        image_and_command,
    } = options;
    let mut arguments = crate::engine_glue::given_arguments(global)?;
    arguments.extend(["run", "--report"].map(OsString::from));
    let mut give = |option: &str, value: &str| arguments.push(format!("--{option}={value}").into());
    give("name", name);
    env.iter().for_each(|env| give("env", env));
    volume.iter().for_each(|volume| give("volume", volume));
    let values = [
        ("workdir", workdir),
        ("user", user),
        ("entrypoint", entrypoint),
        ("hostname", hostname),
        ("runtime", runtime),
    ];
    for (option, value) in values {
        value.iter().for_each(|value| give(option, value));
    }
    give("net", if *net == Net::None { "none" } else { "host" });
    give("seccomp", if *seccomp == Seccomp::None { "none" } else { "default" });
    if let Some(path) = stats {
        arguments.extend(["--stats".into(), std::path::absolute(path)?.into()]);
    }
    let flags = [(rm, "--rm"), (read_only, "--read-only")];
    arguments.extend(flags.iter().filter(|(set, _)| **set).map(|(_, flag)| OsString::from(flag)));
    arguments.push("--".into());
    arguments.extend(image_and_command.iter().map(OsString::from));
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(arguments: &[OsString]) -> (Global, Run) {
        let line = std::iter::once("hoist".into()).chain(arguments.to_owned());
        let cli = Cli::of(&crate::cli::command().get_matches_from(line)).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        (cli.global, *run)
    }

    #[test]
    fn the_process_in_the_background_is_told_all() {
        let line = "--root /s --no-daemon --driver fuse run -d -e A=b --env=C -v /x:/y -v=-z:/q -w /w -u me --entrypoint= \
                    --rm --read-only --hostname h --net none --seccomp none --runtime /r --stats /f img -d --rm x";
        let line: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        let (global, asked) = parse(&line);
        let (mut told_global, mut told) = parse(&arguments(&global, &asked, "web").unwrap());
        assert!(told.report && !told.detach && asked.detach);
        (told.report, told.detach, told.name) = (false, true, None);
        assert_eq!(format!("{told:?}"), format!("{asked:?}"));
        assert!(told_global.given.contains("driver") && !told_global.given.contains("read_timeout"));
        told_global.given.clone_from(&global.given);
        assert_eq!(format!("{told_global:?}"), format!("{global:?}"));
    }
}

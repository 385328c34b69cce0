//! The `hoist` program: command line, printer, OCI bundles, and the processes behind mounts. The work on
//! images is `hoist-engine`'s.

pub mod background;
pub mod bundle;
pub mod cli;
pub mod commands;
pub mod container;
pub mod container_image;
pub mod daemon;
pub mod doctor;
pub mod engine_glue;
pub mod failure;
pub mod human;
pub mod log;
pub mod mount_table;
pub mod others_words;
pub mod printer;
pub mod program;
pub mod rootdir;
pub mod rootless;
pub mod runtime;
pub mod serving;
pub mod signals;
pub mod stats_file;
pub mod unchecked;
pub mod units;
pub mod worker;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use hoist_sys::keeper::Inheritance;

/// Reads the command line, does what it says, and gives the exit code. A successor of a process that served
/// mounts has an inheritance.
pub fn main(inheritance: Option<Inheritance>) -> ExitCode {
    let parsed = cli::command().try_get_matches().and_then(|found| cli::Cli::of(&found));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(mut error) => {
            let hint = others_words::hint(&mut error);
            let _ = error.print();
            if let Some(hint) = hint {
                let _ = writeln!(std::io::stderr(), "\n  hint: {hint}");
            }
            // Asking for help or the version is no failure; a wrong option is the user's.
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked { 0 } else { failure::EXIT_USER });
        }
    };
    // The daemon's configuration may say how it is to log.
    let log = match &cli.command {
        cli::Command::Daemon(_) => Ok(()),
        cli::Command::Run(_) if !cli.global.given.contains("log") => {
            log::start(log::BESIDE_A_PROGRAM, cli::LogFormat::Text).map(drop)
        }
        _ => log::start(&cli.global.log, cli::LogFormat::Text).map(drop),
    };
    let outcome = log.and_then(|()| commands::run(cli, inheritance));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            failure::report(&error);
            ExitCode::from(engine_glue::exit_code(&error))
        }
    }
}

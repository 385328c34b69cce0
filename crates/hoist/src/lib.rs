//! The `hoist` program: command line, printer, OCI bundles, and the processes behind mounts. The work on
//! images is `hoist-engine`'s.

pub mod background;
pub mod bundle;
pub mod cli;
pub mod commands;
pub mod container;
pub mod doctor;
pub mod engine_glue;
pub mod failure;
pub mod human;
pub mod mount_table;
pub mod printer;
pub mod program;
pub mod rootdir;
pub mod rootless;
pub mod runtime;
pub mod serving;
pub mod signals;
pub mod stats_file;
pub mod units;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use hoist_sys::keeper::Inheritance;

/// Reads the command line, does what it says, and gives the exit code. A successor of a process that served
/// mounts has an inheritance.
pub fn main(inheritance: Option<Inheritance>) -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Asking for help or the version is no failure; a wrong option is the user's.
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked { 0 } else { failure::EXIT_USER });
        }
    };
    let outcome = start_log(&cli.global.log).and_then(|()| commands::run(cli, inheritance));
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            failure::report(&error);
            ExitCode::from(engine_glue::exit_code(&error))
        }
    }
}

fn start_log(filter: &str) -> anyhow::Result<()> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| failure::user(format!("--log {filter:?} is no filter: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Where the log cannot be written, as on a full disk, it would panic for want of a log.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

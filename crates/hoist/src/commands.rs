//! The commands, one module each.

mod daemon;
mod exec;
mod fsck;
mod images;
mod index;
mod inspect;
mod layers;
mod logs;
mod mount;
mod no_store;
mod pin;
mod prune;
mod ps;
mod pull;
mod rm;
mod run;
mod serve;
mod status;
mod stop;
pub(crate) mod top;
mod unmount;
mod why;

use hoist_engine::Progress;
use hoist_sys::keeper::Inheritance;
use serde::Serialize;

use crate::cli::{Cli, Command};
use crate::printer::Printer;
use crate::signals::{Signals, interrupted};

pub(crate) use mount::free_from;
pub(crate) use unmount::unmount as unmount_target;

/// Does what the command line says; returns the exit code.
pub fn run(cli: Cli, inheritance: Option<Inheritance>) -> anyhow::Result<u8> {
    let global = &cli.global;
    if no_store::answer(global, &cli.command)? {
        return Ok(0);
    }
    match cli.command {
        Command::Run(options) => return run::run(global, &options),
        Command::Exec(options) => return exec::run(global, &options),
        Command::Doctor(options) => return crate::doctor::run(global, options.json),
        Command::Serve(options) => serve::run(global, &options, inheritance)?,
        Command::Mount(options) => mount::run(global, &options)?,
        Command::Unmount(options) => unmount::run(global, &options)?,
        Command::Pull(options) => pull::run(global, &options)?,
        Command::Index(options) => index::run(global, &options)?,
        Command::Images(options) => images::run(global, &options)?,
        Command::Inspect(options) => inspect::run(global, &options)?,
        Command::Ps(options) => ps::run(global, &options)?,
        Command::Logs(options) => logs::run(global, &options)?,
        Command::Stop(options) => stop::run(global, &options)?,
        Command::Rm(options) => rm::run(global, &options)?,
        Command::Fsck(options) => return fsck::run(global, &options),
        Command::Pin(options) => pin::run(global, &options, true)?,
        Command::Unpin(options) => pin::run(global, &options, false)?,
        Command::Why(options) => why::run(global, &options)?,
        Command::Top(options) => top::run(global, &options)?,
        Command::Status(options) => status::run(global, &options)?,
        Command::Daemon(options) => daemon::run(global, &options)?,
        Command::Prune(options) => prune::run(global, &options)?,
    }
    Ok(0)
}

/// Prints to stdout; a reader who has read enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_if_read(text).map(drop)
}

/// The same; false if nobody reads any more.
fn print_if_read(text: &str) -> anyhow::Result<bool> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Prints JSON for a script, or the same facts for a person.
fn print_value<T: Serialize>(value: &T, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(value);
    }
    print_fitted(&serde_json::to_value(value)?, &[])
}

/// For a person, on the terminal there is; `optional` as with [`crate::human::fitted`].
fn print_fitted(value: &serde_json::Value, optional: &[&str]) -> anyhow::Result<()> {
    print(crate::human::fitted(value, crate::human::terminal_width(), optional).trim_end())
}

pub(crate) fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Does long work that a signal ends, and takes its progress away.
fn interruptible<T>(printer: &Printer, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let outcome = crate::engine_glue::tokio_runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        tokio::select! {
            outcome = work => outcome,
            signal = signals.next_fatal() => Err(interrupted(signal)),
        }
    });
    printer.end();
    outcome
}

/// Does what takes no threads.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

//! The log on standard error.

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::cli::LogFormat;
use crate::failure::user;

/// What decides which events are logged, while the program runs.
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(filter).map_err(|error| user(format!("--log {filter:?} is no filter: {error}")))
}

/// Begins to log.
///
/// # Errors
/// The filter is none: the user's to mend.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<LogFilter> {
    use std::io::IsTerminal;
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    // Where the log cannot be written, as on a full disk, it would panic for want of a log.
    let to_stderr = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => to_stderr.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => to_stderr.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(LogFilter(handle))
}

impl LogFilter {
    /// Logs by another filter from now on.
    ///
    /// # Errors
    /// It is none.
    pub fn change(&self, filter: &str) -> anyhow::Result<()> {
        self.0.reload(parse(filter)?).context("changing the log's filter")
    }
}

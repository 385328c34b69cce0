//! The log on standard error.

use anyhow::Context;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::cli::LogFormat;
use crate::failure::user;

/// Where a program has the terminal and nothing else was asked for: reads that fail or are slow are told of together, at
/// its end.
pub const BESIDE_A_PROGRAM: &str = "warn,hoist_engine::fill=error,hoist_engine::mount=error,\
     hoist_engine::mount::slow=off,hoist_engine::mount::serve=off,hoist_engine::mount::prefetch=off,\
     hoist_engine::mount::background=off";

/// What decides which events are logged, while the program runs.
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

/// What a filter may be.
pub const ALLOWED: &str = "a level (\"error\", \"warn\", \"info\", \"debug\", \"trace\", \"off\") or target=level filters, as \"info,hoist_engine=debug\"";

/// None if it is no filter. A word alone has to be a level: it would be taken for a target of which all is logged.
pub fn parse(filter: &str) -> Option<EnvFilter> {
    // Numbers, and nothing at all, are levels to that library too.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok() && word.starts_with(char::is_alphabetic);
    let mut words = filter.split(',').map(str::trim);
    let are_levels = words.all(|word| word.contains(['=', '[']) || is_level(word));
    EnvFilter::try_new(filter).ok().filter(|_| are_levels)
}

fn asked(filter: &str) -> anyhow::Result<EnvFilter> {
    parse(filter).ok_or_else(|| user(format!("--log can't be {filter:?}; it is {ALLOWED}")))
}

/// Begins to log.
///
/// # Errors
/// The filter is none: the user's to mend.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<LogFilter> {
    use std::io::IsTerminal;
    let (filter, handle) = reload::Layer::new(asked(filter)?);
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
        self.0.reload(asked(filter)?).context("changing the log's filter")
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_word_alone_is_a_level() {
        for good in [
            "off",
            "warn",
            "DEBUG",
            "info,hoist_engine=debug",
            "hoist=trace, error",
            "[span]=info",
            super::BESIDE_A_PROGRAM,
        ] {
            assert!(parse(good).is_some(), "{good}");
        }
        for bad in ["", "loud", "info,loud", "hoist_engine", "hoist=loud", "3", "info,"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}

//! Progress on stderr: a bar with bytes and rate for what takes longer than a moment; when stderr is no terminal, nothing
//! at all, or a line now and then where there is nothing else to be seen of long work.

mod sparse;

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hoist_engine::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::sparse::Sparse;

/// How long work may take unseen.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shows the engine's progress to a person.
#[derive(Debug)]
pub struct Printer {
    terminal: bool,
    current: Mutex<Option<Bar>>,
    sparse: Option<Sparse>,
}

#[derive(Debug)]
struct Bar {
    bar: ProgressBar,
    begun: Instant,
    shown: bool,
}

impl Printer {
    /// A printer to stderr, silent if that is no terminal.
    pub fn new() -> Printer {
        Printer { terminal: std::io::stderr().is_terminal(), current: Mutex::new(None), sparse: None }
    }

    /// The same, but that it tells of long work where there is no terminal.
    pub fn telling() -> Printer {
        let printer = Printer::new();
        Printer { sparse: (!printer.terminal).then(Sparse::default), ..printer }
    }

    fn with_bar(&self, act: impl FnOnce(&mut Option<Bar>)) {
        // Progress is worth showing even after a panic elsewhere.
        act(&mut self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

impl Default for Printer {
    fn default() -> Self {
        Printer::new()
    }
}

fn style(known_length: bool) -> ProgressStyle {
    let template = if known_length {
        "{msg} {wide_bar:.cyan/dim} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
    } else {
        "{msg} {spinner} {bytes} {bytes_per_sec}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Printer {
    fn begin(&self, what: &str, total_bytes: u64) {
        if let Some(sparse) = &self.sparse {
            sparse.begin(what, total_bytes);
        }
        if !self.terminal {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden());
        bar.set_style(style(total_bytes > 0));
        bar.set_message(what.to_owned());
        self.with_bar(|current| {
            if let Some(old) = current.replace(Bar { bar, begun: Instant::now(), shown: false }) {
                old.bar.finish_and_clear();
            }
        });
    }

    fn advance(&self, bytes: u64) {
        if let Some(line) = self.sparse.as_ref().and_then(|sparse| sparse.advance(bytes, Instant::now())) {
            eprintln!("{line}");
        }
        if !self.terminal {
            return;
        }
        self.with_bar(|current| {
            let Some(current) = current else { return };
            current.bar.inc(bytes);
            if !current.shown && current.begun.elapsed() >= PATIENCE {
                current.bar.set_draw_target(ProgressDrawTarget::stderr());
                current.bar.enable_steady_tick(Duration::from_millis(200));
                current.shown = true;
            }
        });
    }

    fn end(&self) {
        if let Some(sparse) = &self.sparse {
            sparse.end();
        }
        self.with_bar(|current| {
            if let Some(old) = current.take() {
                old.bar.finish_and_clear();
            }
        });
    }

    fn note(&self, text: &str) {
        if !self.terminal {
            return;
        }
        self.with_bar(|current| match current {
            Some(bar) if bar.shown => bar.bar.suspend(|| eprintln!("{text}")),
            _ => eprintln!("{text}"),
        });
    }
}

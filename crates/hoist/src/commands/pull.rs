//! `hoist pull`.

mod containerd;

use hoist_engine::Progress;

use crate::cli::{Global, Pull};
use crate::printer::Printer;
use crate::signals::{Signals, interrupted};
use crate::worker::{Worker, tell_what_is_the_daemon_s};

pub(super) fn run(global: &Global, options: &Pull) -> anyhow::Result<()> {
    crate::stats_file::check(options.stats.path.as_deref())?;
    let printer = Printer::new();
    let pulled = crate::engine_glue::tokio_runtime()?.block_on(async {
        let mut signals = Signals::catch()?;
        let work = async {
            match options.containerd {
                true => containerd::pull(global, options, &printer).await,
                false => {
                    let mut worker = Worker::find(global).await?;
                    if let Worker::Daemon(..) = worker {
                        tell_what_is_the_daemon_s(global);
                    }
                    worker.pull(&options.image, &printer).await
                }
            }
        };
        tokio::select! {
            pulled = work => pulled,
            signal = signals.next_fatal() => Err(interrupted(signal)),
        }
    });
    printer.end();
    let pulled = pulled?;
    if let Some(path) = &options.stats.path {
        crate::stats_file::write(path, &pulled["stats"])?;
    }
    if let Some(why) = pulled["unchecked"].as_str() {
        // The log tells it too, but that may be the daemon's.
        eprintln!(
            "note: all of it is here, verified; whether {} still means it could not be asked: {why}",
            options.image
        );
    }
    super::print_value(&pulled, options.json)
}

//! What could not be read of a container's image while it ran: so much is told at its end, and not each time.
//!
//! Of a layer that several processes have mounted each is asked, and one that refuses has the read fail, which the others
//! are then not told of: its own history has the reason.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use hoist_engine::store::Store;
use hoist_engine::store::history::History;

use crate::container::Record;
use crate::program;

/// A process writes down what has happened within a second.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// By who has mounted the image at `target`.
pub(super) fn of(store: &Store, target: &Path) -> Option<String> {
    told(&store.histories().into_iter().find(|history| history.target == *target)?, 0)
}

/// Is it that something could not be read?
pub(super) fn is_cause(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(program::is_of_reading)
}

/// What others say who have the container's image mounted too; else where to look.
pub(super) async fn elsewhere(store: &Store, record: &Record, image: &str) -> String {
    let began = Instant::now();
    loop {
        if let Some(told) = by_another(store, record) {
            return format!("{told}; `hoist why {image}` tells more");
        }
        if began.elapsed() > PATIENCE {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let log = store.root().join("log");
    format!(
        "a read of the image failed, and not by this process: another that has its layers mounted was asked too, and \
         `hoist why {image}` or its log in {} may tell",
        log.display()
    )
}

fn by_another(store: &Store, record: &Record) -> Option<String> {
    let of_image = |history: &History| history.digest.map(|digest| digest.to_string()) == record.digest;
    let histories = store.histories();
    let mut others = histories.iter().filter(|history| history.digest.is_some() && of_image(history));
    others.find_map(|history| {
        let told = told(history, record.started?)?;
        Some(format!("{told} (said by who has it mounted on {})", history.target.display()))
    })
}

/// Of reads that failed since then, in seconds since 1970.
fn told(history: &History, since: u64) -> Option<String> {
    let read = history.slowest.iter().find(|read| read.failed.is_some() && read.at >= since)?;
    let (file, why) = (read.file(), read.failed.as_deref()?);
    Some(match history.failed {
        0 | 1 => format!("a read of the image failed, of {file}: {why}"),
        failed => format!("{failed} reads of the image failed, one of {file}: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use hoist_format::digest::Digest;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_reason_that_another_process_has_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let [digest, another] = [b"a", b"b"].map(|image| Digest::of(image).to_string());
        let record = Record { digest: Some(digest.clone()), started: Some(1000), ..Record::default() };
        let note = |id: &str, digest: &str, at: u64| {
            let read = json!({"at": at, "failed": format!("the line of {id} is cut")});
            let mount = json!({"id": id, "digest": digest, "target": format!("/{id}"), "slowest": [read]});
            std::fs::create_dir_all(store.root().join("history")).unwrap();
            std::fs::write(store.root().join(format!("history/{id}.json")), mount.to_string()).unwrap();
        };
        note("earlier", &digest, 999);
        note("another", &another, 1001);
        assert_eq!(by_another(&store, &record), None);
        note("other", &digest, 1001);
        let told = by_another(&store, &record).unwrap();
        assert!(told.contains("the line of other is cut (said by who has it mounted on /other)"), "{told}");
        assert!(of(&store, Path::new("/other")).unwrap().contains("is cut"));
        assert!(of(&store, Path::new("/none")).is_none());
        let unread = anyhow::Error::from(io::Error::from_raw_os_error(libc::EIO)).context("reading");
        assert!(is_cause(&unread) && !is_cause(&anyhow::anyhow!("reading")));
    }
}

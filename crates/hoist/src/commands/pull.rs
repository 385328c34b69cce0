//! `hoist pull`.

mod containerd;

use std::time::Instant;

use hoist_format::digest::Digest;
use serde_json::Value;

use crate::cli::{Global, Pull};
use crate::printer::Printer;
use crate::worker::{Worker, tell_what_is_the_daemon_s};

pub(super) fn run(global: &Global, options: &Pull) -> anyhow::Result<()> {
    crate::stats_file::check(options.stats.path.as_deref())?;
    let printer = if options.json { Printer::new() } else { Printer::telling() };
    let began = Instant::now();
    let mut pulled = super::interruptible(&printer, async {
        if options.containerd {
            return containerd::pull(global, options, &printer).await;
        }
        let mut worker = Worker::find(global).await?;
        if let Worker::Daemon(..) = worker {
            tell_what_is_the_daemon_s(global);
        }
        worker.pull(&options.image, &printer).await
    })?;
    // Asking what the name means is part of it.
    if let Some(total) = pulled["stats"].get_mut("seconds_total") {
        *total = began.elapsed().as_secs_f64().into();
    }
    if let Some(path) = &options.stats.path {
        crate::stats_file::write(path, &pulled["stats"])?;
    }
    if let Some(why) = pulled["unchecked"].as_str() {
        eprintln!("{}", crate::unchecked::whole(&options.image, why));
    }
    match options.json {
        true => super::print_json(&pulled),
        false => super::print(&sentence(&pulled, began.elapsed().as_secs_f64())),
    }
}

/// What came of a pull, for a person.
fn sentence(pulled: &Value, seconds: f64) -> String {
    let text = |name: &str| pulled[name].as_str().unwrap_or_default();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let digest =
        text("digest").parse::<Digest>().map_or(String::new(), |digest| digest.hex()[..12].to_owned());
    let one = pulled["one_file_system"] == Value::Bool(true);
    let all = match one {
        true => "one file system".to_owned(),
        false => counted(number(&pulled["layers"]), "layer"),
    };
    let what = match (&pulled["namespace"], number(&pulled["fetched_layers"])) {
        (Value::String(namespace), _) => {
            let how = if pulled["lazy"] == Value::Bool(true) { "lazily" } else { "all of them here" };
            format!("known to containerd in namespace {namespace}, {all}, {how}")
        }
        (_, 0) => format!("all of it was here already, {all}"),
        _ if one => format!("all of it fetched, {all}"),
        (_, fetched) => format!("{fetched} of {all} fetched"),
    };
    let stats = &pulled["stats"];
    let (bytes, requests) = (crate::human::bytes(number(&stats["wire_bytes"])), number(&stats["requests"]));
    let image = crate::human::printable(text("image"));
    format!("{image} ({digest}): {what}; {bytes} in {}, {seconds:.1} s", counted(requests, "request"))
}

fn counted(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_sentence_tells_it_all() {
        let digest = Digest::of(b"");
        let stats = json!({"requests": 20, "wire_bytes": 61 << 20});
        let mut pulled =
            json!({"image": "r/app:1", "digest": digest, "fetched_layers": 2, "layers": 3, "stats": stats});
        assert_eq!(
            sentence(&pulled, 0.75),
            "r/app:1 (e3b0c44298fc): 2 of 3 layers fetched; 61.00 MiB in 20 requests, 0.8 s"
        );
        pulled["fetched_layers"] = 0.into();
        pulled["stats"] = json!({"requests": 1, "wire_bytes": 0});
        assert_eq!(
            sentence(&pulled, 0.04),
            "r/app:1 (e3b0c44298fc): all of it was here already, 3 layers; 0 B in 1 request, 0.0 s"
        );
        pulled["one_file_system"] = true.into();
        assert!(sentence(&pulled, 0.0).contains(": all of it was here already, one file system; "));
        pulled["fetched_layers"] = 3.into();
        assert!(sentence(&pulled, 0.0).contains(": all of it fetched, one file system; "));
        pulled["one_file_system"] = false.into();
        pulled["namespace"] = "k8s.io".into();
        pulled["lazy"] = true.into();
        assert!(
            sentence(&pulled, 0.0).contains(": known to containerd in namespace k8s.io, 3 layers, lazily; ")
        );
    }
}

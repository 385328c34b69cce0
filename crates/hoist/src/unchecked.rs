//! What is said of an image whose name could not be asked for: it starts as it is here, and whoever started it knows.

use hoist_engine::{Engine, Image};
use serde_json::Value;

use crate::background::Reporter;

/// Of an image that is here, whole.
pub fn whole(image: &str, why: &str) -> String {
    format!("note: all of it is here, verified; whether {image} still means it could not be asked: {why}")
}

/// The same of one that may be here in part alone.
pub fn of(image: &str, is_whole: bool, why: &str) -> String {
    match is_whole {
        true => whole(image, why),
        false => format!(
            "note: whether {image} still means what is here of it could not be asked, and what is missing can't be \
             read until that changes: {why}"
        ),
    }
}

/// None where the registry was asked, or need not be.
pub fn note(engine: &Engine, image: &Image) -> Option<String> {
    let why = image.unchecked.as_deref()?;
    Some(of(&image.name, engine.is_all_here(&image.digest), why))
}

/// Tells it, through the process that waits for this one where there is one.
pub fn tell(note: Option<&str>, reporter: Option<&Reporter>) {
    match (note, reporter) {
        (Some(note), Some(reporter)) => reporter.say(note),
        (Some(note), None) => eprintln!("{note}"),
        (None, _) => {}
    }
}

/// What the daemon's answer has of it.
pub fn of_answer(answer: &Value) -> Option<&str> {
    answer["note"].as_str()
}

//! An image's layers for a person: a table of them, and below it what else is to be said of them.

use serde_json::{Value, json};

use crate::human;

/// Of the layers that an inspection has. Their formats tell more than their media types.
pub(super) fn text(layers: &Value) -> String {
    let layers = layers.as_array().map(Vec::as_slice).unwrap_or_default();
    let notes: Vec<Vec<String>> =
        layers.iter().map(|layer| layer["note"].as_str().map(str::to_owned).into_iter().collect()).collect();
    let rows = layers.iter().zip(1..).map(|(layer, number)| {
        let mut row = json!({ "layer": number });
        let shown = layer.as_object().into_iter().flatten();
        for (name, value) in shown.filter(|(name, _)| *name != "note" && *name != "media_type") {
            row[name] = value.clone();
        }
        row
    });
    let table = human::fitted(&Value::Array(rows.collect()), human::terminal_width(), &[]);
    match human::said_once("layer", &notes) {
        notes if notes.is_empty() => table,
        notes => format!("{table}\n{notes}"),
    }
}

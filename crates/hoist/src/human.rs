//! What the engine found out, for a person: the same facts as `--json` has, as lines and tables.

use hoist_format::digest::Digest;
use serde_json::Value;

/// Lines of `name: value`; a list of objects becomes a table of its own.
pub fn text(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut lines = String::new();
            let mut tables = String::new();
            let width = fields.keys().map(String::len).max().unwrap_or(0) + 1;
            for (name, value) in fields {
                if is_table(value) {
                    tables.push_str(&format!("\n{}:\n{}", title(name), text(value)));
                } else {
                    lines.push_str(&format!(
                        "{:<width$} {}\n",
                        format!("{}:", title(name)),
                        cell(name, value)
                    ));
                }
            }
            lines + &tables
        }
        Value::Array(rows) if is_table(value) => table(rows),
        Value::Array(items) if items.is_empty() => "none\n".to_owned(),
        other => format!("{}\n", cell("", other)),
    }
}

fn is_table(value: &Value) -> bool {
    value.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(Value::is_object))
}

fn table(rows: &[Value]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut lines = vec![names.iter().map(|name| title(name).to_uppercase()).collect::<Vec<_>>()];
    let cells = |row: &Value| names.iter().map(|name| shortened(cell(name, &row[*name]))).collect();
    lines.extend(rows.iter().map(cells));
    let widths: Vec<usize> = (0..names.len())
        .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Of a digest a table shows as much as `hoist rm` needs.
fn shortened(mut cell: String) -> String {
    if cell.parse::<Digest>().is_ok() {
        cell.truncate("sha256:".len() + 12);
    }
    cell
}

fn title(name: &str) -> String {
    if name == "layer_bytes" {
        return "size".to_owned();
    }
    name.strip_suffix("_bytes").unwrap_or(name).replace('_', " ")
}

fn cell(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Number(number) if is_bytes(name) => {
            number.as_u64().map_or_else(|| number.to_string(), crate::human::bytes)
        }
        Value::Number(number) if name.starts_with("seconds") => {
            format!("{:.3}", number.as_f64().unwrap_or_default())
        }
        Value::Number(number) => number.to_string(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) if name == "present" && items.len() == 2 => {
            format!("{} of {}", cell("bytes", &items[0]), cell("bytes", &items[1]))
        }
        Value::Array(items) => items.iter().map(|item| cell(name, item)).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let parts = fields.iter().map(|(name, value)| format!("{} {}", title(name), cell(name, value)));
            parts.collect::<Vec<_>>().join(", ")
        }
    }
}

fn is_bytes(name: &str) -> bool {
    name == "bytes" || name == "size" || name.ends_with("_bytes") || name.ends_with("_size")
}

/// Names from an image may hold escape sequences that would play with the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Bytes for a person: `1.25 MiB`.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_and_tables() {
        let value = json!({
            "image": "a\u{1b}[2J", "lazy": false, "total_bytes": 2048, "why": null,
            "layers": [{"digest": "sha256:1", "size": 1}, {"digest": "2", "size": 1024, "note": ["x", "y"]}],
        });
        assert_eq!(
            text(&value),
            "image:       a\u{fffd}[2J\nlazy:        no\ntotal:       2.00 KiB\nwhy:         -\n\nlayers:\n\
             DIGEST    SIZE      NOTE\nsha256:1  1 B       -\n2         1.00 KiB  x, y\n"
        );
        let digest = Digest::of(b"").to_string();
        let layers = json!({"index": digest, "layers": [{"digest": digest, "present": [1024, 2048]}]});
        assert_eq!(
            text(&layers),
            format!(
                "index:  {digest}\n\nlayers:\nDIGEST               PRESENT\nsha256:e3b0c44298fc  1.00 KiB of 2.00 KiB\n"
            )
        );
        assert_eq!(text(&json!([])), "none\n");
        assert_eq!(text(&json!("x")), "x\n");
    }
}

//! What the engine found out, for a person: the same facts as `--json` has, as lines and tables.

use hoist_format::digest::Digest;
use serde_json::Value;

/// Columns that hold names and sentences: they can be shortened.
const TEXTS: [&str; 12] = [
    "target", "mount", "image", "name", "file", "command", "note", "why", "path", "outcome", "from", "source",
];
/// What is left of them at least.
const LEAST: usize = 12;

/// Lines of `name: value`; a list of objects becomes a table of its own.
pub fn text(value: &Value) -> String {
    fitted(value, None, &[])
}

/// The same, with tables no wider than `width`: names are shortened in their middle, and where that does not do, the
/// columns `optional` are left out, first things first.
pub fn fitted(value: &Value, width: Option<usize>, optional: &[&str]) -> String {
    match value {
        Value::Object(fields) => {
            let mut lines = String::new();
            let mut tables = String::new();
            let longest = fields.keys().map(String::len).max().unwrap_or(0) + 1;
            for (name, value) in fields {
                if is_table(value) {
                    tables.push_str(&format!("\n{}:\n{}", title(name), fitted(value, width, optional)));
                } else {
                    lines.push_str(&format!(
                        "{:<longest$} {}\n",
                        format!("{}:", title(name)),
                        cell(name, value)
                    ));
                }
            }
            lines + &tables
        }
        Value::Array(rows) if is_table(value) => table(rows, width, optional),
        Value::Array(items) if items.is_empty() => "none\n".to_owned(),
        other => format!("{}\n", cell("", other)),
    }
}

/// How wide the terminal is that shows what is printed; None where there is none.
pub fn terminal_width() -> Option<usize> {
    use std::io::IsTerminal;
    let out = std::io::stdout();
    let size = out.is_terminal().then(|| rustix::termios::tcgetwinsize(&out).ok())?;
    // A terminal that does not say is one of the old size.
    Some(size.map_or(0, |size| usize::from(size.ws_col)))
        .map(|columns| if columns == 0 { 80 } else { columns })
}

fn is_table(value: &Value) -> bool {
    value.as_array().is_some_and(|rows| !rows.is_empty() && rows.iter().all(Value::is_object))
}

fn table(rows: &[Value], width: Option<usize>, optional: &[&str]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut lines = vec![names.iter().map(|name| title(name).to_uppercase()).collect::<Vec<_>>()];
    let cells = |row: &Value| names.iter().map(|name| shortened(cell(name, &row[*name]))).collect();
    lines.extend(rows.iter().map(cells));
    let widest = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let mut shown: Vec<Column<'_>> =
        names.iter().enumerate().map(|(at, name)| Column { at, name, width: widest(at) }).collect();
    fit(&mut shown, width.unwrap_or(usize::MAX), optional);
    let mut text = String::new();
    for line in lines {
        let cells = shown.iter().map(|column| {
            let width = column.width;
            format!("{:<width$}", elided(&line[column.at], width))
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A column of a table.
struct Column<'a> {
    at: usize,
    name: &'a str,
    width: usize,
}

/// See [`fitted`]. What can't be had is left too wide.
fn fit(columns: &mut Vec<Column<'_>>, width: usize, optional: &[&str]) {
    let total = |columns: &[Column<'_>], least: bool| {
        let of = |column: &Column<'_>| match least && TEXTS.contains(&column.name) {
            true => column.width.min(LEAST),
            false => column.width,
        };
        columns.iter().map(of).sum::<usize>() + 2 * columns.len().saturating_sub(1)
    };
    for name in optional {
        if total(columns, true) > width {
            columns.retain(|column| column.name != *name);
        }
    }
    while total(columns, false) > width {
        let texts = columns.iter_mut().filter(|column| TEXTS.contains(&column.name) && column.width > LEAST);
        let Some(longest) = texts.max_by_key(|column| column.width) else { return };
        longest.width -= 1;
    }
}

/// At most so many characters, without the middle: the end of a name tells most.
fn elided(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let head = width.saturating_sub(1) / 3;
    let tail = width.saturating_sub(1) - head;
    text.chars().take(head).chain(['…']).chain(text.chars().skip(length - tail)).collect()
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
        // No table of it is here yet.
        Value::Null if name == "present" => "nothing".to_owned(),
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

/// What is to be said of each of several things, once, with the numbers of those it holds for.
pub fn said_once(what: &str, of_each: &[Vec<String>]) -> String {
    let mut said: Vec<(&str, Vec<usize>)> = Vec::new();
    for (at, texts) in of_each.iter().enumerate() {
        for text in texts {
            match said.iter_mut().find(|(known, _)| known == text) {
                Some((_, numbers)) => numbers.push(at + 1),
                None => said.push((text, vec![at + 1])),
            }
        }
    }
    let line = |(text, mut numbers): (&str, Vec<usize>)| {
        numbers.dedup();
        let text = printable(text);
        match numbers.len() {
            1 => format!("{what} {}: {text}\n", numbers[0]),
            many if many == of_each.len() => format!("all {many} {what}s: {text}\n"),
            _ => format!("{what}s {}: {text}\n", runs(&numbers)),
        }
    };
    said.into_iter().map(line).collect()
}

/// As `1-3, 5`.
fn runs(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run[0].to_string(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

/// Names from an image may hold escape sequences that would play with the terminal.
pub fn printable(text: &str) -> String {
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

    #[test]
    fn what_holds_for_many_is_said_once() {
        let said: Vec<Vec<String>> = [&["a"][..], &["a", "b"], &["a", "c\n"], &[], &["a", "b", "b"]]
            .map(|texts| texts.iter().map(ToString::to_string).collect())
            .to_vec();
        assert_eq!(said_once("layer", &said), "layers 1-3, 5: a\nlayers 2, 5: b\nlayer 3: c\u{fffd}\n");
        assert_eq!(said_once("layer", &said[..3]), "all 3 layers: a\nlayer 2: b\nlayer 3: c\u{fffd}\n");
        assert_eq!(said_once("layer", &[]), "");
    }

    #[test]
    fn tables_fit() {
        let row = json!({"image": "registry.example/team/app:1.2.3", "here": "1 of 2", "process": 12345, "note": "x"});
        let rows = Value::Array(vec![row]);
        let at = |width| fitted(&rows, width, &["process"]);
        let whole = at(None);
        assert_eq!(at(Some(80)), whole);
        let tail = "registry…ple/team/app:1.2.3  1 of 2  12345    x\n";
        assert!(at(Some(50)).ends_with(tail), "{}", at(Some(50)));
        let narrow = at(Some(32));
        assert_eq!(narrow, "IMAGE               HERE    NOTE\nregis…am/app:1.2.3  1 of 2  x\n");
        for width in [30, 36, 40, 45, 60] {
            assert!(at(Some(width)).lines().all(|line| line.chars().count() <= width), "{}", at(Some(width)));
        }
        // Never without the rest, however narrow.
        assert_eq!(at(Some(10)).lines().next(), Some("IMAGE         HERE    NOTE"));
    }
}

//! containerd's filters (its pkg/filters): `kind==active,labels."a/b"~=/^x/`. All of a filter's selectors
//! have to match, and any of several filters.

use std::iter::Peekable;
use std::str::Chars;

use regex_lite::Regex;

use crate::error::Error;
use crate::record::Info;

/// Any of several filters; none at all match everything.
pub struct Filters(Vec<Vec<Selector>>);

struct Selector {
    path: Vec<String>,
    test: Test,
}

enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Reads them.
    ///
    /// # Errors
    /// One of them is none.
    pub fn parse(filters: &[String]) -> Result<Filters, Error> {
        let parse = |text: &String| {
            Parser { rest: text.chars().peekable() }
                .filter()
                .map_err(|why| Error::Invalid(format!("{text:?} is no filter: {why}")))
        };
        Ok(Filters(filters.iter().map(parse).collect::<Result<_, _>>()?))
    }

    /// Does a snapshot match?
    pub fn matches(&self, info: &Info) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.iter().all(|selector| selector.matches(info)))
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value = field(info, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == *wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != *unwanted,
            Test::Matches(wanted) => wanted.is_match(value.unwrap_or_default()),
        }
    }
}

fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    match path.first()?.as_str() {
        "name" => Some(&info.name),
        "parent" => Some(&info.record.parent),
        "kind" => Some(info.record.kind.name()),
        "labels" => info.record.labels.get(&path[1..].join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    fn filter(mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = Vec::new();
        if self.peek().is_none() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.peek() {
                None => return Ok(selectors),
                Some(',') => drop(self.rest.next()),
                Some(other) => return Err(format!("{other:?} is not expected behind a selector")),
            }
        }
    }

    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {}
        self.rest.peek().copied()
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.name()?];
        while self.peek() == Some('.') {
            self.rest.next();
            path.push(self.name()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        let mut operator = String::new();
        while let Some(c) = self.rest.next_if(|c| "=!~".contains(*c)) {
            operator.push(c);
        }
        let test = match operator.as_str() {
            "==" => Test::Equal(self.value("\"")?),
            "!=" => Test::NotEqual(self.value("\"")?),
            "~=" => {
                let text = self.value("\"/|")?;
                Test::Matches(
                    Regex::new(&text).map_err(|e| format!("{text:?} is no regular expression: {e}"))?,
                )
            }
            _ => return Err("a name is followed by ==, != or ~=".into()),
        };
        Ok(Selector { path, test })
    }

    fn name(&mut self) -> Result<String, String> {
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let mut name = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)) {
            name.push(c);
        }
        if name.is_empty() { Err("a name is missing".into()) } else { Ok(name) }
    }

    fn value(&mut self, quotes: &str) -> Result<String, String> {
        match self.peek() {
            Some(quote) if quotes.contains(quote) => self.quoted(),
            None | Some(',') => Err("a value is missing".into()),
            Some(_) => {
                let mut value = String::new();
                while let Some(c) = self.rest.next_if(|c| *c != ',' && !c.is_whitespace()) {
                    value.push(c);
                }
                Ok(value)
            }
        }
    }

    /// As Go has it, between any quotes.
    fn quoted(&mut self) -> Result<String, String> {
        let open = || "a quote is not closed".to_owned();
        let quote = self.rest.next().ok_or_else(open)?;
        let mut text = Vec::new();
        let mut push = |c: char| text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        loop {
            match self.rest.next().ok_or_else(open)? {
                c if c == quote => break,
                '\\' => match self.rest.next().ok_or_else(open)? {
                    c if c == quote || c == '\\' => push(c),
                    'a' => push('\x07'),
                    'b' => push('\x08'),
                    'f' => push('\x0c'),
                    'n' => push('\n'),
                    'r' => push('\r'),
                    't' => push('\t'),
                    'v' => push('\x0b'),
                    'x' => push(self.number(16, 2)?),
                    'u' => push(self.number(16, 4)?),
                    'U' => push(self.number(16, 8)?),
                    // What a regular expression means by it.
                    c if quote != '"' => {
                        push('\\');
                        push(c);
                    }
                    c => return Err(format!("\\{c} is no escape")),
                },
                c => push(c),
            }
        }
        String::from_utf8(text).map_err(|e| e.to_string())
    }

    fn number(&mut self, radix: u32, digits: usize) -> Result<char, String> {
        let mut value = 0;
        for _ in 0..digits {
            let digit = self.rest.next().and_then(|c| c.to_digit(radix));
            value = value * radix + digit.ok_or("an escape is cut short")?;
        }
        char::from_u32(value).ok_or_else(|| "an escape is no character".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Kind, Record, Usage};

    fn matches(filters: &[&str]) -> bool {
        let labels = [("a".to_owned(), "1".to_owned()), ("x.y/z".to_owned(), "sha256:ab".to_owned())];
        let record = Record {
            id: 1,
            parent: String::new(),
            kind: Kind::Active,
            created: 0,
            updated: 0,
            labels: labels.into(),
            usage: Usage::default(),
            mapped: false,
            part: None,
        };
        let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
        Filters::parse(&filters).unwrap().matches(&Info { name: "k8s.io/1/key".into(), record })
    }

    #[test]
    fn what_containerd_asks_for() {
        let matching: &[&[&str]] = &[
            &[],
            &[""],
            &["kind==view", "kind==active"],
            &["name==k8s.io/1/key"],
            &["name~=\"^k8s\", kind == active"],
            &["name~=/k8s\\.io\\/1/"],
            &["labels.\"x.y/z\"==sha256:ab,parent==\"\""],
            &["labels.a"],
            &["labels.b!=1"],
            &["parent"],
            &["name==\"k8s.io\\u002f1\\x2fkey\""],
        ];
        for filters in matching {
            assert!(matches(filters), "{filters:?}");
        }
        let others: &[&[&str]] =
            &[&["kind==view"], &["kind==active,labels.a==2"], &["labels.b"], &["parent!=\"\""], &["other"]];
        for filters in others {
            assert!(!matches(filters), "{filters:?}");
        }
    }

    #[test]
    fn what_is_no_filter() {
        for text in [
            "==1",
            "a=1",
            "a==",
            "a==1 b",
            "a==\"1",
            "a==\"\\q\"",
            "a.",
            "a~=\"(\"",
            ",",
            "a,,b",
            "a==\"\\ud800\"",
        ] {
            assert!(Filters::parse(&[text.to_owned()]).is_err(), "{text:?}");
        }
    }
}

//! What becomes of an image that containerd pulls: by rules of the configuration, of which the first that fits counts.

use hoist_engine::registry::Pattern;
use toml::de::{DeTable, DeValue};

/// What becomes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Mounted at once where it can be, else unpacked by containerd.
    Lazy,
    /// Pulled whole first.
    Full,
    /// Full if it is small, else lazy.
    Auto,
}

/// One of the table `images`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    registry: Option<Pattern>,
    label: Option<(String, Option<String>)>,
    full_below: Option<u64>,
    mode: Option<Mode>,
}

/// A key of a rule.
pub struct RuleKey {
    pub name: &'static str,
    pub allowed: &'static str,
    pub help: &'static str,
    set: fn(&mut Rule, &DeValue<'_>) -> Option<()>,
}

/// All of them.
pub const RULE_KEYS: &[RuleKey] = &[
    RuleKey {
        name: "registry",
        allowed: "HOST[:PORT][/PATH], as \"*.example.com/team\"",
        help: "the image is of this registry, and its name begins so; `*` stands for any part of one label of the host. \
               Docker Hub is docker.io",
        set: |rule, value| {
            rule.registry = Some(Pattern::parse(value.as_str().filter(|text| !text.is_empty())?));
            Some(())
        },
    },
    RuleKey {
        name: "label",
        allowed: "\"NAME\" or \"NAME=VALUE\"",
        help: "the snapshot has this label, or the image's manifest this annotation, or its configuration this label",
        set: |rule, value| {
            let text = value.as_str()?;
            let (name, value) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            rule.label =
                Some((Some(name).filter(|name| !name.is_empty())?.to_owned(), value.map(str::to_owned)));
            Some(())
        },
    },
    RuleKey {
        name: "mode",
        allowed: MODES,
        help: "what becomes of it then, as `containerd_images` has it; always there",
        set: |rule, value| {
            rule.mode = Some(super::settings::choice(value)?);
            Some(())
        },
    },
    RuleKey {
        name: "full_below",
        allowed: "a size, as \"100M\"",
        help: "for \"auto\", instead of the key of that name outside",
        set: |rule, value| {
            rule.full_below = Some(crate::units::size(value.as_str()?).ok()?);
            Some(())
        },
    },
];

/// What a mode may be.
pub const MODES: &str = "\"lazy\", \"full\" or \"auto\"";

/// The rules of the file; or a place in it, and what is wrong there.
pub fn parse(value: &DeValue<'_>) -> Result<Vec<Rule>, (usize, String)> {
    let tables = value.as_array().into_iter().flatten();
    tables.map(|table| rule(table.get_ref().as_table(), table.span().start)).collect()
}

fn rule(table: Option<&DeTable<'_>>, start: usize) -> Result<Rule, (usize, String)> {
    let wrong = |at, what: String| Err((at, format!("images: {what}")));
    let Some(table) = table else { return wrong(start, "a rule is a table: [[images]]".to_owned()) };
    let mut rule = Rule::default();
    for (name, value) in table {
        let at = name.span().start;
        let Some(key) = RULE_KEYS.iter().find(|key| key.name == name.get_ref()) else {
            let known: Vec<_> = RULE_KEYS.iter().map(|key| key.name).collect();
            return wrong(
                at,
                format!("a rule has no key {:?}; its keys are {}", name.get_ref(), known.join(", ")),
            );
        };
        if (key.set)(&mut rule, value.get_ref()).is_none() {
            return wrong(
                at,
                format!("{} can't be {}; it is {}", key.name, shown(value.get_ref()), key.allowed),
            );
        }
    }
    match (&rule.mode, &rule.registry, &rule.label) {
        (None, _, _) => wrong(start, format!("a rule says its mode: it is {MODES}")),
        (_, None, None) => wrong(
            start,
            "a rule names a registry or a label; for all images there is `containerd_images`".into(),
        ),
        (Some(mode), _, _) if *mode != Mode::Auto && rule.full_below.is_some() => {
            wrong(start, "full_below is for mode \"auto\" alone".to_owned())
        }
        _ => Ok(rule),
    }
}

fn shown(value: &DeValue<'_>) -> String {
    value.as_str().map_or_else(|| format!("a value of type {}", value.type_str()), |text| format!("{text:?}"))
}

/// What there is to know of an image.
pub struct Subject<'a> {
    /// `HOST/NAME`.
    pub name: &'a str,
    /// What its layers take in the registry.
    pub bytes: u64,
    /// All labels and annotations that count.
    pub labels: &'a dyn Fn(&str) -> Vec<&'a str>,
}

impl Rule {
    fn fits(&self, subject: &Subject<'_>) -> bool {
        let registry = self.registry.as_ref().is_none_or(|pattern| pattern.matches(subject.name));
        let label = self.label.as_ref().is_none_or(|(name, value)| {
            let found = (subject.labels)(name);
            value.as_ref().map_or(!found.is_empty(), |value| found.contains(&value.as_str()))
        });
        registry && label
    }
}

/// Whether an image is pulled whole: by the first rule that fits, else by the mode and bound of all others.
pub fn is_full(rules: &[Rule], default: Mode, full_below: u64, subject: &Subject<'_>) -> bool {
    let rule = rules.iter().find(|rule| rule.fits(subject));
    let below = rule.and_then(|rule| rule.full_below).unwrap_or(full_below);
    match rule.and_then(|rule| rule.mode).unwrap_or(default) {
        Mode::Lazy => false,
        Mode::Full => true,
        Mode::Auto => subject.bytes < below,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Vec<Rule>, (usize, String)> {
        let table = DeTable::parse(text).unwrap();
        parse(table.get_ref().get("images").unwrap().get_ref())
    }

    #[test]
    fn the_first_that_fits_counts() {
        let text = r#"
            [[images]]
            label = "start=slow"
            mode = "full"
            [[images]]
            registry = "*.example.com/team"
            mode = "auto"
            full_below = "1M"
            [[images]]
            label = "hoist"
            registry = "docker.io"
            mode = "lazy"
        "#;
        let rules = rules(text).unwrap();
        let full = |name: &'static str, bytes: u64, label: Option<(&'static str, &'static str)>| {
            let labels = |name: &str| {
                label.iter().filter(|(of, _)| *of == name).map(|(_, value)| *value).collect::<Vec<_>>()
            };
            is_full(&rules, Mode::Auto, 1000, &Subject { name, bytes, labels: &labels })
        };
        assert!(full("a.io/x", 1 << 40, Some(("start", "slow"))));
        assert!(!full("a.io/x", 1000, Some(("start", "fast"))) && full("a.io/x", 999, None));
        assert!(full("r.example.com/team/x", 1 << 19, None) && !full("r.example.com/team/x", 1 << 20, None));
        assert!(!full("r.example.com/x", 1000, None));
        assert!(!full("docker.io/library/x", 1, Some(("hoist", ""))) && full("docker.io/library/x", 1, None));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, line, said) in [
            (
                "[[images]]\nmode = \"full\"\nregistri = \"x\"",
                3,
                "no key \"registri\"; its keys are registry, label, mode",
            ),
            (
                "[[images]]\nregistry = \"x\"\nmode = \"fast\"",
                3,
                "mode can't be \"fast\"; it is \"lazy\", \"full\" or",
            ),
            (
                "[[images]]\nregistry = 5\nmode = \"full\"",
                2,
                "registry can't be a value of type integer; it is HOST",
            ),
            ("[[images]]\nregistry = \"x\"", 1, "a rule says its mode"),
            ("[[images]]\nmode = \"full\"", 1, "a rule names a registry or a label"),
            ("[[images]]\nlabel = \"x\"\nmode = \"full\"\nfull_below = \"1M\"", 1, "for mode \"auto\" alone"),
            ("images = [1]", 1, "a rule is a table"),
        ] {
            let (at, what) = rules(text).unwrap_err();
            assert!(what.starts_with("images: ") && what.contains(said), "{text}: {what}");
            assert_eq!(text[..at].matches('\n').count() + 1, line, "{text}: {what}");
        }
    }
}

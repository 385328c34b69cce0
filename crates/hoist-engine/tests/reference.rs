//! References that are put together of right and wrong parts: skopeo, which has the distribution project's grammar, must
//! take and refuse the same ones.

use std::process::Command;

use hoist_engine::reference::{Reference, Source};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const HOSTS: [&str; 21] = [
    "",
    "",
    "",
    "",
    "docker.io/",
    "index.docker.io/",
    "localhost/",
    "localhost:5000/",
    "127.0.0.1:5000/",
    "a.io/",
    "A.io/",
    "a-b.io:443/",
    "a.io:/",
    "a.io:+80/",
    "a.io:8x/",
    "-a.io/",
    "a-.io/",
    "a..io/",
    ".io/",
    "a.io./",
    "ü.io/",
];
const COMPONENTS: [&str; 26] = [
    "a", "debian", "library", "a1", "0", "a.b", "a_b", "a__b", "a-b", "a---b", "a___b", "a..b", "a._b",
    "a-_b", "_a", "a_", "-a", "a-", ".a", "a.", "A", "aB", "", "..", "a b", "ä",
];
const TAGS: [&str; 14] =
    ["", "", "", ":1", ":latest", ":V1.2-rc_3", ":_", ":", ":.a", ":-a", ":a:b", ":a/b", ":ü", ":a+b"];

fn digest(random: &mut StdRng) -> String {
    let hex = "0123456789abcdef".repeat(4);
    let forms = [
        "",
        "",
        "",
        "@sha256:HEX",
        "@sha256:HEX:t",
        "@sha256:HEX0",
        "@sha256:",
        "@HEX",
        "@",
        "@sha256:xx",
        "@@",
    ];
    forms.choose(random).unwrap().replace("HEX", &hex)
}

fn compose(random: &mut StdRng) -> String {
    // Mostly right parts, which come first in their lists, or hardly any would be right as a whole.
    let mut text = match random.random_bool(0.8) {
        true => HOSTS[random.random_range(0..12)],
        false => HOSTS.choose(random).unwrap(),
    }
    .to_owned();
    let part = |random: &mut StdRng| match random.random_bool(0.8) {
        true => COMPONENTS[random.random_range(0..10)],
        false => COMPONENTS.choose(random).unwrap(),
    };
    text += part(random);
    for _ in 0..random.random_range(0..3) {
        text += "/";
        text += part(random);
    }
    text += match random.random_bool(0.8) {
        true => TAGS[random.random_range(0..7)],
        false => TAGS.choose(random).unwrap(),
    };
    if random.random_bool(0.3) { text + &digest(random) } else { text }
}

fn skopeo_takes(text: &str) -> bool {
    let mut command = Command::new("skopeo");
    // The source is not there, so that nobody is asked; but names are parsed first.
    let output = command.args(["copy", "dir:/nonexistent", &format!("docker://{text}")]).output();
    let said = String::from_utf8(output.expect("skopeo is needed").stderr).unwrap();
    let taken = said.contains("/nonexistent/manifest.json") || said.contains("both a tag and digest");
    assert!(taken || said.contains("Invalid destination name"), "{text}: {said}");
    taken
}

/// Where this skopeo's copy of the grammar is older than the distribution project's: capitals make a host since. (It also
/// takes `a_b.io/x`, as a name whose host is empty; that is left out above, and refused by us.)
fn is_newer(text: &str) -> bool {
    let first = text.split_once('/').map_or("", |(first, _)| first);
    !first.contains(['.', ':']) && first.contains(char::is_uppercase)
}

#[test]
fn skopeo_takes_and_refuses_the_same() {
    let mut random = StdRng::seed_from_u64(3);
    let mut texts: Vec<_> = (0..400).map(|_| compose(&mut random)).filter(|text| !is_newer(text)).collect();
    for length in [237, 238] {
        texts.push("b".repeat(length));
        texts.push(format!("a.io/{}", "b".repeat(length + 13)));
    }
    for length in [128, 129] {
        texts.push(format!("a:{}", "t".repeat(length)));
    }
    texts.push("0123456789abcdef".repeat(4));
    texts.push(format!("{}:t", "0123456789abcdef".repeat(4)));
    texts.push(format!("a@sha256:{}", "0123456789ABCDEF".repeat(4)));
    let mut taken = 0;
    for text in &texts {
        let ours = text.parse::<Reference>();
        assert_eq!(ours.is_ok(), skopeo_takes(text), "{text:?}: {ours:?}");
        taken += usize::from(ours.is_ok());
    }
    assert!(taken > texts.len() / 8 && taken < texts.len() * 7 / 8, "{taken} of {}", texts.len());
}

/// What is shown of a reference means the same reference, and shows the same again; whatever bytes come, there is an
/// answer.
#[test]
fn what_is_shown_is_what_was_meant() {
    let mut random = StdRng::seed_from_u64(4);
    let letters: Vec<char> = "aA0.:/@-_[]% \tüsha256:".chars().collect();
    for _ in 0..100_000 {
        let text = match random.random_bool(0.5) {
            true => compose(&mut random),
            false => (0..random.random_range(0..24)).map(|_| *letters.choose(&mut random).unwrap()).collect(),
        };
        if let Ok(reference) = text.parse::<Reference>() {
            let shown = reference.to_string();
            assert_eq!(shown.parse::<Reference>().as_ref(), Ok(&reference), "{text:?}");
            assert!(reference.repo.host.len() + 1 + reference.repo.name.len() <= 255, "{text:?}");
            assert!(
                !reference.repo.name.split('/').any(|part| part.is_empty() || part.starts_with('.')),
                "{text:?}"
            );
        }
        let _ = text.parse::<Source>();
        if let Ok(source) = format!("oci:{text}").parse::<Source>() {
            assert_eq!(source.to_string().parse::<Source>().as_ref(), Ok(&source), "{text:?}");
        }
        let platform = text.parse::<hoist_engine::Platform>();
        if let Ok(platform) = platform {
            assert_eq!(
                platform.to_string().parse::<hoist_engine::Platform>().as_ref(),
                Ok(&platform),
                "{text:?}"
            );
        }
    }
}

//! `WWW-Authenticate` as registries send it (RFC 9110 section 11, distribution's token spec).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// One way in that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges of a response that we know how to meet, in the server's order.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().take(8);
    values.filter_map(|value| value.to_str().ok()).flat_map(parse).collect()
}

fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header;
    while let Some((scheme, params, tail)) = next_challenge(rest) {
        rest = tail;
        let param = |name: &str| {
            let hit = params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            hit.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = param("realm")
        {
            found.push(Challenge::Bearer { realm, service: param("service"), scope: param("scope") });
        }
    }
    found
}

type Params = Vec<(String, String)>;

fn next_challenge(text: &str) -> Option<(&str, Params, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text.find([' ', ',']).unwrap_or(text.len());
    let (scheme, mut rest) = text.split_at(end);
    if scheme.is_empty() {
        return None;
    }
    let mut params = Params::new();
    loop {
        let start = rest.trim_start_matches([' ', '\t', ',']);
        let key_end = start.find(|c: char| !is_token(c)).unwrap_or(start.len());
        let (key, after) = start.split_at(key_end);
        // A token without `=` is the scheme of the next challenge.
        let Some(after) = after.trim_start().strip_prefix('=').filter(|_| !key.is_empty()) else { break };
        let (value, after) = value(after.trim_start());
        params.push((key.to_owned(), value));
        rest = after;
    }
    // Whatever is not understood must not stop the scan from moving on.
    Some((scheme, params, rest))
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (plain, rest) = text.split_at(text.find([',', ' ']).unwrap_or(text.len()));
        return (plain.to_owned(), rest);
    };
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (out, &quoted[at + 1..]),
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            c => out.push(c),
        }
    }
    (out, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn headers_seen_in_the_wild() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:library/debian:pull,push\"";
        let scope = Some("repository:library/debian:pull,push");
        assert_eq!(parse(hub), [bearer("https://auth.docker.io/token", Some("registry.docker.io"), scope)]);
        assert_eq!(parse("Basic realm=\"a, b\""), [Challenge::Basic]);
        assert_eq!(parse("basic"), [Challenge::Basic]);
        assert_eq!(parse("bearer realm=http://x/t"), [bearer("http://x/t", None, None)]);
        let both = parse("Negotiate abc==, Basic realm=\"x\", Bearer realm=\"y\" , service=\"z\"");
        assert!(both.contains(&Challenge::Basic) && both.contains(&bearer("y", Some("z"), None)), "{both:?}");
        assert_eq!(parse("Bearer realm=\"a\\\"b\""), [bearer("a\"b", None, None)]);
    }

    #[test]
    fn nonsense_ends() {
        for text in ["", ",,,", "=", "= = =", "Bearer", "Bearer realm=", "\"", "a=b", "Bearer \"x", "é é=é"]
        {
            parse(text);
        }
    }
}

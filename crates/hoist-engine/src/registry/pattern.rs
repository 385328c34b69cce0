//! Images by their registry, as the kubelet's `matchImages` has them.

/// As `*.example.com:5000/team`: `*` stands for any part of one label of the host's name, and a path for all that begin
/// with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    labels: Vec<String>,
    port: String,
    path: String,
}

impl Pattern {
    /// Any text is one.
    pub fn parse(text: &str) -> Pattern {
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (authority, path) = match bare.find('/') {
            Some(slash) => bare.split_at(slash),
            None => (bare, ""),
        };
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        Pattern {
            labels: host.split('.').map(str::to_owned).collect(),
            port: port.to_owned(),
            path: path.to_owned(),
        }
    }

    /// Is the image (`HOST/NAME`) one of these?
    pub fn matches(&self, image: &str) -> bool {
        let image = Pattern::parse(image);
        let labels = || self.labels.iter().zip(&image.labels);
        self.port == image.port
            && self.labels.len() == image.labels.len()
            && image.path.starts_with(&self.path)
            && labels().all(|(pattern, label)| fits(pattern, label))
    }
}

/// A `*` may stand for anything, a `?` for one character.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    // Where to go on if the last `*` is to stand for one more.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (p, t) = (*at + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the examples of Kubernetes' kubelet-config.v1 page.
    #[test]
    fn as_the_kubelet_matches() {
        for (pattern, image, matches) in [
            ("123.dkr.ecr.us-east-1.amazonaws.com", "123.dkr.ecr.us-east-1.amazonaws.com/app", true),
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.us-east-1.amazonaws.com/app", true),
            ("*.azurecr.io", "mine.azurecr.io/app", true),
            ("*.azurecr.io", "azurecr.io/app", false),
            ("*.io", "a.k8s.io/app", false),
            ("app*.k8s.io", "app-1.k8s.io/x", true),
            ("k8s.*", "k8s.io/x", true),
            ("gcr.io", "eu.gcr.io/x", false),
            ("registry.io:8080/path", "registry.io:8080/path/x", true),
            ("registry.io:8080/path", "registry.io/path/x", false),
            ("registry.io/path", "registry.io:8080/path/x", false),
            ("registry.io:8080/path", "registry.io:8080/other", false),
            ("https://registry.io", "registry.io/x", true),
            ("a*b*c.io", "axxbyybzc.io/x", true),
            ("a*b*c.io", "axxbyybz.io/x", false),
            ("*.*.*.*:5000", "127.0.0.1:5000/app", true),
        ] {
            assert_eq!(Pattern::parse(pattern).matches(image), matches, "{pattern} {image}");
        }
    }
}

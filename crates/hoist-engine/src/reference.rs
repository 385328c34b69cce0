//! Where an image is: `registry/name:tag@digest` as users and Docker write it, or an OCI layout
//! on disk (`oci:DIR[:tag]`, a folder or a tar file).
//!
//! Grammar after the distribution project's `reference` package: the first component is a host when
//! it holds a `.`, a `:` or a capital letter, or is `localhost`; otherwise the name is Docker Hub's.
//! Narrower than that in ports (up to 65535) and digests (sha256).

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hoist_format::digest::Digest;

/// Canonical domain of Docker Hub in references.
pub const DOCKER_HUB: &str = "docker.io";
/// Host that serves Docker Hub's registry API.
pub const DOCKER_HUB_API: &str = "registry-1.docker.io";

/// Longest repository name, host included, that the distribution project accepts.
const MAX_NAME: usize = 255;
/// Longest tag (OCI distribution-spec v1.1, "Pulling manifests").
const MAX_TAG: usize = 128;

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repo {
    /// Host with optional port, as written in references (`docker.io` for Docker Hub).
    pub host: String,
    /// Name below the host, such as `library/debian`.
    pub name: String,
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

/// An image in a registry. At least one of tag and digest is there; the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The repository.
    pub repo: Repo,
    /// The tag, `latest` when the user named neither tag nor digest.
    pub tag: Option<String>,
    /// The digest of the manifest or index.
    pub digest: Option<Digest>,
}

impl Reference {
    /// What stands in the manifest's URL: the digest if there is one, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".to_owned()),
        }
    }
    /// The same repository, by `digest`.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { repo: self.repo.clone(), tag: self.tag.clone(), digest: Some(digest) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repo.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A registry.
    Registry(Reference),
    /// An OCI image layout: a folder, or an uncompressed tar file of one.
    Layout {
        /// The folder or tar file.
        path: PathBuf,
        /// `org.opencontainers.image.ref.name` (or a digest) of the entry in index.json.
        tag: Option<String>,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { path, tag: None } => write!(f, "oci:{}", path.display()),
            Self::Layout { path, tag: Some(tag) } => write!(f, "oci:{}:{tag}", path.display()),
        }
    }
}

/// Why a string names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {why}")]
pub struct ReferenceError {
    /// What was given, cut to 200 characters.
    pub text: String,
    /// What is wrong with it and what is expected.
    pub why: String,
}

impl FromStr for Source {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let Some(layout) = text.strip_prefix("oci:") else {
            return text.parse().map(Self::Registry);
        };
        // A colon after the last slash starts the tag, or the digest that stands for one.
        let name = layout.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match layout[name..].find(':') {
            Some(colon) => (&layout[..name + colon], Some(&layout[name + colon + 1..])),
            None => (layout, None),
        };
        if path.is_empty() || tag == Some("") {
            return Err(bad(text, "a layout is written oci:DIR or oci:DIR:TAG"));
        }
        Ok(Self::Layout { path: path.into(), tag: tag.map(str::to_owned) })
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(bad(text, "it is empty; write for example debian:12"));
        }
        if told(text) != text {
            return Err(bad(text, "leave out user and password; `docker login HOST` keeps them"));
        }
        if text.contains("://") {
            return Err(bad(text, "leave out the scheme; write registry/name:tag"));
        }
        if text.len() == 64 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad(text, "it is a bare digest; write NAME@sha256:DIGEST"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|error| bad(text, &format!("{error}")))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            let why = format!("{tag:?} is no tag: letters, digits, _ . - and at most {MAX_TAG} of them");
            return Err(bad(text, &why));
        }
        let (host, path) = split_host(name);
        let written = path.to_owned();
        if !is_host(host) {
            return Err(bad(text, &format!("{host:?} is no host name")));
        }
        let path = match path {
            short if host == DOCKER_HUB && !short.contains('/') => format!("library/{short}"),
            path => path.to_owned(),
        };
        if host.len() + 1 + path.len() > MAX_NAME {
            return Err(bad(text, &format!("its name is longer than {MAX_NAME} characters")));
        }
        if !path.split('/').all(is_component) {
            let lower = path.to_ascii_lowercase();
            let why = match lower != path && lower.split('/').all(is_component) {
                true => format!(
                    "repository names are lower case: write {}",
                    text.replacen(&written, &written.to_ascii_lowercase(), 1)
                ),
                false => {
                    "repository names are lower-case letters and digits, joined by . _ - and /".to_owned()
                }
            };
            return Err(bad(text, &why));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { repo: Repo { host: host.to_owned(), name: path }, tag, digest })
    }
}

fn bad(text: &str, why: &str) -> ReferenceError {
    ReferenceError { text: told(text).chars().take(200).collect(), why: why.to_owned() }
}

/// A name as it may be shown to anyone: without the user and password that somebody took for a part of it.
pub fn told(name: &str) -> Cow<'_, str> {
    let end = match name.rsplit_once('@') {
        Some((rest, digest)) if is_digest_like(digest) => rest.len(),
        _ => name.len(),
    };
    match name[..end].rfind('@') {
        Some(at) => Cow::Owned(format!("***{}", &name[at..])),
        None => Cow::Borrowed(name),
    }
}

/// `sha256:...` and its like, finished or not.
fn is_digest_like(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    algorithm.to_ascii_lowercase().starts_with("sha") && !hex.contains(['/', '@', ':'])
}

fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(is_of_hosts) || first == "localhost" => match first {
            "index.docker.io" | DOCKER_HUB_API => (DOCKER_HUB, rest),
            host => (host, rest),
        },
        _ => (DOCKER_HUB, name),
    }
}

/// What no first component of a repository name has.
fn is_of_hosts(c: char) -> bool {
    matches!(c, '.' | ':') || c.is_uppercase()
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Whether `tag` fits the grammar of tags.
pub fn is_tag(tag: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    (1..=MAX_TAG).contains(&tag.len())
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|c| word(c) || c == b'.' || c == b'-')
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (OCI distribution-spec v1.1).
fn is_component(component: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(alnum)
        && component.ends_with(alnum)
        && component
            .split(alnum)
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|c| c == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = Digest::of(b"{}");
        for (given, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("Host/a", "Host/a:latest"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("[::1]:5000/a:1", "[::1]:5000/a:1"),
            ("ghcr.io/a/b-c__d.e:v1.2-rc_3", "ghcr.io/a/b-c__d.e:v1.2-rc_3"),
            (&format!("debian@{digest}"), &format!("docker.io/library/debian@{digest}")),
            (&format!("q.io/a:t@{digest}"), &format!("q.io/a:t@{digest}")),
        ] {
            let reference: Reference = given.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(full.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for given in [
            "",
            "Debian",
            "a:",
            "a:b:c",
            "a@sha256:12",
            "https://a.io/b",
            "a.io/",
            "a.io//b",
            "a.io/../b",
            "a.io/b?x",
            "a.io:99999/b",
            "a_b.io/c",
            "a.io:+80/b",
            "a.io:/b",
            "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "a.io/b_-c",
            "-a.io/b",
            "a b",
            "a.io/ü",
            ".io/a",
        ] {
            assert!(given.parse::<Reference>().is_err(), "{given}");
        }
        assert!("a/".repeat(200).parse::<Reference>().is_err());
    }

    #[test]
    fn capitals_are_explained() {
        for (given, meant) in [
            ("Debian:12", "debian:12"),
            ("Host/App:V1", "Host/app:V1"),
            ("localhost:5000/My/App", "localhost:5000/my/app"),
        ] {
            let said = given.parse::<Reference>().unwrap_err().to_string();
            assert!(said.ends_with(&format!("lower case: write {meant}")), "{said}");
            meant.parse::<Reference>().unwrap();
        }
    }

    #[test]
    fn no_secret_of_a_wrong_name_is_told() {
        for given in [
            "user:s3cret@host/a",
            "https://user:s3cret@host/a:1",
            "user:s3/cret@host:5000/a",
            "user:s3@cret@host/a",
            "s3cret@host",
            "user:s3cret@host/a@sha256:12",
            &format!("user:s3cret@host/a:1@{}", Digest::of(b"{}")),
        ] {
            let said = given.parse::<Source>().unwrap_err().to_string();
            assert!(!said.contains("s3") && !said.contains("cret"), "{said}");
            assert!(said.contains("docker login") && said.contains("host"), "{said}");
        }
        assert!("debian@sha256:12".parse::<Source>().unwrap_err().to_string().contains("debian@sha256:12"));
    }

    #[test]
    fn layouts() {
        let layout =
            |path: &str, tag: Option<&str>| Source::Layout { path: path.into(), tag: tag.map(Into::into) };
        assert_eq!("oci:dir".parse(), Ok(layout("dir", None)));
        assert_eq!("oci:/a:b/dir.tar:12".parse(), Ok(layout("/a:b/dir.tar", Some("12"))));
        assert!("oci:".parse::<Source>().is_err());
        assert!("oci:dir:".parse::<Source>().is_err());
    }
}

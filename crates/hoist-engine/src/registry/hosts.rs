//! containerd's `certs.d/<host>/hosts.toml`: which servers to ask for a registry, in which order,
//! and how to trust them (containerd `docs/hosts.md`). Docker's `certs.d` folders without a
//! hosts.toml (`*.crt`, `*.cert` with `*.key`) are read too.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::error::RegistryError;
use crate::reference::{DOCKER_HUB, DOCKER_HUB_API};

/// What a server may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
}

/// One server that stands for a registry, as configured.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    /// API root: ends in `/v2` unless `override_path` says otherwise; no trailing slash.
    pub base: Url,
    pub capabilities: Capabilities,
    pub headers: HeaderMap,
    pub trust: Trust,
}

/// TLS settings of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    pub ca: Vec<PathBuf>,
    /// Certificate and, unless it is in the same file, key.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: bool,
}

/// The servers to ask for `host`, best first; the registry itself is the last.
pub(super) fn upstreams(
    host: &str,
    dirs: &[PathBuf],
    plain_http: Option<bool>,
) -> Result<Vec<Upstream>, RegistryError> {
    for dir in dirs {
        // A port may be written `_5000_`, where a name can hold no colon; `_default` stands for
        // every host the folder does not know (both containerd only).
        let portless = host.rsplit_once(':').map(|(name, port)| dir.join(format!("{name}_{port}_")));
        for folder in portless.into_iter().chain([dir.join(host), dir.join("_default")]) {
            let file = folder.join("hosts.toml");
            let fail = |what: String| RegistryError::Config {
                doing: format!("reading the settings of registry {host}"),
                what: format!("{}: {what}; correct or remove the file", file.display()),
            };
            match std::fs::read_to_string(&file) {
                Ok(text) => return parse(&text, host, &folder, plain_http).map_err(fail),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(fail(error.to_string())),
            }
            let trust = docker_certs(&folder);
            if trust != Trust::default() {
                let server = Server { trust: Some(trust), ..Server::default() };
                return Ok(vec![server.upstream(&origin(host), host, &folder, plain_http).map_err(fail)?]);
            }
        }
    }
    let fail = |what| RegistryError::Config { doing: format!("addressing registry {host}"), what };
    Ok(vec![Server::default().upstream(&origin(host), host, Path::new(""), plain_http).map_err(fail)?])
}

/// Whether `host` (maybe with a port) names this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None if host.matches(':').count() == 1 => host.split(':').next().unwrap_or(host),
        None => host,
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn origin(host: &str) -> String {
    if host == DOCKER_HUB { DOCKER_HUB_API.to_owned() } else { host.to_owned() }
}

fn docker_certs(folder: &Path) -> Trust {
    let mut trust = Trust::default();
    let Ok(entries) = std::fs::read_dir(folder) else { return trust };
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trust.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                trust.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    trust
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(default)]
    host: HashMap<String, toml::Spanned<Server>>,
    #[serde(flatten)]
    settings: Server,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Server {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    header: HashMap<String, OneOrMany>,
    override_path: bool,
    #[serde(skip)]
    trust: Option<Trust>,
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn iter(&self) -> std::slice::Iter<'_, String> {
        match self {
            Self::One(one) => std::slice::from_ref(one).iter(),
            Self::Many(many) => many.iter(),
        }
    }
}

#[derive(Deserialize, Clone)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

fn parse(text: &str, host: &str, folder: &Path, plain: Option<bool>) -> Result<Vec<Upstream>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    // Mirrors are tried in the order of the file, which the map has lost and the spans have kept.
    let mut mirrors: Vec<_> = file.host.into_iter().collect();
    mirrors.sort_by_key(|(_, server)| server.span().start);
    let mut all = Vec::new();
    for (url, server) in mirrors {
        all.push(server.get_ref().upstream(&url, host, folder, plain)?);
    }
    let server = file.server.filter(|server| !server.is_empty()).unwrap_or_else(|| origin(host));
    let last = file.settings.upstream(&server, host, folder, plain)?;
    if !all.iter().any(|mirror| mirror.base == last.base) {
        all.push(last);
    }
    Ok(all)
}

impl Server {
    fn upstream(
        &self,
        url: &str,
        host: &str,
        folder: &Path,
        plain: Option<bool>,
    ) -> Result<Upstream, String> {
        let trust = match &self.trust {
            Some(trust) => trust.clone(),
            None => self.trust(folder)?,
        };
        let with_scheme = if url.contains("://") {
            url.to_owned()
        } else {
            let authority = url.split('/').next().unwrap_or(url);
            // Who gives certificates wants TLS, on loopback too.
            let bare = is_loopback(authority) && trust == Trust::default();
            let scheme = if plain.unwrap_or(bare) { "http" } else { "https" };
            format!("{scheme}://{url}")
        };
        let mut base: Url = with_scheme.parse().map_err(|error| format!("{url:?} is no URL: {error}"))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(format!("{url:?} is no http or https URL of a registry"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(format!("the URL of a server of {host} holds a password; use `docker login`"));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        let path = if self.override_path || path.ends_with("/v2") { path } else { path + "/v2" };
        base.set_path(&path);
        base.set_query(None);
        base.set_fragment(None);
        Ok(Upstream { base, capabilities: self.capabilities()?, headers: self.headers()?, trust })
    }

    fn capabilities(&self) -> Result<Capabilities, String> {
        let Some(names) = self.capabilities.as_ref().filter(|names| !names.is_empty()) else {
            return Ok(Capabilities { pull: true, resolve: true, push: true });
        };
        let mut out = Capabilities { pull: false, resolve: false, push: false };
        for name in names {
            match name.to_ascii_lowercase().as_str() {
                "pull" => out.pull = true,
                "resolve" => out.resolve = true,
                "push" => out.push = true,
                // Known to newer containerd; reading referrers comes with pull here.
                "referrers" | "dial" => {}
                other => {
                    return Err(format!("unknown capability {other:?}: pull, resolve and push are known"));
                }
            }
        }
        Ok(out)
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let mut out = HeaderMap::new();
        for (name, values) in &self.header {
            let bad = || format!("header {name:?} or its value is not allowed in HTTP");
            let key: HeaderName = name.parse().map_err(|_| bad())?;
            for value in values.iter() {
                let mut value: HeaderValue = value.parse().map_err(|_| bad())?;
                value.set_sensitive(true);
                out.append(&key, value);
            }
        }
        Ok(out)
    }

    fn trust(&self, folder: &Path) -> Result<Trust, String> {
        let path = |name: &String| folder.join(name);
        let mut client = Vec::new();
        match &self.client {
            None => {}
            Some(Client::One(file)) => client.push((path(file), None)),
            Some(Client::Many(pairs)) => {
                for pair in pairs {
                    match pair.iter().collect::<Vec<_>>()[..] {
                        [both] => client.push((path(both), None)),
                        [cert, key] => client.push((path(cert), (!key.is_empty()).then(|| path(key)))),
                        _ => return Err("client must list files or pairs of certificate and key".to_owned()),
                    }
                }
            }
        }
        let ca = self.ca.iter().flat_map(OneOrMany::iter).map(path).collect();
        Ok(Trust { ca, client, skip_verify: self.skip_verify.unwrap_or(false) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(upstreams: &[Upstream]) -> Vec<&str> {
        upstreams.iter().map(|upstream| upstream.base.as_str()).collect()
    }

    #[test]
    fn hosts_toml_of_containerds_documentation() {
        let text = r#"
            server = "https://registry-1.docker.io"
            ca = "/etc/certs/origin.pem"

            [host."https://public-mirror.example.com"]
              capabilities = ["pull"]
            [host."https://docker-mirror.internal"]
              capabilities = ["pull", "resolve"]
              ca = ["docker-mirror.crt", "two.crt"]
              client = [["client.cert", "client.key"], ["both.pem", ""]]
              skip_verify = true
              [host."https://docker-mirror.internal".header]
                x-custom-2 = ["value1", "value2"]
            [host."http://a-last.example:8080/v2/mirror"]
              override_path = true
        "#;
        let all = parse(text, DOCKER_HUB, Path::new("/c"), None).unwrap();
        let expected = [
            "https://public-mirror.example.com/v2",
            "https://docker-mirror.internal/v2",
            "http://a-last.example:8080/v2/mirror",
            "https://registry-1.docker.io/v2",
        ];
        assert_eq!(bases(&all), expected);
        assert_eq!(all[0].capabilities, Capabilities { pull: true, resolve: false, push: false });
        assert_eq!(all[1].trust.ca, [PathBuf::from("/c/docker-mirror.crt"), "/c/two.crt".into()]);
        let pair = ("/c/client.cert".into(), Some("/c/client.key".into()));
        assert_eq!(all[1].trust.client, [pair, ("/c/both.pem".into(), None)]);
        assert!(all[1].trust.skip_verify && !all[3].trust.skip_verify);
        assert_eq!(all[1].headers.get_all("x-custom-2").iter().count(), 2);
        assert_eq!(all[3].trust.ca, [PathBuf::from("/etc/certs/origin.pem")]);
        assert!(!format!("{all:?}").contains("value1"));
    }

    #[test]
    fn schemes() {
        let base = |host: &str, plain| upstreams(host, &[], plain).unwrap()[0].base.to_string();
        assert_eq!(base("docker.io", None), "https://registry-1.docker.io/v2");
        assert_eq!(base("localhost:5000", None), "http://localhost:5000/v2");
        assert_eq!(base("127.9.0.1:5000", None), "http://127.9.0.1:5000/v2");
        assert_eq!(base("[::1]:5000", None), "http://[::1]:5000/v2");
        assert_eq!(base("localhost:5000", Some(false)), "https://localhost:5000/v2");
        assert_eq!(base("q.example", Some(true)), "http://q.example/v2");
        assert_eq!(base("q.example", None), "https://q.example/v2");
    }

    #[test]
    fn bad_files_are_told() {
        for text in
            ["server = 1", "x", "[host.\"ftp://a\"]", "[host.\"https://a\"]\ncapabilities = [\"fly\"]"]
        {
            assert!(parse(text, "a.example", Path::new("/"), None).is_err(), "{text}");
        }
    }
}

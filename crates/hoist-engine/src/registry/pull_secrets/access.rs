//! The way to a cluster's API server: a kubeconfig file, or what every pod is given.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::AUTHORIZATION;
use reqwest::{Certificate, Identity, Url};
use serde::Deserialize;

use crate::registry::auth;
use crate::registry::error::cause;
use crate::registry::secret::Secret;
use crate::registry::tls;

const LIMIT: Duration = Duration::from_secs(10);
/// What a pod finds (Kubernetes' "Accessing the API from a Pod").
const OF_THE_POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where a cluster is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cluster {
    /// That of the pod this program runs in.
    OfThePod,
    /// The one a kubeconfig file names as the current one.
    Kubeconfig(PathBuf),
}

pub(super) struct Access {
    server: Url,
    client: reqwest::Client,
    token: Token,
}

/// What is shown to the server beside a certificate.
enum Token {
    None,
    Known(Secret),
    /// Renewed by somebody else.
    File(PathBuf),
}

impl Access {
    pub(super) fn of(cluster: &Cluster) -> Result<Access, String> {
        match cluster {
            Cluster::OfThePod => of_the_pod(),
            Cluster::Kubeconfig(file) => {
                of_kubeconfig(file).map_err(|what| format!("{}: {what}", file.display()))
            }
        }
    }

    pub(super) fn server(&self) -> &str {
        self.server.as_str()
    }

    /// The body of a resource.
    pub(super) async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<Vec<u8>, String> {
        let mut url = self.server.clone();
        url.set_path(path);
        url.query_pairs_mut().extend_pairs(query);
        let server = &self.server;
        let mut request = self.client.get(url);
        let token = match &self.token {
            Token::None => None,
            Token::Known(token) => Some(token.clone()),
            Token::File(file) => {
                let text = tokio::fs::read_to_string(file).await;
                let text = text.map_err(|e| format!("reading the token {}: {e}", file.display()))?;
                Some(Secret::new(text.trim()))
            }
        };
        if let Some(token) = token {
            let header = auth::sensitive(&format!("Bearer {}", token.expose()));
            request = request.header(AUTHORIZATION, header.ok_or("the token is none that could be sent")?);
        }
        let broken = |error| format!("asking {server} for pull secrets: {}", cause(error));
        let mut response = request.send().await.map_err(broken)?;
        if !response.status().is_success() {
            let status = response.status();
            let advice = match status.as_u16() {
                401 | 403 => "; its account must be allowed to list secrets",
                _ => "",
            };
            return Err(format!("asking {server} for pull secrets: it answered {status}{advice}"));
        }
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(broken)? {
            if body.len() + piece.len() > limit {
                return Err(format!("{server} sent more than {limit} bytes of pull secrets"));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }
}

fn client(ca: Option<Vec<u8>>, identity: Option<Vec<u8>>) -> Result<reqwest::Client, String> {
    let mut builder = tls::builder(LIMIT).timeout(LIMIT).https_only(true).no_proxy();
    if let Some(ca) = ca {
        let ca = Certificate::from_pem_bundle(&ca).map_err(|_| "its authority is no PEM certificate")?;
        builder = builder.tls_certs_only(ca);
    }
    if let Some(pem) = identity {
        let identity = Identity::from_pem(&pem);
        builder = builder.identity(identity.map_err(|_| "the user's certificate and key are no PEM")?);
    }
    builder.build().map_err(|error| format!("cannot set up HTTPS: {}", cause(error)))
}

fn of_the_pod() -> Result<Access, String> {
    let variable = |name| {
        std::env::var(name)
            .map_err(|_| format!("{name} is not set: this is no pod; name a kubeconfig instead"))
    };
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let server =
        format!("https://{host}:{port}").parse().map_err(|_| "KUBERNETES_SERVICE_HOST is no host")?;
    let ca = file(Path::new(OF_THE_POD), "ca.crt")?;
    let token = Token::File(Path::new(OF_THE_POD).join("token"));
    Ok(Access { server, client: client(Some(ca), None)?, token })
}

fn file(folder: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = folder.join(name);
    std::fs::read(&path).map_err(|error| format!("reading {}: {error}", path.display()))
}

/// The part of a kubeconfig (Kubernetes' client-go clientcmd/api/v1) that says how to reach a server.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Server,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Server {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    username: Option<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

fn of_kubeconfig(path: &Path) -> Result<Access, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    // The parser's words may quote what holds a secret.
    let config: Kubeconfig = serde_saphyr::from_str(&text).map_err(|error| {
        let place = error.location().map(|at| format!(" at line {}", at.line())).unwrap_or_default();
        format!("it is no kubeconfig{place}")
    })?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let named = |what, name: &str| format!("there is no {what} {name:?} in it");
    let current = &config.current_context;
    let context = config.contexts.iter().find(|one| one.name == *current);
    let context = &context.ok_or_else(|| named("context", current))?.context;
    let cluster = config.clusters.iter().find(|one| one.name == context.cluster);
    let cluster = &cluster.ok_or_else(|| named("cluster", &context.cluster))?.cluster;
    let nobody = User::default();
    let user = match context.user.as_str() {
        "" => &nobody,
        name => &config.users.iter().find(|one| one.name == name).ok_or_else(|| named("user", name))?.user,
    };
    if user.exec.is_some() || user.auth_provider.is_some() || user.username.is_some() {
        return Err(format!(
            "user {:?} has a program or a password: only a token or a client certificate can be used here",
            context.user
        ));
    }
    let server: Url = cluster.server.parse().map_err(|_| "its server is no URL")?;
    if server.scheme() != "https" {
        return Err("its server is not reached by https".to_owned());
    }
    let ca =
        part(folder, cluster.certificate_authority_data.as_ref(), cluster.certificate_authority.as_ref())?;
    let certificate = part(folder, user.client_certificate_data.as_ref(), user.client_certificate.as_ref())?;
    let key = part(folder, user.client_key_data.as_ref(), user.client_key.as_ref())?;
    let identity = certificate.map(|certificate| [certificate, key.unwrap_or_default()].join(&b'\n'));
    let token = match (&user.token, &user.token_file) {
        (Some(token), _) => Token::Known(Secret::new(token)),
        (None, Some(name)) => Token::File(folder.join(name)),
        (None, None) => Token::None,
    };
    Ok(Access { server, client: client(ca, identity)?, token })
}

/// What stands in the file itself, or in one that it names.
fn part(folder: &Path, data: Option<&String>, name: Option<&String>) -> Result<Option<Vec<u8>>, String> {
    match (data, name) {
        (Some(data), _) => BASE64.decode(data).map(Some).map_err(|_| "its data are no base64".to_owned()),
        (None, Some(name)) => file(folder, name).map(Some),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        std::fs::write(&file, text).unwrap();
        Access::of(&Cluster::Kubeconfig(file)).err().unwrap_or_default()
    }

    #[test]
    fn a_wrong_kubeconfig_is_explained_without_what_it_holds() {
        let good = "\
apiVersion: v1
kind: Config
current-context: node
contexts: [{name: node, context: {cluster: here, user: hoist}}]
clusters: [{name: here, cluster: {server: \"https://127.0.0.1:6443\"}}]
users: [{name: hoist, user: {token: hunter2}}]
";
        assert_eq!(error(good), "");
        for (from, to, said) in [
            ("current-context: node", "current-context: other", "no context \"other\""),
            ("name: here, cluster", "name: there, cluster", "no cluster \"here\""),
            ("name: hoist", "name: someone", "no user \"hoist\""),
            ("https:", "http:", "not reached by https"),
            ("token: hunter2", "exec: {command: aws}", "only a token or a client certificate"),
            ("token: hunter2", "token: [hunter2", "no kubeconfig"),
            ("token: hunter2", "client-certificate-data: hunter2", "no base64"),
        ] {
            let error = error(&good.replace(from, to));
            assert!(error.contains(said) && !error.contains("hunter2"), "{to}: {error}");
        }
    }
}

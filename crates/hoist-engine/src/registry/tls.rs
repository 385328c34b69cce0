//! HTTP clients per trust setting: system roots plus the CAs of hosts.toml, ring as provider.
//! Redirects, retries and decompression are off: the first two are handled here, and a blob's
//! bytes must arrive as they are.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::{Certificate, Identity, Url};

use super::config::Timeouts;
use super::error::cause;
use super::hosts::{Trust, is_loopback};

/// The clients of one server, made when first needed: reading the system's roots costs
/// milliseconds that plain HTTP does not need.
pub(super) struct Http {
    trust: Trust,
    connect: Duration,
    loopback: OnceLock<reqwest::Client>,
    plain: OnceLock<reqwest::Client>,
    tls: OnceLock<reqwest::Client>,
}

impl Http {
    pub(super) fn new(trust: Trust, timeouts: &Timeouts) -> Self {
        let connect = timeouts.connect;
        Self { trust, connect, loopback: OnceLock::new(), plain: OnceLock::new(), tls: OnceLock::new() }
    }

    /// The client for `url`; as in containerd, a redirect is followed with the trust settings of
    /// the server that gave it.
    pub(super) fn client(&self, url: &Url) -> Result<&reqwest::Client, String> {
        if url.scheme() == "https" {
            return self.get(&self.tls, || self.build_tls());
        }
        let bare = || builder(self.connect).tls_certs_only(std::iter::empty());
        // Proxies are for the world outside (Go's net/http does likewise).
        if url.host_str().is_some_and(is_loopback) {
            return self.get(&self.loopback, || build(bare().no_proxy()));
        }
        self.get(&self.plain, || build(bare()))
    }

    fn get<'a>(
        &self,
        slot: &'a OnceLock<reqwest::Client>,
        make: impl FnOnce() -> Result<reqwest::Client, String>,
    ) -> Result<&'a reqwest::Client, String> {
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let made = make()?;
        Ok(slot.get_or_init(|| made))
    }

    fn build_tls(&self) -> Result<reqwest::Client, String> {
        let mut builder = builder(self.connect).tls_danger_accept_invalid_certs(self.trust.skip_verify);
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let mut roots = Vec::new();
        // Some faults show only when all is put together.
        let mut names: Vec<_> = self.trust.ca.iter().map(|path| path.display().to_string()).collect();
        for path in &self.trust.ca {
            let bundle = Certificate::from_pem_bundle(&read(path)?);
            let bundle =
                bundle.map_err(|error| format!("{} is no certificate: {}", path.display(), cause(error)))?;
            if bundle.is_empty() {
                return Err(format!("{} holds no PEM certificate", path.display()));
            }
            roots.extend(bundle);
        }
        if !roots.is_empty() {
            builder = builder.tls_certs_merge(roots);
        }
        // rustls shows one certificate; containerd, given more, picks by what the server accepts.
        if let Some((certificate, key)) = self.trust.client.first() {
            let mut pem = read(certificate)?;
            if let Some(key) = key {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            let identity = Identity::from_pem(&pem);
            let identity = identity.map_err(|error| {
                format!("{} and its key are no PEM that can be used: {}", certificate.display(), cause(error))
            })?;
            builder = builder.identity(identity);
            names.push(format!("{} and its key", certificate.display()));
        }
        build(builder).map_err(|error| match &names[..] {
            [] => error,
            names => format!("{} cannot be used: {error}", names.join(" or ")),
        })
    }
}

/// What all clients have in common.
pub(super) fn builder(connect: Duration) -> reqwest::ClientBuilder {
    // Fails when another part of the program has chosen a provider, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("hoist/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(connect)
        .pool_max_idle_per_host(32)
        .tcp_nodelay(true)
        .http2_adaptive_window(true)
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, String> {
    builder.build().map_err(|error| format!("cannot set up HTTP: {}", cause(error)))
}

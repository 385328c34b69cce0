//! The daemon's metrics, each named once in [`METRICS`], and the HTTP endpoint that tells them.
//!
//! What labels may be is fixed: the number of metrics does not grow with images, mounts or registries.
//! `docs/METRICS.md` is made from the table.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use hoist_engine::counters::{Counters, WAIT_BOUNDS, Waits};
use hoist_engine::{Engine, LayerStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::mounts::Mounts;
use super::prepared::Prepared;
use super::settings::MetricsAt;

/// A metric. OpenMetrics adds `_total` to the names of counters.
pub struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
}

enum Kind {
    Counter(fn(&Engine) -> u64),
    Gauge(fn(&Now) -> u64),
    /// One for each state of layers.
    Layers,
    Waits,
    /// One for each outcome of what containerd wanted.
    Prepared,
    PrepareTimes,
    /// One for each source of bytes.
    Sources,
}

/// What is counted at each asking.
struct Now {
    mounts: u64,
    others: u64,
    disk_bytes: u64,
    layers: Vec<LayerStatus>,
}

fn load(of: fn(&Counters) -> &AtomicU64, engine: &Engine) -> u64 {
    of(engine.counters()).load(Relaxed)
}

/// All of them, in the order of the documentation.
pub const METRICS: &[Metric] = &[
    Metric {
        name: "hoist_registry_requests",
        help: "HTTP requests sent to registries; redirects, token requests and repeats count one each.",
        kind: Kind::Counter(|engine| engine.totals().requests()),
    },
    Metric {
        name: "hoist_registry_retries",
        help: "Requests that were repeated because the one before had failed.",
        kind: Kind::Counter(|engine| engine.totals().retries()),
    },
    Metric {
        name: "hoist_wire_bytes",
        help: "Bytes of bodies received from registries.",
        kind: Kind::Counter(|engine| engine.totals().wire_bytes()),
    },
    Metric {
        name: "hoist_demand_bytes",
        help: "Bytes that readers of mounts asked for and had to wait for.",
        kind: Kind::Counter(|engine| load(|counters| &counters.demand_bytes, engine)),
    },
    Metric {
        name: "hoist_demand_failures",
        help: "Reads of mounts that failed: what they wanted could not be had, or not in time.",
        kind: Kind::Counter(|engine| load(|counters| &counters.failed_reads, engine)),
    },
    Metric {
        name: "hoist_slow_reads",
        help: "Reads of mounts that waited half a second or longer; the log and `hoist why` tell of each, with the file, \
               the server that served it and what went wrong meanwhile.",
        kind: Kind::Counter(|engine| load(|counters| &counters.slow_reads, engine)),
    },
    Metric {
        name: "hoist_demand_wait_seconds",
        help: "How long reads of mounts had to wait. Its count is the number of reads that did (stalls).",
        kind: Kind::Waits,
    },
    Metric {
        name: "hoist_source_bytes",
        help: "Bytes of layers by where they came from: a registry or a mirror of it (network), or other layers of this \
               store (store).",
        kind: Kind::Sources,
    },
    Metric {
        name: "hoist_snapshot_layers",
        help: "Layers that containerd wanted to have without unpacking them: mounted before they are here (lazy), after their \
               image was pulled whole (full), or left to containerd (fallback): the image can't be read lazily \
               (not_lazy), its registry refuses (denied) or does not tell (registry), it is another image than was \
               said (mismatch), it could not be pulled (pull) or mounted (mount). The log and `hoist why` tell more.",
        kind: Kind::Prepared,
    },
    Metric {
        name: "hoist_snapshot_prepare_seconds",
        help: "How long each of these took, a pull of the whole image included.",
        kind: Kind::PrepareTimes,
    },
    Metric {
        name: "hoist_extents_published",
        help: "Extents that were fetched, found right and made readable.",
        kind: Kind::Counter(|engine| load(|counters| &counters.published_extents, engine)),
    },
    Metric {
        name: "hoist_published_bytes",
        help: "Bytes of these extents.",
        kind: Kind::Counter(|engine| load(|counters| &counters.published_bytes, engine)),
    },
    Metric {
        name: "hoist_digest_failures",
        help: "Extents that came with another digest than the index has, and were not shown.",
        kind: Kind::Counter(|engine| load(|counters| &counters.digest_failures, engine)),
    },
    Metric {
        name: "hoist_mounts",
        help: "Images that this process has mounted now.",
        kind: Kind::Gauge(|now| now.mounts),
    },
    Metric {
        name: "hoist_other_mounts",
        help: "Images of the store that other processes serve: successors of earlier daemons, and commands that do \
               without it.",
        kind: Kind::Gauge(|now| now.others),
    },
    Metric {
        name: "hoist_layers",
        help: "Layers of these mounts by state: lazy (some of it absent), complete (all here, not yet checked as a \
               whole), verified (blob digest and diffID checked), condemned (out of service).",
        kind: Kind::Layers,
    },
    Metric {
        name: "hoist_store_bytes",
        help: "What images and layers take in the store, on disk.",
        kind: Kind::Gauge(|now| now.disk_bytes),
    },
];

type IsIn = fn(&LayerStatus) -> bool;

/// The states of layers, each layer in one.
const STATES: [(&str, IsIn); 4] = [
    ("lazy", |layer| layer.condemned.is_none() && !layer.complete && !layer.verified),
    ("complete", |layer| layer.condemned.is_none() && layer.complete && !layer.verified),
    ("verified", |layer| layer.condemned.is_none() && layer.verified),
    ("condemned", |layer| layer.condemned.is_some()),
];

/// Reads the daemon's state at each asking.
#[derive(Clone)]
pub struct Source {
    /// Any of the daemon's engines.
    pub engine: Engine,
    /// Its mounts.
    pub mounts: Arc<Mounts>,
    /// What became of containerd's layers.
    pub prepared: Arc<Prepared>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl Source {
    fn now(&self) -> Now {
        let mounts = self.mounts.all();
        let mut layers: Vec<_> = mounts.iter().flat_map(|served| served.layers()).collect();
        // Several mounts may show one layer.
        layers.sort_by_key(|layer| (layer.digest, layer.complete, layer.verified));
        layers.dedup_by_key(|layer| (layer.digest, layer.complete, layer.verified));
        Now {
            mounts: mounts.len() as u64,
            others: super::status::of_others(&self.engine),
            disk_bytes: self.engine.store().disk_bytes(),
            layers,
        }
    }

    fn text(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = self.now();
        for metric in METRICS {
            let kind = match metric.kind {
                Kind::Counter(_) | Kind::Prepared | Kind::Sources => MetricType::Counter,
                Kind::Gauge(_) | Kind::Layers => MetricType::Gauge,
                Kind::Waits | Kind::PrepareTimes => MetricType::Histogram,
            };
            let mut line = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            match metric.kind {
                Kind::Counter(count) => {
                    line.encode_counter::<NoLabelSet, u64, u64>(&count(&self.engine), None)?
                }
                Kind::Gauge(of) => line.encode_gauge(&of(&now))?,
                Kind::Layers => {
                    for (state, is) in STATES {
                        let count = now.layers.iter().filter(|layer| is(layer)).count() as u64;
                        line.encode_family(&[("state", state)])?.encode_gauge(&count)?;
                    }
                }
                Kind::Waits => encode(&mut line, &self.engine.counters().waits())?,
                Kind::Prepared => {
                    for (outcome, reason, count) in self.prepared.counts() {
                        line.encode_family(&[("outcome", outcome), ("reason", reason)])?
                            .encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
                    }
                }
                Kind::PrepareTimes => encode(&mut line, &self.prepared.times())?,
                Kind::Sources => {
                    let sources = [
                        ("network", self.engine.totals().wire_bytes()),
                        ("store", self.engine.copied_bytes()),
                    ];
                    for (source, bytes) in sources {
                        line.encode_family(&[("source", source)])?
                            .encode_counter::<NoLabelSet, u64, u64>(&bytes, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn encode(line: &mut MetricEncoder<'_>, times: &Waits) -> Result<(), fmt::Error> {
    let bounds = WAIT_BOUNDS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(times.counts).collect();
    line.encode_histogram::<NoLabelSet>(times.sum, times.counts.iter().sum(), &buckets, None)
}

/// `docs/METRICS.md`.
#[cfg(test)]
fn page() -> String {
    let mut page = "\
# Metrics

`hoist daemon` serves them in OpenMetrics text at `/metrics` where `metrics` in its [configuration](CONFIG.md) says so;
by default it does not. They tell of the daemon's process: of the mounts it serves and of what it fetched since it
started. Their number is fixed: no image, mount, layer or registry is a label.

This page is made from the table in `crates/hoist/src/daemon/metrics.rs`.

| name | type | what |
|---|---|---|
"
    .to_owned();
    for metric in METRICS {
        let (name, kind) = match metric.kind {
            Kind::Counter(_) => (format!("`{}_total`", metric.name), "counter"),
            Kind::Gauge(_) => (format!("`{}`", metric.name), "gauge"),
            Kind::Layers => {
                let states: Vec<_> = STATES.iter().map(|(state, _)| format!("`{state}`")).collect();
                (format!("`{}`, by `state`: {}", metric.name, states.join(", ")), "gauge")
            }
            Kind::Waits | Kind::PrepareTimes => (format!("`{}`", metric.name), "histogram"),
            Kind::Prepared => {
                (format!("`{}_total`, by {}", metric.name, super::prepared::labels()), "counter")
            }
            Kind::Sources => (format!("`{}_total`, by `source`: `network`, `store`", metric.name), "counter"),
        };
        page.push_str(&format!("| {name} | {kind} | {} |\n", metric.help));
    }
    page
}

/// Requests that are served at once, the bytes one may have, and the time it may take.
const AT_ONCE: usize = 8;
const MAX_REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// A bound place where metrics can be asked for.
pub enum Endpoint {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Endpoint {
    /// Takes the place.
    ///
    /// # Errors
    /// It can't be had: the user's to mend.
    pub async fn bind(at: &MetricsAt) -> anyhow::Result<Endpoint> {
        match at {
            MetricsAt::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                Ok(Endpoint::Tcp(listener.with_context(|| format!("serving metrics on {address}"))?))
            }
            MetricsAt::Unix(path) => {
                remove_socket(path).with_context(|| format!("serving metrics on {}", path.display()))?;
                let listener = UnixListener::bind(path);
                Ok(Endpoint::Unix(
                    listener.with_context(|| format!("serving metrics on {}", path.display()))?,
                ))
            }
        }
    }

    /// The address that it has: the system chose the port where 0 was asked for.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Endpoint::Tcp(listener) => listener.local_addr().ok(),
            Endpoint::Unix(_) => None,
        }
    }

    /// Answers for ever.
    pub async fn serve(self, source: Source) {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let source = source.clone();
            let accepted = match &self {
                Endpoint::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move { (answer_in_time(stream, source).await, slot) });
                }),
                Endpoint::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    tokio::spawn(async move { (answer_in_time(stream, source).await, slot) });
                }),
            };
            if let Err(error) = accepted {
                tracing::warn!("accepting a request for metrics: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What a dead daemon left; nothing else.
fn remove_socket(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match path.symlink_metadata() {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

async fn answer_in_time(stream: impl AsyncReadExt + AsyncWriteExt + Unpin, source: Source) {
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, answer(stream, source)).await {
        tracing::debug!("answering a request for metrics: {error}");
    }
}

/// HTTP/1.1, one request a connection (RFC 9112).
async fn answer(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, source: Source) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let (status, kind, body) = match words[..] {
        [b"GET", b"/metrics", _] => {
            // Counting what the store takes reads its folders.
            let text = tokio::task::spawn_blocking(move || source.text()).await;
            let text = text.map_err(io::Error::other)?.map_err(io::Error::other)?;
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
        }
        [b"GET", ..] => ("404 Not Found", "text/plain", "metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET is understood\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/METRICS.md");
        if std::env::var_os("HOIST_BLESS").is_some() {
            std::fs::write(&path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), page(), "HOIST_BLESS=1 renews it");
    }

    #[test]
    fn every_metric_is_told_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(hoist_engine::Config::new(dir.path())).unwrap();
        let text = Source { engine, mounts: Arc::default(), prepared: Arc::default() }.text().unwrap();
        let told: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let named: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(told, named);
        assert!(text.contains("hoist_layers{state=\"condemned\"} 0\n"), "{text}");
        assert!(text.contains("hoist_demand_wait_seconds_bucket{le=\"+Inf\"} 0\n"), "{text}");
        let fallback = "hoist_snapshot_layers_total{outcome=\"fallback\",reason=\"denied\"} 0\n";
        assert!(text.contains(fallback), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}

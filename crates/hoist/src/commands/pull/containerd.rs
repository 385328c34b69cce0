//! `hoist pull --containerd`: what `ctr pull` makes, but for the layers' blobs: a record of the image, its manifest and
//! configuration, and its layers as snapshots that nobody unpacks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hoist_engine::reference::{Reference, Source};
use hoist_engine::registry::to_rfc3339;
use hoist_engine::{Engine, Image, Progress, Stats};
use hoist_format::digest::Digest;
use hoist_snapshotter::{Channel, Client, ClientError, Content, Labels, Layer};
use serde_json::{Value, json};

use crate::cli::{Global, Pull};
use crate::failure::{user, user_hint};

/// How long what is made stays if this program is killed, as with containerd's own clients.
const LEASE: Duration = Duration::from_secs(24 * 3600);
/// Labels by which containerd's garbage collection goes from one thing to the next (its docs/garbage-collection.md),
/// and by which it knows where a blob is from.
const REFERS: &str = "containerd.io/gc.ref";
const SOURCE: &str = "containerd.io/distribution.source";

pub(super) async fn pull(global: &Global, options: &Pull, progress: &dyn Progress) -> anyhow::Result<Value> {
    let Source::Registry(reference) = options.image.parse().map_err(hoist_engine::Error::from)? else {
        return Err(user(format!("{} is in no registry, from which containerd's images are", options.image)));
    };
    // With the login of whoever asks, which the daemon has not.
    let engine = crate::engine_glue::open(global)?;
    let name = reference.to_string();
    let was_known = engine.store().lookup(&name).is_some();
    let pulled = make(&engine, &reference, options, progress).await;
    // From here on it is the snapshots' image, and goes with them.
    if !was_known {
        let _ = engine.remove(&name);
    }
    pulled
}

async fn make(
    engine: &Engine,
    reference: &Reference,
    options: &Pull,
    progress: &dyn Progress,
) -> anyhow::Result<Value> {
    let began = Instant::now();
    let channel = Channel::new(&options.address);
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LEASE;
    let client = Client::begin(channel, &options.namespace, &to_rfc3339(until.as_secs())).await;
    let client = client.map_err(|error| unreachable(error, options))?;
    let work = async {
        let image = engine.resolve(&reference.to_string()).await?;
        let here = engine.is_all_here(&image.digest);
        let lazy = !here && !options.full && engine.mounts_at_once(&image).await;
        if !lazy {
            // Here, so that it is told what is fetched: the snapshotter would do so else.
            engine.pull(&image, progress).await?;
        }
        describe(engine, &client, reference, &image, &options.snapshotter).await?;
        layers(&client, &image, options).await?;
        let (kind, size) = (&image.manifest.media_type, image.manifest_bytes.len());
        let kind = kind.as_deref().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        client.name(&reference.to_string(), kind, &image.digest.to_string(), size).await?;
        Ok(json!({
            "image": reference.to_string(),
            "digest": image.digest,
            "namespace": options.namespace,
            "snapshotter": options.snapshotter,
            "layers": image.manifest.layers.len(),
            "lazy": lazy,
            "stats": Stats::of_client(engine.totals(), began.elapsed()),
        }))
    };
    let made: anyhow::Result<Value> = work.await;
    let ended = client.end().await;
    let made = made?;
    ended?;
    Ok(made)
}

/// Manifest and configuration, with the labels by which the one holds the other and that the snapshots.
async fn describe(
    engine: &Engine,
    client: &Client,
    reference: &Reference,
    image: &Image,
    snapshotter: &str,
) -> anyhow::Result<()> {
    let stored = engine.store().image(&image.digest).load(&image.digest);
    let (manifest, config) =
        stored.ok_or_else(|| user(format!("{reference} was taken out of the store meanwhile")))?;
    let source = (format!("{SOURCE}.{}", reference.repo.host), reference.repo.name.clone());
    let mut refers = Labels::from([
        source.clone(),
        (format!("{REFERS}.content.config"), image.manifest.config.digest.to_string()),
    ]);
    for (i, layer) in image.manifest.layers.iter().enumerate() {
        refers.insert(format!("{REFERS}.content.l.{i}"), layer.digest.to_string());
    }
    client.keep(Content { digest: image.digest.to_string(), bytes: manifest, labels: refers }).await?;
    let top = image.chain_ids().last().map(Digest::to_string).unwrap_or_default();
    let refers = Labels::from([source, (format!("{REFERS}.snapshot.{snapshotter}"), top)]);
    client
        .keep(Content { digest: image.manifest.config.digest.to_string(), bytes: config, labels: refers })
        .await?;
    Ok(())
}

async fn layers(client: &Client, image: &Image, options: &Pull) -> anyhow::Result<()> {
    let mut parent = String::new();
    for chain in image.chain_ids() {
        let layer = Layer {
            chain: chain.to_string(),
            parent: std::mem::replace(&mut parent, chain.to_string()),
            image: image.name.clone(),
            manifest: image.digest.to_string(),
        };
        let had = client.have(&options.snapshotter, &layer).await;
        if !had.map_err(|error| unknown(error, options))? {
            return Err(user_hint(
                format!("the snapshotter {} would have to unpack layer {}", options.snapshotter, layer.chain),
                "is it hoist's, on this store? Its log tells why (\"remote-snapshot-prepared\":\"false\")",
            ));
        }
    }
    Ok(())
}

fn unknown(error: ClientError, options: &Pull) -> anyhow::Error {
    match error.is_unknown_snapshotter() {
        true => user_hint(
            error.to_string(),
            format!(
                "what does containerd's configuration call hoist's snapshotter (proxy_plugins)? `--snapshotter` says another name than {:?}",
                options.snapshotter
            ),
        ),
        false => error.into(),
    }
}

fn unreachable(error: ClientError, options: &Pull) -> anyhow::Error {
    match error.is_unreachable() {
        true => user_hint(
            error.to_string(),
            format!(
                "does containerd listen at {}? `--address` names another socket",
                options.address.display()
            ),
        ),
        false => error.into(),
    }
}

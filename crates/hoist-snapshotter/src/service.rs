//! The gRPC service: what containerd says, in the snapshotter's words, on threads that may wait.

use std::sync::Arc;

use prost_types::Timestamp;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::api::snapshots_server::{Snapshots, SnapshotsServer};
use crate::api::*;
use crate::error::Error;
use crate::part::{self, Images};
use crate::record::{self, Info as Known};
use crate::remote::Remote;
use crate::snapshotter::{Snapshotter, Standing};

/// Snapshots of one message of a list: far below gRPC's 4 MiB, with 4 KiB of each label.
const LISTED: usize = 64;

/// See the module.
#[derive(Clone)]
pub struct Service {
    snapshotter: Arc<Snapshotter>,
    images: Arc<dyn Images>,
    remote: Arc<Remote>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Serves this one, and layers of these images.
    pub fn new(snapshotter: Snapshotter, images: Arc<dyn Images>) -> Service {
        let snapshotter = Arc::new(snapshotter);
        let remote = Remote::new(Arc::clone(&snapshotter), Arc::clone(&images));
        Service { snapshotter, images, remote: Arc::new(remote) }
    }

    /// Lets go of images that no snapshot needs, as a crash may have left them.
    pub async fn cleanup(&self) {
        self.remote.cleanup().await;
    }

    /// See [`Snapshotter::standing`].
    ///
    /// # Errors
    /// The records can't be read.
    pub async fn standing(&self, name: &str) -> Result<Option<Standing>, Error> {
        let name = name.to_owned();
        self.ask(move |snapshotter| snapshotter.standing(&name)).await
    }

    /// See [`Snapshotter::unpacked_bytes`].
    ///
    /// # Errors
    /// The records can't be read.
    pub async fn unpacked_bytes(&self) -> Result<u64, Error> {
        self.ask(Snapshotter::unpacked_bytes).await
    }

    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Snapshotter) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let snapshotter = Arc::clone(&self.snapshotter);
        let asked = tokio::task::spawn_blocking(move || ask(&snapshotter)).await;
        asked.map_err(|e| Error::Internal(e.to_string()))?
    }

    /// As what a connection is served by.
    pub(crate) fn server(self) -> SnapshotsServer<Service> {
        SnapshotsServer::new(self)
    }

    /// On a thread of its own, to its end even if who asked goes away.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshotter) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshotter = Arc::clone(&self.snapshotter);
        let done = tokio::task::spawn_blocking(move || work(&snapshotter)).await;
        let done = done.map_err(|e| Status::internal(format!("a request's thread died: {e}")))?;
        done.map_err(told)
    }

    async fn create(
        &self,
        kind: record::Kind,
        key: String,
        parent: String,
        labels: record::Labels,
    ) -> Result<Vec<Mount>, Status> {
        let stands_on = self.remote.stand_on(&parent).await.map_err(told)?;
        if let Some((part, folder)) = &stands_on
            && part.whole
            && kind == record::Kind::Active
            && !is_unpacked(&key)
        {
            self.images.starts(part, folder);
        }
        self.work(move |snapshotter| snapshotter.create(kind, &key, &parent, labels)).await
    }

    /// Has a layer without unpacking it, if that is asked for and can be.
    async fn prepare_remote(&self, key: &str, parent: &str, labels: &record::Labels) -> Option<Status> {
        let remote = Arc::clone(&self.remote);
        let (beneath, wanted, pulls) = (parent.to_owned(), labels.clone(), is_unpacked(key));
        // Others may be waiting for it: it goes on when this client goes away.
        let prepared = tokio::spawn(async move { remote.prepare(&beneath, &wanted, pulls).await }).await;
        let target = labels.get(part::TARGET).map_or("", String::as_str);
        // By this key tests of remote snapshotters know what became of a layer.
        match prepared.unwrap_or_else(|e| Err(format!("its thread died: {e}"))) {
            Ok(false) => None,
            Ok(true) => {
                tracing::info!("remote-snapshot-prepared" = "true", key, parent, target, "prepared a layer");
                Some(Error::Exists(target.to_owned()).into())
            }
            Err(why) => {
                tracing::info!(
                    "remote-snapshot-prepared" = "false",
                    key,
                    parent,
                    target,
                    "containerd is to unpack a layer: {why}"
                );
                None
            }
        }
    }
}

/// Is it for a layer that containerd pulls and would unpack (its core/snapshots/snapshotter.go, `UnpackKeyPrefix`), and for
/// no container?
/// Namespace and number come before its own name of a snapshot.
fn is_unpacked(key: &str) -> bool {
    key.rsplit('/').next().is_some_and(|own| own.starts_with("extract-"))
}

/// Says it here too, if it is no matter between containerd and the records.
fn told(error: Error) -> Status {
    match error {
        Error::NotFound(_) | Error::Exists(_) | Error::Precondition(_) | Error::Invalid(_) => {
            tracing::debug!("{error}");
        }
        _ => tracing::error!("{error}"),
    }
    error.into()
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(&self, request: Request<PrepareSnapshotRequest>) -> Answer<PrepareSnapshotResponse> {
        let PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        if let Some(exists) = self.prepare_remote(&key, &parent, &labels).await {
            return Err(exists);
        }
        let mounts = self.create(record::Kind::Active, key, parent, labels).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Answer<ViewSnapshotResponse> {
        let ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.create(record::Kind::View, key, parent, labels).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Answer<MountsResponse> {
        let key = request.into_inner().key;
        self.remote.stand_on(&key).await.map_err(told)?;
        let mounts = self.work(move |snapshotter| snapshotter.mounts(&key)).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Answer<()> {
        let CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        self.work(move |snapshotter| snapshotter.commit(&name, &key, &parent, labels)).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        if let Some(part) = self.work(move |snapshotter| snapshotter.remove(&key)).await? {
            let remote = Arc::clone(&self.remote);
            tokio::spawn(async move { remote.let_go(&part).await });
        }
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Answer<StatSnapshotResponse> {
        let key = request.into_inner().key;
        let known = self.work(move |snapshotter| snapshotter.stat(&key)).await?;
        Ok(Response::new(StatSnapshotResponse { info: Some(known.into()) }))
    }

    async fn update(&self, request: Request<UpdateSnapshotRequest>) -> Answer<UpdateSnapshotResponse> {
        let UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = info.ok_or_else(|| Status::invalid_argument("an update names no snapshot"))?;
        let fields = update_mask.unwrap_or_default().paths;
        let known =
            self.work(move |snapshotter| snapshotter.update(&info.name, &info.labels, &fields)).await?;
        Ok(Response::new(UpdateSnapshotResponse { info: Some(known.into()) }))
    }

    type ListStream = std::pin::Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let known = self.work(move |snapshotter| snapshotter.list(&filters)).await?;
        let infos: Vec<Info> = known.into_iter().map(Info::from).collect();
        let parts: Vec<_> =
            infos.chunks(LISTED).map(|part| Ok(ListSnapshotsResponse { info: part.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Answer<UsageResponse> {
        let key = request.into_inner().key;
        let images = Arc::clone(&self.images);
        let usage = self.work(move |snapshotter| snapshotter.usage(&key, &*images)).await?;
        let number = |n| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: number(usage.size), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Answer<()> {
        self.work(Snapshotter::cleanup).await?;
        self.remote.cleanup().await;
        Ok(Response::new(()))
    }
}

impl From<Known> for Info {
    fn from(known: Known) -> Info {
        let Known { name, record } = known;
        let kind = match record.kind {
            record::Kind::View => Kind::View,
            record::Kind::Active => Kind::Active,
            record::Kind::Committed => Kind::Committed,
        };
        Info {
            name,
            parent: record.parent,
            kind: kind.into(),
            created_at: Some(timestamp(record.created)),
            updated_at: Some(timestamp(record.updated)),
            labels: record.labels,
        }
    }
}

fn timestamp(time: record::Time) -> Timestamp {
    const SECOND: u64 = 1_000_000_000;
    // Both fit: of u64 nanoseconds.
    Timestamp { seconds: (time / SECOND) as i64, nanos: (time % SECOND) as i32 }
}

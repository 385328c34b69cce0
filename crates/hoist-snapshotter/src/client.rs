//! containerd as its clients have it: contents, snapshots and images of one namespace, under a lease for as long as
//! nothing else names what is made.

use std::collections::BTreeMap;

use tokio_stream::once;
use tonic::{Code, Request, Status};

use crate::api::snapshots_client::SnapshotsClient;
use crate::api::{PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest};
use crate::channel::Channel;
use crate::part;
use crate::record::Labels;

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod api {
    pub mod content {
        include!("client/containerd.services.content.v1.rs");
    }
    pub mod images {
        include!("client/containerd.services.images.v1.rs");
    }
    pub mod leases {
        include!("client/containerd.services.leases.v1.rs");
    }
}

use api::content::content_client::ContentClient;
use api::content::{Info, UpdateRequest, WriteAction, WriteContentRequest};
use api::images::images_client::ImagesClient;
use api::images::{CreateImageRequest, Descriptor, Image, UpdateImageRequest};
use api::leases::leases_client::LeasesClient;
use api::leases::{CreateRequest, DeleteRequest};

/// Request headers of containerd (its pkg/namespaces and leases/grpc.go).
const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";
/// When a lease that nobody ended goes (its leases/lease.go), seconds from now as containerd's own clients have it.
const EXPIRES: &str = "containerd.io/gc.expire";

/// What was asked of containerd and did not come about.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: containerd says: {}", status.message())]
pub struct ClientError {
    doing: String,
    status: Status,
}

impl ClientError {
    /// Whether nobody answered at its socket.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.status.code(), Code::Unavailable | Code::Unknown)
    }

    /// Whether it knows no snapshotter of that name (its plugins/services/snapshots: "snapshotter not loaded").
    pub fn is_unknown_snapshotter(&self) -> bool {
        self.status.code() == Code::InvalidArgument && self.status.message().contains("not loaded")
    }
}

/// A blob, small enough to be sent whole.
#[derive(Debug, Clone)]
pub struct Content {
    /// Its digest.
    pub digest: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What containerd is to remember of it.
    pub labels: Labels,
}

/// A layer that is not to be unpacked.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its chain ID.
    pub chain: String,
    /// The chain ID of the one below; empty: there is none.
    pub parent: String,
    /// The image's name.
    pub image: String,
    /// The digest of its manifest.
    pub manifest: String,
}

/// One namespace of a containerd, for the making of one image.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    namespace: String,
    lease: String,
}

type Done<T> = Result<T, ClientError>;

fn failed(doing: impl Into<String>) -> impl FnOnce(Status) -> ClientError {
    let doing = doing.into();
    move |status| ClientError { doing, status }
}

impl Client {
    /// Begins; what is made from now on stays until [`Client::end`]. `until` is when containerd may end it itself, in
    /// the form of RFC 3339.
    ///
    /// # Errors
    /// containerd can't be asked.
    pub async fn begin(channel: Channel, namespace: &str, until: &str) -> Done<Client> {
        let mut client = Client { channel, namespace: namespace.to_owned(), lease: String::new() };
        let labels = [(EXPIRES.to_owned(), until.to_owned())].into();
        let request = client.request(CreateRequest { id: format!("hoist-{}", unique()), labels });
        let made = client.leases().create(request).await.map_err(failed("beginning a pull"))?;
        client.lease = made.into_inner().lease.map(|lease| lease.id).unwrap_or_default();
        Ok(client)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in [(NAMESPACE, &self.namespace), (LEASE, &self.lease)] {
            if let Some(value) =
                Some(value).filter(|value| !value.is_empty()).and_then(|value| value.parse().ok())
            {
                request.metadata_mut().insert(name, value);
            }
        }
        request
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::with_origin(self.channel.clone(), Channel::origin())
    }

    fn contents(&self) -> ContentClient<Channel> {
        ContentClient::with_origin(self.channel.clone(), Channel::origin())
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::with_origin(self.channel.clone(), Channel::origin())
    }

    /// Puts a blob into its content store, unless it is there; its labels in any case.
    ///
    /// # Errors
    /// It can't be had there.
    pub async fn keep(&self, content: Content) -> Done<()> {
        let Content { digest, bytes, labels } = content;
        let doing = || failed(format!("storing {digest}"));
        let write = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: format!("hoist-{}-{digest}", unique()),
            total: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
            expected: digest.clone(),
            offset: 0,
            data: bytes,
            labels: labels.clone(),
        };
        let request = self.request(once(write));
        let written = async {
            let mut answers = self.contents().write(request).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        };
        match written.await {
            Err(status) if Status::code(&status) != Code::AlreadyExists => return Err(doing()(status)),
            _ => {}
        }
        let paths = labels.keys().map(|name| format!("labels.{name}")).collect();
        let update = UpdateRequest {
            info: Some(Info { digest: digest.clone(), labels }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        self.contents().update(self.request(update)).await.map_err(doing())?;
        Ok(())
    }

    /// Has its snapshotter make a layer without unpacking it. False if it would have to be unpacked.
    ///
    /// # Errors
    /// There is no such snapshotter, or it fails.
    pub async fn have(&self, snapshotter: &str, layer: &Layer) -> Done<bool> {
        let doing = || failed(format!("preparing layer {} by the snapshotter {snapshotter}", layer.chain));
        let key = format!("hoist-{} {}", unique(), layer.chain);
        let request = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.clone(),
            parent: layer.parent.clone(),
            labels: part::labels(&layer.image, &layer.manifest, &layer.chain),
        };
        let snapshotter = snapshotter.to_owned();
        match self.snapshots().prepare(self.request(request)).await {
            Err(status) if status.code() == Code::AlreadyExists => {
                let request = StatSnapshotRequest { snapshotter, key: layer.chain.clone() };
                self.snapshots().stat(self.request(request)).await.map_err(doing())?;
                Ok(true)
            }
            Err(status) => Err(doing()(status)),
            Ok(_) => {
                let request = RemoveSnapshotRequest { snapshotter, key };
                self.snapshots().remove(self.request(request)).await.map_err(doing())?;
                Ok(false)
            }
        }
    }

    /// Gives a manifest a name, or a name that there is another meaning.
    ///
    /// # Errors
    /// containerd refuses.
    pub async fn name(&self, name: &str, media_type: &str, digest: &str, size: usize) -> Done<()> {
        let target = Descriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
        };
        let image = Some(Image { name: name.to_owned(), labels: BTreeMap::new(), target: Some(target) });
        let mut images = ImagesClient::with_origin(self.channel.clone(), Channel::origin());
        let made = match images.create(self.request(CreateImageRequest { image: image.clone() })).await {
            Err(status) if status.code() == Code::AlreadyExists => {
                let update_mask = Some(prost_types::FieldMask { paths: vec!["target".to_owned()] });
                images.update(self.request(UpdateImageRequest { image, update_mask })).await.map(drop)
            }
            other => other.map(drop),
        };
        made.map_err(failed(format!("recording the image {name}")))
    }

    /// What was made stays by what names it alone.
    ///
    /// # Errors
    /// The lease can't be ended: containerd ends it itself at its time.
    pub async fn end(self) -> Done<()> {
        let request = DeleteRequest { id: self.lease.clone(), sync: false };
        self.leases().delete(self.request(request)).await.map_err(failed("ending a pull"))?;
        Ok(())
    }
}

/// A name that nobody else has used.
fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

//! A CRI image service that is containerd's own, but for what it learns: the credentials that a kubelet gives with a
//! pull never reach a snapshotter otherwise.
//!
//! Requests and answers pass as they are, so that it speaks whatever versions and fields the two ends do. Only
//! `PullImage` is looked at (k8s.io/cri-api pkg/apis/runtime/v1/api.proto; v1alpha2 has the same numbers).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use prost::Message;
use tokio::net::UnixListener;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};

use crate::channel::Channel;

const SERVICES: [&str; 2] = ["/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/"];
/// A message of gRPC: as much as servers take.
const MAX_PULL: usize = 4 << 20;
/// Before each message: whether it is compressed, and its length.
const FRAME: usize = 5;

/// Who is told of credentials. They are secrets: in memory alone, and in no log.
pub trait Keychain: Send + Sync + 'static {
    /// A pull of this image was given these.
    fn given(&self, image: &str, auth: Auth);
}

/// What opens a registry. Empty is what was not given. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Message)]
#[prost(skip_debug)]
pub struct Auth {
    /// User name.
    #[prost(string, tag = "1")]
    pub username: String,
    /// Password.
    #[prost(string, tag = "2")]
    pub password: String,
    /// Base64 of `user:password`.
    #[prost(string, tag = "3")]
    pub auth: String,
    /// The registry they are for; empty: the image's.
    #[prost(string, tag = "4")]
    pub server_address: String,
    /// OAuth2 refresh token.
    #[prost(string, tag = "5")]
    pub identity_token: String,
    /// Bearer token.
    #[prost(string, tag = "6")]
    pub registry_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth([secret])")
    }
}

#[derive(Clone, PartialEq, Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
    #[prost(message, optional, tag = "2")]
    auth: Option<Auth>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

/// Serves whoever connects; never returns.
pub async fn serve_images(listener: UnixListener, containerd: Channel, keychain: Arc<dyn Keychain>) {
    crate::serve::accept(listener, "the CRI image service", Proxy { containerd, keychain }).await;
}

#[derive(Clone)]
struct Proxy {
    containerd: Channel,
    keychain: Arc<dyn Keychain>,
}

impl Proxy {
    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        let path = request.uri().path();
        let Some(method) = SERVICES.iter().find_map(|service| path.strip_prefix(service)) else {
            return Err(Status::unimplemented(
                "only the image service is served here: ask containerd itself",
            ));
        };
        let request = match method {
            "PullImage" => self.listen_in(request).await?,
            _ => request.map(Body::new),
        };
        let answer = self.containerd.send(request).await;
        let answer = answer.map_err(|e| Status::unavailable(format!("passing on to containerd: {e}")))?;
        Ok(answer.map(Body::new))
    }

    /// The same request, once its credentials are known.
    async fn listen_in(&self, request: Request<Incoming>) -> Result<Request<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_PULL).collect().await;
        let body =
            body.map_err(|e| Status::invalid_argument(format!("reading the request: {e}")))?.to_bytes();
        if let Some(PullImage { image: Some(image), auth: Some(auth) }) = decode(&body)
            && auth != Auth::default()
        {
            self.keychain.given(&image.image, auth);
        }
        Ok(Request::from_parts(head, Body::new(Full::new(body))))
    }
}

/// None of what cannot be read: containerd will say so.
fn decode(body: &Bytes) -> Option<PullImage> {
    let (frame, message) = body.split_at_checked(FRAME)?;
    let length = u32::from_be_bytes(frame[1..].try_into().ok()?) as usize;
    (frame[0] == 0 && message.len() == length).then(|| PullImage::decode(message).ok())?
}

impl Service<Request<Incoming>> for Proxy {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.pass(request).await.unwrap_or_else(Status::into_http)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_and_not_shown() {
        let auth = Auth { username: "someone".into(), password: "hunter2".into(), ..Auth::default() };
        let pull = PullImage { image: Some(Image { image: "r.io/app:1".into() }), auth: Some(auth) };
        let mut framed = vec![0, 0, 0, 0, pull.encoded_len() as u8];
        pull.encode(&mut framed).unwrap();
        assert_eq!(decode(&framed.clone().into()), Some(pull.clone()));
        assert!(!format!("{pull:?}").contains("hunter2"));
        for wrong in [&framed[..3], &framed[..framed.len() - 1], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 0xff]] {
            assert_eq!(decode(&Bytes::copy_from_slice(wrong)), None);
        }
    }
}

//! The connection to containerd, for whoever asks it: made when it is needed, and anew when it has ended.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response, Uri};

/// See the module. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Channel {
    socket: PathBuf,
    kept: Arc<Mutex<Option<SendRequest<Body>>>>,
}

impl Channel {
    /// To this socket; connects to nothing yet.
    pub fn new(socket: &Path) -> Channel {
        Channel { socket: socket.to_owned(), kept: Arc::default() }
    }

    /// What generated clients are to be given with it: gRPC goes by the path alone, but a URI is whole.
    pub fn origin() -> Uri {
        Uri::from_static("http://localhost")
    }

    async fn sender(&self) -> io::Result<SendRequest<Body>> {
        let mut kept = self.kept.lock().await;
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            io::Error::other(format!("{what} {}: {error}", self.socket.display()))
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| failed("cannot connect to", &e))?;
        let made = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|e| failed("no gRPC at", &e))?;
        tokio::spawn(async move { drop(connection.await) });
        *kept = Some(sender.clone());
        Ok(sender)
    }

    /// Sends a request as it is.
    ///
    /// # Errors
    /// Nobody listens, or the connection broke.
    pub async fn send(&self, mut request: Request<Body>) -> io::Result<Response<Incoming>> {
        let mut parts = Channel::origin().into_parts();
        parts.path_and_query = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from_parts(parts).map_err(io::Error::other)?;
        let mut sender = self.sender().await?;
        sender.ready().await.map_err(io::Error::other)?;
        sender.send_request(request).await.map_err(io::Error::other)
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.send(request).await })
    }
}

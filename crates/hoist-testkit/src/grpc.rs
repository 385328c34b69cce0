//! A connection to a gRPC service on a unix socket.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::body::Body;
use tonic::codegen::{Service, http};

/// What generated clients speak through; the origin they are given does not matter.
#[derive(Debug, Clone)]
pub struct Channel(SendRequest<Body>);

impl Channel {
    /// Connects; the connection lives as long as its runtime and its last clone.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn connect(socket: &Path) -> Result<Channel> {
        let stream = tokio::net::UnixStream::connect(socket).await;
        let stream = stream.with_context(|| format!("connecting to {}", socket.display()))?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Channel(sender))
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

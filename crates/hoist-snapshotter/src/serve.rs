//! Connections: gRPC is HTTP/2 without TLS, on a unix socket that only root can open.

use std::convert::Infallible;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};

use crate::service::Service;

/// Serves whoever connects; never returns.
pub async fn serve(listener: UnixListener, service: Service) {
    accept(listener, "the snapshotter", service.server()).await;
}

/// The same by any service; `what` it is, for the log.
pub(crate) async fn accept<S>(listener: UnixListener, what: &'static str, service: S)
where
    S: tonic::codegen::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = TowerToHyperService::new(service.clone());
                let mut http = http2::Builder::new(TokioExecutor::new());
                http.timer(TokioTimer::new());
                tokio::spawn(async move {
                    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!("a connection to {what} ended: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::error!("accepting a connection to {what}: {error}");
                // Out of descriptors, most likely: some come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

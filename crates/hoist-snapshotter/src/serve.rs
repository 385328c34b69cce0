//! Connections: gRPC is HTTP/2 without TLS, on a unix socket that only root can open.

use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;

use crate::service::Service;

/// Serves whoever connects; never returns.
pub async fn serve(listener: UnixListener, service: Service) {
    let server = service.server();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = TowerToHyperService::new(server.clone());
                let mut http = http2::Builder::new(TokioExecutor::new());
                http.timer(TokioTimer::new());
                tokio::spawn(async move {
                    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                        tracing::debug!("a connection to the snapshotter ended: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::error!("accepting a connection to the snapshotter: {error}");
                // Out of descriptors, most likely: some come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

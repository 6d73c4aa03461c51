//! The edge towards operators and their monitoring: HTTP, on a listener of its own.
//!
//! What it answers is in a file for each subject; here is how it is served. Nothing here changes anything, and nothing
//! waits for the engine or the store. It is bounded in connections, in what a request may bring and in how long a
//! connection may last, so that nobody who asks can take what clients need.

mod health;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::limits::ADMIN_CONNECTIONS_MAX;
use crate::server::{ACCEPT_PAUSE, Server};

/// Bytes of a request's line and headers.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of a request.
pub const HEADERS_MAX: usize = 64;
/// How long a client may take for line and headers, from the connection or its last answer on.
pub const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long a connection lasts. Whoever asks again connects again; one that takes no answers gives its place back.
pub const CONNECTION_MAX: Duration = Duration::from_secs(300);
/// How long an answer that is under way may take when the connection is to end.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// Serves a listener until `shutdown`; then waits, for a moment, for the answers that are under way.
pub async fn run(listener: TcpListener, server: Arc<Server>, shutdown: CancellationToken) {
    let routes = health::routes(server);
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            // Before accepting: each socket is an open file, and those are counted.
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (routes, shutdown) = (routes.clone(), shutdown.clone());
                    connections.spawn(async move {
                        serve(stream, routes, shutdown).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin address could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = shutdown.cancelled() => {}
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Serves one connection.
async fn serve(stream: TcpStream, routes: Router, shutdown: CancellationToken) {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
    );
    tokio::select! {
        // What is wrong with a request was answered where that could be done.
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_MAX) => {}
        () = shutdown.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(FAREWELL_MAX, connection).await;
}

//! HTTP/1.1 with or without TLS over our own accept loop: connections, handshakes, request heads
//! and shutdown are all bounded.

use crate::api::{ConnectedAt, Peer};
use crate::clock;
use crate::pki;
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection: a client that reads a byte a minute ends here. A transfer cut
/// by it is resumed with a range.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(3600);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_MAX_BYTES: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;

/// What a listener serves.
pub(crate) struct Listener {
    /// For logs.
    pub(crate) name: &'static str,
    /// The bound socket.
    pub(crate) socket: TcpListener,
    /// TLS, if spoken.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// What answers.
    pub(crate) router: Router,
    /// Most connections at once.
    pub(crate) connections_max: usize,
}

impl Listener {
    /// Serves until `stop` becomes true, then finishes the requests in hand.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(self.connections_max));
        let tls = self.tls.map(TlsAcceptor::from);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.socket.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: give connections time to end.
                    tracing::warn!(listener = self.name, %error, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                let most = self.connections_max;
                tracing::warn!(listener = self.name, %peer, "{most} connections at once, this one is dropped");
                continue;
            };
            let (tls, router, stop) = (tls.clone(), self.router.clone(), stop.clone());
            let name = self.name;
            connections.spawn(async move {
                let served = connection(stream, peer, tls, router, stop);
                if tokio::time::timeout(CONNECTION_TIMEOUT, served).await.is_err() {
                    tracing::info!(listener = name, %peer, "connection cut after {CONNECTION_TIMEOUT:?}");
                }
                drop(permit);
            });
        }
        drop(self.socket);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!(
                listener = self.name,
                "requests not done after {DRAIN_TIMEOUT:?} are cut"
            );
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return serve(stream, Peer(None), router, stop).await;
    };
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS refused"),
        Err(_) => return tracing::debug!(%peer, "no TLS handshake within {HANDSHAKE_TIMEOUT:?}"),
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let identity = certificate.and_then(|der| match pki::peer_identity(der) {
        Ok(identity) => Some(identity),
        Err(problem) => {
            tracing::warn!(%peer, problem, "certificate names no device");
            None
        }
    });
    serve(stream, Peer(identity), router, stop).await;
}

async fn serve<S>(stream: S, identity: Peer, router: Router, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connected = ConnectedAt(clock::now_ms());
    let answer = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(connected);
        request.extensions_mut().insert(identity.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    let stopped = async move { stop.wait_for(|stop| *stop).await.map(|_| ()) };
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stopped => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

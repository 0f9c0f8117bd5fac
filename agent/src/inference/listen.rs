//! The inference API's sockets: a Unix socket and, if configured, loopback TCP; gRPC has one of its own.

mod stall;

use super::serve::Api;
use crate::clients::Peer;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use stall::Impatient;
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Most connections at once, both sockets together; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Longest time for a request's head; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_MAX_BYTES: usize = 64 * 1024;
/// Longest time for a client to read something of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after the system refused a connection (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Owner and group may connect, nobody else.
const SOCKET_MODE: u32 = 0o660;

/// Where gRPC is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrpcAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

impl FromStr for GrpcAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let address = text.parse().map(Self::Tcp);
        address
            .map_err(|_| "an absolute path, or address and port, such as 127.0.0.1:8602".to_owned())
    }
}

impl fmt::Display for GrpcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// What to listen on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sockets<'a> {
    /// Unix socket.
    pub(crate) unix: &'a Path,
    /// Group that the Unix sockets belong to; the process's own otherwise.
    pub(crate) gid: Option<u32>,
    /// Loopback address.
    pub(crate) tcp: Option<SocketAddr>,
    /// The gRPC flavour, where it is built in.
    pub(crate) grpc: Option<&'a GrpcAddress>,
}

/// Why the sockets cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The Unix socket.
    #[error("inference socket {}: {source}", path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is where the socket should be.
    #[error("inference socket {}: there is a file there that is no socket", path.display())]
    Occupied {
        /// Its path.
        path: PathBuf,
    },
    /// The TCP address.
    #[error("inference address {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The inference API has no authentication, so other machines must not reach it.
    #[error("inference address {0}: only loopback addresses are allowed")]
    NotLoopback(SocketAddr),
    /// The socket cannot be given to its group.
    #[error("inference socket {}: cannot be given to group {gid} (the agent's user must be its member): {source}", path.display())]
    Group {
        /// Its path.
        path: PathBuf,
        /// The group.
        gid: u32,
        /// Why.
        source: io::Error,
    },
    /// gRPC is asked for and not built in.
    #[error("gRPC at {0}: this agent was built without the feature grpc")]
    NoGrpc(GrpcAddress),
}

/// The open sockets and their connections.
#[derive(Debug)]
pub(crate) struct Listening {
    stop: watch::Sender<()>,
    /// Loopback address, if there is one.
    pub(crate) tcp: Option<SocketAddr>,
    /// Loopback address of gRPC, if it has one.
    pub(crate) grpc: Option<SocketAddr>,
    /// Unix sockets, and their inodes.
    paths: Vec<(PathBuf, u64)>,
}

impl Listening {
    /// Opens the sockets and answers on them until [`Listening::drain`].
    pub(crate) async fn open(sockets: Sockets<'_>, api: Arc<Api>) -> Result<Self, ListenError> {
        let tcp = match sockets.tcp {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        let grpc = match sockets.grpc {
            Some(address) if !cfg!(feature = "grpc") => {
                return Err(ListenError::NoGrpc(address.clone()));
            }
            Some(GrpcAddress::Tcp(address)) => Some(bind_tcp(*address).await?),
            _ => None,
        };
        let (unix, inode) = bind_unix(sockets.unix, sockets.gid)?;
        let mut listening = Self {
            stop: watch::Sender::new(()),
            tcp: tcp.as_ref().and_then(|t| t.local_addr().ok()),
            grpc: grpc.as_ref().and_then(|t| t.local_addr().ok()),
            paths: vec![(sockets.unix.to_owned(), inode)],
        };
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let door = Door { api, connections };
        if let Some(GrpcAddress::Unix(path)) = sockets.grpc {
            let (unix, inode) = bind_unix(path, sockets.gid)?;
            listening.paths.push((path.clone(), inode));
            tokio::spawn(accept(
                unix,
                Flavour::Grpc,
                door.clone(),
                listening.stop.subscribe(),
            ));
        }
        if let Some(grpc) = grpc {
            tokio::spawn(accept(
                grpc,
                Flavour::Grpc,
                door.clone(),
                listening.stop.subscribe(),
            ));
        }
        if let Some(tcp) = tcp {
            tokio::spawn(accept(
                tcp,
                Flavour::Rest,
                door.clone(),
                listening.stop.subscribe(),
            ));
        }
        tokio::spawn(accept(
            unix,
            Flavour::Rest,
            door,
            listening.stop.subscribe(),
        ));
        Ok(listening)
    }

    /// Takes no more requests and waits, at most this long, until those in flight are answered.
    /// Says whether all were.
    pub(crate) async fn drain(&self, limit: Duration) -> bool {
        self.stop.send_replace(());
        // A newer worker may have put its own socket here.
        for (path, inode) in &self.paths {
            if fs::symlink_metadata(path).is_ok_and(|m| m.ino() == *inode) {
                let _ = fs::remove_file(path);
            }
        }
        tokio::time::timeout(limit, self.stop.closed())
            .await
            .is_ok()
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::NotLoopback(address));
    }
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Tcp { address, source })
}

/// Binds beside the path and moves the socket there once its mode is right: a socket left by a
/// killed worker is replaced, and nobody ever sees it with a wider mode, in another group or without a
/// listener.
fn bind_unix(path: &Path, gid: Option<u32>) -> Result<(UnixListener, u64), ListenError> {
    let failed = |source| ListenError::Unix {
        path: path.to_owned(),
        source,
    };
    if fs::symlink_metadata(path).is_ok_and(|m| !m.file_type().is_socket()) {
        return Err(ListenError::Occupied {
            path: path.to_owned(),
        });
    }
    // Short, since the path of a socket may have only 107 bytes.
    let fresh = path.with_file_name(format!(".{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    if let Some(gid) = gid {
        std::os::unix::fs::chown(&fresh, None, Some(gid)).map_err(|source| {
            let _ = fs::remove_file(&fresh);
            let path = path.to_owned();
            ListenError::Group { path, gid, source }
        })?;
    }
    fs::set_permissions(&fresh, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    let inode = fs::symlink_metadata(&fresh).map_err(failed)?.ino();
    fs::rename(&fresh, path).map_err(failed)?;
    Ok((listener, inode))
}

/// Which flavour of the protocol a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    Rest,
    Grpc,
}

/// What connections lead to, and how many there may be.
#[derive(Debug, Clone)]
struct Door {
    api: Arc<Api>,
    connections: Arc<Semaphore>,
}

/// A listener of either kind.
trait Accept: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.accept().await?;
        let peer = stream.peer_cred()?;
        let (uid, gid) = (peer.uid(), peer.gid());
        Ok((stream, Peer::Process { uid, gid }))
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, Peer::Unknown))
    }
}

async fn accept<L: Accept>(
    listener: L,
    flavour: Flavour,
    door: Door,
    mut stop: watch::Receiver<()>,
) {
    loop {
        let next = async {
            let permit = Arc::clone(&door.connections).acquire_owned().await;
            (listener.next().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            _ = stop.changed() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (api, mut stop) = (Arc::clone(&door.api), stop.clone());
                let stream = TokioIo::new(Impatient::new(stream, WRITE_TIMEOUT));
                tokio::spawn(async move {
                    let result = match flavour {
                        Flavour::Rest => serve_rest(stream, peer, api, &mut stop).await,
                        #[cfg(feature = "grpc")]
                        Flavour::Grpc => serve_grpc(stream, peer, api, &mut stop).await,
                        #[cfg(not(feature = "grpc"))]
                        Flavour::Grpc => Ok(()),
                    };
                    if let Err(error) = result {
                        tracing::debug!(%error, "a connection to the inference API ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the inference API was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_rest<S>(
    stream: TokioIo<S>,
    peer: Peer,
    api: Arc<Api>,
    stop: &mut watch::Receiver<()>,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.answer(request, peer).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_MAX_BYTES)
            .serve_connection(stream, service)
    );
    tokio::select! {
        result = connection.as_mut() => result,
        _ = stop.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    }
}

/// Most calls at once on one connection.
#[cfg(feature = "grpc")]
const STREAMS_MAX: u32 = 32;
/// How often a silent connection is asked whether it is still there, and how long it may take to say so.
#[cfg(feature = "grpc")]
const PING: Duration = Duration::from_secs(30);
/// Bytes of answers that wait in a connection for its client to read.
#[cfg(feature = "grpc")]
const UNREAD_MAX_BYTES: usize = 256 * 1024;

#[cfg(feature = "grpc")]
async fn serve_grpc<S>(
    stream: TokioIo<S>,
    peer: Peer,
    api: Arc<Api>,
    stop: &mut watch::Receiver<()>,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.call(request, peer).await) }
    });
    let mut connection = pin!(
        hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(16 * 1024)
            .max_send_buf_size(UNREAD_MAX_BYTES)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(stream, service)
    );
    tokio::select! {
        result = connection.as_mut() => result,
        _ = stop.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    }
}

//! The inference API's sockets: a Unix socket and, if configured, loopback TCP.

use super::serve::Api;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
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
/// Pause after the system refused a connection (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Owner and group may connect, nobody else.
const SOCKET_MODE: u32 = 0o660;

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
}

/// The open sockets and their connections.
#[derive(Debug)]
pub(crate) struct Listening {
    stop: watch::Sender<()>,
    /// Loopback address, if there is one.
    pub(crate) tcp: Option<SocketAddr>,
    socket: PathBuf,
    socket_inode: u64,
}

impl Listening {
    /// Opens the sockets and answers on them until [`Listening::drain`].
    pub(crate) async fn open(
        socket: &Path,
        listen: Option<SocketAddr>,
        api: Arc<Api>,
    ) -> Result<Self, ListenError> {
        let tcp = match listen {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        let (unix, socket_inode) = bind_unix(socket)?;
        let stop = watch::Sender::new(());
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let address = tcp.as_ref().and_then(|t| t.local_addr().ok());
        if let Some(tcp) = tcp {
            let (api, connections) = (Arc::clone(&api), Arc::clone(&connections));
            tokio::spawn(accept(tcp, api, connections, stop.subscribe()));
        }
        tokio::spawn(accept(unix, api, connections, stop.subscribe()));
        Ok(Self {
            stop,
            tcp: address,
            socket: socket.to_owned(),
            socket_inode,
        })
    }

    /// Takes no more requests and waits, at most this long, until those in flight are answered.
    /// Says whether all were.
    pub(crate) async fn drain(&self, limit: Duration) -> bool {
        self.stop.send_replace(());
        // A newer worker may have put its own socket here.
        if fs::symlink_metadata(&self.socket).is_ok_and(|m| m.ino() == self.socket_inode) {
            let _ = fs::remove_file(&self.socket);
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
/// killed worker is replaced, and nobody ever sees it with a wider mode or without a listener.
fn bind_unix(path: &Path) -> Result<(UnixListener, u64), ListenError> {
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
    fs::set_permissions(&fresh, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    let inode = fs::symlink_metadata(&fresh).map_err(failed)?.ino();
    fs::rename(&fresh, path).map_err(failed)?;
    Ok((listener, inode))
}

/// A listener of either kind.
trait Accept: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

async fn accept<L: Accept>(
    listener: L,
    api: Arc<Api>,
    connections: Arc<Semaphore>,
    mut stop: watch::Receiver<()>,
) {
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.next().await, permit)
        };
        let (stream, permit) = tokio::select! {
            _ = stop.changed() => return,
            next = next => next,
        };
        match stream {
            Ok(stream) => {
                let (api, mut stop) = (Arc::clone(&api), stop.clone());
                tokio::spawn(async move {
                    serve_connection(stream, api, &mut stop).await;
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

async fn serve_connection<S>(stream: S, api: Arc<Api>, stop: &mut watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.answer(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_MAX_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = stop.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the inference API ended early");
    }
}

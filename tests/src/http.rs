//! A bare HTTP/1.1 client: requests go out as given, also those that no library would send.

use anyhow::{Context as _, bail};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

const TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_MAX_BYTES: u64 = 4 << 20;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; `Null` if it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request with a body of this length, whole.
#[must_use]
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\n\r\n", body.len());
    [text.as_bytes(), body].concat()
}

/// Sends raw bytes over a Unix socket and reads the answer.
///
/// # Errors
/// No connection, or no answer in time.
pub async fn over_unix(socket: &Path, request: &[u8]) -> anyhow::Result<Answer> {
    exchange(UnixStream::connect(socket).await?, request).await
}

/// Sends raw bytes over TCP and reads the answer.
///
/// # Errors
/// No connection, or no answer in time.
pub async fn over_tcp(address: std::net::SocketAddr, request: &[u8]) -> anyhow::Result<Answer> {
    exchange(TcpStream::connect(address).await?, request).await
}

/// Sends raw bytes over any stream and reads the answer until the other side closes.
///
/// # Errors
/// No answer in time.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite,
    request: &[u8],
) -> anyhow::Result<Answer> {
    let (read, mut write) = tokio::io::split(stream);
    let whole = async {
        let mut bytes = Vec::new();
        let mut read = read.take(ANSWER_MAX_BYTES);
        let send = async {
            // A server may refuse, and close, before it has read everything.
            let _ = write.write_all(request).await;
            let _ = write.flush().await;
        };
        let receive = async {
            // A reset after the answer is no loss.
            let _ = read.read_to_end(&mut bytes).await;
        };
        tokio::join!(send, receive);
        bytes
    };
    let bytes = tokio::time::timeout(TIMEOUT, whole)
        .await
        .with_context(|| format!("no answer within {TIMEOUT:?}"))?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> anyhow::Result<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
    let Some(end) = end else {
        bail!("no HTTP answer in {} bytes", bytes.len());
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok(Answer {
        status: status.with_context(|| format!("no status in {head:?}"))?,
        body: bytes[end + 4..].to_vec(),
    })
}

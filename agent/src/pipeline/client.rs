//! The inference API's client: HTTP/1.1 over its Unix socket.

use super::record::{Metadata, Request};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::StatusCode;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixStream;

/// Longest answer, in bytes.
const ANSWER_MAX_BYTES: usize = 32 << 20;
/// Longest words of a refusal that are kept, in characters.
const REFUSAL_MAX_CHARS: usize = 400;

/// What came of a request.
#[derive(Debug)]
pub enum Reply {
    /// The body of the answer.
    Answer(Bytes),
    /// The API does not take this request, now or later.
    Refused(String),
}

/// Why there is no reply; asking again later may help.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens, or no model of that name is loaded, or all turns are taken: the request
    /// was not at fault.
    #[error("{0}")]
    NotReady(String),
    /// The request was sent and no answer came: it may be what killed the worker.
    #[error("{0}")]
    Lost(String),
}

/// A client of one model; it connects by itself.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    model: String,
    timeout: Duration,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Connects to nothing yet. `timeout` is the longest wait for one answer.
    #[must_use]
    pub fn new(socket: PathBuf, model: String, timeout: Duration) -> Self {
        Self {
            socket,
            model,
            timeout,
            connection: None,
        }
    }

    /// Asks for the model's metadata.
    ///
    /// # Errors
    /// [`ClientError`]; what is no metadata counts as not ready.
    pub async fn metadata(&mut self) -> Result<Metadata, ClientError> {
        let request = hyper::Request::get(format!("/v2/models/{}", self.model));
        match self.ask(request, Bytes::new()).await? {
            Reply::Answer(body) => serde_json::from_slice(&body)
                .map_err(|e| ClientError::NotReady(format!("metadata of {}: {e}", self.model))),
            Reply::Refused(why) => Err(ClientError::NotReady(why)),
        }
    }

    /// Asks for an inference.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn infer(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let head = hyper::Request::post(format!("/v2/models/{}/infer", self.model));
        let head = match request.json_bytes {
            None => head.header("content-type", "application/json"),
            Some(json_bytes) => head
                .header("content-type", "application/octet-stream")
                .header("inference-header-content-length", json_bytes),
        };
        self.ask(head, Bytes::copy_from_slice(&request.body)).await
    }

    async fn ask(
        &mut self,
        head: http::request::Builder,
        body: Bytes,
    ) -> Result<Reply, ClientError> {
        let request = head
            .header("host", "localhost")
            .body(Full::new(body))
            .map_err(|e| ClientError::NotReady(e.to_string()))?;
        let limit = self.timeout;
        let answered = tokio::time::timeout(limit, self.exchange(request)).await;
        let answered = answered.unwrap_or_else(|_| {
            Err(ClientError::Lost(format!(
                "no answer within {} ms",
                limit.as_millis()
            )))
        });
        if answered.is_err() {
            self.connection = None;
        }
        let (status, body) = answered?;
        let words = || format!("{status}: {}", words(&body));
        match status {
            StatusCode::OK => Ok(Reply::Answer(body)),
            // No such model, no turn, no memory: not now.
            StatusCode::NOT_FOUND
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS => Err(ClientError::NotReady(words())),
            other if other.is_server_error() => Err(ClientError::Lost(words())),
            _ => Ok(Reply::Refused(words())),
        }
    }

    async fn exchange(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let mut sender = match self.connection.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.connect().await?,
        };
        if sender.ready().await.is_err() {
            // The API closes what was idle for long; that says nothing of this request.
            sender = self.connect().await?;
        }
        let lost = |e: &dyn std::fmt::Display| ClientError::Lost(format!("connection lost: {e}"));
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            // Closed in the moment of asking: it was not sent.
            Err(e) if e.is_canceled() => return Err(ClientError::NotReady(e.to_string())),
            Err(e) => return Err(lost(&e)),
        };
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect();
        let body = body.await.map_err(|e| lost(&e))?.to_bytes();
        self.connection = Some(sender);
        Ok((status, body))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let not_ready = |e: &dyn std::fmt::Display| {
            ClientError::NotReady(format!("{}: {e}", self.socket.display()))
        };
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|e| not_ready(&e))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| not_ready(&e))?;
        tokio::spawn(async move {
            // Its end is seen by the sender.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// A refusal's own words: `{"error": …}`, or the start of what came.
fn words(body: &[u8]) -> String {
    let error = serde_json::from_slice::<serde_json::Value>(body).ok();
    let error = error.and_then(|e| e.get("error")?.as_str().map(str::to_owned));
    let text = error.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.chars().take(REFUSAL_MAX_CHARS).collect()
}

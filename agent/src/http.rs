//! A small HTTPS client: bounded answers, resumable downloads, a time limit on every wait.
//!
//! It follows no redirect and accepts no compressed transfer: what is fetched is addressed by its
//! content, so that length and hash are known to the caller beforehand.

use crate::config::UpdateSettings;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Most bytes of a refusal's body that are read, for its message.
const REFUSAL_MAX_BYTES: usize = 4096;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not a URL that can be asked.
    #[error("{url:?} is no https URL: {problem}")]
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No connection.
    #[error("cannot reach {url}: {problem}")]
    Connect {
        /// What was asked.
        url: String,
        /// The system's words.
        problem: String,
    },
    /// The two sides do not trust each other.
    #[error("TLS with {url}: {problem}")]
    Tls {
        /// What was asked.
        url: String,
        /// What failed.
        problem: String,
    },
    /// Nothing came in time.
    #[error("{url}: {what} did not come within {after_ms} ms")]
    Timeout {
        /// What was asked.
        url: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after_ms: u64,
    },
    /// Bytes drip too slowly to be an honest server's (slow retrieval).
    #[error("{url}: {got_bytes} bytes in {over_ms} ms, at least {least_bytes} are expected")]
    TooSlow {
        /// What was asked.
        url: String,
        /// Bytes that came.
        got_bytes: u64,
        /// Time they took.
        over_ms: u64,
        /// Fewest bytes accepted in that time.
        least_bytes: u64,
    },
    /// An answer other than success.
    #[error("{url}: the server answers {code}{}", sayable(.message))]
    Status {
        /// What was asked.
        url: String,
        /// HTTP status.
        code: u16,
        /// The server's code for the error, if it gave one.
        reason: Option<String>,
        /// The server's words, cut short, empty if none.
        message: String,
    },
    /// More bytes than this answer may have (endless data).
    #[error("{url}: more than the {max_bytes} bytes that are accepted")]
    TooLarge {
        /// What was asked.
        url: String,
        /// Limit in bytes.
        max_bytes: u64,
    },
    /// The answer broke off, or is not HTTP.
    #[error("{url}: the answer broke off: {problem}")]
    Broken {
        /// What was asked.
        url: String,
        /// What happened.
        problem: String,
    },
}

fn sayable(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

impl HttpError {
    /// A short, stable code for reports.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Url { .. } => "url",
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Timeout { .. } => "timeout",
            Self::TooSlow { .. } => "too_slow",
            Self::Status { .. } => "status",
            Self::TooLarge { .. } => "too_large",
            Self::Broken { .. } => "broken",
        }
    }
}

/// How long to wait, and how much bandwidth to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the TCP connection.
    pub connect_timeout: Duration,
    /// For the answer's head (TLS handshake included), and for each next piece of its body.
    pub request_timeout: Duration,
    /// Span over which the rate is judged.
    pub rate_window: Duration,
    /// Least rate, in bytes a second of waiting; an own bandwidth limit does not count against it.
    pub rate_min_bytes_s: u64,
    /// Most bandwidth, in bytes a second; 0: no limit.
    pub bandwidth_bytes_s: u64,
}

impl From<&UpdateSettings> for Limits {
    fn from(settings: &UpdateSettings) -> Self {
        Self {
            connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
            request_timeout: Duration::from_millis(settings.request_timeout_ms),
            rate_window: Duration::from_secs(30),
            rate_min_bytes_s: 1024,
            bandwidth_bytes_s: settings.bandwidth_kib_s.saturating_mul(1024),
        }
    }
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TLS alone: all that an agent ever does.
    Https,
    /// Plain HTTP as well, for tools that read signed files of a server on the same machine.
    HttpOrHttps,
}

/// A client; clones share connections and the bandwidth limit.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    scheme: Scheme,
    limits: Limits,
    /// When the next byte may be taken under the bandwidth limit.
    next_byte_at: Arc<Mutex<Instant>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client that trusts, and shows, what `tls` says (without ALPN). Only `https` is spoken.
    #[must_use]
    pub fn new(tls: &rustls::ClientConfig, limits: Limits) -> Self {
        Self::speaking(Scheme::Https, tls, limits)
    }

    /// As [`Self::new`], for a scheme that the caller names.
    #[must_use]
    pub fn speaking(scheme: Scheme, tls: &rustls::ClientConfig, limits: Limits) -> Self {
        let mut tls = tls.clone();
        tls.alpn_protocols.clear();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limits.connect_timeout));
        let connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
        let connector = match scheme {
            Scheme::Https => connector.https_only(),
            Scheme::HttpOrHttps => connector.https_or_http(),
        };
        let connector = connector.enable_http1().wrap_connector(tcp);
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(1)
            .build(connector);
        Self {
            inner,
            scheme,
            limits,
            next_byte_at: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// Fetches a small file of at most `max_bytes` bytes.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn get(&self, url: &str, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
        self.open(url, 0).await?.collect(max_bytes).await
    }

    /// As [`Self::get`], `None` if the server answers 404.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn get_if_there(
        &self,
        url: &str,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, HttpError> {
        match self.get(url, max_bytes).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(HttpError::Status { code: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a download at byte `offset`. The server may not honour it: see [`Download::offset`].
    ///
    /// # Errors
    /// [`HttpError`]; an offset at or beyond the end is [`HttpError::Status`] 416.
    pub async fn open(&self, url: &str, offset: u64) -> Result<Download, HttpError> {
        let mut request = Request::get(uri(url, self.scheme)?);
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        let response = self.send(url, request, Bytes::new()).await?;
        let (offset, total_bytes) = match (offset, response.status()) {
            (0, StatusCode::OK) | (1.., StatusCode::OK) => (0, length(response.headers())),
            (1.., StatusCode::PARTIAL_CONTENT) => match content_range(response.headers()) {
                Some((first, total)) if first == offset => (offset, total),
                _ => {
                    return Err(HttpError::Broken {
                        url: url.to_owned(),
                        problem: format!(
                            "asked for bytes {offset} and on, got Content-Range {:?}",
                            response.headers().get(header::CONTENT_RANGE)
                        ),
                    });
                }
            },
            _ => return Err(self.refusal(url, response).await),
        };
        Ok(Download {
            offset,
            total_bytes,
            body: self.body(url, response),
        })
    }

    /// Sends `body` as JSON and returns a successful (2xx) answer of at most `max_bytes` bytes.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn post_json<T: serde::Serialize>(
        &self,
        url: &str,
        body: &T,
        max_bytes: u64,
    ) -> Result<Vec<u8>, HttpError> {
        let json = serde_json::to_vec(body).map_err(|e| HttpError::Broken {
            url: url.to_owned(),
            problem: format!("the request is no JSON: {e}"),
        })?;
        let request =
            Request::post(uri(url, self.scheme)?).header(header::CONTENT_TYPE, "application/json");
        let response = self.send(url, request, json.into()).await?;
        if !response.status().is_success() {
            return Err(self.refusal(url, response).await);
        }
        self.body(url, response).collect(max_bytes).await
    }

    async fn send(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, HttpError> {
        let request = request
            .header(
                header::USER_AGENT,
                concat!("dunlin-agent/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(body))
            .map_err(|e| HttpError::Url {
                url: url.to_owned(),
                problem: e.to_string(),
            })?;
        // The handshake has no limit of its own: connecting and the head share this one.
        let limit = self.limits.connect_timeout + self.limits.request_timeout;
        match tokio::time::timeout(limit, self.inner.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(classify(url, &error)),
            Err(_) => Err(timeout(url, "the answer's head", limit)),
        }
    }

    fn body(&self, url: &str, response: Response<Incoming>) -> Body {
        Body {
            url: url.to_owned(),
            incoming: response.into_body(),
            client: self.clone(),
            waited: Duration::ZERO,
            window_bytes: 0,
        }
    }

    async fn refusal(&self, url: &str, response: Response<Incoming>) -> HttpError {
        let code = response.status().as_u16();
        let mut body = self.body(url, response);
        let mut bytes = Vec::new();
        while let Ok(Some(chunk)) = body.chunk().await {
            let room = REFUSAL_MAX_BYTES - bytes.len();
            bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if bytes.len() == REFUSAL_MAX_BYTES {
                break;
            }
        }
        let (reason, message) = refusal_text(&bytes);
        HttpError::Status {
            url: url.to_owned(),
            code,
            reason,
            message,
        }
    }

    /// Books `bytes` under the bandwidth limit and says until when to wait.
    fn book(&self, bytes: usize) -> Option<Instant> {
        let rate = self.limits.bandwidth_bytes_s;
        if rate == 0 {
            return None;
        }
        let mut next = self
            .next_byte_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let micros = (bytes as u64).saturating_mul(1_000_000) / rate;
        *next = (*next).max(Instant::now()) + Duration::from_micros(micros);
        Some(*next)
    }
}

/// A download under way.
pub struct Download {
    /// Where the bytes begin: as asked, or 0 if the server sends all of it.
    pub offset: u64,
    /// Length of the whole file, if the server says.
    pub total_bytes: Option<u64>,
    body: Body,
}

impl Download {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        self.body.chunk().await
    }

    async fn collect(self, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
        if self.total_bytes.is_some_and(|n| n > max_bytes) {
            return Err(HttpError::TooLarge {
                url: self.body.url,
                max_bytes,
            });
        }
        self.body.collect(max_bytes).await
    }
}

struct Body {
    url: String,
    incoming: Incoming,
    client: Client,
    /// Time spent waiting for the network in this rate window, and what came in it.
    waited: Duration,
    window_bytes: u64,
}

impl Body {
    async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        let limits = self.client.limits;
        loop {
            let idle = limits.request_timeout;
            let window_left = limits.rate_window.saturating_sub(self.waited);
            let begun = Instant::now();
            let next = tokio::time::timeout(idle.min(window_left), self.incoming.frame()).await;
            self.waited += begun.elapsed();
            match next {
                Err(_) if idle <= window_left => {
                    return Err(timeout(&self.url, "the next bytes", idle));
                }
                Err(_) => self.judge_rate()?,
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(HttpError::Broken {
                        url: self.url.clone(),
                        problem: causes(&error),
                    });
                }
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    self.window_bytes += data.len() as u64;
                    if self.waited >= limits.rate_window {
                        self.judge_rate()?;
                    }
                    if let Some(until) = self.client.book(data.len()) {
                        tokio::time::sleep_until(until).await;
                    }
                    return Ok(Some(data));
                }
            }
        }
    }

    fn judge_rate(&mut self) -> Result<(), HttpError> {
        let over_ms = as_ms(self.waited);
        let least_bytes = self
            .client
            .limits
            .rate_min_bytes_s
            .saturating_mul(over_ms)
            .div_euclid(1000);
        if self.window_bytes < least_bytes {
            return Err(HttpError::TooSlow {
                url: self.url.clone(),
                got_bytes: self.window_bytes,
                over_ms,
                least_bytes,
            });
        }
        self.waited = Duration::ZERO;
        self.window_bytes = 0;
        Ok(())
    }

    async fn collect(mut self, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > max_bytes {
                return Err(HttpError::TooLarge {
                    url: self.url,
                    max_bytes,
                });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

fn uri(url: &str, scheme: Scheme) -> Result<Uri, HttpError> {
    let bad = |problem: String| HttpError::Url {
        url: url.to_owned(),
        problem,
    };
    let uri: Uri = url
        .parse()
        .map_err(|e: http::uri::InvalidUri| bad(e.to_string()))?;
    let allowed = match scheme {
        Scheme::Https => uri.scheme_str() == Some("https"),
        Scheme::HttpOrHttps => matches!(uri.scheme_str(), Some("https" | "http")),
    };
    if !allowed || uri.host().is_none_or(str::is_empty) {
        return Err(bad("expected https://host:port/path".to_owned()));
    }
    Ok(uri)
}

fn timeout(url: &str, what: &'static str, after: Duration) -> HttpError {
    HttpError::Timeout {
        url: url.to_owned(),
        what,
        after_ms: as_ms(after),
    }
}

fn as_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn classify(url: &str, error: &legacy::Error) -> HttpError {
    let url = url.to_owned();
    if let Some(tls) = tls_error(error) {
        let problem = tls.to_string();
        return HttpError::Tls { url, problem };
    }
    let problem = causes(error);
    if error.is_connect() {
        HttpError::Connect { url, problem }
    } else {
        HttpError::Broken { url, problem }
    }
}

/// The TLS error somewhere below: `io::Error` hides what it wraps from `source()`.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// An error and what caused it, on one line.
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// First byte and total length of `Content-Range: bytes first-last/total` (RFC 9110, 14.4).
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        n => Some(n.parse().ok()?),
    };
    Some((first.parse().ok()?, total))
}

/// Code and words of `{"error":{"code","message"}}`, or the text itself, cut to one line.
fn refusal_text(bytes: &[u8]) -> (Option<String>, String) {
    let line = |text: &str| -> String {
        let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        clean.take(200).collect::<String>().trim().to_owned()
    };
    let json: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let error = &json["error"];
    match (error["code"].as_str(), error["message"].as_str()) {
        (code, Some(message)) => (code.map(line), line(message)),
        _ => (None, line(&String::from_utf8_lossy(bytes))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_is_read_as_rfc_9110_writes_it() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(read("bytes 5-9/*"), Some((5, None)));
        assert_eq!(read("bytes */10"), None);
        assert_eq!(read("lines 5-9/10"), None);
    }

    #[test]
    fn only_https_is_asked() {
        assert!(uri("https://fleet.example:8443/x", Scheme::Https).is_ok());
        for bad in ["http://fleet.example/x", "/x", "https://", "fleet.example"] {
            assert!(uri(bad, Scheme::Https).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_the_servers_words() {
        let (reason, message) =
            refusal_text(br#"{"error":{"code":"token_expired","message":"expired\nyesterday"}}"#);
        assert_eq!(reason.as_deref(), Some("token_expired"));
        assert_eq!(message, "expired yesterday");
        assert_eq!(refusal_text(b"<html>"), (None, "<html>".to_owned()));
        let error = HttpError::Status {
            url: "https://h/x".to_owned(),
            code: 403,
            reason,
            message,
        };
        assert_eq!(
            error.to_string(),
            "https://h/x: the server answers 403: expired yesterday"
        );
    }
}

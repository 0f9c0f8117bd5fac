//! A small HTTPS client: bounded answers, resumable downloads, a time limit on every wait.
//!
//! It follows no redirect and accepts no compressed transfer: what is fetched is addressed by its
//! content, so that length and hash are known to the caller beforehand.

mod download;
mod error;
pub mod proxy;

pub use download::Download;
pub use error::HttpError;
pub use proxy::Proxy;

use crate::config::UpdateSettings;
use crate::throttle::Throttle;
use bytes::Bytes;
use download::{Body, content_range, length};
use error::{classify, refusal_text, timeout};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use proxy::Connector;
use std::time::Duration;

/// What is waited for while a server may not be there at all.
pub(crate) const ANSWERS_HEAD: &str = "the answer's head";
/// Most bytes of a refusal's body that are read, for its message.
const REFUSAL_MAX_BYTES: usize = 4096;

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
    inner: legacy::Client<HttpsConnector<Connector>, Full<Bytes>>,
    scheme: Scheme,
    limits: Limits,
    throttle: Throttle,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client that trusts, and shows, what `tls` says (without ALPN). Only `https` is spoken, and
    /// no proxy is asked.
    #[must_use]
    pub fn new(tls: &rustls::ClientConfig, limits: Limits) -> Self {
        Self::speaking(Scheme::Https, tls, limits)
    }

    /// As [`Self::new`], for a scheme that the caller names.
    #[must_use]
    pub fn speaking(scheme: Scheme, tls: &rustls::ClientConfig, limits: Limits) -> Self {
        let throttle = Throttle::new(limits.bandwidth_bytes_s);
        Self::build(scheme, tls, limits, Proxy::none(), throttle)
    }

    /// As [`Self::new`], through a proxy where there is one, within a bandwidth that is shared.
    #[must_use]
    pub fn with(
        tls: &rustls::ClientConfig,
        limits: Limits,
        proxy: Proxy,
        throttle: Throttle,
    ) -> Self {
        Self::build(Scheme::Https, tls, limits, proxy, throttle)
    }

    fn build(
        scheme: Scheme,
        tls: &rustls::ClientConfig,
        limits: Limits,
        proxy: Proxy,
        throttle: Throttle,
    ) -> Self {
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
        let connector = connector
            .enable_http1()
            .wrap_connector(Connector::new(tcp, proxy));
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(1)
            .build(connector);
        Self {
            inner,
            scheme,
            limits,
            throttle,
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
            body: Body::new(url, response.into_body(), self.clone()),
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
        Body::new(url, response.into_body(), self.clone())
            .collect(max_bytes)
            .await
    }

    /// Puts `body` there and returns a successful (2xx) answer of at most `max_bytes` bytes.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn put(&self, url: &str, body: Bytes, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
        let request = Request::put(uri(url, self.scheme)?)
            .header(header::CONTENT_TYPE, "application/octet-stream");
        let response = self.send(url, request, body).await?;
        if !response.status().is_success() {
            return Err(self.refusal(url, response).await);
        }
        Body::new(url, response.into_body(), self.clone())
            .collect(max_bytes)
            .await
    }

    async fn send(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, HttpError> {
        // A slow line is given the time that its least rate takes for the body.
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let upload = Duration::from_secs(length / self.limits.rate_min_bytes_s.max(1));
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
        let limit = self.limits.connect_timeout + self.limits.request_timeout + upload;
        match tokio::time::timeout(limit, self.inner.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(classify(url, &error)),
            Err(_) => Err(timeout(url, ANSWERS_HEAD, limit)),
        }
    }

    async fn refusal(&self, url: &str, response: Response<Incoming>) -> HttpError {
        let code = response.status().as_u16();
        let mut body = Body::new(url, response.into_body(), self.clone());
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::HeaderMap;

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

//! One HTTP request to the fleet server: plain on loopback, else TLS with a given CA.

use super::ApiError;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited, combinators::BoxBody};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::sync::Arc;
use std::time::Duration;

/// Longest answer that is read, in bytes.
pub(super) const ANSWER_MAX_BYTES: usize = 64 << 20;
/// Longest wait for the next piece of a download.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) type Body = BoxBody<Bytes, std::io::Error>;

/// A body held in memory.
pub(super) fn bytes_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// An answer, whatever its status.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Sends requests to one base URL.
#[derive(Clone)]
pub(super) struct Transport {
    base: String,
    authority: String,
    token: Option<String>,
    client: Client<HttpsConnector<HttpConnector>, Body>,
}

impl Transport {
    pub(super) fn new(
        url: &str,
        token: Option<String>,
        ca_pem: Option<&str>,
    ) -> Result<Self, ApiError> {
        let base = url.trim_end_matches('/').to_owned();
        let setup = |problem: String| ApiError::Setup(format!("server {base:?}: {problem}"));
        let uri: Uri = base.parse().map_err(|e| setup(format!("no URL: {e}")))?;
        let authority = uri.authority().map(ToString::to_string);
        let authority = authority.ok_or_else(|| {
            setup("expected https://HOST:PORT, or http://127.0.0.1:PORT on the same machine".into())
        })?;
        match uri.scheme_str() {
            Some("https") if ca_pem.is_none() => {
                return Err(setup(
                    "TLS needs the certificate that vouches for the server; give its PEM file with --ca".into(),
                ));
            }
            Some("http") if !is_loopback(uri.host().unwrap_or_default()) => {
                return Err(setup(
                    "plain http would send the token readably; use https with --ca, or a tunnel to loopback".into(),
                ));
            }
            Some("http" | "https") => {}
            _ => return Err(setup("expected https:// (or http:// on loopback)".into())),
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(ca_pem)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(15))
            .build(connector);
        Ok(Self {
            base,
            authority,
            token,
            client,
        })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Sends one request and reads the answer, within `timeout` in all.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
        timeout: Duration,
    ) -> Result<Answer, ApiError> {
        self.send_for(method, path, content_type, body, timeout, ANSWER_MAX_BYTES)
            .await
    }

    /// The same for an answer of at most `answer_max_bytes`.
    pub(super) async fn send_for(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
        timeout: Duration,
        answer_max_bytes: usize,
    ) -> Result<Answer, ApiError> {
        let what = format!("{method} {path}");
        let request = self.request(method, path, content_type, body)?;
        let exchange = async {
            let answer = self
                .client
                .request(request)
                .await
                .map_err(|e| self.unreachable(&e))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, answer_max_bytes).collect().await;
            let body = body.map_err(|e| ApiError::Unreadable {
                request: what.clone(),
                problem: e.to_string(),
            })?;
            Ok(Answer {
                status: head.status,
                body: body.to_bytes(),
            })
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::TimedOut {
                url: self.base.clone(),
                request: what.clone(),
                seconds: timeout.as_secs(),
            }),
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
    ) -> Result<Request<Body>, ApiError> {
        let what = format!("{method} {path}");
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(http::header::HOST, &self.authority)
            .header(http::header::CONTENT_TYPE, content_type)
            .header(
                http::header::USER_AGENT,
                concat!("dunlin/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.token {
            let value = http::HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|_| {
                ApiError::Setup("the token holds characters that no token has".to_owned())
            })?;
            value.set_sensitive(true);
            request = request.header(http::header::AUTHORIZATION, value);
        }
        request
            .body(body)
            .map_err(|e| ApiError::Setup(format!("{what}: {e}")))
    }

    /// Gets a file of at most `max_bytes` bytes, piece by piece; `None` if there is none.
    pub(super) async fn download(
        &self,
        path: &str,
        max_bytes: u64,
        to: &mut impl std::io::Write,
    ) -> Result<Option<u64>, ApiError> {
        match self.fetch(path, max_bytes, to).await {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    /// The same, of what must be there.
    pub(super) async fn fetch(
        &self,
        path: &str,
        max_bytes: u64,
        to: &mut impl std::io::Write,
    ) -> Result<u64, ApiError> {
        let what = format!("GET {path}");
        let timed_out = || ApiError::TimedOut {
            url: self.base.clone(),
            request: what.clone(),
            seconds: IDLE_TIMEOUT.as_secs(),
        };
        let unreadable = |problem: String| ApiError::Unreadable {
            request: what.clone(),
            problem,
        };
        let request = self.request(Method::GET, path, "", bytes_body(Bytes::new()))?;
        let answer = tokio::time::timeout(IDLE_TIMEOUT, self.client.request(request)).await;
        let answer = answer.map_err(|_| timed_out())?;
        let (head, mut body) = answer.map_err(|e| self.unreachable(&e))?.into_parts();
        if !head.status.is_success() {
            let body = Limited::new(body, ANSWER_MAX_BYTES).collect().await;
            let body = body.map_err(|e| unreadable(e.to_string()))?.to_bytes();
            let status = head.status;
            return super::accepted(Answer { status, body }).map(|_| 0);
        }
        let mut length = 0;
        loop {
            let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await;
            let Some(frame) = frame.map_err(|_| timed_out())? else {
                return Ok(length);
            };
            let frame = frame.map_err(|e| unreadable(e.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                length += bytes.len() as u64;
                if length > max_bytes {
                    return Err(unreadable(format!("longer than {max_bytes} bytes")));
                }
                let written = to.write_all(&bytes);
                written.map_err(|e| ApiError::File(format!("{path}: {e}")))?;
            }
        }
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> ApiError {
        // The outer text is only "client error (Connect)"; the cause is what helps.
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            cause = inner.source();
        }
        ApiError::Unreachable {
            url: self.base.clone(),
            reason,
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|a| a.is_loopback())
}

fn tls(ca_pem: Option<&str>) -> Result<rustls::ClientConfig, ApiError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default().as_bytes()) {
        let certificate =
            certificate.map_err(|e| ApiError::Setup(format!("CA file: not PEM: {e}")))?;
        roots
            .add(certificate)
            .map_err(|e| ApiError::Setup(format!("CA file: {e}")))?;
    }
    if ca_pem.is_some() && roots.is_empty() {
        return Err(ApiError::Setup(
            "CA file: holds no certificate (BEGIN CERTIFICATE)".to_owned(),
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ApiError::Setup(format!("TLS: {e}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_travels_readably() {
        for (url, ok) in [
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080/", true),
            ("http://localhost:1", true),
            ("http://fleet.example:8080", false),
            ("https://fleet.example:8080", false),
            ("fleet.example", false),
            ("ftp://localhost", false),
        ] {
            assert_eq!(Transport::new(url, None, None).is_ok(), ok, "{url}");
        }
        let problem = Transport::new("https://a", None, Some("no pem"))
            .err()
            .unwrap();
        assert!(problem.to_string().contains("no certificate"), "{problem}");
    }
}

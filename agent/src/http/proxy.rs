//! Through an HTTP proxy, by a CONNECT tunnel: the proxy sees where to, and nothing of what is said.

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// Longest URL of a proxy, in bytes.
const URL_MAX_BYTES: usize = 1024;

/// Address of a proxy: `http://[user:password@]host:port`. Shown without user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(String);

impl FromStr for ProxyUrl {
    /// What belongs there; the text itself may hold a password and is not repeated.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "http://[user:password@]host:port";
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let plain = uri.scheme_str() == Some("http") && uri.port_u16().is_some();
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let host = uri.host().is_some_and(|host| !host.is_empty());
        if text.len() > URL_MAX_BYTES || !plain || !bare || !host {
            return Err(EXPECTED);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.0.strip_prefix("http://").unwrap_or_default();
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        write!(f, "http://{}", host.trim_end_matches('/'))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

/// Which hosts are reached through which proxy.
#[derive(Debug, Clone)]
pub struct Proxy(Arc<Matcher>);

impl Proxy {
    /// None for any host, whatever the environment says.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }

    /// One for every host.
    #[must_use]
    pub fn fixed(url: &ProxyUrl) -> Self {
        Self(Arc::new(Matcher::builder().https(url.0.as_str()).build()))
    }

    /// As configured; else as `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, as curl reads them.
    #[must_use]
    pub fn configured(url: Option<&ProxyUrl>) -> Self {
        match url {
            Some(url) => Self::fixed(url),
            None => Self(Arc::new(Matcher::from_env())),
        }
    }
}

/// Opens TCP connections, straight or through a tunnel.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    tcp: HttpConnector,
    proxy: Proxy,
}

impl Connector {
    pub(super) fn new(tcp: HttpConnector, proxy: Proxy) -> Self {
        Self { tcp, proxy }
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;
type Connecting = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, BoxError>> + Send>>;

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Connecting {
        let Some(proxy) = self.proxy.0.intercept(&to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move { connecting.await.map_err(Into::into) });
        };
        if proxy.uri().scheme_str() != Some("http") {
            // TLS to the proxy, or SOCKS: from the environment, and not spoken here.
            let what = format!(
                "proxy {} is no plain HTTP proxy",
                proxy.uri().host().unwrap_or("?")
            );
            return Box::pin(async move { Err(what.into()) });
        }
        let at = proxy.uri().clone();
        let mut tunnel = Tunnel::new(at.clone(), self.tcp.clone());
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = tunnel.call(to);
        Box::pin(async move {
            connecting.await.map_err(|error| {
                let host = at.host().unwrap_or("?");
                let port = at.port_u16().unwrap_or(80);
                let why = super::error::causes(&error);
                format!("through the proxy {host}:{port}: {why}").into()
            })
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_never_shown() {
        let url: ProxyUrl = "http://dev:s3cret@proxy.example:3128/".parse().unwrap();
        assert_eq!(url.to_string(), "http://proxy.example:3128");
        let shown = format!("{url:?} {:?}", Proxy::fixed(&url));
        assert!(!shown.contains("s3cret"), "{shown}");
        for bad in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:1080",
            "http://proxy",
            "http://:3128",
            "http://proxy:3128/path",
            "http://proxy:3128?x",
            "http://u:s3cret@proxy:port",
        ] {
            let problem = bad.parse::<ProxyUrl>().unwrap_err();
            assert!(!problem.contains("s3cret"), "{bad}");
        }
    }
}

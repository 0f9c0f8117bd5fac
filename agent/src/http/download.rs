//! An answer's body, piece by piece, with its time limits.

use super::error::{as_ms, causes, timeout};
use super::{Client, HttpError};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::time::Duration;
use tokio::time::Instant;

/// A download under way.
pub struct Download {
    /// Where the bytes begin: as asked, or 0 if the server sends all of it.
    pub offset: u64,
    /// Length of the whole file, if the server says.
    pub total_bytes: Option<u64>,
    pub(super) body: Body,
}

impl Download {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`HttpError`]
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        self.body.chunk().await
    }

    pub(super) async fn collect(self, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
        if self.total_bytes.is_some_and(|n| n > max_bytes) {
            return Err(HttpError::TooLarge {
                url: self.body.url,
                max_bytes,
            });
        }
        self.body.collect(max_bytes).await
    }
}

pub(super) struct Body {
    url: String,
    incoming: Incoming,
    client: Client,
    /// Time spent waiting for the network in this rate window, and what came in it.
    waited: Duration,
    window_bytes: u64,
}

impl Body {
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
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
                    self.client.throttle.take(data.len()).await;
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

    pub(super) async fn collect(mut self, max_bytes: u64) -> Result<Vec<u8>, HttpError> {
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

pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// First byte and total length of `Content-Range: bytes first-last/total` (RFC 9110, 14.4).
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        n => Some(n.parse().ok()?),
    };
    Some((first.parse().ok()?, total))
}

impl Body {
    pub(super) fn new(url: &str, incoming: Incoming, client: Client) -> Self {
        Self {
            url: url.to_owned(),
            incoming,
            client,
            waited: Duration::ZERO,
            window_bytes: 0,
        }
    }
}

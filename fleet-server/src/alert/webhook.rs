//! Telling webhooks, signed, in order, until they answer or it is given up.
//!
//! Every message is a `POST` of JSON with `Dunlin-Delivery` (its number: the same on every attempt),
//! `Dunlin-Timestamp` (seconds since 1970) and `Dunlin-Signature: v1=HEX`, HMAC-SHA-256 with the webhook's
//! secret over the timestamp, a full stop and the body. A receiver compares the signature in constant
//! time, refuses timestamps that are minutes old, and drops numbers it has seen: delivery is at least
//! once. Answers of the 200s are a yes; 410 says never again; all else is tried again.

use crate::clock;
use crate::store::{Attempt, DeliveryRow, Store};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use sha2::Sha256;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Longest wait for an answer's head, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the last answers at the end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked for what is due.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Wait after the first failed attempt, in milliseconds; doubled with each.
const RETRY_MIN_MS: i64 = 5_000;
/// Longest wait between two attempts, in milliseconds.
const RETRY_MAX_MS: i64 = 3_600_000;
/// Attempts until it is given up: about twelve hours.
const ATTEMPTS_MAX: i64 = 21;
const URL_MAX_CHARS: usize = 2048;

/// Why an address is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "url: expected https://HOST/…, or http:// of this machine (127.0.0.1, [::1], localhost), got {got}"
)]
pub struct UrlError {
    /// The address.
    pub got: String,
}

/// Checks a webhook's address: messages leave this machine encrypted or not at all.
///
/// # Errors
/// [`UrlError`]
pub fn check_url(url: &str) -> Result<Uri, UrlError> {
    let wrong = || UrlError {
        got: url.chars().take(200).collect(),
    };
    if url.chars().count() > URL_MAX_CHARS {
        return Err(wrong());
    }
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let is_here = matches!(uri.host(), Some("127.0.0.1" | "[::1]" | "localhost"));
    let has_user = uri.authority().is_none_or(|a| a.as_str().contains('@'));
    match uri.scheme_str() {
        Some("https") if !has_user => Ok(uri),
        Some("http") if is_here && !has_user => Ok(uri),
        _ => Err(wrong()),
    }
}

/// `v1=` and the signature in hexadecimal.
#[must_use]
#[allow(clippy::expect_used)]
pub fn signature(secret: &str, timestamp_s: i64, body: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let mut mac = mac.expect("HMAC takes keys of any length (RFC 2104)");
    mac.update(timestamp_s.to_string().as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    format!("v1={}", hex::encode(mac.finalize().into_bytes()))
}

/// How long to wait after so many failed attempts, in milliseconds.
#[must_use]
pub fn retry_ms(attempts: i64) -> i64 {
    let doubled = u32::try_from(attempts.clamp(0, 30)).unwrap_or_default();
    RETRY_MIN_MS.saturating_mul(1 << doubled).min(RETRY_MAX_MS)
}

/// Tells webhooks until it is told to stop.
pub struct Messenger {
    store: Store,
    due: Arc<Notify>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Messenger {
    /// One that trusts what this machine trusts, and, besides, these certificates.
    #[must_use]
    pub fn new(store: Store, due: Arc<Notify>, roots: rustls::RootCertStore) -> Self {
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .build();
        Self {
            store,
            due,
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// Until it is told to stop; what is under way then and takes long is tried again at the next start.
    /// Webhooks do not wait for each other.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut under_way = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        loop {
            let now_ms = clock::now_ms();
            match self.store.due_deliveries(now_ms).await {
                Ok(due) => {
                    for delivery in due {
                        if busy.insert(delivery.webhook.clone()) {
                            under_way.push(self.tell(delivery, now_ms));
                        }
                    }
                }
                Err(error) => tracing::error!(%error, "webhooks are not told"),
            }
            tokio::select! {
                Some(webhook) = under_way.next() => {
                    busy.remove(&webhook);
                }
                () = self.due.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        let rest = async { while under_way.next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_TIMEOUT, rest).await;
    }

    /// Tells one webhook one message; its name.
    async fn tell(&self, delivery: DeliveryRow, now_ms: i64) -> String {
        let attempt = self.attempt(&delivery, now_ms).await;
        let (webhook, id) = (delivery.webhook, delivery.id);
        if let Attempt::Again { error, .. } | Attempt::Dead { error } = &attempt {
            let dead = matches!(attempt, Attempt::Dead { .. });
            tracing::warn!(%webhook, id, %error, dead, "webhook not told");
        }
        if let Err(error) = self.store.attempted(id, &attempt).await {
            tracing::error!(%webhook, id, %error, "what became of a message was not written down");
            // It would be sent again at once.
            tokio::time::sleep(LOOK_EVERY).await;
        }
        webhook
    }

    async fn attempt(&self, delivery: &DeliveryRow, now_ms: i64) -> Attempt {
        match self.post(delivery, now_ms).await {
            Ok(status) if status.is_success() => Attempt::Delivered,
            Ok(StatusCode::GONE) => Attempt::Dead {
                error: "answered 410 Gone".to_owned(),
            },
            Ok(status) => failed(delivery, format!("answered {status}"), now_ms),
            Err(error) => failed(delivery, error, now_ms),
        }
    }

    async fn post(&self, delivery: &DeliveryRow, now_ms: i64) -> Result<StatusCode, String> {
        let uri = check_url(&delivery.url).map_err(|e| e.to_string())?;
        let timestamp_s = now_ms.div_euclid(1000);
        let request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("dunlin-server/", env!("CARGO_PKG_VERSION")),
            )
            .header("dunlin-delivery", delivery.id)
            .header("dunlin-timestamp", timestamp_s)
            .header(
                "dunlin-signature",
                signature(&delivery.secret, timestamp_s, &delivery.body),
            )
            .body(Full::new(Bytes::from(delivery.body.clone())))
            .map_err(|e| e.to_string())?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.client.request(request)).await;
        let answer = answer.map_err(|_| format!("no answer within {ANSWER_TIMEOUT:?}"))?;
        // The body is of no interest and is not read.
        Ok(answer.map_err(|e| in_words(&e))?.status())
    }
}

fn failed(delivery: &DeliveryRow, error: String, now_ms: i64) -> Attempt {
    if delivery.attempts + 1 >= ATTEMPTS_MAX {
        return Attempt::Dead { error };
    }
    Attempt::Again {
        next_ms: now_ms.saturating_add(retry_ms(delivery.attempts)),
        error,
    }
}

/// An error with its causes: the first alone says "client error".
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// What this machine trusts, for `https` webhooks. Certificates that cannot be read are passed over.
#[must_use]
pub fn machine_roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate of this machine cannot be read");
    }
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        tracing::warn!("this machine trusts no certificate: https webhooks will not be told");
    }
    roots
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_hmac_sha256() {
        // echo -n '1700000000.{}' | openssl dgst -sha256 -hmac key
        assert_eq!(
            signature("key", 1_700_000_000, "{}"),
            "v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
        );
    }

    #[test]
    fn messages_leave_the_machine_encrypted_or_not_at_all() {
        for good in [
            "https://hooks.example/a?b=c",
            "http://127.0.0.1:9000/x",
            "http://localhost/x",
            "http://[::1]:80/",
        ] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://hooks.example/",
            "ftp://hooks.example/",
            "https://user:word@hooks.example/",
            "/only/a/path",
            "https://",
            "http://localhost.evil.example/",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn waits_grow_to_an_hour_and_end_after_half_a_day() {
        assert_eq!((retry_ms(0), retry_ms(1)), (5_000, 10_000));
        assert_eq!(retry_ms(1000), RETRY_MAX_MS);
        let all: i64 = (0..ATTEMPTS_MAX - 1).map(retry_ms).sum();
        let hours = all as f64 / 3.6e6;
        assert!((10.0..14.0).contains(&hours), "{hours}");
    }
}

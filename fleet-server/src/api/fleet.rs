//! The fleet itself: what it is, its trust, its health.

use super::error::{ApiError, ErrorBody};
use super::{App, blocking};
use crate::clock;
use crate::exposition::{self, Format};
use crate::repository::Expiry;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use dunlin_protocol::trust::Key;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;

/// Longest time without a connection to the broker before the server counts as ill.
const DEAF_MAX_MS: i64 = 60_000;

/// How long a version is in the metrics after its last window came: 90 days.
const TOTALS_MS: i64 = 90 * 24 * 3_600_000;

/// The fleet as operators' tools need it.
#[derive(Debug, Serialize, ToSchema)]
pub struct FleetView {
    /// Its name.
    pub fleet: String,
    /// Life of the server's database.
    pub epoch: u64,
    /// The fleet CA's certificate.
    pub ca_pem: String,
    /// SHA-256 of the fleet CA's certificate (DER).
    pub ca_sha256: String,
    /// Public halves of the server's keys, as root metadata list them.
    pub online_keys: OnlineKeys,
    /// Base URL of the devices' listener.
    pub devices_url: String,
    /// The broker.
    pub mqtt: MqttView,
    /// Public halves of the keys that wait for a root that lists them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_online_keys: Option<OnlineKeys>,
    /// The metadata that devices rest on, and when they expire.
    pub metadata: Vec<MetadataView>,
    /// Version of the newest root.
    pub root_version: Option<u64>,
    /// Version of the published targets.
    pub targets_version: Option<u64>,
}

/// TUF key objects.
#[derive(Debug, Serialize, ToSchema)]
pub struct OnlineKeys {
    /// Signs snapshot.
    #[schema(value_type = Object)]
    pub snapshot: Value,
    /// Signs timestamp.
    #[schema(value_type = Object)]
    pub timestamp: Value,
}

impl From<(Key, Key)> for OnlineKeys {
    fn from((snapshot, timestamp): (Key, Key)) -> Self {
        Self {
            snapshot: snapshot.to_json().clone(),
            timestamp: timestamp.to_json().clone(),
        }
    }
}

/// A metadata file that devices rest on.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetadataView {
    /// `root`, `targets`, `snapshot`, `timestamp`, or a delegated role.
    pub role: String,
    /// Its version.
    pub version: u64,
    /// End of validity.
    pub expires_ms: i64,
    /// Whether people sign it offline, not this server.
    pub offline: bool,
    /// Keys that must sign.
    pub threshold: u64,
    /// Keys that may sign.
    pub keys: u64,
    /// What to do about it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

impl MetadataView {
    fn of(expiry: &Expiry, now: Timestamp) -> Self {
        Self {
            role: expiry.role.clone(),
            version: expiry.version,
            expires_ms: expiry.expires.as_millisecond(),
            offline: expiry.is_offline,
            threshold: expiry.threshold,
            keys: expiry.keys,
            warning: expiry.warning(now),
        }
    }
}

/// Where devices find the broker.
#[derive(Debug, Serialize, ToSchema)]
pub struct MqttView {
    /// Its host.
    pub host: String,
    /// Its port (TLS).
    pub port: u16,
}

/// The fleet: trust, addresses, versions.
#[utoipa::path(get, path = "/api/v1/fleet", tag = "fleet", security(("token" = [])),
    responses((status = 200, body = FleetView), (status = 401, body = ErrorBody)))]
pub async fn fleet(State(app): State<Arc<App>>) -> Result<Json<FleetView>, ApiError> {
    let repository = app.repository.clone();
    let now = clock::now();
    let known = blocking(move || {
        Ok((
            repository.root_version()?,
            repository.targets_version()?,
            repository.online_keys()?,
            repository.next_online_keys(),
            repository.expiries(now)?,
        ))
    });
    let (root_version, targets_version, online_keys, next, expiries) = known.await?;
    Ok(Json(FleetView {
        fleet: app.settings.fleet.to_string(),
        epoch: app.store.epoch(),
        ca_pem: app.pki.ca_pem().to_owned(),
        ca_sha256: app.pki.ca_sha256().to_string(),
        online_keys: online_keys.into(),
        next_online_keys: next.map(Into::into),
        metadata: expiries.iter().map(|e| MetadataView::of(e, now)).collect(),
        devices_url: app.devices_url.clone(),
        mqtt: MqttView {
            host: app.mqtt_host.clone(),
            port: app.mqtt_port,
        },
        root_version,
        targets_version,
    }))
}

/// Whether the server hears devices, and its database answers and takes writes.
#[utoipa::path(get, path = "/healthz", tag = "server",
    responses((status = 200), (status = 500, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "`no_mqtt`: no connection to the broker for a minute; `no_writes`: the database takes none, and why")))]
pub async fn healthz(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    app.store.ping().await?;
    app.store.check_writes().await.map_err(|why| {
        let message = format!("nothing can be stored, devices keep what they have: {why}");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no_writes", message)
    })?;
    let deaf_ms = app.listening.borrow().deaf_ms(clock::now_ms());
    if deaf_ms > DEAF_MAX_MS {
        let seconds = deaf_ms / 1000;
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_mqtt",
            format!("no connection to the MQTT broker for {seconds} s: no device can be heard"),
        ));
    }
    Ok(Json(json!({ "status": "ok" })))
}

/// Metrics for Prometheus: as text, or as protocol buffers with native histograms where `Accept` asks
/// for them.
#[utoipa::path(get, path = "/metrics", tag = "server",
    responses((status = 200, content_type = "text/plain")))]
pub async fn metrics(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (live, online) = app.store.count_devices().await?;
    let running = app.store.running_rollouts().await?.len();
    // Gauges are floats; counts of devices are far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    {
        metrics::gauge!("dunlin_devices").set(live as f64);
        metrics::gauge!("dunlin_devices_online").set(online as f64);
        metrics::gauge!("dunlin_rollouts_running").set(running as f64);
    }
    let (repository, now) = (app.repository.clone(), clock::now());
    // A damaged repository must not take the other metrics along; the server's log tells of it.
    let expiries = blocking(move || repository.expiries(now)).await;
    for expiry in expiries.unwrap_or_default() {
        let left = expiry.seconds_left(now);
        // Seconds until a date of this century: exact in a float.
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("dunlin_metadata_expires_seconds", "role" => expiry.role).set(left as f64);
    }
    app.metrics.run_upkeep();
    let heard_since_ms = clock::now_ms().saturating_sub(TOTALS_MS);
    let totals = app.store.version_totals(heard_since_ms).await?;
    let format = Format::of(headers.get(header::ACCEPT));
    let body = exposition::render(&app.metrics.render(), &totals, format);
    let headers = [
        (header::CONTENT_TYPE, format.media_type()),
        (header::VARY, "Accept"),
    ];
    Ok((headers, body).into_response())
}

//! The fleet itself: what it is, its trust, its health.

use super::error::{ApiError, ErrorBody, Raw};
use super::{App, blocking};
use crate::clock;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::ToSchema;

/// Longest time without a connection to the broker before the server counts as ill.
const DEAF_MAX_MS: i64 = 60_000;

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
    let versions = move || Ok((repository.root_version()?, repository.targets_version()?));
    let (root_version, targets_version) = blocking(versions).await?;
    let (snapshot, timestamp) = app.repository.online_keys();
    Ok(Json(FleetView {
        fleet: app.settings.fleet.to_string(),
        epoch: app.store.epoch(),
        ca_pem: app.pki.ca_pem().to_owned(),
        ca_sha256: app.pki.ca_sha256().to_string(),
        online_keys: OnlineKeys {
            snapshot: snapshot.to_json().clone(),
            timestamp: timestamp.to_json().clone(),
        },
        devices_url: app.devices_url.clone(),
        mqtt: MqttView {
            host: app.mqtt_host.clone(),
            port: app.mqtt_port,
        },
        root_version,
        targets_version,
    }))
}

/// What a root upload did.
#[derive(Debug, Serialize, ToSchema)]
pub struct RootView {
    /// Version of the root that is trusted now.
    pub version: u64,
}

/// Sets the trust root: the first by itself, each later one by the chain from the one before.
#[utoipa::path(put, path = "/api/v1/trust/root", tag = "fleet", security(("token" = [])),
    request_body(content_type = "application/json", description = "root.json, exactly as signed"),
    responses((status = 200, body = RootView), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "not trusted, or this server's keys are not in it")))]
pub async fn put_root(
    State(app): State<Arc<App>>,
    Raw(bytes): Raw,
) -> Result<Json<RootView>, ApiError> {
    let repository = app.repository.clone();
    let version = blocking(move || repository.put_root(&bytes, clock::now())).await?;
    tracing::info!(version, "trust root set");
    Ok(Json(RootView { version }))
}

/// A metadata file as devices get it.
#[utoipa::path(get, path = "/api/v1/trust/metadata/{file}", tag = "fleet", security(("token" = [])),
    params(("file" = String, Path, description = "timestamp.json, N.root.json, N.targets.json or N.snapshot.json")),
    responses((status = 200, content_type = "application/json"), (status = 404, body = ErrorBody)))]
pub async fn metadata(
    State(app): State<Arc<App>>,
    Path(file): Path<String>,
) -> Result<Response, ApiError> {
    let repository = app.repository.clone();
    let name = file.clone();
    match blocking(move || repository.metadata_file(&name)).await? {
        Some(bytes) => Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response()),
        None => Err(ApiError::not_found(format!("no metadata file {file:?}"))),
    }
}

/// Whether the server and its database answer.
#[utoipa::path(get, path = "/healthz", tag = "server",
    responses((status = 200), (status = 500, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "no connection to the broker for a minute")))]
pub async fn healthz(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    app.store.ping().await?;
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

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "server",
    responses((status = 200, content_type = "text/plain")))]
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let (live, online) = app.store.count_devices().await?;
    let running = app.store.running_rollouts().await?.len();
    // Gauges are floats; counts of devices are far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    {
        metrics::gauge!("dunlin_devices").set(live as f64);
        metrics::gauge!("dunlin_devices_online").set(online as f64);
        metrics::gauge!("dunlin_rollouts_running").set(running as f64);
    }
    app.metrics.run_upkeep();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, app.metrics.render()).into_response())
}

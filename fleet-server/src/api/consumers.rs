//! Consumers: programs besides the fleet's own that read what devices send.

use super::error::{ApiError, ErrorBody, Input, parse};
use super::{Admin, App};
use crate::clock;
use crate::consumer::{ConsumerName, ReadRights};
use crate::store::{ConsumerCertificate, ConsumerRow};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use dunlin_protocol::id::DeviceId;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::ToSchema;

/// A consumer to be added.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewConsumer {
    /// Its name, given once: not even a revoked one's is given again.
    pub name: String,
    /// Channels it may read: some of presence, reported, metrics, sketch, event, log.
    #[serde(default = "metrics")]
    pub channels: Vec<String>,
    /// Devices it may read; none: all, also those to come.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Certificate signing request, PEM; only its key counts.
    pub csr_pem: String,
}

fn metrics() -> Vec<String> {
    vec!["metrics".to_owned()]
}

/// A new certificate for a consumer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerRenewal {
    /// Certificate signing request, PEM; only its key counts.
    pub csr_pem: String,
}

/// All that a consumer needs besides its key.
#[derive(Debug, Serialize, ToSchema)]
pub struct IssuedConsumer {
    /// Its name.
    pub name: String,
    /// The MQTT client id that it must use.
    pub client_id: String,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The fleet CA, which vouches for the broker, PEM.
    pub ca_pem: String,
    /// The broker.
    pub mqtt_host: String,
    /// Its port, with mutual TLS.
    pub mqtt_port: u16,
    /// What it can subscribe to.
    pub filters: Vec<String>,
    /// When its certificate ends.
    pub expires_ms: i64,
}

/// A consumer as listed.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsumerView {
    /// Its name.
    pub name: String,
    /// The MQTT client id that it must use.
    pub client_id: String,
    /// Channels it may read.
    pub channels: Vec<String>,
    /// Devices it may read; none: all.
    pub devices: Vec<String>,
    /// When it was added.
    pub created_ms: i64,
    /// Who added it.
    pub created_by: String,
    /// When its certificate was signed.
    pub issued_ms: i64,
    /// Who had its certificate renewed last.
    pub renewed_by: Option<String>,
    /// When its certificate ends.
    pub expires_ms: i64,
    /// When it was revoked.
    pub revoked_ms: Option<i64>,
    /// Who revoked it.
    pub revoked_by: Option<String>,
}

/// Every consumer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConsumerList {
    /// By name, the revoked too.
    pub consumers: Vec<ConsumerView>,
}

fn view(row: ConsumerRow) -> ConsumerView {
    ConsumerView {
        client_id: row.name.client_id(),
        name: row.name.to_string(),
        channels: row
            .rights
            .channels()
            .map(|c| c.as_str().to_owned())
            .collect(),
        devices: row
            .rights
            .devices()
            .iter()
            .map(DeviceId::to_string)
            .collect(),
        created_ms: row.created_ms,
        created_by: row.created_by,
        issued_ms: row.issued_ms,
        renewed_by: row.renewed_by,
        expires_ms: row.expires_ms,
        revoked_ms: row.revoked_ms,
        revoked_by: row.revoked_by,
    }
}

/// Signs a certificate for the key of a request; also in the words of the database.
fn sign(
    app: &App,
    name: &ConsumerName,
    csr_pem: &str,
    by: String,
) -> Result<(String, ConsumerCertificate), ApiError> {
    let csr = app.pki.check_csr(csr_pem)?;
    let now = clock::now();
    let signed = app.pki.sign_consumer(csr, name, now)?;
    let certificate = ConsumerCertificate {
        sha256: signed.sha256.0,
        issued_ms: now.as_millisecond(),
        expires_ms: signed.expires_ms,
        by,
    };
    Ok((signed.pem, certificate))
}

fn issued(
    app: &App,
    name: &ConsumerName,
    rights: &ReadRights,
    certificate_pem: String,
    expires_ms: i64,
) -> IssuedConsumer {
    IssuedConsumer {
        name: name.to_string(),
        client_id: name.client_id(),
        certificate_pem,
        ca_pem: app.pki.ca_pem().to_owned(),
        mqtt_host: app.mqtt_host.clone(),
        mqtt_port: app.mqtt_port,
        filters: rights.filters(&app.settings.fleet),
        expires_ms,
    }
}

/// Adds a consumer: what it may read, and a certificate for its key.
#[utoipa::path(post, path = "/api/v1/consumers", tag = "consumers", security(("token" = [])),
    request_body = NewConsumer,
    responses((status = 201, body = IssuedConsumer), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the name is, or was, given")))]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Input(new): Input<NewConsumer>,
) -> Result<(StatusCode, Json<IssuedConsumer>), ApiError> {
    let name: ConsumerName = new.name.parse()?;
    let devices = new.devices.iter().map(|text| parse("devices", text));
    let devices: BTreeSet<DeviceId> = devices.collect::<Result<_, _>>()?;
    let rights = ReadRights::new(&new.channels, devices)?;
    let (pem, certificate) = sign(&app, &name, &new.csr_pem, admin.clone())?;
    app.store
        .insert_consumer(&name, &rights, &certificate)
        .await?;
    tracing::info!(consumer = %name, by = admin, reads = ?rights.filters(&app.settings.fleet), "consumer added");
    app.acl.write(&app.store).await?;
    let issued = issued(&app, &name, &rights, pem, certificate.expires_ms);
    Ok((StatusCode::CREATED, Json(issued)))
}

/// Consumers, the revoked too.
#[utoipa::path(get, path = "/api/v1/consumers", tag = "consumers", security(("token" = [])),
    responses((status = 200, body = ConsumerList)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<ConsumerList>, ApiError> {
    let rows = app.store.consumers().await?;
    let consumers = rows.into_iter().map(view).collect();
    Ok(Json(ConsumerList { consumers }))
}

async fn find(app: &App, name: &str) -> Result<ConsumerRow, ApiError> {
    let name: ConsumerName = name.parse()?;
    let row = app.store.consumer(&name).await?;
    row.ok_or_else(|| ApiError::not_found(format!("no consumer {name}")))
}

fn drop_connection(app: &App, name: &ConsumerName) {
    if let Some(broker) = &app.broker {
        broker.disconnect_consumer(name);
    }
}

/// Gives a consumer another certificate, with the same rights; the one before counts no more, and
/// its live connection is dropped.
#[utoipa::path(post, path = "/api/v1/consumers/{name}/certificate", tag = "consumers",
    security(("token" = [])), params(("name" = String, Path)), request_body = ConsumerRenewal,
    responses((status = 201, body = IssuedConsumer), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the consumer is revoked")))]
pub async fn renew(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Path(name): Path<String>,
    Input(renewal): Input<ConsumerRenewal>,
) -> Result<(StatusCode, Json<IssuedConsumer>), ApiError> {
    let row = find(&app, &name).await?;
    let (pem, certificate) = sign(&app, &row.name, &renewal.csr_pem, admin.clone())?;
    if !app.store.renew_consumer(&row.name, &certificate).await? {
        return Err(ApiError::conflict("revoked", format!("{name} is revoked")));
    }
    drop_connection(&app, &row.name);
    tracing::info!(consumer = %row.name, by = admin, "consumer's certificate renewed");
    let issued = issued(&app, &row.name, &row.rights, pem, certificate.expires_ms);
    Ok((StatusCode::CREATED, Json(issued)))
}

/// Revokes a consumer: its certificate is refused, its live connection dropped, and an external
/// broker's ACL file no longer names it. May be repeated.
#[utoipa::path(delete, path = "/api/v1/consumers/{name}", tag = "consumers",
    security(("token" = [])), params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn revoke(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let name = find(&app, &name).await?.name;
    let revoked = app
        .store
        .revoke_consumer(&name, &admin, clock::now_ms())
        .await;
    // As for devices: after the database, and whatever it said.
    drop_connection(&app, &name);
    if revoked? {
        tracing::info!(consumer = %name, by = admin, "consumer revoked");
    }
    app.acl.write(&app.store).await?;
    Ok(StatusCode::NO_CONTENT)
}

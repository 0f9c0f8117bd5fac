//! Devices.

use super::App;
use super::error::{ApiError, ErrorBody, Input, parse};
use super::tokens::check_labels;
use crate::store::{DeviceFilter, DeviceRow};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_protocol::id::{DeviceId, Family, Revision};
use dunlin_protocol::report::Reported;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

const LIST_MAX: u32 = 1000;
const EVENTS_DEFAULT: u32 = 200;

/// A device and the newest that is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceView {
    /// Its id.
    pub device: String,
    /// Labels from its claim token.
    pub labels: BTreeMap<String, String>,
    /// What it says it is.
    pub hardware: String,
    /// Architecture as Rust names it.
    pub arch: String,
    /// Version of its agent.
    pub agent_version: String,
    /// Connected to the broker.
    pub online: bool,
    /// No longer let in.
    pub revoked: bool,
    /// When it was last heard of.
    pub last_seen_ms: Option<i64>,
    /// When it enrolled.
    pub enrolled_ms: i64,
    /// Bundles that serve: family, version, digest.
    #[schema(value_type = Vec<Object>)]
    pub active: Vec<Value>,
    /// How it stands with each model family: family, target, rollout, progress, waiting, active.
    #[schema(value_type = Vec<Object>)]
    pub models: Vec<Value>,
    /// How far it is with what was asked of it; of several families that of one, see `models`.
    #[schema(value_type = Option<Object>)]
    pub progress: Option<Value>,
    /// Its newest report, whole.
    #[schema(value_type = Option<Object>)]
    pub reported: Option<Value>,
    /// What it should run.
    #[schema(value_type = Vec<Object>)]
    pub desired: Vec<Value>,
    /// Revision of what it should run, `epoch.generation`.
    pub revision: Option<String>,
    /// Newest revision it accepted.
    pub accepted_revision: Option<String>,
}

/// A page of devices.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeviceList {
    /// By id.
    pub devices: Vec<DeviceView>,
    /// Pass it as `after` for the next page.
    pub next: Option<String>,
}

fn json<T: Serialize>(value: &T) -> Result<Value, ApiError> {
    serde_json::to_value(value).map_err(|e| ApiError::internal(&e))
}

fn view(row: &DeviceRow) -> Result<DeviceView, ApiError> {
    let reported = row.reported.as_ref();
    let models = reported.map(Reported::all).unwrap_or_default();
    let active = models.iter().filter_map(|model| model.active.as_ref());
    let desired = row.desired.as_ref();
    let bundles = desired.map_or(&[][..], |d| &d.bundles);
    let text = |revision: Revision| revision.to_string();
    Ok(DeviceView {
        device: row.device.to_string(),
        labels: row.labels.clone(),
        hardware: row.hardware.clone(),
        arch: row.arch.clone(),
        agent_version: row.agent_version.clone(),
        online: row.online,
        revoked: row.revoked,
        last_seen_ms: row.last_seen_ms,
        enrolled_ms: row.enrolled_ms,
        active: active.map(json).collect::<Result<_, _>>()?,
        models: models.iter().map(json).collect::<Result<_, _>>()?,
        progress: reported.map(|r| json(&r.progress)).transpose()?,
        reported: reported.map(json).transpose()?,
        desired: bundles.iter().map(json).collect::<Result<_, _>>()?,
        revision: desired.map(|d| text(d.revision)),
        accepted_revision: reported.map(|r| text(r.revision)),
    })
}

fn read_filter(pairs: &[(String, String)]) -> Result<DeviceFilter, ApiError> {
    let mut filter = DeviceFilter {
        limit: Some(LIST_MAX),
        ..DeviceFilter::default()
    };
    for (name, value) in pairs {
        match name.as_str() {
            "label" => {
                let Some((key, wanted)) = value.split_once('=') else {
                    return Err(ApiError::bad_request(format!(
                        "label: expected key=value, got {value:?}"
                    )));
                };
                filter.labels.insert(key.to_owned(), wanted.to_owned());
            }
            "online" => filter.online = Some(parse(name, value)?),
            "family" => filter.family = Some(parse(name, value)?),
            "version" => filter.version = Some(parse(name, value)?),
            "after" => filter.after = Some(parse(name, value)?),
            "limit" => {
                let limit: u32 = parse(name, value)?;
                filter.limit = Some(limit.clamp(1, LIST_MAX));
            }
            "revoked" => filter.with_revoked = parse(name, value)?,
            other => {
                return Err(ApiError::bad_request(format!(
                    "query parameter {other:?} is unknown; known are label, online, family, version, after, limit, revoked"
                )));
            }
        }
    }
    check_labels(&filter.labels)?;
    Ok(filter)
}

/// Devices by id. `label=key=value` may be given several times; all must hold.
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices", security(("token" = [])),
    params(("label" = Option<Vec<String>>, Query), ("online" = Option<bool>, Query),
        ("family" = Option<String>, Query), ("version" = Option<u64>, Query),
        ("after" = Option<String>, Query), ("limit" = Option<u32>, Query),
        ("revoked" = Option<bool>, Query, description = "also those that are revoked")),
    responses((status = 200, body = DeviceList), (status = 400, body = ErrorBody)))]
pub async fn list(
    State(app): State<Arc<App>>,
    pairs: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<DeviceList>, ApiError> {
    let Query(pairs) = pairs.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let filter = read_filter(&pairs)?;
    let rows = app.store.list_devices(&filter).await?;
    let is_full = filter
        .limit
        .is_some_and(|limit| rows.len() as u64 >= u64::from(limit));
    let next = rows
        .last()
        .filter(|_| is_full)
        .map(|r| r.device.to_string());
    let devices = rows.iter().map(view).collect::<Result<_, _>>()?;
    Ok(Json(DeviceList { devices, next }))
}

pub(super) async fn find(app: &App, id: &str) -> Result<DeviceRow, ApiError> {
    let device: DeviceId = parse("device", id)?;
    let row = app.store.device(&device).await?;
    row.ok_or_else(|| ApiError::not_found(format!("no device {device}")))
}

/// One device.
#[utoipa::path(get, path = "/api/v1/devices/{id}", tag = "devices", security(("token" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody)))]
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<DeviceView>, ApiError> {
    view(&find(&app, &id).await?).map(Json)
}

/// Events of a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventList {
    /// The newest first.
    #[schema(value_type = Vec<Object>)]
    pub events: Vec<Value>,
}

/// How many events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventParams {
    /// At most so many, 1 to 1000; 200 if left out.
    pub limit: Option<u32>,
}

/// A device's newest events and gaps, as it sent them.
#[utoipa::path(get, path = "/api/v1/devices/{id}/events", tag = "devices", security(("token" = [])),
    params(("id" = String, Path), EventParams),
    responses((status = 200, body = EventList), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    params: Result<Query<EventParams>, QueryRejection>,
) -> Result<Json<EventList>, ApiError> {
    let Query(params) = params.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let limit = params.limit.unwrap_or(EVENTS_DEFAULT);
    let device = find(&app, &id).await?.device;
    let records = app.store.events(&device, limit.clamp(1, LIST_MAX)).await?;
    let events = records
        .iter()
        .map(|r| json(&r.record))
        .collect::<Result<_, _>>()?;
    Ok(Json(EventList { events }))
}

/// Revokes a device: its certificate is refused, its live connection dropped. May be repeated.
#[utoipa::path(delete, path = "/api/v1/devices/{id}", tag = "devices", security(("token" = [])),
    params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn revoke(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let device: DeviceId = parse("device", &id)?;
    let revoked = app.store.revoke_device(&device).await;
    // After the database, so that it cannot come back in between; and whatever that said, so that
    // asking again drops a connection that was missed.
    if let Some(broker) = &app.broker {
        broker.disconnect(&device);
    }
    if !revoked? && app.store.device(&device).await?.is_none() {
        return Err(ApiError::not_found(format!("no device {device}")));
    }
    tracing::info!(%device, "device revoked");
    Ok(StatusCode::NO_CONTENT)
}

/// A bundle for one device.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Its family.
    pub family: String,
    /// Its version.
    pub version: u64,
    /// What it must go through; default: the protocol's.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub probation: Option<Probation>,
}

/// Makes one device run a published bundle, by hand. A running rollout that has given the device
/// its version counts it as cancelled from then on.
#[utoipa::path(put, path = "/api/v1/devices/{id}/desired", tag = "devices", security(("token" = [])),
    params(("id" = String, Path)), request_body = Pin,
    responses((status = 200, body = DeviceView), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the device is revoked"),
        (status = 422, body = ErrorBody, description = "below the rollback floor")))]
pub async fn pin(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Input(pin): Input<Pin>,
) -> Result<Json<DeviceView>, ApiError> {
    let family: Family = parse("family", &pin.family)?;
    let row = find(&app, &id).await?;
    if row.revoked {
        return Err(ApiError::conflict("revoked", format!("{id} is revoked")));
    }
    let bundle = published_bundle(&app, &family, pin.version).await?;
    let wanted = DesiredBundle {
        family: family.clone(),
        version: bundle.version,
        target: bundle.target,
        digest: bundle.digest,
        rollout: None,
        probation: pin.probation.unwrap_or_default(),
        asked: None,
    };
    let pinned = app
        .store
        .set_desired_family(&row.device, &family, Some(wanted));
    pinned.await?;
    app.deliver.wake();
    view(&find(&app, &id).await?).map(Json)
}

/// A bundle that devices would take: on the signed list and not below its family's floor.
pub(super) async fn published_bundle(
    app: &App,
    family: &Family,
    version: u64,
) -> Result<crate::store::BundleRow, ApiError> {
    let Some(bundle) = app.store.bundle(family, version).await? else {
        let message = format!("bundle {family} version {version} is not published");
        return Err(ApiError::not_found(message));
    };
    let floor = app.store.floor(family).await?;
    if version < floor {
        let message = format!(
            "{family} version {version} is below the rollback floor {floor}: devices refuse it"
        );
        return Err(ApiError::refused("below_floor", message));
    }
    Ok(bundle)
}

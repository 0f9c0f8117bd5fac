//! Samples that devices keep of their inputs: asking for them, taking them in, handing them out. They
//! are sealed to a key that this server does not have; every step is audited.

use super::devices::find;
use super::error::{ApiError, ErrorBody, Input, Raw, parse};
use super::guard::presented;
use super::{Admin, App};
use crate::clock;
use crate::store::{
    BatchOutcome, CaptureFilter, CaptureQuota, CaptureRequestRow, CaptureRow, Deed, DeviceFilter,
    IncomingBatch, NewCaptureRequest,
};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use dunlin_protocol::capture::seal::{SEALED_MAX_BYTES, Sealed};
use dunlin_protocol::capture::{Done, WantedList};
use dunlin_protocol::id::{DeviceId, Digest, Family};
use http::{Extensions, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use utoipa::ToSchema;

/// Largest batch, in bytes.
pub const BATCH_MAX_BYTES: usize = SEALED_MAX_BYTES;
/// Largest word that a request is answered, in bytes.
pub const DONE_MAX_BYTES: usize = 4096;
/// Most batches that are taken in at once: each waits in memory until it is whole.
pub const UPLOADS_MAX: usize = 16;
/// Longest time that a batch may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
const DEVICES_MAX: u32 = 1000;
const REASON_MAX_CHARS: usize = 200;
const DETAIL_MAX_CHARS: usize = 200;
const LIST_MAX: u32 = 1000;
const REQUESTS_MAX: u32 = 100;
const LIFE_S_MAX: u64 = 90 * 24 * 3600;

/// A request for samples.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRequest {
    /// Of these devices; none: of every one that runs the family.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Samples of this family only.
    #[serde(default)]
    pub family: Option<String>,
    /// Samples of this version only.
    #[serde(default)]
    pub version: Option<u64>,
    /// Why, for the audit log: 1 to 200 characters.
    pub reason: String,
    /// How long devices that are away are waited for, in seconds, default a week, at most 90 days.
    #[serde(default = "a_week")]
    pub expires_in_s: u64,
}

fn a_week() -> u64 {
    7 * 24 * 3600
}

/// A request that was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct MadeRequest {
    /// Its number.
    pub id: i64,
    /// Of how many devices.
    pub devices: usize,
}

/// Where a device stands with a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct TargetView {
    /// The device.
    pub device: String,
    /// `waiting`, `done`, `refused`, `cancelled`, or `expired`.
    pub state: String,
    /// Why it refused.
    pub detail: String,
    /// Batches that came.
    pub batches: i64,
    /// Their bytes.
    pub bytes: i64,
    /// Since when that is so.
    pub changed_ms: i64,
}

/// A request and where its devices stand.
#[derive(Debug, Serialize, ToSchema)]
pub struct RequestView {
    /// Its number.
    pub id: i64,
    /// Samples of this family only.
    pub family: Option<String>,
    /// Samples of this version only.
    pub version: Option<u64>,
    /// Why.
    pub reason: String,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_ms: i64,
    /// Its devices.
    pub devices: Vec<TargetView>,
}

/// Requests.
#[derive(Debug, Serialize, ToSchema)]
pub struct RequestList {
    /// The newest first, at most a hundred.
    pub requests: Vec<RequestView>,
}

/// A sealed batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct CaptureView {
    /// SHA-256 of it, by which it is fetched.
    pub sha256: String,
    /// The request that it answered.
    pub request: i64,
    /// What it is bound to, readable without a key: device, family, version, bundle, recipient, window.
    #[schema(value_type = Object)]
    pub header: Value,
    /// Its length.
    pub bytes: i64,
    /// When it came.
    pub received_ms: i64,
}

/// Sealed batches.
#[derive(Debug, Serialize, ToSchema)]
pub struct CaptureList {
    /// The newest first, at most a thousand.
    pub captures: Vec<CaptureView>,
}

/// Which batches to list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    request: Option<u64>,
    device: Option<String>,
    family: Option<String>,
    version: Option<u64>,
}

fn request_view(row: CaptureRequestRow, now_ms: i64) -> RequestView {
    let over = row.expires_ms <= now_ms;
    let devices = row.targets.into_iter().map(|target| TargetView {
        device: target.device.to_string(),
        state: match target.state.as_str() {
            "waiting" if over => "expired".to_owned(),
            _ => target.state,
        },
        detail: target.detail,
        batches: target.batches,
        bytes: target.bytes,
        changed_ms: target.changed_ms,
    });
    RequestView {
        id: row.id,
        family: row.family.map(|f| f.to_string()),
        version: row.version,
        reason: row.reason,
        created_ms: row.created_ms,
        created_by: row.created_by,
        expires_ms: row.expires_ms,
        devices: devices.collect(),
    }
}

fn capture_view(row: &CaptureRow) -> CaptureView {
    CaptureView {
        sha256: row.sha256.to_string(),
        request: row.request,
        header: serde_json::to_value(&row.header).unwrap_or_default(),
        bytes: row.bytes,
        received_ms: row.received_ms,
    }
}

/// Devices that a request is for, with what is known beforehand of one that will not answer.
async fn chosen(
    app: &App,
    new: &NewRequest,
    family: Option<&Family>,
) -> Result<Vec<(DeviceId, Option<String>)>, ApiError> {
    let mut rows = Vec::new();
    if new.devices.is_empty() {
        let filter = DeviceFilter {
            family: family.cloned(),
            limit: Some(DEVICES_MAX + 1),
            ..DeviceFilter::default()
        };
        if family.is_none() {
            return Err(ApiError::bad_request("devices or a family must be named"));
        }
        rows = app.store.list_devices(&filter).await?;
    }
    if new.devices.len().max(rows.len()) > DEVICES_MAX as usize {
        return Err(ApiError::bad_request(format!(
            "at most {DEVICES_MAX} devices a request"
        )));
    }
    for device in &new.devices {
        let row = find(app, device).await?;
        if row.revoked {
            return Err(ApiError::conflict(
                "revoked",
                format!("device {device} is revoked"),
            ));
        }
        if !rows.iter().any(|known| known.device == row.device) {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return Err(ApiError::not_found("no device runs that family"));
    }
    let refusal = |row: &crate::store::DeviceRow| {
        let too_old = row.reported.as_ref().is_some_and(|r| r.capture.is_none());
        too_old.then(|| format!("agent {} keeps no samples", row.agent_version))
    };
    let chosen = rows.into_iter().map(|row| {
        let refused = refusal(&row);
        (row.device, refused)
    });
    Ok(chosen.collect())
}

/// Asks devices for the samples that they keep.
#[utoipa::path(post, path = "/api/v1/capture-requests", tag = "captures", security(("token" = [])),
    request_body = NewRequest,
    responses((status = 201, body = MadeRequest), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn request(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Input(new): Input<NewRequest>,
) -> Result<(StatusCode, Json<MadeRequest>), ApiError> {
    let characters = new.reason.chars().count();
    if !(1..=REASON_MAX_CHARS).contains(&characters) {
        let message = format!("reason: 1 to {REASON_MAX_CHARS} characters, got {characters}");
        return Err(ApiError::bad_request(message));
    }
    if !(1..=LIFE_S_MAX).contains(&new.expires_in_s) {
        let message = format!("expires_in_s: 1 to {LIFE_S_MAX}, got {}", new.expires_in_s);
        return Err(ApiError::bad_request(message));
    }
    let family = new
        .family
        .as_deref()
        .map(|f| parse("family", f))
        .transpose()?;
    let devices = chosen(&app, &new, family.as_ref()).await?;
    let now_ms = clock::now_ms();
    let life_ms = i64::try_from(new.expires_in_s)
        .unwrap_or(i64::MAX)
        .saturating_mul(1000);
    let made = NewCaptureRequest {
        family: family.as_ref(),
        version: new.version,
        reason: &new.reason,
        by: &admin,
        now_ms,
        expires_ms: now_ms.saturating_add(life_ms),
        devices: &devices,
    };
    let id = app.store.insert_capture_request(&made).await?;
    tracing::info!(request = id, devices = devices.len(), %admin, "captured samples requested");
    app.captures.notify_one();
    let devices = devices.len();
    Ok((StatusCode::CREATED, Json(MadeRequest { id, devices })))
}

/// Requests for samples and where they stand.
#[utoipa::path(get, path = "/api/v1/capture-requests", tag = "captures", security(("token" = [])),
    responses((status = 200, body = RequestList)))]
pub async fn requests(State(app): State<Arc<App>>) -> Result<Json<RequestList>, ApiError> {
    let now_ms = clock::now_ms();
    let rows = app.store.capture_requests(REQUESTS_MAX).await?;
    let requests = rows
        .into_iter()
        .map(|row| request_view(row, now_ms))
        .collect();
    Ok(Json(RequestList { requests }))
}

/// Ends a request for those that have not answered it yet.
#[utoipa::path(delete, path = "/api/v1/capture-requests/{id}", tag = "captures", security(("token" = [])),
    params(("id" = u64, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn cancel(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id: u64 = parse("id", &id)?;
    let actor = format!("admin:{admin}");
    let deed = deed(&actor, "capture.cancel", json!({ "request": id }));
    app.store.cancel_capture_request(id, &deed).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Sealed batches that devices sent.
#[utoipa::path(get, path = "/api/v1/captures", tag = "captures", security(("token" = [])),
    params(("request" = Option<u64>, Query), ("device" = Option<String>, Query),
        ("family" = Option<String>, Query), ("version" = Option<u64>, Query)),
    responses((status = 200, body = CaptureList), (status = 400, body = ErrorBody)))]
pub async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<CaptureList>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let filter = CaptureFilter {
        request: query.request,
        device: query.device.map(|d| parse("device", &d)).transpose()?,
        family: query.family.map(|f| parse("family", &f)).transpose()?,
        version: query.version,
    };
    let rows = app.store.captures(&filter, LIST_MAX).await?;
    let captures = rows.iter().map(capture_view).collect();
    Ok(Json(CaptureList { captures }))
}

/// A sealed batch, as the device sent it. Audited.
#[utoipa::path(get, path = "/api/v1/captures/{sha256}", tag = "captures", security(("token" = [])),
    params(("sha256" = String, Path, description = "64 hexadecimal digits")),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
pub async fn download(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Path(sha256): Path<String>,
) -> Result<Response, ApiError> {
    let sha256: Digest = parse("sha256", &sha256)?;
    let actor = format!("admin:{admin}");
    let deed = deed(&actor, "capture.download", json!({ "sha256": sha256 }));
    let sealed = app.store.capture_content(&sha256, &deed).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], sealed).into_response())
}

/// Deletes a sealed batch. Audited.
#[utoipa::path(delete, path = "/api/v1/captures/{sha256}", tag = "captures", security(("token" = [])),
    params(("sha256" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Path(sha256): Path<String>,
) -> Result<StatusCode, ApiError> {
    let sha256: Digest = parse("sha256", &sha256)?;
    let actor = format!("admin:{admin}");
    let deed = deed(&actor, "capture.delete", json!({ "sha256": sha256 }));
    app.store.delete_capture(&sha256, &deed).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn deed<'a>(actor: &'a str, action: &'static str, detail: Value) -> Deed<'a> {
    Deed {
        time_ms: clock::now_ms(),
        actor,
        action,
        detail,
    }
}

/// Devices' route: what is wanted of the device that asks.
pub async fn wanted(
    State(app): State<Arc<App>>,
    extensions: Extensions,
) -> Result<Json<WantedList>, ApiError> {
    let (device, _) = presented(&extensions)?;
    let wanted = app.store.captures_wanted(&device, clock::now_ms()).await?;
    Ok(Json(WantedList { wanted }))
}

/// Bounds how many batches come in at once, and for how long each may.
pub(super) async fn few_at_once(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Ok(_room) = app.uploads.try_acquire() else {
        let message = format!("{UPLOADS_MAX} batches come in already; try again later");
        return Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            message,
        ));
    };
    let answer = tokio::time::timeout(UPLOAD_TIMEOUT, next.run(request)).await;
    answer.map_err(|_| {
        let message = format!("not whole within {} s", UPLOAD_TIMEOUT.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
    })
}

/// Devices' route: a batch for a request.
pub async fn upload(
    State(app): State<Arc<App>>,
    Path((request, sha256)): Path<(String, String)>,
    extensions: Extensions,
    Raw(sealed): Raw,
) -> Result<StatusCode, ApiError> {
    let (device, _) = presented(&extensions)?;
    let request: u64 = parse("request", &request)?;
    let sha256: Digest = parse("sha256", &sha256)?;
    let got = Digest::of(&sealed);
    if got != sha256 {
        let message = format!("the batch has SHA-256 {got}, expected {sha256}");
        return Err(ApiError::refused("hash", message));
    }
    let refused = |message: String| ApiError::refused("bad_batch", message);
    let header = Sealed::parse(&sealed)
        .map_err(|e| refused(e.to_string()))?
        .header;
    if header.device != device || header.fleet != app.settings.fleet {
        let (theirs, fleet) = (&header.device, &header.fleet);
        return Err(refused(format!(
            "a batch of {theirs} in fleet {fleet}, sent by {device}"
        )));
    }
    let batch = IncomingBatch {
        request,
        device: &device,
        sha256,
        header: &header,
        sealed: &sealed,
        now_ms: clock::now_ms(),
    };
    let quota = CaptureQuota {
        max_bytes: app.settings.captures.max_mib << 20,
        device_max_bytes: app.settings.captures.device_max_mib << 20,
    };
    match app.store.insert_capture(&batch, quota).await? {
        BatchOutcome::Stored => Ok(StatusCode::CREATED),
        BatchOutcome::Known => Ok(StatusCode::OK),
        BatchOutcome::NotWanted => Err(not_wanted(request)),
        BatchOutcome::Full => {
            let message = "no room for more captured samples; fetch and delete some";
            tracing::warn!(%device, request, message);
            Err(ApiError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "captures_full",
                message,
            ))
        }
    }
}

/// Devices' route: a request is answered.
pub async fn done(
    State(app): State<Arc<App>>,
    Path(request): Path<String>,
    extensions: Extensions,
    Input(done): Input<Done>,
) -> Result<StatusCode, ApiError> {
    let (device, _) = presented(&extensions)?;
    let request: u64 = parse("request", &request)?;
    let refused = done
        .refused
        .map(|why| why.chars().take(DETAIL_MAX_CHARS).collect::<String>());
    let store = &app.store;
    match store
        .end_capture(request, &device, refused.as_deref(), clock::now_ms())
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(not_wanted(request)),
    }
}

fn not_wanted(request: u64) -> ApiError {
    let message = format!("request {request} wants no such samples of this device now");
    ApiError::new(StatusCode::NOT_FOUND, "not_wanted", message)
}

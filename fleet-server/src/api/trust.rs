//! The fleet's trust: roots, metadata, the server's own keys.

use super::error::{ApiError, ErrorBody, Input, Raw};
use super::fleet::OnlineKeys;
use super::{App, blocking};
use crate::clock;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::header;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// Largest chain of roots, in bytes.
pub const ROOTS_MAX_BYTES: usize = 32 << 20;

/// What a root upload did.
#[derive(Debug, Serialize, ToSchema)]
pub struct RootView {
    /// Version of the root that is trusted now.
    pub version: u64,
}

/// A chain of roots, oldest first.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RootChain {
    /// Root files, exactly as signed.
    pub roots: Vec<String>,
}

/// Sets a chain of trust roots at once: those that are here already are passed over; only the last
/// must be valid now and list this server's keys.
#[utoipa::path(put, path = "/api/v1/trust/roots", tag = "fleet", security(("token" = [])),
    request_body = RootChain,
    responses((status = 200, body = RootView), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "not trusted, or this server's keys are not in it")))]
pub async fn put_roots(
    State(app): State<Arc<App>>,
    Input(chain): Input<RootChain>,
) -> Result<Json<RootView>, ApiError> {
    let repository = app.repository.clone();
    let roots: Vec<Vec<u8>> = chain.roots.into_iter().map(String::into_bytes).collect();
    let version = blocking(move || repository.put_roots(&roots, clock::now())).await?;
    tracing::info!(version, "trust roots set");
    Ok(Json(RootView { version }))
}

/// Makes the server's next online keys, unless they wait already; they are used as soon as a root
/// lists them.
#[utoipa::path(post, path = "/api/v1/trust/online-keys", tag = "fleet", security(("token" = [])),
    responses((status = 200, body = OnlineKeys)))]
pub async fn make_online_keys(State(app): State<Arc<App>>) -> Result<Json<OnlineKeys>, ApiError> {
    let repository = app.repository.clone();
    let made = blocking(move || repository.make_next_keys()).await?;
    let missing = || ApiError::internal(&"the next online keys are not there after they were made");
    let made: OnlineKeys = made.ok_or_else(missing)?.into();
    tracing::warn!("next online keys made; they wait for a root that lists them");
    Ok(Json(made))
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

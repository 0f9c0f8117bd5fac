//! Patches between models on their way in.

use super::App;
use super::error::{ApiError, ErrorBody, parse};
use crate::patches::{Pair, PatchStoreError, Patches};
use crate::repository::Published;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use dunlin_protocol::bundle::Manifest;
use dunlin_protocol::id::Digest;
use http::{HeaderMap, StatusCode, header};
use std::collections::BTreeSet;
use std::sync::Arc;

pub(super) fn pair(from: &str, to: &str) -> Result<Pair, ApiError> {
    Ok(Pair {
        from: parse("from", from)?,
        to: parse("to", to)?,
    })
}

/// Longest patch worth keeping: one byte less than the new model travels in. The new model must be
/// listed, and the old one of the same family.
async fn max_bytes(app: &App, pair: &Pair) -> Result<u64, ApiError> {
    let rows = app.store.list_bundles().await?;
    let models: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let manifest = Manifest::parse(row.manifest_json.as_bytes()).ok()?;
            Some((row, manifest.files.model))
        })
        .collect();
    let to = models
        .iter()
        .find(|(row, model)| row.listed && model.sha256 == pair.to);
    let Some((to, model)) = to else {
        let message = format!("no listed bundle has the model {}", pair.to);
        return Err(ApiError::conflict("unknown_model", message));
    };
    let is_sibling = |row: &crate::store::BundleRow| row.family == to.family;
    if !models
        .iter()
        .any(|(row, model)| is_sibling(row) && model.sha256 == pair.from)
    {
        let message = format!(
            "no bundle of family {} has the model {}",
            to.family, pair.from
        );
        return Err(ApiError::conflict("unknown_model", message));
    }
    Ok(model.transport().1.saturating_sub(1))
}

/// Stores a patch; the first for a pair stays. Devices check what a patch gives, so only its
/// length is looked at here.
#[utoipa::path(put, path = "/api/v1/patches/{from}/{to}", tag = "bundles", security(("token" = [])),
    params(("from" = String, Path, description = "SHA-256 of the old model, unpacked"),
        ("to" = String, Path, description = "SHA-256 of the new model, unpacked")),
    request_body(content_type = "application/octet-stream", description = "shorter than the new model as it travels"),
    responses((status = 201), (status = 200, description = "was here already"),
        (status = 409, body = ErrorBody, description = "models that are not published, or of two families"),
        (status = 413, body = ErrorBody)))]
pub async fn put(
    State(app): State<Arc<App>>,
    Path((from, to)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let pair = pair(&from, &to)?;
    let max_bytes = max_bytes(&app, &pair).await?;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > max_bytes) {
        return Err(PatchStoreError::TooLarge { pair, max_bytes }.into());
    }
    let patches = Patches::beside(&app.blobs);
    if patches.stored(&pair).await?.is_some() {
        return Ok(StatusCode::OK);
    }
    let stream = body.into_data_stream();
    patches.put(&pair, max_bytes, stream).await?;
    Ok(StatusCode::CREATED)
}

/// Whether a patch is here.
#[utoipa::path(head, path = "/api/v1/patches/{from}/{to}", tag = "bundles", security(("token" = [])),
    params(("from" = String, Path), ("to" = String, Path)),
    responses((status = 200), (status = 404)))]
pub async fn head(
    State(app): State<Arc<App>>,
    Path((from, to)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let pair = pair(&from, &to)?;
    match Patches::beside(&app.blobs).stored(&pair).await? {
        Some(patch) => Ok([(header::CONTENT_LENGTH, patch.length.to_string())].into_response()),
        None => Err(PatchStoreError::Missing(pair).into()),
    }
}

/// Deletes the patches to models that are no longer listed. What fails is tried again with the
/// next publication.
pub(super) async fn forget_unlisted(app: &App, published: &Published) {
    let models = published.bundles.iter();
    let models: BTreeSet<Digest> = models.map(|b| b.manifest.files.model.sha256).collect();
    let patches = Patches::beside(&app.blobs);
    match patches.retain(|pair| models.contains(&pair.to)).await {
        Ok(0) => {}
        Ok(deleted) => tracing::info!(deleted, "patches to models that are no longer listed"),
        Err(error) => tracing::warn!(%error, "patches that are no longer of use were not deleted"),
    }
}

//! Blobs on their way in, and back to operators.

use super::App;
use super::error::{ApiError, ErrorBody, parse};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use dunlin_protocol::bundle::BLOB_MAX_BYTES;
use dunlin_protocol::id::Digest;
use http::{HeaderMap, StatusCode, header};
use std::sync::Arc;

/// Stores a blob; its bytes are streamed, and kept only if their SHA-256 is the one in the path.
#[utoipa::path(put, path = "/api/v1/blobs/{sha256}", tag = "bundles", security(("token" = [])),
    params(("sha256" = String, Path, description = "64 hexadecimal digits")),
    request_body(content_type = "application/octet-stream", description = "at most 4 GiB"),
    responses((status = 201), (status = 200, description = "was here already"),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody, description = "another SHA-256")))]
pub async fn put(
    State(app): State<Arc<App>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let digest: Digest = parse("sha256", &sha256)?;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > BLOB_MAX_BYTES) {
        return Err(crate::blobs::BlobError::TooLarge(digest).into());
    }
    if app.blobs.length(&digest).await?.is_some() {
        return Ok(StatusCode::OK);
    }
    app.blobs.put(&digest, body.into_data_stream()).await?;
    Ok(StatusCode::CREATED)
}

/// Whether a blob is here.
#[utoipa::path(head, path = "/api/v1/blobs/{sha256}", tag = "bundles", security(("token" = [])),
    params(("sha256" = String, Path)), responses((status = 200), (status = 404)))]
pub async fn head(
    State(app): State<Arc<App>>,
    Path(sha256): Path<String>,
) -> Result<Response, ApiError> {
    let digest: Digest = parse("sha256", &sha256)?;
    match app.blobs.length(&digest).await? {
        Some(length) => Ok([(header::CONTENT_LENGTH, length.to_string())].into_response()),
        None => Err(crate::blobs::BlobError::Missing(digest).into()),
    }
}

/// A blob's bytes, whole: what patches are made from.
#[utoipa::path(get, path = "/api/v1/blobs/{sha256}", tag = "bundles", security(("token" = [])),
    params(("sha256" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
pub async fn get(
    State(app): State<Arc<App>>,
    Path(sha256): Path<String>,
) -> Result<Response, ApiError> {
    let digest: Digest = parse("sha256", &sha256)?;
    let blob = app.blobs.get(&digest, None).await?;
    let headers = [
        (header::CONTENT_LENGTH, blob.length.to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
    ];
    Ok((headers, Body::from_stream(blob.stream)).into_response())
}

//! Telemetry as Parquet files.

use super::App;
use super::drift::{DriftParams, Selection};
use super::error::{ApiError, ErrorBody};
use crate::export::VersionLineage;
use crate::export::stream::{Export, What};
use crate::export::windows::Shape;
use crate::store::WindowQuery;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use std::sync::Arc;

/// The media type that the Internet Assigned Numbers Authority has registered.
const PARQUET: &str = "application/vnd.apache.parquet";

type Params = Result<Query<DriftParams>, QueryRejection>;

/// Windows as Parquet, one row a window, streamed; columns and units are in docs/export.md.
#[utoipa::path(get, path = "/api/v1/export/windows.parquet", tag = "export", security(("token" = [])),
    params(DriftParams),
    responses((status = 200, content_type = "application/vnd.apache.parquet"), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 503, body = ErrorBody, description = "too many exports at once")))]
pub async fn windows(State(app): State<Arc<App>>, params: Params) -> Result<Response, ApiError> {
    export(&app, params, What::Windows(Shape::Windows), "windows").await
}

/// Histograms as Parquet, one row a window and signal, streamed.
#[utoipa::path(get, path = "/api/v1/export/histograms.parquet", tag = "export", security(("token" = [])),
    params(DriftParams),
    responses((status = 200, content_type = "application/vnd.apache.parquet"), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 503, body = ErrorBody, description = "too many exports at once")))]
pub async fn histograms(State(app): State<Arc<App>>, params: Params) -> Result<Response, ApiError> {
    export(&app, params, What::Windows(Shape::Histograms), "histograms").await
}

/// The reference profiles of a family as Parquet, one row a signal and bin; times and cohort do not matter.
#[utoipa::path(get, path = "/api/v1/export/reference.parquet", tag = "export", security(("token" = [])),
    params(DriftParams),
    responses((status = 200, content_type = "application/vnd.apache.parquet"), (status = 400, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "too many exports at once")))]
pub async fn reference(State(app): State<Arc<App>>, params: Params) -> Result<Response, ApiError> {
    export(&app, params, What::Reference, "reference").await
}

async fn export(app: &App, params: Params, what: What, name: &str) -> Result<Response, ApiError> {
    let Query(params) = params.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let Selection {
        family,
        version,
        cohort,
        devices,
        segment,
        since_ms,
        until_ms,
    } = Selection::of(app, params).await?;
    let permit = app.exports.clone().try_acquire_owned().map_err(|_| {
        let message =
            "as many exports as may run at once are running; try again when one has ended";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    })?;
    let bundles = app.store.list_bundles().await?;
    let rollouts = app.store.list_rollouts().await?;
    let versions = VersionLineage::of(&family, version, &bundles, &rollouts, &app.blobs).await;
    let file = format!("attachment; filename=\"{family}-{name}.parquet\"");
    let export = Export {
        store: app.store.clone(),
        fleet: app.settings.fleet.clone(),
        what,
        query: WindowQuery {
            family,
            version,
            devices,
            since_ms,
            until_ms,
        },
        segment,
        cohort,
        versions,
    };
    let headers = [
        (header::CONTENT_TYPE, PARQUET.to_owned()),
        (header::CONTENT_DISPOSITION, file),
    ];
    Ok((headers, Body::from_stream(export.stream(permit))).into_response())
}

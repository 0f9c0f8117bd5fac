//! Drift of what runs against what was trained on.

use super::App;
use super::error::{ApiError, ErrorBody, parse};
use crate::drift::query::{self, Drift, DriftQuery, SENSITIVITY};
use axum::Json;
use axum::extract::{Query, State};
use dunlin_protocol::id::{DeviceId, Family, RolloutId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Which telemetry to score.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DriftParams {
    /// The model family.
    pub family: String,
    /// One version; each that has telemetry if left out.
    pub version: Option<u64>,
    /// `canary`, `control` (both need `rollout`) or `all`, the default.
    pub cohort: Option<String>,
    /// The rollout that says who is canary; its newest one of the family if left out.
    pub rollout: Option<String>,
    /// One segment of the profile's key; all if left out.
    pub segment: Option<String>,
    /// Windows that begin at or after this.
    pub since_ms: Option<i64>,
    /// Windows that end at or before this.
    pub until_ms: Option<i64>,
}

/// Scores.
#[derive(Debug, Serialize, ToSchema)]
pub struct DriftList {
    /// By version.
    pub drift: Vec<Drift>,
}

/// Drift per version and cohort: pooled counts against the reference in the signed bundle.
#[utoipa::path(get, path = "/api/v1/drift", tag = "drift", security(("token" = [])),
    params(DriftParams),
    responses((status = 200, body = DriftList), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub async fn drift(
    State(app): State<Arc<App>>,
    params: Result<Query<DriftParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<DriftList>, ApiError> {
    let Query(params) = params.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let family: Family = parse("family", &params.family)?;
    let cohort = params.cohort.unwrap_or_else(|| "all".to_owned());
    let devices = match cohort.as_str() {
        "all" => None,
        "canary" => Some(cohort_of(&app, &family, params.rollout.as_deref(), true).await?),
        "control" => Some(cohort_of(&app, &family, params.rollout.as_deref(), false).await?),
        other => {
            let message = format!("cohort: expected canary, control or all, got {other:?}");
            return Err(ApiError::bad_request(message));
        }
    };
    let query = DriftQuery {
        family,
        version: params.version,
        cohort,
        devices,
        segment: params.segment,
        since_ms: params.since_ms,
        until_ms: params.until_ms,
        sensitivity: SENSITIVITY,
    };
    let drift = query::drift(&app.store, &app.blobs, &query).await;
    let drift = drift.map_err(|e| ApiError::internal(&e))?;
    Ok(Json(DriftList { drift }))
}

/// Canaries are the devices of a rollout's stages that were given the version, controls the rest.
async fn cohort_of(
    app: &App,
    family: &Family,
    rollout: Option<&str>,
    canary: bool,
) -> Result<BTreeSet<DeviceId>, ApiError> {
    let id: RolloutId = match rollout {
        Some(text) => parse("rollout", text)?,
        None => {
            let all = app.store.list_rollouts().await?;
            let newest = all.into_iter().find(|r| r.family == *family);
            let missing =
                || ApiError::not_found(format!("no rollout of {family} says who is canary"));
            newest.ok_or_else(missing)?.id
        }
    };
    if app.store.rollout(&id).await?.is_none() {
        return Err(ApiError::not_found(format!("no rollout {id}")));
    }
    let rows = app.store.rollout_devices(&id).await?;
    let is_waiting = |state: &serde_json::Value| state["state"]["state"] == "waiting";
    let chosen = rows
        .into_iter()
        .filter(|row| is_waiting(&row.state) != canary);
    Ok(chosen.map(|row| row.device).collect())
}

//! Drift of what runs against what was trained on.

use super::App;
use super::error::{ApiError, ErrorBody, parse};
use crate::drift::plot;
use crate::drift::query::{self, Drift, DriftQuery, SENSITIVITY};
use crate::drift::statistics::range;
use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use dunlin_protocol::id::{DeviceId, Family, RolloutId};
use http::header;
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
    /// One version; each that was published and has telemetry if left out.
    pub version: Option<u64>,
    /// `canary`, `control` (both need `rollout`) or `all`, the default.
    pub cohort: Option<String>,
    /// The rollout that says who is canary; the family's newest one if left out. Only with `canary` or
    /// `control`.
    pub rollout: Option<String>,
    /// One segment of the profile's key; all if left out.
    pub segment: Option<String>,
    /// Windows that begin at or after this.
    pub since_ms: Option<i64>,
    /// Windows that end at or before this.
    pub until_ms: Option<i64>,
}

/// What [`DriftParams`] select.
pub(super) struct Selection {
    pub(super) family: Family,
    pub(super) version: Option<u64>,
    pub(super) cohort: String,
    pub(super) devices: Option<BTreeSet<DeviceId>>,
    pub(super) segment: Option<String>,
    pub(super) since_ms: Option<i64>,
    pub(super) until_ms: Option<i64>,
}

impl Selection {
    pub(super) async fn of(app: &App, params: DriftParams) -> Result<Self, ApiError> {
        let family: Family = parse("family", &params.family)?;
        let cohort = params.cohort.unwrap_or_else(|| "all".to_owned());
        let rollout = params.rollout.as_deref();
        let devices = match cohort.as_str() {
            "all" => match rollout {
                None => None,
                Some(text) => {
                    let id = known_rollout(app, parse("rollout", text)?).await?;
                    let message =
                        format!("cohort: expected canary or control of rollout {id}, got all");
                    return Err(ApiError::bad_request(message));
                }
            },
            "canary" => Some(cohort_of(app, &family, rollout, true).await?),
            "control" => Some(cohort_of(app, &family, rollout, false).await?),
            other => {
                let message = format!("cohort: expected canary, control or all, got {other:?}");
                return Err(ApiError::bad_request(message));
            }
        };
        Ok(Self {
            family,
            version: params.version,
            cohort,
            devices,
            segment: params.segment,
            since_ms: params.since_ms,
            until_ms: params.until_ms,
        })
    }

    pub(super) fn query(self) -> DriftQuery {
        DriftQuery {
            family: self.family,
            version: self.version,
            cohort: self.cohort,
            devices: self.devices,
            segment: self.segment,
            since_ms: self.since_ms,
            until_ms: self.until_ms,
            sensitivity: SENSITIVITY,
            out_of_range_margin: range::MARGIN,
        }
    }
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
    let query = Selection::of(&app, params).await?.query();
    let drift = query::drift(&app.store, &app.blobs, &query).await;
    let drift = drift.map_err(|e| ApiError::internal(&e))?;
    Ok(Json(DriftList { drift }))
}

/// Which signal to draw, and of which telemetry.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PlotParams {
    /// The model family.
    pub family: String,
    /// A feature's name, `confidence`, `entropy` or `output_mix`.
    pub signal: String,
    /// One version; the newest that was published and has telemetry if left out.
    pub version: Option<u64>,
    /// `canary`, `control` (both need `rollout`) or `all`, the default.
    pub cohort: Option<String>,
    /// The rollout that says who is canary; the family's newest one if left out. Only with `canary` or
    /// `control`.
    pub rollout: Option<String>,
    /// One segment of the profile's key; all if left out.
    pub segment: Option<String>,
    /// Windows that begin at or after this.
    pub since_ms: Option<i64>,
    /// Windows that end at or before this.
    pub until_ms: Option<i64>,
}

/// A signal's reference against what is live, as a picture.
#[utoipa::path(get, path = "/api/v1/drift/plot.svg", tag = "drift", security(("token" = [])),
    params(PlotParams),
    responses((status = 200, content_type = "image/svg+xml"), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "no telemetry, no reference, or no such signal")))]
pub async fn plot(
    State(app): State<Arc<App>>,
    params: Result<Query<PlotParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(params) = params.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let signal = params.signal;
    let selected = DriftParams {
        family: params.family,
        version: params.version,
        cohort: params.cohort,
        rollout: params.rollout,
        segment: params.segment,
        since_ms: params.since_ms,
        until_ms: params.until_ms,
    };
    let query = Selection::of(&app, selected).await?.query();
    let found = query::picture(&app.store, &app.blobs, &query, &signal).await;
    let Some((drift, picture)) = found.map_err(|e| ApiError::internal(&e))? else {
        let message = format!("no telemetry of {} in what was asked for", query.family);
        return Err(ApiError::not_found(message));
    };
    let Some(picture) = picture else {
        let name: String = signal.chars().take(200).collect();
        let why = drift.note.unwrap_or_else(|| {
            format!("its profile has no signal {name:?}: expected a feature's name, confidence, entropy or output_mix")
        });
        let message = format!("{} version {}: {why}", drift.family, drift.version);
        return Err(ApiError::not_found(message));
    };
    let headers = [
        (header::CONTENT_TYPE, "image/svg+xml; charset=utf-8"),
        // Names in it are a bundle's: even if one slipped through, nothing in it would run.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, plot::svg(&picture)).into_response())
}

async fn known_rollout(app: &App, id: RolloutId) -> Result<RolloutId, ApiError> {
    match app.store.rollout(&id).await? {
        Some(_) => Ok(id),
        None => Err(ApiError::not_found(format!("no rollout {id}"))),
    }
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
    let id = known_rollout(app, id).await?;
    let rows = app.store.rollout_devices(&id).await?;
    let is_waiting = |state: &serde_json::Value| state["state"]["state"] == "waiting";
    let chosen = rows
        .into_iter()
        .filter(|row| is_waiting(&row.state) != canary);
    Ok(chosen.map(|row| row.device).collect())
}

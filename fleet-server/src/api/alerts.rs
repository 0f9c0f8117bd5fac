//! Alerts: rules, what is so, silences.

use super::error::{ApiError, ErrorBody, Input};
use super::{Admin, App};
use crate::alert::rule::{Rule, RuleError};
use crate::clock;
use crate::store::{AlertRow, SilenceRow};
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Most rules: each is looked at every time.
const RULES_MAX: usize = 256;
const ALERTS_MAX: u32 = 1000;
const REASON_MAX_CHARS: usize = 512;
/// Longest silence, in seconds.
const SILENCE_S_MAX: u64 = 30 * 24 * 3600;

impl From<RuleError> for ApiError {
    fn from(error: RuleError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// Every rule.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuleList {
    /// By name.
    pub rules: Vec<Rule>,
}

/// An alert.
#[derive(Debug, Serialize, ToSchema)]
pub struct AlertView {
    /// Its number.
    pub id: i64,
    /// Name of its rule.
    pub rule: String,
    /// `FAMILY/VERSION`, or a device's id.
    pub subject: String,
    /// As the rule says.
    pub severity: String,
    /// Since when it is so.
    pub since_ms: i64,
    /// When it was told.
    pub fired_ms: i64,
    /// When it was over; `null` while it goes on.
    pub resolved_ms: Option<i64>,
    /// Whether nobody was told, because of a silence.
    pub silenced: bool,
    /// The numbers it rested on.
    pub seen: Value,
}

impl From<AlertRow> for AlertView {
    fn from(row: AlertRow) -> Self {
        Self {
            id: row.id,
            rule: row.rule,
            subject: row.subject,
            severity: row.severity,
            since_ms: row.since_ms,
            fired_ms: row.fired_ms,
            resolved_ms: row.resolved_ms,
            silenced: row.silenced,
            seen: row.seen,
        }
    }
}

/// Alerts.
#[derive(Debug, Serialize, ToSchema)]
pub struct AlertList {
    /// The newest first.
    pub alerts: Vec<AlertView>,
}

/// Which alerts to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AlertParams {
    /// Also those that are over.
    #[serde(default)]
    pub all: bool,
}

/// A silence to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSilence {
    /// Of this rule; of all if left out.
    #[serde(default)]
    pub rule: Option<String>,
    /// Of this subject; of all if left out.
    #[serde(default)]
    pub subject: Option<String>,
    /// For so long, in seconds, at most 30 days.
    pub for_s: u64,
    /// Why; for colleagues.
    pub reason: String,
}

/// A time in which nobody is told.
#[derive(Debug, Serialize, ToSchema)]
pub struct SilenceView {
    /// Its number.
    pub id: i64,
    /// Of this rule; of all if `null`.
    pub rule: Option<String>,
    /// Of this subject; of all if `null`.
    pub subject: Option<String>,
    /// Until then.
    pub until_ms: i64,
    /// Why.
    pub reason: String,
    /// Whose doing.
    pub made_by: String,
}

impl From<SilenceRow> for SilenceView {
    fn from(row: SilenceRow) -> Self {
        Self {
            id: row.id,
            rule: row.rule,
            subject: row.subject,
            until_ms: row.until_ms,
            reason: row.reason,
            made_by: row.made_by,
        }
    }
}

/// Silences that hold.
#[derive(Debug, Serialize, ToSchema)]
pub struct SilenceList {
    /// The oldest first.
    pub silences: Vec<SilenceView>,
}

/// Puts a rule in, or in an earlier one's place, which ends that one's alerts.
#[utoipa::path(put, path = "/api/v1/alert-rules", tag = "alerts", security(("token" = [])),
    request_body = Rule,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn put_rule(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Input(rule): Input<Rule>,
) -> Result<StatusCode, ApiError> {
    rule.check()?;
    let known = app.store.webhooks().await?;
    let unknown = |name: &&String| !known.iter().any(|w| w.name == **name);
    if let Some(name) = rule.webhooks.iter().find(unknown) {
        return Err(ApiError::bad_request(format!(
            "webhooks: there is no {name:?}"
        )));
    }
    let now_ms = clock::now_ms();
    app.store.put_alert_rule(&rule, RULES_MAX, now_ms).await?;
    tracing::info!(rule = %rule.name, %admin, "alert rule put in");
    Ok(StatusCode::NO_CONTENT)
}

/// Every rule.
#[utoipa::path(get, path = "/api/v1/alert-rules", tag = "alerts", security(("token" = [])),
    responses((status = 200, body = RuleList)))]
pub async fn rules(State(app): State<Arc<App>>) -> Result<Json<RuleList>, ApiError> {
    let rules = app.store.alert_rules().await?;
    Ok(Json(RuleList { rules }))
}

/// Removes a rule and ends its alerts; nobody is told.
#[utoipa::path(delete, path = "/api/v1/alert-rules/{name}", tag = "alerts", security(("token" = [])),
    params(("name" = String, Path, description = "The rule's name")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn delete_rule(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.store.delete_alert_rule(&name, clock::now_ms()).await?;
    tracing::info!(rule = %name, %admin, "alert rule removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Alerts that go on; with `all` the newest thousand.
#[utoipa::path(get, path = "/api/v1/alerts", tag = "alerts", security(("token" = [])),
    params(AlertParams),
    responses((status = 200, body = AlertList), (status = 400, body = ErrorBody)))]
pub async fn list(
    State(app): State<Arc<App>>,
    params: Result<Query<AlertParams>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<AlertList>, ApiError> {
    let Query(params) = params.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let rows = app.store.alerts(!params.all, ALERTS_MAX).await?;
    let alerts = rows.into_iter().map(AlertView::from).collect();
    Ok(Json(AlertList { alerts }))
}

/// Makes a silence: alerts begin and end as ever, and nobody is told.
#[utoipa::path(post, path = "/api/v1/silences", tag = "alerts", security(("token" = [])),
    request_body = NewSilence,
    responses((status = 201, body = SilenceView), (status = 400, body = ErrorBody)))]
pub async fn silence(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Input(new): Input<NewSilence>,
) -> Result<(StatusCode, Json<SilenceView>), ApiError> {
    if !(1..=SILENCE_S_MAX).contains(&new.for_s) {
        let got = new.for_s;
        return Err(ApiError::bad_request(format!(
            "for_s: expected 1 to {SILENCE_S_MAX}, got {got}"
        )));
    }
    if !(1..=REASON_MAX_CHARS).contains(&new.reason.chars().count()) {
        return Err(ApiError::bad_request(format!(
            "reason: expected 1 to {REASON_MAX_CHARS} characters"
        )));
    }
    let now_ms = clock::now_ms();
    let for_ms = i64::try_from(new.for_s * 1000).unwrap_or(i64::MAX);
    let mut row = SilenceRow {
        id: 0,
        rule: new.rule,
        subject: new.subject,
        until_ms: now_ms.saturating_add(for_ms),
        reason: new.reason,
        made_by: admin,
    };
    row.id = app.store.insert_silence(&row, now_ms).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// Silences that hold.
#[utoipa::path(get, path = "/api/v1/silences", tag = "alerts", security(("token" = [])),
    responses((status = 200, body = SilenceList)))]
pub async fn silences(State(app): State<Arc<App>>) -> Result<Json<SilenceList>, ApiError> {
    let rows = app.store.silences(clock::now_ms()).await?;
    let silences = rows.into_iter().map(SilenceView::from).collect();
    Ok(Json(SilenceList { silences }))
}

/// Ends a silence.
#[utoipa::path(delete, path = "/api/v1/silences/{id}", tag = "alerts", security(("token" = [])),
    params(("id" = i64, Path, description = "The silence's number")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn unsilence(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
) -> Result<StatusCode, ApiError> {
    app.store.delete_silence(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

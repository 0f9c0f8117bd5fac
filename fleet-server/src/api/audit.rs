//! The audit log.

use super::App;
use super::error::{ApiError, ErrorBody};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;

const LIST_MAX: u32 = 1000;

/// One deed.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditView {
    /// Rises with every deed.
    pub id: i64,
    /// When.
    pub time_ms: i64,
    /// `admin:NAME` or `device:ID`.
    pub actor: String,
    /// What was done, such as `capture.download`.
    pub action: String,
    /// With what.
    #[schema(value_type = Object)]
    pub detail: Value,
}

/// Deeds.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditList {
    /// The newest first, at most a thousand.
    pub audit: Vec<AuditView>,
}

/// Which deeds to list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    before: Option<i64>,
}

/// Who did what with captured samples. Nothing in it is ever changed.
#[utoipa::path(get, path = "/api/v1/audit", tag = "captures", security(("token" = [])),
    params(("before" = Option<i64>, Query, description = "only deeds with a lower id, for paging")),
    responses((status = 200, body = AuditList), (status = 400, body = ErrorBody)))]
pub async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<AuditList>, ApiError> {
    let Query(query) = query.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let rows = app.store.audit(query.before, LIST_MAX).await?;
    let audit = rows.into_iter().map(|row| AuditView {
        id: row.id,
        time_ms: row.time_ms,
        actor: row.actor,
        action: row.action,
        detail: row.detail,
    });
    Ok(Json(AuditList {
        audit: audit.collect(),
    }))
}

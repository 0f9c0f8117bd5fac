//! Webhooks: who is told of alerts, and what they could not be told.

use super::error::{ApiError, ErrorBody, Input};
use super::tokens::random_hex;
use super::{Admin, App};
use crate::alert::rule::check_name;
use crate::alert::webhook::check_url;
use crate::clock;
use crate::store::DeliveryRow;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use utoipa::ToSchema;

const WEBHOOKS_MAX: i64 = 32;
const DEAD_MAX: u32 = 1000;

/// A webhook to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// Its name: a to z, 0 to 9 and `-`, at most 64.
    pub name: String,
    /// Where it listens: `https://…`, or `http://` of the server's own machine.
    pub url: String,
}

/// A webhook, its secret told once.
#[derive(Debug, Serialize, ToSchema)]
pub struct MadeWebhook {
    /// Its name.
    pub name: String,
    /// What its messages are signed with (HMAC-SHA-256 of this text).
    pub secret: String,
}

/// A webhook as listed.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookView {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub url: String,
    /// When it was made.
    pub created_ms: i64,
    /// Messages that wait.
    pub waiting: i64,
    /// Messages that were given up.
    pub dead: i64,
}

/// Every webhook.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookList {
    /// By name.
    pub webhooks: Vec<WebhookView>,
}

/// A message that was given up.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetter {
    /// Its number, as in `Dunlin-Delivery`.
    pub id: i64,
    /// Whom it was for.
    pub webhook: String,
    /// When it was written.
    pub created_ms: i64,
    /// Attempts in vain.
    pub attempts: i64,
    /// What the last one met.
    pub error: Option<String>,
    /// What it says.
    pub body: Value,
}

impl From<DeliveryRow> for DeadLetter {
    fn from(row: DeliveryRow) -> Self {
        let body = serde_json::from_str(&row.body);
        Self {
            id: row.id,
            webhook: row.webhook,
            created_ms: row.created_ms,
            attempts: row.attempts,
            error: row.last_error,
            body: body.unwrap_or(Value::String(row.body)),
        }
    }
}

/// Messages that were given up.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetterList {
    /// The newest first, at most a thousand.
    pub dead_letters: Vec<DeadLetter>,
}

/// Makes a webhook.
#[utoipa::path(post, path = "/api/v1/webhooks", tag = "alerts", security(("token" = [])),
    request_body = NewWebhook,
    responses((status = 201, body = MadeWebhook), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Input(new): Input<NewWebhook>,
) -> Result<(StatusCode, Json<MadeWebhook>), ApiError> {
    check_name(&new.name)?;
    check_url(&new.url).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let secret = random_hex::<32>().map_err(|e| ApiError::internal(&e))?;
    let now_ms = clock::now_ms();
    let made = app
        .store
        .insert_webhook(&new.name, &new.url, &secret, WEBHOOKS_MAX, now_ms);
    made.await?;
    tracing::info!(webhook = %new.name, %admin, "webhook made");
    let name = new.name;
    Ok((StatusCode::CREATED, Json(MadeWebhook { name, secret })))
}

/// Every webhook.
#[utoipa::path(get, path = "/api/v1/webhooks", tag = "alerts", security(("token" = [])),
    responses((status = 200, body = WebhookList)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<WebhookList>, ApiError> {
    let rows = app.store.webhooks().await?;
    let view = |row: crate::store::WebhookRow| WebhookView {
        name: row.name,
        url: row.url,
        created_ms: row.created_ms,
        waiting: row.waiting,
        dead: row.dead,
    };
    let webhooks = rows.into_iter().map(view).collect();
    Ok(Json(WebhookList { webhooks }))
}

/// Removes a webhook and what it was still to be told.
#[utoipa::path(delete, path = "/api/v1/webhooks/{name}", tag = "alerts", security(("token" = [])),
    params(("name" = String, Path, description = "The webhook's name")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn delete(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.store.delete_webhook(&name).await?;
    tracing::info!(webhook = %name, %admin, "webhook removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Messages that were given up.
#[utoipa::path(get, path = "/api/v1/dead-letters", tag = "alerts", security(("token" = [])),
    responses((status = 200, body = DeadLetterList)))]
pub async fn dead_letters(State(app): State<Arc<App>>) -> Result<Json<DeadLetterList>, ApiError> {
    let rows = app.store.dead_deliveries(DEAD_MAX).await?;
    let dead_letters = rows.into_iter().map(DeadLetter::from).collect();
    Ok(Json(DeadLetterList { dead_letters }))
}

/// Tries a message that was given up once more.
#[utoipa::path(post, path = "/api/v1/dead-letters/{id}/redeliver", tag = "alerts", security(("token" = [])),
    params(("id" = i64, Path, description = "The message's number")),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn redeliver(
    State(app): State<Arc<App>>,
    Path(id): Path<i64>,
) -> Result<StatusCode, ApiError> {
    app.store.redeliver(id, clock::now_ms()).await?;
    app.messages.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

//! Claim tokens: the right of devices to enrol.

use super::App;
use super::error::{ApiError, ErrorBody, Input};
use crate::clock;
use crate::store::NewClaim;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

const LABELS_MAX: usize = 32;
const LABEL_MAX_CHARS: usize = 128;
/// Longest life of a token, in seconds (ten years: golden images carry them).
const LIFE_S_MAX: u64 = 10 * 365 * 24 * 3600;

/// A claim token to be issued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// How many devices may enrol with it, default 1.
    #[serde(default = "one")]
    pub uses: u32,
    /// Its life in seconds, default one day.
    #[serde(default = "a_day")]
    pub expires_in_s: u64,
    /// Labels that devices get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn one() -> u32 {
    1
}

fn a_day() -> u64 {
    24 * 3600
}

/// A claim token, told once.
#[derive(Debug, Serialize, ToSchema)]
pub struct IssuedToken {
    /// Its public id.
    pub id: String,
    /// The secret; the server keeps only its hash.
    pub secret: String,
    /// When it ends, RFC 3339.
    pub expires_at: String,
}

/// A claim token as listed.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenView {
    /// Its public id.
    pub id: String,
    /// Devices that may still enrol with it.
    pub uses_left: u64,
    /// When it was issued.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
    /// Labels that devices get.
    pub labels: BTreeMap<String, String>,
}

/// Every claim token.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenList {
    /// The newest first.
    pub tokens: Vec<TokenView>,
}

/// Checks labels from outside.
///
/// # Errors
/// 400: too many, too long or empty keys.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let chars = |text: &str| text.chars().count();
    let fits = |(key, value): (&String, &String)| {
        (1..=LABEL_MAX_CHARS).contains(&chars(key)) && chars(value) <= LABEL_MAX_CHARS
    };
    if labels.len() > LABELS_MAX || !labels.iter().all(fits) {
        return Err(ApiError::bad_request(format!(
            "labels: at most {LABELS_MAX}, keys of 1 to {LABEL_MAX_CHARS} characters, values of at most {LABEL_MAX_CHARS}"
        )));
    }
    Ok(())
}

/// Issues a claim token.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", security(("token" = [])),
    request_body = NewToken,
    responses((status = 201, body = IssuedToken), (status = 400, body = ErrorBody)))]
pub async fn create(
    State(app): State<Arc<App>>,
    Input(new): Input<NewToken>,
) -> Result<(StatusCode, Json<IssuedToken>), ApiError> {
    check_labels(&new.labels)?;
    if new.uses == 0 || new.expires_in_s == 0 || new.expires_in_s > LIFE_S_MAX {
        return Err(ApiError::bad_request(format!(
            "uses must be 1 or more and expires_in_s 1 to {LIFE_S_MAX}, got {} and {}",
            new.uses, new.expires_in_s
        )));
    }
    let (secret, hash) = new_secret().map_err(|e| ApiError::internal(&e))?;
    let id = random_hex::<6>().map_err(|e| ApiError::internal(&e))?;
    let created_ms = clock::now_ms();
    let life_ms = i64::try_from(new.expires_in_s * 1000).unwrap_or(i64::MAX);
    let expires_ms = created_ms.saturating_add(life_ms);
    let claim = NewClaim {
        id: id.clone(),
        hash,
        uses: new.uses,
        created_ms,
        expires_ms,
        labels: new.labels,
    };
    app.store.insert_claim(&claim).await?;
    let expires_at = jiff::Timestamp::from_millisecond(expires_ms);
    let expires_at = expires_at.map_err(|e| ApiError::internal(&e))?.to_string();
    let issued = IssuedToken {
        id,
        secret,
        expires_at,
    };
    Ok((StatusCode::CREATED, Json(issued)))
}

/// Claim tokens, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", security(("token" = [])),
    responses((status = 200, body = TokenList)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<TokenList>, ApiError> {
    let claims = app.store.list_claims().await?;
    let view = |claim: crate::store::ClaimRow| TokenView {
        id: claim.id,
        uses_left: claim.uses_left,
        created_ms: claim.created_ms,
        expires_ms: claim.expires_ms,
        labels: claim.labels,
    };
    let tokens = claims.into_iter().map(view).collect();
    Ok(Json(TokenList { tokens }))
}

/// Takes a claim token back; devices that enrolled with it stay.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "tokens", security(("token" = [])),
    params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    match app.store.delete_claim(&id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found(format!("no claim token {id:?}"))),
    }
}

/// 256 random bits as text, and the SHA-256 of that text.
pub(crate) fn new_secret() -> Result<(String, [u8; 32]), getrandom::Error> {
    let secret = random_hex::<32>()?;
    let hash = sha2::Sha256::digest(secret.as_bytes()).into();
    Ok((secret, hash))
}

/// `N` random bytes in hexadecimal.
pub(crate) fn random_hex<const N: usize>() -> Result<String, getrandom::Error> {
    let mut raw = [0_u8; N];
    getrandom::fill(&mut raw)?;
    Ok(hex::encode(raw))
}

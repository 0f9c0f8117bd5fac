//! Bundles: publishing the signed list, and what is on it.

use super::error::{ApiError, ErrorBody, Input, parse};
use super::{App, blocking};
use crate::clock;
use crate::repository::{Published, PublishedBundle, Submission};
use crate::store::BundleRow;
use axum::Json;
use axum::extract::{Path, State};
use dunlin_protocol::id::Family;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// Largest publication, in bytes: a list of targets and some manifests, as JSON texts.
pub const PUBLISH_MAX_BYTES: usize = 32 << 20;

/// What is to be published.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// The signed targets metadata, exactly as signed; absent if a team publishes its own list only.
    #[serde(default)]
    pub targets: Option<String>,
    /// Signed metadata of delegated roles by the roles' names, exactly as signed.
    #[serde(default)]
    pub delegated: BTreeMap<String, String>,
    /// Manifests that are not here yet, exactly as hashed.
    #[serde(default)]
    pub manifests: Vec<String>,
}

/// A published bundle.
#[derive(Debug, Serialize, ToSchema)]
pub struct BundleView {
    /// Its family.
    pub family: String,
    /// Its version.
    pub version: u64,
    /// Digest of its manifest; telemetry carries it.
    pub digest: String,
    /// Its path among the signed targets.
    pub target: String,
    /// Lowest version of the family that devices take once they have seen this one.
    pub rollback_floor: u64,
    /// When it was first published.
    pub published_ms: i64,
    /// Whether the newest signed list still holds it.
    pub listed: bool,
    /// The manifest; only when one bundle is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub manifest: Option<Value>,
}

/// Every bundle ever published.
#[derive(Debug, Serialize, ToSchema)]
pub struct BundleList {
    /// Version of the newest signed list.
    pub targets_version: Option<u64>,
    /// By family and version.
    pub bundles: Vec<BundleView>,
}

fn row(bundle: &PublishedBundle, published_ms: i64) -> BundleRow {
    BundleRow {
        family: bundle.custom.family.clone(),
        version: bundle.custom.version,
        digest: bundle.digest,
        target: bundle.target.path.clone(),
        rollback_floor: bundle.custom.rollback_floor,
        manifest_json: bundle.manifest_json.clone(),
        profile: bundle.manifest.files.profile.as_ref().map(|p| p.sha256),
        published_ms,
        listed: true,
    }
}

fn view(row: BundleRow) -> BundleView {
    BundleView {
        family: row.family.to_string(),
        version: row.version,
        digest: row.digest.to_string(),
        target: row.target,
        rollback_floor: row.rollback_floor,
        published_ms: row.published_ms,
        listed: row.listed,
        manifest: None,
    }
}

/// Brings the database up to what the repository has published.
pub(crate) async fn record(
    store: &crate::store::Store,
    published: &Published,
) -> Result<(), crate::store::StoreError> {
    let now_ms = clock::now_ms();
    let rows: Vec<BundleRow> = published.bundles.iter().map(|b| row(b, now_ms)).collect();
    store.set_bundles(&rows).await
}

async fn all(app: &App, targets_version: Option<u64>) -> Result<Json<BundleList>, ApiError> {
    let bundles = app.store.list_bundles().await?;
    let bundles = bundles.into_iter().map(view).collect();
    Ok(Json(BundleList {
        targets_version,
        bundles,
    }))
}

/// Publishes signed lists of targets, top-level or of delegated roles: checked just as devices will
/// check them, then made visible with a new snapshot and timestamp.
#[utoipa::path(post, path = "/api/v1/bundles", tag = "bundles", security(("token" = [])),
    request_body = Publication,
    responses((status = 201, body = BundleList),
        (status = 409, body = ErrorBody, description = "version not raised, or manifests or blobs missing"),
        (status = 422, body = ErrorBody, description = "devices would refuse it; the code says why")))]
pub async fn publish(
    State(app): State<Arc<App>>,
    Input(publication): Input<Publication>,
) -> Result<(StatusCode, Json<BundleList>), ApiError> {
    let (repository, blobs) = (app.repository.clone(), app.blobs.clone());
    let runtime = tokio::runtime::Handle::current();
    let delegated = publication.delegated.into_iter();
    let manifests = publication.manifests.into_iter();
    let submission = Submission {
        targets: publication.targets.map(String::into_bytes),
        delegated: delegated
            .map(|(role, text)| (role, text.into_bytes()))
            .collect(),
        manifests: manifests.map(String::into_bytes).collect(),
    };
    let published =
        blocking(move || repository.publish(&submission, &blobs, &runtime, clock::now()));
    let published = published.await?;
    record(&app.store, &published).await?;
    let version = published.targets_version;
    super::patches::forget_unlisted(&app, &published).await;
    tracing::info!(
        version,
        bundles = published.bundles.len(),
        "targets published"
    );
    Ok((StatusCode::CREATED, all(&app, Some(version)).await?))
}

/// Every bundle ever published.
#[utoipa::path(get, path = "/api/v1/bundles", tag = "bundles", security(("token" = [])),
    responses((status = 200, body = BundleList)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<BundleList>, ApiError> {
    let repository = app.repository.clone();
    let version = blocking(move || repository.targets_version()).await?;
    all(&app, version).await
}

/// One bundle with its manifest.
#[utoipa::path(get, path = "/api/v1/bundles/{family}/{version}", tag = "bundles", security(("token" = [])),
    params(("family" = String, Path), ("version" = u64, Path)),
    responses((status = 200, body = BundleView), (status = 404, body = ErrorBody)))]
pub async fn show(
    State(app): State<Arc<App>>,
    Path((family, version)): Path<(String, String)>,
) -> Result<Json<BundleView>, ApiError> {
    let family: Family = parse("family", &family)?;
    let version: u64 = parse("version", &version)?;
    let Some(row) = app.store.bundle(&family, version).await? else {
        let message = format!("bundle {family} version {version} is not published");
        return Err(ApiError::not_found(message));
    };
    let manifest = serde_json::from_str(&row.manifest_json).map_err(|e| ApiError::internal(&e))?;
    let mut shown = view(row);
    shown.manifest = Some(manifest);
    Ok(Json(shown))
}

//! The admin API (`/api/v1`, bearer tokens) and the devices' routes. One file a noun.

pub mod alerts;
pub mod audit;
pub mod blobs;
pub mod bundles;
pub mod captures;
pub mod consumers;
pub mod devices;
pub mod download;
pub mod drift;
pub mod error;
pub mod export;
pub mod fleet;
pub(crate) mod guard;
pub mod patches;
pub mod rollouts;
pub mod tokens;
pub mod trust;
pub mod webhooks;

use crate::acl::AclFile;
use crate::blobs::Blobs;
use crate::broker::BrokerHandle;
use crate::command::deliver::Wake;
use crate::config::Settings;
use crate::enroll::succession::{self, Desk};
use crate::mqtt::Listening;
use crate::pki::Pki;
use crate::repository::Repository;
use crate::store::Store;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use axum::{Router, middleware};
use dunlin_protocol::id::{DeviceId, Digest};
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore, watch};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest JSON body, in bytes, where a route does not say otherwise.
pub const JSON_MAX_BYTES: usize = 1 << 20;

/// What handlers share.
pub struct App {
    /// Configuration.
    pub settings: Settings,
    /// Database.
    pub store: Store,
    /// Certificate authority.
    pub pki: Arc<Pki>,
    /// Where devices recover whose certificates have ended.
    pub desk: Desk,
    /// TUF repository.
    pub repository: Arc<Repository>,
    /// Blob store.
    pub blobs: Blobs,
    /// Base URL that devices are told.
    pub devices_url: String,
    /// Broker's host that devices are told.
    pub mqtt_host: String,
    /// Broker's port that devices are told.
    pub mqtt_port: u16,
    /// Live connections of the embedded broker, if there is one.
    pub broker: Option<BrokerHandle>,
    /// The ACL file of an external broker.
    pub acl: AclFile,
    /// Whether devices can be heard.
    pub listening: watch::Receiver<Listening>,
    /// Tells the delivery of desired states to look now.
    pub deliver: Wake,
    /// Tells that there is a request for captured samples.
    pub captures: Arc<Notify>,
    /// Room for batches of captured samples that come in.
    pub uploads: Semaphore,
    /// Tells the messenger of webhooks to look now.
    pub messages: Arc<Notify>,
    /// Rights to export, so many at once.
    pub exports: Arc<Semaphore>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

/// Whose token a request carries.
#[derive(Debug, Clone)]
pub struct Admin(pub String);

/// The verified client certificate of a connection: the device's id and the certificate's
/// SHA-256.
#[derive(Debug, Clone)]
pub struct Peer(pub Option<(DeviceId, Digest)>);

/// When a connection was made, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct ConnectedAt(pub i64);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Dunlin fleet server",
        description = "Admin API. Times ending in `_ms` are milliseconds since 1970, durations milliseconds.",
        license(name = "Apache-2.0")
    ),
    modifiers(&BearerScheme)
)]
struct Document;

struct BearerScheme;

impl Modify for BearerScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

fn guarded() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(fleet::fleet))
        .routes(routes!(trust::put_root))
        .routes(routes!(trust::metadata))
        .routes(routes!(trust::make_online_keys))
        .routes(routes!(tokens::create, tokens::list))
        .routes(routes!(tokens::delete))
        .routes(routes!(consumers::create, consumers::list))
        .routes(routes!(consumers::revoke))
        .routes(routes!(consumers::renew))
        .routes(routes!(devices::list))
        .routes(routes!(devices::show, devices::revoke))
        .routes(routes!(devices::events))
        .routes(routes!(devices::pin))
        .routes(routes!(rollouts::create, rollouts::list))
        .routes(routes!(rollouts::show))
        .routes(routes!(rollouts::abort))
        .routes(routes!(rollouts::resume))
        .routes(routes!(drift::drift))
        .routes(routes!(drift::plot))
        .routes(routes!(alerts::put_rule, alerts::rules))
        .routes(routes!(alerts::delete_rule))
        .routes(routes!(alerts::list))
        .routes(routes!(alerts::silence, alerts::silences))
        .routes(routes!(alerts::unsilence))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::delete))
        .routes(routes!(webhooks::dead_letters))
        .routes(routes!(webhooks::redeliver))
        .routes(routes!(bundles::show))
        .routes(routes!(captures::request, captures::requests))
        .routes(routes!(captures::cancel))
        .routes(routes!(captures::list))
        .routes(routes!(captures::download, captures::delete))
        .routes(routes!(audit::list))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(bundles::publish, bundles::list))
                .layer(DefaultBodyLimit::max(bundles::PUBLISH_MAX_BYTES)),
        )
        .merge(
            OpenApiRouter::new()
                .routes(routes!(trust::put_roots))
                .layer(DefaultBodyLimit::max(trust::ROOTS_MAX_BYTES)),
        )
        .layer(middleware::from_fn(guard::time_out))
        .merge(
            // Streamed and bounded by the handler; it has its own time-out for silence.
            OpenApiRouter::new()
                .routes(routes!(blobs::put, blobs::head, blobs::get))
                .routes(routes!(patches::put, patches::head))
                .routes(routes!(download::file))
                .routes(routes!(export::windows))
                .routes(routes!(export::histograms))
                .routes(routes!(export::reference)),
        )
}

/// The admin API with its document and pages.
pub fn admin_router(app: Arc<App>) -> Router {
    let authorized = middleware::from_fn_with_state(app.clone(), guard::authorize);
    let open = OpenApiRouter::new()
        .routes(routes!(fleet::healthz))
        .routes(routes!(fleet::metrics))
        .layer(middleware::from_fn(guard::time_out));
    let api = guarded().layer(authorized).merge(open);
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .merge(api)
        .split_for_parts();
    let pages = utoipa_swagger_ui::SwaggerUi::new("/docs").url("/openapi.json", document);
    router
        .merge(pages)
        .fallback(guard::unknown_route)
        .method_not_allowed_fallback(guard::wrong_method)
        .layer(DefaultBodyLimit::max(JSON_MAX_BYTES))
        .layer(middleware::from_fn(guard::count))
        .with_state(app)
}

/// The devices' routes: enrolment for everybody, downloads with a device certificate.
pub fn device_router(app: Arc<App>) -> Router {
    let certified = middleware::from_fn_with_state(app.clone(), guard::require_device);
    let uploads = middleware::from_fn_with_state(app.clone(), captures::few_at_once);
    let captured = Router::new()
        .route("/captures", axum::routing::get(captures::wanted))
        .route("/captures/{request}/done", post(captures::done))
        .layer(DefaultBodyLimit::max(captures::DONE_MAX_BYTES))
        .layer(middleware::from_fn(guard::time_out))
        .merge(
            Router::new()
                .route(
                    "/captures/{request}/{sha256}",
                    axum::routing::put(captures::upload),
                )
                .layer(DefaultBodyLimit::max(captures::BATCH_MAX_BYTES))
                .layer(uploads),
        )
        .route_layer(certified.clone());
    let downloads = Router::new()
        .route(
            "/repository/metadata/{file}",
            axum::routing::get(download::metadata),
        )
        .route(
            "/repository/targets/{*path}",
            axum::routing::get(download::target),
        )
        .route(
            "/repository/blobs/{sha256}",
            axum::routing::get(download::blob),
        )
        .route(
            "/repository/patches/{from}/{to}",
            axum::routing::get(download::patch),
        )
        .route_layer(certified);
    let enrolment = Router::new()
        .route("/enroll", post(crate::enroll::enroll))
        .route("/identity", axum::routing::get(succession::view))
        .route("/identity/renew", post(succession::renew))
        .route("/identity/confirm", post(succession::confirm))
        .route("/identity/recover/nonce", post(succession::nonce))
        .route("/identity/recover", post(succession::recover))
        .layer(DefaultBodyLimit::max(
            dunlin_protocol::enroll::ENROLL_MAX_BYTES,
        ))
        .layer(middleware::from_fn(guard::time_out));
    Router::new()
        .merge(downloads)
        .merge(captured)
        .merge(enrolment)
        .fallback(guard::unknown_route)
        .method_not_allowed_fallback(guard::wrong_method)
        .layer(middleware::from_fn(guard::count))
        .with_state(app)
}

/// Runs what blocks on the disk where it may.
async fn blocking<T, F>(work: F) -> Result<T, error::ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, crate::repository::RepositoryError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(e) => Err(error::ApiError::internal(&e)),
    }
}

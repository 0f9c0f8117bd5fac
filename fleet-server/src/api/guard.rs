//! What stands before every handler: tokens, certificates, time-outs, counts.

use super::error::ApiError;
use super::{Admin, App, ConnectedAt, Peer};
use crate::clock;
use crate::store::Standing;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use dunlin_protocol::id::{DeviceId, Digest};
use http::{Extensions, HeaderValue, Method, StatusCode, Uri, header};
use sha2::Digest as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const TOKEN_MAX_BYTES: usize = 256;

/// Lets only bearers of an administrator's token through.
pub(super) async fn authorize(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let given = request.headers().get(header::AUTHORIZATION);
    let token = given.map(HeaderValue::as_bytes).and_then(|v| {
        let (scheme, token) = v.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
    });
    let refuse = |message: &str| {
        Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            message,
        ))
    };
    let Some(token) = token.filter(|t| t.len() <= TOKEN_MAX_BYTES) else {
        return refuse("this route needs the header \"Authorization: Bearer <admin token>\"");
    };
    let hash: [u8; 32] = sha2::Sha256::digest(token.trim_ascii()).into();
    match app.store.is_admin(&hash).await? {
        Some(name) => {
            request.extensions_mut().insert(Admin(name));
            Ok(next.run(request).await)
        }
        None => refuse("the admin token is not known to this server"),
    }
}

/// Lets only devices through whose certificate is the current one.
pub(super) async fn require_device(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (device, sha256) = presented(request.extensions())?;
    let connected_ms = connected_ms(request.extensions());
    let standing = app
        .store
        .admit(&device, &sha256.0, connected_ms, clock::now_ms())
        .await?;
    if !standing.is_admitted() {
        return Err(not_admitted(&device, standing));
    }
    Ok(next.run(request).await)
}

/// The certificate that the connection was made with.
pub(crate) fn presented(extensions: &Extensions) -> Result<(DeviceId, Digest), ApiError> {
    let peer = extensions.get::<Peer>().and_then(|p| p.0.clone());
    peer.ok_or_else(|| {
        let message = "this route needs a device certificate of this fleet";
        ApiError::new(StatusCode::UNAUTHORIZED, "no_certificate", message)
    })
}

/// When the connection was made, in milliseconds since 1970.
pub(crate) fn connected_ms(extensions: &Extensions) -> i64 {
    let connected = extensions.get::<ConnectedAt>().map(|c| c.0);
    connected.unwrap_or_else(clock::now_ms)
}

/// Why a certificate is not let in.
pub(crate) fn not_admitted(device: &DeviceId, standing: Standing) -> ApiError {
    let (code, message) = match standing {
        Standing::Revoked => ("revoked", format!("device {device} is revoked")),
        Standing::Superseded => (
            "superseded",
            format!("{device} has used a newer certificate since; this one counts no more"),
        ),
        Standing::UnknownDevice => ("unknown_device", format!("no device {device} here")),
        _ => (
            "unknown_certificate",
            format!("{device} never got this certificate here"),
        ),
    };
    ApiError::new(StatusCode::FORBIDDEN, code, message)
}

/// Bounds the time from the request's head to the answer's.
pub(super) async fn time_out(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("not done within {} s", REQUEST_TIMEOUT.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message).into_response()
        }
    }
}

/// Counts and times requests by route, never by the path a stranger made up.
pub(super) async fn count(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| "unknown".to_owned(), |r| r.as_str().to_owned());
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::histogram!("dunlin_http_request_seconds", "route" => route.clone())
        .record(begun.elapsed().as_secs_f64());
    metrics::counter!("dunlin_http_requests_total", "route" => route, "method" => method, "status" => status)
        .increment(1);
    response
}

pub(super) async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::not_found(format!(
        "there is no {method} {path}; GET /openapi.json lists every route"
    ))
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("{path} does not take {method}");
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}

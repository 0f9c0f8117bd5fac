//! Answers the inference API's requests.

use super::api::{self, ApiError, InferRequest, ModelAsk, Route};
use super::models::{Held, Models};
use bytes::Bytes;
use dunlin_protocol::bundle::Flow;
use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Unit of the memory budget for bodies, in bytes.
const BODY_UNIT_BYTES: usize = 64 * 1024;

/// Longest time for reading what is left of a refused request.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of the inference API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Largest body of any request, in bytes; a model with small inputs has a smaller one.
    pub(crate) body_max_bytes: usize,
    /// Memory for all bodies being read together, in bytes; at least `body_max_bytes`.
    pub(crate) bodies_max_bytes: usize,
    /// Longest time from a request's head to the end of its body.
    pub(crate) body_timeout: Duration,
    /// Longest time a request waits for its turn.
    pub(crate) queue_timeout: Duration,
    /// Most inferences at once.
    pub(crate) inferences_max: usize,
}

/// The inference API over the bundles being served.
#[derive(Debug)]
pub(crate) struct Api {
    models: Arc<Models>,
    limits: Limits,
    turns: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

type Answer = Response<Full<Bytes>>;

impl Api {
    pub(crate) fn new(models: Arc<Models>, limits: Limits) -> Self {
        Self {
            models,
            limits,
            turns: Arc::new(Semaphore::new(limits.inferences_max.max(1))),
            bodies: Arc::new(Semaphore::new(units(
                limits.bodies_max_bytes.max(limits.body_max_bytes),
            ))),
        }
    }

    /// Answers one request, always.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, mut body) = request.into_parts();
        match self.respond(&head, &mut body).await {
            Ok(answer) => answer,
            Err(error) => {
                discard(&mut body, self.limits.body_max_bytes).await;
                refusal(&error)
            }
        }
    }

    async fn respond(&self, head: &Parts, body: &mut Incoming) -> Result<Answer, ApiError> {
        match api::route(&head.method, head.uri.path())? {
            Route::Server => Ok(value(&api::server_metadata())),
            Route::Live => Ok(value(&json!({ "live": true }))),
            Route::Ready => {
                if self.models.all().is_empty() {
                    return Err(nothing_served());
                }
                Ok(value(&json!({ "ready": true })))
            }
            Route::Model { name, version, ask } => {
                let held = self.hold(&name, version.as_deref())?;
                match ask {
                    ModelAsk::Metadata => {
                        let engine = held.engine();
                        let flow = engine.plan().flow();
                        Ok(value(&api::metadata(engine.manifest(), flow)))
                    }
                    ModelAsk::Ready => Ok(value(&json!({ "name": name, "ready": true }))),
                    ModelAsk::Infer => {
                        let binary = "inference-header-content-length";
                        if head.headers.contains_key(binary) {
                            return Err(api::no_binary(binary));
                        }
                        self.infer(held, &name, version.as_deref(), body).await
                    }
                }
            }
        }
    }

    fn hold(&self, name: &str, version: Option<&str>) -> Result<Held, ApiError> {
        let Some(held) = self.models.hold(name) else {
            let served: Vec<String> = self
                .models
                .all()
                .iter()
                .map(|s| s.engine().family().to_string())
                .collect();
            if served.is_empty() {
                return Err(nothing_served());
            }
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!(
                    "model {name:?} is not served here; served: {}",
                    served.join(", ")
                ),
            ));
        };
        let serving = held.engine().manifest().version.to_string();
        match version {
            Some(version) if version != serving => Err(ApiError::new(
                StatusCode::NOT_FOUND,
                format!("version {version:?} of {name:?} is not served here; version {serving} is"),
            )),
            _ => Ok(held),
        }
    }

    async fn infer(
        &self,
        held: Held,
        name: &str,
        version: Option<&str>,
        body: &mut Incoming,
    ) -> Result<Answer, ApiError> {
        let body_max_bytes = self.body_max_bytes(held.engine().plan().flow());
        // A body may take its time: the bundle that answers is the one serving when it is complete.
        drop(held);
        let (body, reserved) = self.read_body(body, body_max_bytes).await?;
        let start = Instant::now();
        let turn = timeout(
            self.limits.queue_timeout,
            Arc::clone(&self.turns).acquire_owned(),
        )
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or_else(|| busy("inferences"))?;
        let held = self.hold(name, version)?;
        // Runs to its end, and is counted, also if the client hangs up.
        let work = tokio::task::spawn_blocking(move || {
            let answer = compute(&held, &body, start);
            drop((turn, reserved, body));
            answer
        });
        let body = work.await.map_err(|e| {
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the request could not be worked on: {e}"),
            )
        })??;
        Ok(json_answer(StatusCode::OK, body))
    }

    fn body_max_bytes(&self, flow: &Flow) -> usize {
        api::request_max_bytes(flow).min(self.limits.body_max_bytes)
    }

    async fn read_body(
        &self,
        body: &mut Incoming,
        max_bytes: usize,
    ) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
        let too_large = || {
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is longer than the {max_bytes} bytes accepted for this model"),
            )
        };
        let exact = body
            .size_hint()
            .exact()
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let expected = exact.unwrap_or(max_bytes);
        if expected > max_bytes {
            return Err(too_large());
        }
        let permits = u32::try_from(units(expected)).unwrap_or(u32::MAX);
        let limit = self.limits.body_timeout;
        let reserved = timeout(limit, Arc::clone(&self.bodies).acquire_many_owned(permits))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| busy("request bodies"))?;
        let collected = timeout(limit, Limited::new(body, max_bytes).collect())
            .await
            .map_err(|_| {
                ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    format!("the body was not complete after {limit:?}"),
                )
            })?;
        match collected {
            Ok(body) => Ok((body.to_bytes(), reserved)),
            Err(e) if e.is::<LengthLimitError>() => Err(too_large()),
            Err(e) => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("the body could not be read: {e}"),
            )),
        }
    }
}

/// Reads what is left of a refused request, within bounds: closing a socket with unread bytes
/// would take the answer from a client that is still sending.
async fn discard(body: &mut Incoming, max_bytes: usize) {
    let read = async {
        let mut bytes = 0_usize;
        while bytes < max_bytes
            && let Some(Ok(frame)) = body.frame().await
        {
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    let _ = timeout(DISCARD_TIMEOUT, read).await;
}

/// Parses, infers and renders; the whole of it away from the reactor.
fn compute(held: &Held, body: &[u8], start: Instant) -> Result<Vec<u8>, ApiError> {
    let manifest = held.engine().manifest();
    let flow = held.engine().plan().flow();
    let request = InferRequest::parse(body, flow)?;
    let outputs = held
        .infer(&request.inputs, request.parameters.as_ref(), || start.elapsed())
        .map_err(|error| {
            if error.is_of_request() {
                return ApiError::new(StatusCode::BAD_REQUEST, error.to_string());
            }
            tracing::error!(model = %manifest.family, version = manifest.version, %error, "inference failed");
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("model {} version {}: {error}", manifest.family, manifest.version),
            )
        })?;
    api::answer(manifest, flow, &request, &outputs)
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(BODY_UNIT_BYTES).max(1)
}

fn nothing_served() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "no model is loaded; one is served as soon as a bundle has been activated",
    )
}

fn busy(what: &str) -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("too many {what} at once; try again later"),
    )
}

fn value(value: &Value) -> Answer {
    json_answer(StatusCode::OK, value.to_string().into_bytes())
}

fn refusal(error: &ApiError) -> Answer {
    let mut answer = json_answer(error.status, error.body());
    if let Some(method) = error.allow {
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static(method));
    }
    answer
}

fn json_answer(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

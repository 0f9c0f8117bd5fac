//! Answers inference requests, in whatever flavour of the protocol they come: bodies within a budget of
//! memory, inferences in turn.

mod encoding;
#[cfg(feature = "grpc")]
mod grpc;
mod memory;
mod rest;

use super::api::ApiError;
use super::api::signature::Signature;
use super::models::{Held, Models, NotServed, Served, now_ms};
use super::statistics::{Phases, Writing};
use super::steps::Shaped;
use super::tensor::Values;
use super::turns::{RulesByModel, Turns};
use crate::clients::{Caller, Clients, Refusal};
use bytes::{Bytes, BytesMut};
use encoding::Encoding;
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use memory::{Memory, Share, UNIT_BYTES};
use serde_json::{Map, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// Longest time for reading what is left of a refused request.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Work that is expected to take no longer than this is done where the request was read: handing it to
/// another thread and back would take longer than it. Meanwhile that thread reads no other connection.
const INLINE_MAX: Duration = Duration::from_micros(500);
/// Largest body of a request that is worked on where it was read.
const INLINE_MAX_BYTES: usize = 64 * 1024;

/// Bounds of the inference API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Largest body of any request, in bytes; a model with small inputs has a smaller one.
    pub(crate) body_max_bytes: usize,
    /// Memory for all bodies being read together, in bytes; at least `body_max_bytes`.
    pub(crate) bodies_max_bytes: usize,
    /// Memory for all large answers that clients have not read yet, in bytes.
    pub(crate) answers_max_bytes: usize,
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
    clients: Clients,
    turns: Turns,
    memory: Memory,
}

/// A body that was read, and its share of the memory budget.
#[derive(Debug)]
struct Received {
    bytes: Bytes,
    encoding: Encoding,
    _share: Share,
}

/// A request's body in one flavour of the protocol.
trait Form: Send + 'static {
    /// What it is once it was read.
    type Request;
    /// What answers it.
    type Answer: Send + 'static;

    /// The body.
    fn received(&self) -> &Received;

    /// How its tensors are written.
    fn writing(&self) -> Writing;

    /// Reads the tensors and all else.
    fn read(&self, body: &[u8], signature: &Signature<'_>) -> Result<Self::Request, ApiError>;

    /// One value list an input, in the model's order.
    fn inputs(request: &Self::Request) -> &[Values];

    /// The client's parameters.
    fn parameters(request: &Self::Request) -> Option<&Map<String, Value>>;

    /// Renders the answer.
    fn write(
        signature: &Signature<'_>,
        request: &Self::Request,
        outputs: &[Shaped],
    ) -> Result<Self::Answer, ApiError>;
}

/// Which model a request is for.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    name: &'a str,
    version: Option<&'a str>,
    caller: &'a Caller,
}

impl Api {
    pub(crate) fn new(
        models: Arc<Models>,
        limits: Limits,
        clients: Clients,
        rules: RulesByModel,
    ) -> Self {
        Self {
            models,
            limits,
            clients,
            turns: Turns::new(limits.inferences_max, rules),
            memory: Memory::new(
                limits.bodies_max_bytes.max(limits.body_max_bytes),
                limits.answers_max_bytes,
            ),
        }
    }

    fn ready(&self) -> Result<Vec<Arc<Served>>, ApiError> {
        let expected = self.models.expected(Instant::now());
        if !expected.is_empty() {
            let message = format!("{} models are being loaded; try again", expected.len());
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message));
        }
        let all = self.models.all();
        if all.is_empty() {
            return Err(nothing_served());
        }
        Ok(all)
    }

    /// What this caller may ask for.
    fn open_to(&self, caller: &Caller) -> Vec<Arc<Served>> {
        let mut all = self.models.all();
        all.retain(|s| self.clients.may(caller, s.signature().name).is_ok());
        all
    }

    fn hold(&self, asked: Asked<'_>) -> Result<Held, ApiError> {
        let version = asked.version;
        // Before it is looked for: who may not ask for a model is not told whether it is there.
        if let Err(refusal) = self.clients.may(asked.caller, asked.name) {
            return Err(refused(&refusal, asked.name));
        }
        let name = super::api::given::quoted(asked.name);
        let message = match self.models.hold(asked.name, version) {
            Ok(held) => return Ok(held),
            Err(NotServed::Yet) => {
                let message = format!("model {name} is being loaded; try again");
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message));
            }
            Err(NotServed::Family(served)) if served.is_empty() => return Err(nothing_served()),
            Err(NotServed::Family(mut served)) => {
                served.retain(|family| self.clients.may(asked.caller, family).is_ok());
                let served = served.join(", ");
                format!("model {name} is not served here; served: {served}")
            }
            Err(NotServed::Version(serving)) => format!(
                "version {} of {name} is not served here; version {serving} is",
                super::api::given::quoted(version.unwrap_or_default()),
            ),
        };
        Err(ApiError::new(StatusCode::NOT_FOUND, message))
    }

    /// Most bytes of a request to this model.
    fn body_max_bytes(&self, held: &Held) -> usize {
        let honest = held.signature().request_max_bytes();
        honest.min(self.limits.body_max_bytes)
    }

    async fn read_body(
        &self,
        body: &mut Incoming,
        encoding: Encoding,
        max_bytes: usize,
    ) -> Result<Received, ApiError> {
        let too_large = || too_large(max_bytes);
        let exact = body
            .size_hint()
            .exact()
            .map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if exact.unwrap_or(0) > max_bytes {
            return Err(too_large());
        }
        let mut bytes = BytesMut::with_capacity(exact.unwrap_or(0).min(UNIT_BYTES));
        let mut share = None;
        let mut deadline = self.deadline();
        while let Some(frame) = self.by(deadline, body.frame()).await? {
            let frame =
                frame.map_err(|e| ApiError::bad(format!("the body could not be read: {e}")))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > max_bytes {
                return Err(too_large());
            }
            // A share is for bytes that come, not for ones that were announced: who announces much
            // and sends nothing would keep others waiting.
            if length > UNIT_BYTES && share.is_none() {
                let announced = exact.unwrap_or(max_bytes);
                share = self.share(announced).await?;
                bytes.reserve(exact.unwrap_or(0).saturating_sub(bytes.len()));
                deadline = self.deadline();
            }
            bytes.extend_from_slice(&data);
        }
        if encoding != Encoding::Identity {
            // It may need all that is allowed once it is unpacked.
            drop(share);
            share = self.share(max_bytes).await?;
        }
        Ok(Received {
            bytes: bytes.freeze(),
            encoding,
            _share: share,
        })
    }

    /// Takes a share of the memory for bodies, when there is so much.
    async fn share(&self, bytes: usize) -> Result<Share, ApiError> {
        self.memory.share(bytes, self.limits.body_timeout).await
    }

    fn deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.limits.body_timeout
    }

    /// Waits for a body or a part of it, until then.
    async fn by<T>(
        &self,
        deadline: tokio::time::Instant,
        part: impl Future<Output = T>,
    ) -> Result<T, ApiError> {
        timeout_at(deadline, part).await.map_err(|_| {
            let limit = self.limits.body_timeout;
            ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body was not complete after {limit:?}"),
            )
        })
    }

    /// Answers an inference request whose body is there, when its turn has come.
    async fn infer<F: Form>(&self, asked: Asked<'_>, form: F) -> Result<F::Answer, ApiError> {
        let start = Instant::now();
        // What nobody serves has no queue.
        drop(self.hold(asked)?);
        let turn = self.turns.take(asked.name, self.limits.queue_timeout).await;
        let turn = turn.map_err(|problem| {
            let message = format!("model {}: {problem}", asked.name);
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
        })?;
        // A body may take its time: the bundle that answers is the one serving now.
        let held = self.hold(asked)?;
        let queue = start.elapsed();
        let inline = is_inline(
            form.received(),
            held.served().statistics().work(form.writing()),
        );
        let max_bytes = self.body_max_bytes(&held);
        // Runs to its end, and is counted, also if the client hangs up.
        let work = move || {
            let answer = compute(&held, &form, max_bytes, queue);
            drop((turn, form));
            answer
        };
        if inline {
            return catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(ApiError::internal("the request could not be worked on")));
        }
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
            let message = format!("the request could not be worked on: {e}");
            Err(ApiError::internal(message))
        })
    }
}

fn is_inline(received: &Received, work: Option<Duration>) -> bool {
    received.encoding == Encoding::Identity
        && received.bytes.len() <= INLINE_MAX_BYTES
        && work.is_some_and(|expected| expected <= INLINE_MAX)
}

/// Reads, infers and renders.
fn compute<F: Form>(
    held: &Held,
    form: &F,
    max_bytes: usize,
    queue: Duration,
) -> Result<F::Answer, ApiError> {
    let signature = held.signature();
    let statistics = held.served().statistics();
    let start = Instant::now();
    let received = form.received();
    let body = received.encoding.decode(&received.bytes, max_bytes)?;
    let request = form
        .read(&body, &signature)
        .inspect_err(|_| held.served().refuse(None))?;
    let read = start.elapsed();
    let (inputs, parameters) = (F::inputs(&request), F::parameters(&request));
    let result = held.infer(inputs, parameters, || queue + start.elapsed());
    let inferred = start.elapsed();
    let outputs = result.map_err(|error| {
        statistics.failed(queue + inferred);
        if error.is_of_request() {
            return ApiError::bad(error.to_string());
        }
        let Signature { name, version, .. } = signature;
        tracing::error!(model = name, version, %error, "inference failed");
        ApiError::internal(format!("model {name} version {version}: {error}"))
    })?;
    let answer = F::write(&signature, &request, &outputs)?;
    let phases = Phases {
        queue,
        input: read,
        infer: inferred.saturating_sub(read),
        output: start.elapsed().saturating_sub(inferred),
    };
    statistics.answered(form.writing(), &phases, now_ms());
    Ok(answer)
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

fn too_large(max_bytes: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is longer than the {max_bytes} bytes accepted for this model"),
    )
}

fn refused(refusal: &Refusal, model: &str) -> ApiError {
    let status = match refusal {
        Refusal::Unknown => StatusCode::UNAUTHORIZED,
        Refusal::NotYours(_) => StatusCode::FORBIDDEN,
    };
    let model = super::api::given::quoted(model);
    ApiError::new(status, format!("model {model}: {refusal}"))
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

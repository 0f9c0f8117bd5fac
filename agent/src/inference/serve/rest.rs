//! The REST flavour.

use super::encoding::Encoding;
use super::{Api, Asked, Form, Received, discard};
use crate::clients::{Caller, Peer};
use crate::inference::api::json::{InferRequest, Rendered, answer};
use crate::inference::api::route::{ModelAsk, Route, route};
use crate::inference::api::signature::Signature;
use crate::inference::api::{ApiError, metadata};
use crate::inference::statistics::Writing;
use crate::inference::steps::Shaped;
use crate::inference::tensor::Values;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};

/// Length of the JSON in a body that has binary tensors behind it.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// Most bytes of a request that is no inference.
const QUESTION_MAX_BYTES: usize = 64 * 1024;

pub(crate) type Answer = Response<Full<Bytes>>;

impl Api {
    /// Answers one request, always.
    pub(crate) async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Answer {
        let (head, mut body) = request.into_parts();
        let caller = self.clients.caller(peer, &head.headers);
        match self.respond(&head, &mut body, &caller).await {
            Ok(answer) => answer,
            Err(error) => {
                discard(&mut body, self.limits.body_max_bytes).await;
                refusal(&error)
            }
        }
    }

    async fn respond(
        &self,
        head: &Parts,
        body: &mut Incoming,
        caller: &Caller,
    ) -> Result<Answer, ApiError> {
        // A browser reaches loopback addresses for every page that somebody opens on this machine.
        if head.headers.contains_key(ORIGIN) {
            let message = "requests of web pages (with an Origin header) are not answered";
            return Err(ApiError::new(StatusCode::FORBIDDEN, message));
        }
        Ok(value(&match route(&head.method, head.uri.path())? {
            Route::Server => metadata::server(),
            Route::Live => json!({ "live": true }),
            Route::Ready => {
                self.ready()?;
                json!({ "ready": true })
            }
            Route::Index => {
                let encoding = encoding(&head.headers)?;
                let received = self.read_body(body, encoding, QUESTION_MAX_BYTES).await?;
                let body = encoding.decode(&received.bytes, QUESTION_MAX_BYTES)?;
                metadata::check_index_request(&body)?;
                let all = self.open_to(caller);
                let entries = all.iter().map(|s| metadata::index_entry(&s.signature()));
                entries.collect()
            }
            Route::Change { name, what } => return Err(metadata::no_change(&name, what)),
            Route::Statistics => {
                let all = self.open_to(caller);
                let each = all
                    .iter()
                    .map(|s| metadata::statistics(&s.signature(), &s.statistics().snapshot()));
                json!({ "model_stats": each.collect::<Value>() })
            }
            Route::Model { name, version, ask } => {
                let asked = Asked {
                    name: &name,
                    version: version.as_deref(),
                    caller,
                };
                let held = self.hold(asked)?;
                match ask {
                    ModelAsk::Metadata => metadata::model(&held.signature()),
                    ModelAsk::Ready => json!({ "name": name, "ready": true }),
                    ModelAsk::Statistics => {
                        let seen = held.served().statistics().snapshot();
                        json!({ "model_stats": [metadata::statistics(&held.signature(), &seen)] })
                    }
                    ModelAsk::Infer => {
                        let json_bytes = json_bytes(&head.headers)?;
                        let encoding = encoding(&head.headers)?;
                        let max_bytes = self.body_max_bytes(&held);
                        drop(held);
                        let received = self.read_body(body, encoding, max_bytes).await?;
                        let form = Rest {
                            received,
                            json_bytes,
                        };
                        return self.rendered(self.infer(asked, form).await?);
                    }
                }
            }
        }))
    }

    fn rendered(&self, rendered: Rendered) -> Result<Answer, ApiError> {
        let body = self.memory.unread(rendered.body)?;
        let Some(json_bytes) = rendered.json_bytes else {
            return Ok(with_type(StatusCode::OK, JSON, body));
        };
        let mut answer = with_type(StatusCode::OK, BINARY, body);
        answer.headers_mut().insert(JSON_LENGTH, json_bytes.into());
        Ok(answer)
    }
}

struct Rest {
    received: Received,
    json_bytes: Option<usize>,
}

impl Form for Rest {
    type Request = InferRequest;
    type Answer = Rendered;

    fn received(&self) -> &Received {
        &self.received
    }

    fn writing(&self) -> Writing {
        match self.json_bytes {
            Some(_) => Writing::Binary,
            None => Writing::Text,
        }
    }

    fn read(&self, body: &[u8], signature: &Signature<'_>) -> Result<InferRequest, ApiError> {
        InferRequest::parse(body, self.json_bytes, signature)
    }

    fn inputs(request: &InferRequest) -> &[Values] {
        &request.inputs
    }

    fn parameters(request: &InferRequest) -> Option<&Map<String, Value>> {
        request.parameters.as_ref()
    }

    fn write(
        signature: &Signature<'_>,
        request: &InferRequest,
        outputs: &[Shaped],
    ) -> Result<Rendered, ApiError> {
        answer(signature, request, outputs)
    }
}

fn json_bytes(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(JSON_LENGTH) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|v| v.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        ApiError::bad(format!(
            "Inference-Header-Content-Length: expected the number of bytes of the JSON, got {value:?}"
        ))
    })
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    Encoding::named(headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes))
}

fn value(value: &Value) -> Answer {
    with_type(StatusCode::OK, JSON, value.to_string().into_bytes())
}

fn refusal(error: &ApiError) -> Answer {
    let mut answer = with_type(error.status, JSON, error.body());
    if error.status == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer");
        answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    }
    if let Some(method) = error.allow {
        let method = HeaderValue::from_static(method);
        answer.headers_mut().insert(ALLOW, method);
    }
    answer
}

fn with_type(status: StatusCode, kind: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

//! The gRPC flavour, over HTTP/2 without TLS
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use super::encoding::Encoding;
use super::memory::UNIT_BYTES;
use super::{Api, Asked, Form, Received};
use crate::clients::{Caller, Peer};
use crate::inference::api::given::quoted;
use crate::inference::api::signature::Signature;
use crate::inference::api::{ApiError, metadata};
use crate::inference::grpc::message::{self, InferRequest, Named};
use crate::inference::grpc::wire::Message;
use crate::inference::statistics::Writing;
use crate::inference::steps::Shaped;
use crate::inference::tensor::Values;
use bytes::{Buf as _, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

const SERVICE: &str = "/inference.GRPCInferenceService/";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,gzip,deflate");
/// In front of each message: whether it is packed, and its length.
const PREFIX_BYTES: usize = 5;
/// Longest error that travels: it is a header.
const MESSAGE_MAX_BYTES: usize = 2048;
/// Answers of one stream that wait for their client to read.
const STREAM_QUEUE: usize = 1;

/// The body of an answer: messages, then how it went.
#[derive(Debug)]
pub(crate) struct Reply {
    messages: Messages,
    ended: bool,
}

#[derive(Debug)]
enum Messages {
    /// All there is; an error stands in the head then.
    One(Option<Bytes>),
    /// One after the other, until there are no more or an error ends it.
    Stream(mpsc::Receiver<Result<Bytes, ApiError>>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = match &mut self.messages {
            Messages::One(message) => message.take().map(Ok),
            Messages::Stream(messages) => match messages.poll_recv(context) {
                Poll::Ready(next) => next,
                Poll::Pending => return Poll::Pending,
            },
        };
        let trailers = match next {
            Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
            Some(Err(error)) => status(Some(&error)),
            None => status(None),
        };
        self.ended = true;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Status and message as headers or trailers.
fn status(error: Option<&ApiError>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let code = error.map_or(0, |e| code(e.status));
    headers.insert(GRPC_STATUS, code.into());
    if let Some(error) = error
        && let Ok(message) = HeaderValue::try_from(escaped(&error.message))
    {
        headers.insert(GRPC_MESSAGE, message);
    }
    headers
}

/// gRPC's number for what went wrong.
fn code(status: StatusCode) -> u16 {
    match status {
        StatusCode::BAD_REQUEST => 3,
        StatusCode::REQUEST_TIMEOUT => 4,
        StatusCode::NOT_FOUND => 5,
        StatusCode::FORBIDDEN => 7,
        StatusCode::PAYLOAD_TOO_LARGE => 8,
        StatusCode::UNSUPPORTED_MEDIA_TYPE | StatusCode::NOT_IMPLEMENTED => 12,
        StatusCode::SERVICE_UNAVAILABLE => 14,
        StatusCode::UNAUTHORIZED => 16,
        _ => 13,
    }
}

/// Percent-encoded as the protocol asks, and cut.
fn escaped(message: &str) -> String {
    let mut escaped = String::new();
    for byte in message.bytes() {
        if escaped.len() >= MESSAGE_MAX_BYTES {
            break;
        }
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => escaped.push_str(&format!("%{byte:02X}")),
            plain => escaped.push(char::from(plain)),
        }
    }
    escaped
}

fn reply(messages: Messages) -> Response<Reply> {
    let ended = false;
    let mut response = Response::new(Reply { messages, ended });
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
        .headers_mut()
        .insert(GRPC_ACCEPT_ENCODING, ACCEPTED);
    response
}

fn refusal(error: &ApiError) -> Response<Reply> {
    let mut response = reply(Messages::One(None));
    response.body_mut().ended = true;
    response.headers_mut().extend(status(Some(error)));
    response
}

fn framed(message: Message) -> Vec<u8> {
    let message = message.into_bytes();
    let mut framed = Vec::with_capacity(message.len() + PREFIX_BYTES);
    framed.push(0);
    framed.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    framed.extend_from_slice(&message);
    framed
}

/// The messages of a request, read as they come.
struct Frames {
    body: Incoming,
    buffer: BytesMut,
    encoding: Encoding,
}

impl Frames {
    fn new(head: &Parts, body: Incoming) -> Result<Self, ApiError> {
        let encoding = head.headers.get(GRPC_ENCODING).map(HeaderValue::as_bytes);
        Ok(Self {
            body,
            buffer: BytesMut::new(),
            encoding: Encoding::named(encoding)?,
        })
    }

    /// Reads until there are as many bytes as this; false if the body ends before.
    async fn fill(&mut self, bytes: usize) -> Result<bool, ApiError> {
        while self.buffer.len() < bytes {
            match self.body.frame().await {
                None => return Ok(false),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(e)) => {
                    return Err(ApiError::bad(format!("the body could not be read: {e}")));
                }
            }
        }
        Ok(true)
    }

    /// The next message, unpacked; none after the last one. Once its length is known, it has a share of
    /// the memory for bodies and a time to be complete.
    async fn next(&mut self, api: &Api) -> Result<Option<Received>, ApiError> {
        let cut = || ApiError::bad("the body ends in the middle of a message");
        if !self.fill(PREFIX_BYTES).await? {
            return if self.buffer.is_empty() {
                Ok(None)
            } else {
                Err(cut())
            };
        }
        let max_bytes = api.limits.body_max_bytes;
        let mut prefix = &self.buffer[..PREFIX_BYTES];
        let (packed, length) = (prefix.get_u8(), prefix.get_u32());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > max_bytes {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("a message of {length} bytes, at most {max_bytes} are accepted"),
            ));
        }
        let encoding = match (packed, self.encoding) {
            (0, _) => Encoding::Identity,
            (1, encoding) if encoding != Encoding::Identity => encoding,
            _ => {
                let message = "a message says that it is packed, and grpc-encoding not how";
                return Err(ApiError::bad(message));
            }
        };
        let wanted = if packed == 0 { length } else { max_bytes };
        // Bytes that come have a share, not ones that were announced.
        let first = length.min(UNIT_BYTES);
        if !api
            .by(api.deadline(), self.fill(PREFIX_BYTES + first))
            .await??
        {
            return Err(cut());
        }
        let share = api.share(wanted).await?;
        if !api
            .by(api.deadline(), self.fill(PREFIX_BYTES + length))
            .await??
        {
            return Err(cut());
        }
        self.buffer.advance(PREFIX_BYTES);
        let mut bytes = self.buffer.split_to(length).freeze();
        if encoding != Encoding::Identity {
            let unpack = move || encoding.decode(&bytes, max_bytes).map(|b| b.into_owned());
            let unpacked = tokio::task::spawn_blocking(unpack).await;
            bytes = unpacked
                .map_err(|e| ApiError::internal(e.to_string()))??
                .into();
        }
        Ok(Some(Received {
            bytes,
            encoding: Encoding::Identity,
            _share: share,
        }))
    }
}

impl Api {
    /// Answers one call, always.
    pub(crate) async fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Response<Reply> {
        let (head, body) = request.into_parts();
        let caller = self.clients.caller(peer, &head.headers);
        match self.respond_to(&head, body, caller).await {
            Ok(response) => response,
            Err(error) => refusal(&error),
        }
    }

    async fn respond_to(
        self: &Arc<Self>,
        head: &Parts,
        body: Incoming,
        caller: Caller,
    ) -> Result<Response<Reply>, ApiError> {
        let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        if head.method != Method::POST || !kind.is_some_and(|k| k.starts_with(b"application/grpc"))
        {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "this socket speaks gRPC only: expected POST and application/grpc",
            ));
        }
        let path = head.uri.path();
        let method = path.strip_prefix(SERVICE).ok_or_else(|| unknown(path))?;
        let mut frames = Frames::new(head, body)?;
        if method == "ModelStreamInfer" {
            return Ok(self.stream(frames, caller));
        }
        let received = self.by(self.deadline(), frames.next(self)).await??;
        let received = received.ok_or_else(|| ApiError::bad("there is no message"))?;
        let message = match method {
            "ModelInfer" => self.infer_message(received, caller).await?,
            _ => self.question(method, &received.bytes, &caller)?,
        };
        let framed = self.memory.unread(framed(message))?;
        Ok(reply(Messages::One(Some(framed))))
    }

    fn question(&self, method: &str, body: &[u8], caller: &Caller) -> Result<Message, ApiError> {
        let mut answer = Message::default();
        match method {
            "ServerLive" => answer.number(1, true),
            "ServerReady" => answer.number(1, self.ready().is_ok()),
            "ServerMetadata" => return Ok(message::server_metadata()),
            "ModelReady" => {
                let ready = self.hold(asked(&Named::read(body, 1, 2)?, caller));
                answer.number(1, ready.is_ok());
            }
            "ModelMetadata" => {
                let held = self.hold(asked(&Named::read(body, 1, 2)?, caller))?;
                return Ok(message::model_metadata(&held.signature()));
            }
            "ModelStatistics" => {
                let named = Named::read(body, 1, 2)?;
                if !named.name.is_empty() {
                    self.hold(asked(&named, caller))?;
                }
                for served in self.open_to(caller) {
                    let signature = served.signature();
                    if named.name.is_empty() || named.name == signature.name {
                        let seen = served.statistics().snapshot();
                        message::add_statistics(&mut answer, &signature, &seen);
                    }
                }
            }
            "RepositoryIndex" => {
                for served in self.open_to(caller) {
                    message::add_to_index(&mut answer, &served.signature());
                }
            }
            "RepositoryModelLoad" => {
                return Err(metadata::no_change(Named::read(body, 2, 0)?.name, "load"));
            }
            "RepositoryModelUnload" => {
                return Err(metadata::no_change(Named::read(body, 2, 0)?.name, "unload"));
            }
            other => return Err(unknown(other)),
        }
        Ok(answer)
    }

    async fn infer_message(&self, received: Received, caller: Caller) -> Result<Message, ApiError> {
        let bytes = received.bytes.clone();
        let named = Named::read(&bytes, 1, 2)?;
        let asked = asked(&named, &caller);
        let held = self.hold(asked)?;
        let max_bytes = self.body_max_bytes(&held);
        if bytes.len() > max_bytes {
            return Err(message::too_long(&held.signature(), max_bytes, bytes.len()));
        }
        drop(held);
        self.infer(asked, Grpc { received }).await
    }

    /// Answers the requests of a stream one after the other. One that is wrong does not end it.
    fn stream(self: &Arc<Self>, mut frames: Frames, caller: Caller) -> Response<Reply> {
        let (to, messages) = mpsc::channel(STREAM_QUEUE);
        let api = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = frames.next(&api) => next,
                    () = to.closed() => return,
                };
                let message = match next {
                    Ok(None) => return,
                    Ok(Some(received)) => {
                        let mut answer = Message::default();
                        match api.infer_message(received, caller).await {
                            Ok(response) => answer.message(2, &response),
                            Err(error) => answer.text(1, &error.message),
                        }
                        api.memory.unread(framed(answer)).or_else(|error| {
                            let mut answer = Message::default();
                            answer.text(1, &error.message);
                            Ok(framed(answer).into())
                        })
                    }
                    Err(error) => Err(error),
                };
                let last = message.is_err();
                if to.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        reply(Messages::Stream(messages))
    }
}

fn asked<'a>(named: &Named<'a>, caller: &'a Caller) -> Asked<'a> {
    Asked {
        name: named.name,
        version: named.version,
        caller,
    }
}

fn unknown(method: &str) -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        format!(
            "no such method: {}; see inference.GRPCInferenceService",
            quoted(method)
        ),
    )
}

struct Grpc {
    received: Received,
}

impl Form for Grpc {
    type Request = InferRequest;
    type Answer = Message;

    fn received(&self) -> &Received {
        &self.received
    }

    fn writing(&self) -> Writing {
        Writing::Binary
    }

    fn read(&self, body: &[u8], signature: &Signature<'_>) -> Result<InferRequest, ApiError> {
        InferRequest::parse(body, signature)
    }

    fn inputs(request: &InferRequest) -> &[Values] {
        &request.inputs
    }

    fn parameters(request: &InferRequest) -> Option<&Map<String, Value>> {
        Some(&request.named)
    }

    fn write(
        signature: &Signature<'_>,
        request: &InferRequest,
        outputs: &[Shaped],
    ) -> Result<Message, ApiError> {
        Ok(message::answer(signature, request, outputs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_travel_as_status_and_escaped_message() {
        let error = ApiError::bad("expected \"x\" – got 100 %\n");
        let headers = status(Some(&error));
        assert_eq!(headers[GRPC_STATUS], "3");
        assert_eq!(
            headers[GRPC_MESSAGE],
            "expected \"x\" %E2%80%93 got 100 %25%0A"
        );
        assert_eq!(status(None)[GRPC_STATUS], "0");
        assert!(escaped(&"é".repeat(5000)).len() < MESSAGE_MAX_BYTES + 3);
    }
}

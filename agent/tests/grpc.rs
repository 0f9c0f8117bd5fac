//! gRPC over the worker's real socket: what clients do wrong, and that models stay with those they are open
//! to. What clients do right is held against theirs in `tests/peers/oip`.

#![cfg(feature = "grpc")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "inference/slot.rs"]
#[allow(dead_code)] // Each test needs a part of it.
mod slot;

use bytes::Bytes;
use dunlin_agent::clients::{Accounts, ClientRule, Clients};
use dunlin_agent::inference::{self, GrpcAddress, WorkerArgs, WorkerError};
use dunlin_agent::pipe::{FromWorker, ToWorker};
use dunlin_protocol::id::Digest;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use slot::Slot;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

struct Serving {
    say: mpsc::Sender<ToWorker>,
    hear: mpsc::Receiver<FromWorker>,
    task: tokio::task::JoinHandle<Result<(), WorkerError>>,
    client: SendRequest<Full<Bytes>>,
    _dir: tempfile::TempDir,
    _slot: Slot,
}

impl Serving {
    async fn start(clients: Option<Clients>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("grpc.sock");
        let args = WorkerArgs {
            models: Vec::new(),
            socket: Some(dir.path().join("rest.sock")),
            listen: None,
            grpc_listen: Some(GrpcAddress::Unix(socket.clone())),
            socket_gid: None,
            clients,
            segments: None,
            window_ms: 60_000,
            capture: None,
            say_at_work: false,
            rules: None,
            memory_limit_bytes: None,
            body_max_bytes: 1 << 20,
            trial: None,
        };
        let (say, commands) = mpsc::channel(8);
        let (out, mut hear) = mpsc::channel(8);
        let task = tokio::spawn(inference::run(args, commands, out));
        let listening = hear.recv().await;
        assert!(matches!(listening, Some(FromWorker::Listening { .. })));
        let serving = Slot::of(2);
        let (bundle, slot) = (serving.bundle(), serving.path().to_owned());
        say.send(ToWorker::Activate { slot, bundle }).await.unwrap();
        assert_eq!(hear.recv().await, Some(FromWorker::Activated { bundle }));
        let stream = TokioIo::new(UnixStream::connect(&socket).await.unwrap());
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
        let (client, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        Self {
            say,
            hear,
            task,
            client,
            _dir: dir,
            _slot: serving,
        }
    }

    /// Status, message and body of one call.
    async fn call(
        &mut self,
        method: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> (u16, String, Bytes) {
        let mut request = Request::post(format!("http://device{method}"))
            .header("content-type", "application/grpc")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        request.headers_mut().extend(headers.clone());
        let response = timeout(PATIENCE, self.client.send_request(request)).await;
        let response = response.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK, "gRPC has its own status");
        let (head, body) = response.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.unwrap().unwrap();
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        let status = trailers["grpc-status"].to_str().unwrap().parse().unwrap();
        let message = trailers.get("grpc-message");
        let message = message.map_or("", |m| m.to_str().unwrap()).to_owned();
        (status, message, body.to_bytes())
    }

    async fn infer(&mut self, message: &[u8]) -> (u16, String, Bytes) {
        self.call(&method("ModelInfer"), &HeaderMap::new(), &framed(message))
            .await
    }

    async fn stop(mut self) {
        self.say.send(ToWorker::Drain).await.unwrap();
        loop {
            match timeout(PATIENCE, self.hear.recv()).await.unwrap().unwrap() {
                FromWorker::Progress { errors, .. } => assert_eq!(errors, 0),
                FromWorker::Window(_)
                | FromWorker::Open(_)
                | FromWorker::Counted
                | FromWorker::Detectors { .. } => {}
                FromWorker::Drained => break,
                word => panic!("{word:?}"),
            }
        }
        self.task.await.unwrap().unwrap();
    }
}

fn method(name: &str) -> String {
    format!("/inference.GRPCInferenceService/{name}")
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// A field of bytes, shorter than 2^14.
fn bytes(number: u8, bytes: &[u8]) -> Vec<u8> {
    let low = u8::try_from(bytes.len() & 0x7f).unwrap() | 0x80;
    let high = u8::try_from(bytes.len() >> 7).unwrap();
    [&[number << 3 | 2, low, high][..], bytes].concat()
}

/// A request for the model with this shape and these raw contents.
fn infer_request(shape: &[u8], raw: &[u8]) -> Vec<u8> {
    let input = [bytes(1, b"pixels"), bytes(2, b"FP32"), bytes(3, shape)].concat();
    [bytes(1, b"digits"), bytes(5, &input), bytes(7, raw)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_lie_are_told_and_the_connection_lives_on() {
    let mut serving = Serving::start(None).await;
    let tensor = [0_u8; 256];
    let good = infer_request(&[1, 64], &tensor);
    let huge = [&[0xff; 9][..], &[0x01], &[0xff; 9], &[0x01]].concat();
    for (message, status, hint) in [
        (infer_request(&[64, 1], &tensor), 3, "got FP32 [64, 1]"),
        (
            infer_request(&huge, &tensor),
            3,
            "got FP32 [18446744073709551615",
        ),
        (
            infer_request(&[1; 17], &tensor),
            3,
            "more than 16 dimensions",
        ),
        (
            infer_request(&[1, 64], &tensor[..255]),
            3,
            "expected 256 bytes, got 255",
        ),
        (good[..good.len() - 1].to_vec(), 3, "middle of a field"),
        (bytes(1, b"cats"), 5, "served: digits"),
        (
            vec![0x2a, 0xff, 0xff, 0xff, 0xff, 0x0f],
            3,
            "middle of a field",
        ),
    ] {
        let (got, error, _) = serving.infer(&message).await;
        assert_eq!(got, status, "{error}");
        let error = error.replace("%22", "\"");
        assert!(error.contains(hint), "expected {hint}, got {error}");
    }
    let (status, error, body) = serving.infer(&good).await;
    assert_eq!(status, 0, "{error}");
    assert!(body.len() > 40);
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_lie_are_told() {
    let mut serving = Serving::start(None).await;
    let good = framed(&infer_request(&[1, 64], &[0; 256]));
    let packed = [&[1][..], &good[1..]].concat();
    let long = [&[0][..], &(2_u32 << 20).to_be_bytes(), &[0; 10]].concat();
    let longer = [&[0][..], &u32::MAX.to_be_bytes()].concat();
    let none = HeaderMap::new();
    for (body, status, hint) in [
        (vec![], 3, "there is no message"),
        (vec![0, 0], 3, "middle of a message"),
        (good[..good.len() - 1].to_vec(), 3, "middle of a message"),
        (packed, 3, "says that it is packed"),
        (long, 8, "at most 1048576 are accepted"),
        (longer, 8, "at most 1048576 are accepted"),
    ] {
        let (got, error, _) = serving.call(&method("ModelInfer"), &none, &body).await;
        assert_eq!(got, status, "{error}");
        assert!(error.contains(hint), "expected {hint}, got {error}");
    }
    let mut gzip = HeaderMap::new();
    gzip.insert("grpc-encoding", "gzip".parse().unwrap());
    let packed = [&[1][..], &5_u32.to_be_bytes(), b"no gz"].concat();
    let (got, error, _) = serving.call(&method("ModelInfer"), &gzip, &packed).await;
    assert_eq!((got, error.contains("not gzip")), (3, true), "{error}");
    for path in [method("ModelTrain"), "/other.Service/ServerLive".to_owned()] {
        let (got, error, _) = serving.call(&path, &none, &framed(&[])).await;
        assert_eq!(
            (got, error.contains("no such method")),
            (12, true),
            "{error}"
        );
    }
    let (status, ..) = serving
        .call(&method("ServerLive"), &none, &framed(&[]))
        .await;
    assert_eq!(status, 0);
    serving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_open_to_its_clients_alone() {
    let accounts = Accounts::of_system().unwrap();
    let token = format!("token:{}", Digest::of(b"secret"));
    let rule = |token: &str, models: &[&str]| {
        let models = models.iter().map(|m| (*m).to_owned()).collect();
        ClientRule::new(token, models).unwrap()
    };
    let guest = format!("token:{}", Digest::of(b"guest"));
    let rules = [rule(&token, &["digits", "faces"]), rule(&guest, &["faces"])];
    let clients = Clients::resolve(&rules, &accounts).unwrap();
    let mut serving = Serving::start(Some(clients)).await;
    let good = framed(&infer_request(&[1, 64], &[0; 256]));
    let mut bearer = HeaderMap::new();
    bearer.insert("authorization", "Bearer secret".parse().unwrap());
    let mut wrong = HeaderMap::new();
    wrong.insert("authorization", "Bearer guess".parse().unwrap());
    let infer = method("ModelInfer");
    for (headers, status) in [(&bearer, 0), (&wrong, 7), (&HeaderMap::new(), 7)] {
        let (got, error, _) = serving.call(&infer, headers, &good).await;
        assert_eq!(got, status, "{error}");
    }
    // Who may not ask for a model does not see it either.
    let index = method("RepositoryIndex");
    for (headers, seen) in [(&bearer, true), (&wrong, false)] {
        let (_, _, body) = serving.call(&index, headers, &framed(&[])).await;
        assert_eq!(body.windows(6).any(|w| w == b"digits"), seen);
    }
    // Nor in the answer about one that he may ask for and that is not served.
    let mut guest = HeaderMap::new();
    guest.insert("authorization", "Bearer guest".parse().unwrap());
    let faces = framed(&[b"\x0a\x05".as_slice(), b"faces"].concat());
    for (headers, seen) in [(&bearer, true), (&guest, false)] {
        let (_, error, _) = serving
            .call(&method("ModelMetadata"), headers, &faces)
            .await;
        assert!(error.contains("faces"), "{error}");
        assert_eq!(error.contains("digits"), seen, "{error}");
    }
    serving.stop().await;
}

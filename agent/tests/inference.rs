//! The inference worker on the repository's real models: trials, the HTTP API over the Unix socket,
//! hot swaps and windows. The worker runs in process; its pipe is a pair of channels.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "inference/cases.rs"]
mod cases;
#[allow(dead_code)]
#[path = "inference/onnx.rs"]
mod onnx;
#[path = "inference/several.rs"]
mod several;
#[path = "inference/shadow.rs"]
mod shadow;
#[path = "inference/slot.rs"]
mod slot;
#[path = "inference/steps.rs"]
mod steps;
#[path = "inference/watched.rs"]
mod watched;

use bytes::Bytes;
use dunlin_agent::inference::tensor::Values;
use dunlin_agent::inference::{self, Engine, WorkerArgs, WorkerError};
use dunlin_agent::pipe::{FromWorker, ToWorker, TrialReport};
use dunlin_protocol::bundle::{DType, Manifest, Steps};
use dunlin_protocol::id::Digest;
use dunlin_protocol::telemetry::Window;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use slot::Slot;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A worker in this process.
struct Running {
    say: mpsc::Sender<ToWorker>,
    hear: mpsc::Receiver<FromWorker>,
    task: tokio::task::JoinHandle<Result<(), WorkerError>>,
    socket: PathBuf,
    tcp: Option<std::net::SocketAddr>,
    windows: Vec<Window>,
    progress: Vec<(Digest, u64, u64)>,
    _dir: tempfile::TempDir,
}

fn arguments(socket: &Path, listen: &str, window_ms: u32) -> WorkerArgs {
    WorkerArgs {
        models: Vec::new(),
        socket: Some(socket.to_owned()),
        listen: Some(listen.parse().unwrap()),
        grpc_listen: None,
        socket_gid: None,
        clients: None,
        segments: None,
        window_ms,
        capture: None,
        say_at_work: false,
        rules: None,
        memory_limit_bytes: None,
        body_max_bytes: 64 << 20,
        trial: None,
    }
}

impl Running {
    async fn start(window_ms: u32) -> Self {
        Self::start_with(window_ms, |_| ()).await
    }

    async fn start_with(window_ms: u32, change: impl FnOnce(&mut WorkerArgs)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("inference.sock");
        // What a killed worker leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let mut args = arguments(&socket, "127.0.0.1:0", window_ms);
        change(&mut args);
        let (say, commands) = mpsc::channel(8);
        let (out, mut hear) = mpsc::channel(8);
        let task = tokio::spawn(inference::run(args, commands, out));
        let Some(FromWorker::Listening { tcp, .. }) = hear.recv().await else {
            panic!("the worker did not listen: {:?}", task.await);
        };
        Self {
            say,
            hear,
            task,
            socket,
            tcp,
            windows: Vec::new(),
            progress: Vec::new(),
            _dir: dir,
        }
    }

    /// The next word that is neither a window nor progress, which are kept.
    async fn word(&mut self) -> FromWorker {
        loop {
            match timeout(PATIENCE, self.hear.recv()).await.unwrap().unwrap() {
                FromWorker::Window(window) => self.windows.push(*window),
                FromWorker::Progress {
                    bundle,
                    inferences,
                    errors,
                    ..
                } => self.progress.push((bundle, inferences, errors)),
                FromWorker::Open(_)
                | FromWorker::Counted
                | FromWorker::Shadowed { .. }
                | FromWorker::Detected { .. }
                | FromWorker::Detectors { .. } => {}
                word => return word,
            }
        }
    }

    async fn activate(&mut self, slot: &Slot) {
        let (bundle, slot) = (slot.bundle(), slot.path().to_owned());
        self.say
            .send(ToWorker::Activate { slot, bundle })
            .await
            .unwrap();
        assert_eq!(self.word().await, FromWorker::Activated { bundle });
    }

    async fn drain(mut self) -> (Vec<Window>, Vec<(Digest, u64, u64)>) {
        self.say.send(ToWorker::Drain).await.unwrap();
        assert_eq!(self.word().await, FromWorker::Drained);
        self.task.await.unwrap().unwrap();
        assert!(!self.socket.exists(), "the socket is removed");
        (self.windows, self.progress)
    }

    async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, Value) {
        ask(&self.socket, method, path, body).await
    }

    async fn infer(&self, body: &Value) -> (StatusCode, Value) {
        self.infer_with("digits", body).await
    }

    async fn infer_with(&self, model: &str, body: &Value) -> (StatusCode, Value) {
        let path = format!("/v2/models/{model}/infer");
        self.ask(Method::POST, &path, body.to_string()).await
    }
}

async fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> (StatusCode, Value) {
    let stream = UnixStream::connect(socket).await.unwrap();
    ask_over(TokioIo::new(stream), method, path, body.into()).await
}

async fn ask_over<S>(
    stream: TokioIo<S>,
    method: Method,
    path: &str,
    body: Bytes,
) -> (StatusCode, Value)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "device")
        .body(Full::new(body))
        .unwrap();
    let response = timeout(PATIENCE, client.send_request(request))
        .await
        .unwrap()
        .unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

fn pixels(slot: &Slot, case: usize) -> (Value, Vec<f64>) {
    let golden = slot.json("golden.json");
    let case = &golden["cases"][case];
    let wanted = case["outputs"]["probabilities"].as_array().unwrap();
    let wanted = wanted.iter().map(|v| v.as_f64().unwrap()).collect();
    (case["inputs"]["pixels"].clone(), wanted)
}

fn request(data: &Value) -> Value {
    json!({"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": data}]})
}

#[test]
fn every_committed_version_passes_its_trial() {
    for version in 1..=3 {
        match inference::trial(Slot::of(version).path()) {
            TrialReport::Passed {
                cases,
                difference_max,
                ..
            } => assert!(cases == 12 && difference_max <= 1e-4, "{difference_max}"),
            failed => panic!("version {version}: {failed:?}"),
        }
    }
}

#[test]
fn a_tampered_golden_case_fails_the_trial() {
    let slot = Slot::of(2);
    let mut golden = slot.json("golden.json");
    golden["cases"][3]["outputs"]["probabilities"][5] = json!(0.5);
    slot.write("golden.json", golden.to_string().as_bytes());
    // The file is not the signed one …
    let (code, detail) = slot.trial_failure();
    assert_eq!(code, "golden");
    assert!(detail.contains("SHA-256"), "{detail}");
    // … and even if it were, the model does not meet it.
    slot.sign(|_| ());
    let (code, detail) = slot.trial_failure();
    assert_eq!(code, "golden");
    assert!(
        detail.contains("\"probabilities\"[5]: expected 0.5"),
        "{detail}"
    );
}

#[test]
fn a_model_that_cannot_be_loaded_says_why() {
    let slot = Slot::of(2);
    let model = std::fs::read(slot.path().join("model.onnx")).unwrap();
    let replaced = |bytes: &[u8]| {
        slot.write("model.onnx", bytes);
        slot.sign(|_| ());
        slot.trial_failure()
    };
    for bytes in [
        &b"this is not ONNX"[..],
        &model[..model.len() / 2],
        &[0; 100],
    ] {
        let (code, detail) = replaced(bytes);
        assert_eq!(code, "load");
        assert!(detail.starts_with("model.onnx: "), "{detail}");
    }
    // An operator that nobody has, same length so that the file stays well-formed.
    let at = model.windows(4).position(|w| w == b"Gemm").unwrap();
    let mut strange = model.clone();
    strange[at..at + 4].copy_from_slice(b"Zemm");
    let (code, detail) = replaced(&strange);
    assert_eq!(code, "load");
    assert!(
        detail.contains("operators") && detail.contains("Zemm"),
        "{detail}"
    );

    slot.write("model.onnx", &model);
    type Change = fn(&mut Manifest);
    let changes: [(Change, &str); 5] = [
        (
            |m| {
                m.inputs[0].name = "image".to_owned();
                m.steps = Steps::default();
                m.files.profile = None;
            },
            "the manifest names \"image\" FP32 [1, 64], the graph has [\"pixels\"]",
        ),
        (
            |m| {
                m.inputs[0].shape = vec![1, 63];
                m.files.profile = None;
            },
            "\"pixels\" FP32 [1, 63]",
        ),
        (
            |m| {
                m.inputs[0].dtype = DType::FP64;
                m.steps = Steps::default();
            },
            "the manifest says \"pixels\" FP64 [1, 64], the graph",
        ),
        (
            |m| m.outputs[0].shape = vec![1, 9],
            "the manifest says \"probabilities\" FP32 [1, 9], the graph computes",
        ),
        (
            |m| m.outputs[0].name = "logits".to_owned(),
            "the manifest names \"logits\" FP32 [1, 10], the graph has",
        ),
    ];
    for (change, hint) in changes {
        slot.sign(change);
        let (code, detail) = slot.trial_failure();
        assert_eq!(code, "load");
        assert!(detail.contains(hint), "expected {hint}, got {detail}");
    }
    std::fs::remove_file(slot.path().join("manifest.json")).unwrap();
    let (_, detail) = slot.trial_failure();
    assert!(detail.contains("manifest.json"), "{detail}");
}

#[test]
fn a_trial_of_pictures_tells_a_wrong_label() {
    let slot = Slot::of_pictures();
    match inference::trial(slot.path()) {
        TrialReport::Passed { cases, .. } => assert_eq!(cases, 6),
        failed => panic!("{failed:?}"),
    }
    let mut golden = slot.json("golden.json");
    golden["cases"][1]["outputs"]["digit"][0] = json!("eight");
    slot.write("golden.json", golden.to_string().as_bytes());
    slot.sign(|_| ());
    let (code, detail) = slot.trial_failure();
    assert_eq!(code, "golden");
    assert!(
        detail.contains(r#"output "digit"[0]: expected "eight", got"#),
        "{detail}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_posts_a_picture_and_gets_its_name() {
    let slot = Slot::of_pictures();
    let mut worker = Running::start(60_000).await;
    worker.activate(&slot).await;
    let (_, metadata) = worker.ask(Method::GET, "/v2/models/digits-png", "").await;
    assert_eq!(
        metadata["inputs"],
        json!([{"name": "image", "datatype": "BYTES", "shape": [1]}])
    );
    assert_eq!(
        metadata["outputs"],
        json!([
            {"name": "digit", "datatype": "BYTES", "shape": [1, 3]},
            {"name": "score", "datatype": "FP32", "shape": [1, 3]}
        ])
    );
    let request = |data: Value| json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]});
    let golden = slot.json("golden.json");
    for case in golden["cases"].as_array().unwrap() {
        let body = request(case["inputs"]["image"]["base64"].clone());
        let (status, answer) = worker.infer_with("digits-png", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(answer["outputs"][0]["data"], case["outputs"]["digit"]);
    }
    // What is no picture is the application's error, not the model's.
    for (data, hint) in [
        (
            json!(["bm8gaW1hZ2U="]),
            "steps.pre[0] decode_image: expected an image of",
        ),
        (
            json!(["iVBORw0KGgoAAAANSUhEUg=="]),
            "decode_image: not a whole PNG",
        ),
        (json!(["?"]), "expected base64"),
        (json!([7]), "7 does not fit BYTES"),
    ] {
        let (status, answer) = worker.infer_with("digits-png", &request(data)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(hint), "{error}");
    }
    let (windows, _) = worker.drain().await;
    let sum = |of: fn(&Window) -> u64| windows.iter().map(of).sum::<u64>();
    assert_eq!((sum(|w| w.inferences), sum(|w| w.errors)), (6, 0));
    // Observed are the probabilities, which the application does not see.
    assert_eq!(sum(|w| w.outputs.iter().sum()), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_a_state_keeps_it_for_each_stream() {
    let slot = Slot::of_streams();
    match inference::trial(slot.path()) {
        TrialReport::Passed { cases, .. } => assert_eq!(cases, 8),
        failed => panic!("{failed:?}"),
    }
    let mut worker = Running::start(60_000).await;
    worker.activate(&slot).await;
    let request = |data: &Value, parameters: Value| {
        json!({"parameters": parameters, "inputs": [
        {"name": "samples", "datatype": "INT16", "shape": [1, 4], "data": data}]})
    };
    let golden = slot.json("golden.json");
    let cases = golden["cases"].as_array().unwrap();
    let mut begun = Vec::new();
    for case in cases.iter().filter(|c| c.get("stream").is_some()) {
        let stream = &case["stream"];
        let mut parameters = json!({"sequence_id": stream});
        if !begun.contains(&stream) {
            begun.push(stream);
            // Not begun yet.
            let body = request(&case["inputs"]["samples"], parameters.clone());
            let (status, answer) = worker.infer_with("running-level", &body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST);
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains("begin it with sequence_start"), "{error}");
            parameters["sequence_start"] = json!(true);
        }
        let body = request(&case["inputs"]["samples"], parameters);
        let (status, answer) = worker.infer_with("running-level", &body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        // What is carried is not given away.
        assert_eq!(answer["outputs"].as_array().unwrap().len(), 1);
        let got = answer["outputs"][0]["data"][0].as_f64().unwrap();
        let wanted = case["outputs"]["level"][0].as_f64().unwrap();
        assert!((got - wanted).abs() < 1e-6, "{case}: {got}");
    }
    // A third stream makes the one that was not used for longest give way.
    let samples = json!([1, 2, 3, 4]);
    let (status, _) = worker
        .infer_with("running-level", &request(&samples, json!({"stream": "c"})))
        .await;
    assert_eq!(status, StatusCode::OK);
    let last = cases
        .iter()
        .rev()
        .find_map(|c| c["stream"].as_str())
        .unwrap();
    for name in ["a", "b"] {
        let body = request(&samples, json!({"sequence_id": name}));
        let (status, _) = worker.infer_with("running-level", &body).await;
        let known = if name == last {
            StatusCode::OK
        } else {
            StatusCode::BAD_REQUEST
        };
        assert_eq!(status, known, "{name}");
    }
    let (status, answer) = worker
        .infer_with("running-level", &request(&samples, json!({})))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("keeps a state for each stream"), "{error}");
    let (windows, _) = worker.drain().await;
    assert_eq!(windows.iter().map(|w| w.errors).sum::<u64>(), 0);
}

#[test]
fn not_a_number_goes_through_the_engine_as_such() {
    let engine = Engine::load(Slot::of(2).path()).unwrap();
    let nan = [Values::FP32(vec![f32::NAN; 64])];
    let (given, _) = engine.run(&nan, engine.initial_state()).unwrap();
    assert!(given.outputs()[0].values.iter_f64().all(f64::is_nan));
    let short = [Values::FP32(vec![0.0; 63])];
    let short = engine.run(&short, engine.initial_state()).unwrap_err();
    assert!(short.to_string().contains("got 63 values"), "{short}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_what_the_training_runtime_answered() {
    let slot = Slot::of(2);
    let mut worker = Running::start(60_000).await;
    let (status, body) = worker.infer(&json!({"inputs": []})).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        body["error"]
            .as_str()
            .unwrap()
            .contains("no model is loaded")
    );
    let (status, _) = worker.ask(Method::GET, "/v2/health/ready", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _) = worker.ask(Method::GET, "/v2/health/live", "").await;
    assert_eq!(status, StatusCode::OK);

    worker.activate(&slot).await;
    let mode = std::fs::metadata(&worker.socket)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let (_, metadata) = worker.ask(Method::GET, "/v2/models/digits", "").await;
    assert_eq!(metadata["versions"], json!(["2"]));
    assert_eq!(metadata["inputs"][0]["shape"], json!([1, 64]));
    for case in 0..12 {
        let (data, wanted) = pixels(&slot, case);
        let mut body = request(&data);
        body["id"] = json!("a");
        let (status, answer) = worker.infer(&body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(
            (&answer["id"], &answer["model_version"]),
            (&json!("a"), &json!("2"))
        );
        let got = answer["outputs"][0]["data"].as_array().unwrap();
        for (got, wanted) in got.iter().zip(&wanted) {
            assert!((got.as_f64().unwrap() - wanted).abs() <= 1e-4);
        }
    }
    // Nested data, a named version, over TCP.
    let (data, _) = pixels(&slot, 0);
    let stream = TcpStream::connect(worker.tcp.unwrap()).await.unwrap();
    let body = Bytes::from(request(&json!([data])).to_string());
    let path = "/v2/models/digits/versions/2/infer";
    let (status, _) = ask_over(TokioIo::new(stream), Method::POST, path, body).await;
    assert_eq!(status, StatusCode::OK);

    let (windows, progress) = worker.drain().await;
    assert_eq!(windows.iter().map(|w| w.inferences).sum::<u64>(), 13);
    assert_eq!(windows.iter().map(|w| w.errors).sum::<u64>(), 0);
    assert_eq!(progress.last(), Some(&(slot.bundle(), 13, 0)));
    let profile = Digest::of(&std::fs::read(slot.path().join("profile.json")).unwrap());
    for window in &windows {
        assert_eq!(window.profile, Some(profile));
        assert_eq!(window.features.len(), 64);
        let totals = window
            .features
            .iter()
            .map(dunlin_protocol::sketch::Histogram::total);
        assert!(
            totals
                .chain([window.confidence.total()])
                .all(|n| n == window.inferences)
        );
        assert_eq!(
            window.features[0].counts,
            [window.inferences],
            "pixel 0 is always 0"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_request_is_explained_and_is_not_the_models_fault() {
    let slot = Slot::of(1);
    let mut worker = Running::start(60_000).await;
    worker.activate(&slot).await;
    let mut wrong = request(&json!(vec![0; 63]));
    wrong["inputs"][0]["shape"] = json!([1, 63]);
    let (status, body) = worker.infer(&wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(
        body["error"],
        json!("input: expected \"pixels\" FP32 [1, 64], got FP32 [1, 63]")
    );
    let (status, _) = worker.infer(&request(&json!(["NaN"]))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, body) = worker
        .ask(Method::POST, "/v2/models/cats/infer", "{}")
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["error"].as_str().unwrap().contains("served: digits"));
    let (status, body) = worker
        .ask(Method::GET, "/v2/models/digits/versions/9/ready", "")
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(body["error"].as_str().unwrap().contains("version 1 is"));
    let (status, body) = worker
        .ask(Method::POST, "/v2/models/digits/infer", vec![b' '; 1 << 20])
        .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");

    let (windows, progress) = worker.drain().await;
    assert_eq!(progress, [], "nothing counts against the bundle");
    let counted: Vec<_> = windows
        .iter()
        .map(|w| (w.inferences, w.errors, w.refused))
        .collect();
    assert_eq!(
        counted,
        [(0, 0, 2)],
        "what did not fit the manifest is told"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_fails_to_load_leaves_the_old_one_serving() {
    let (good, bad) = (Slot::of(1), Slot::of(2));
    bad.write("model.onnx", b"nonsense");
    bad.sign(|_| ());
    let mut worker = Running::start(60_000).await;
    worker.activate(&good).await;
    let slot = bad.path().to_owned();
    for (bundle, problem) in [
        (bad.bundle(), "model.onnx"),
        (good.bundle(), "expected bundle"),
    ] {
        let slot = slot.clone();
        worker
            .say
            .send(ToWorker::Activate { slot, bundle })
            .await
            .unwrap();
        match worker.word().await {
            FromWorker::ActivateFailed {
                slot: named,
                bundle: asked,
                detail,
            } => {
                assert_eq!((named, asked), (bad.path().to_owned(), bundle));
                assert!(detail.contains(problem), "{detail}");
            }
            word => panic!("{word:?}"),
        }
    }
    let (_, metadata) = worker.ask(Method::GET, "/v2/models/digits", "").await;
    assert_eq!(metadata["versions"], json!(["1"]));
    // The one that serves already is not loaded again, so its totals go on.
    let (data, _) = pixels(&good, 0);
    worker.infer(&request(&data)).await;
    worker.activate(&good).await;
    worker.infer(&request(&data)).await;
    let (_, progress) = worker.drain().await;
    assert_eq!(progress.last(), Some(&(good.bundle(), 2, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_close_when_their_time_has_passed_and_nothing_comes() {
    let slot = Slot::of(2);
    let mut worker = Running::start(100).await;
    worker.activate(&slot).await;
    let (data, _) = pixels(&slot, 0);
    worker.infer(&request(&data)).await;
    let window = loop {
        match timeout(PATIENCE, worker.hear.recv())
            .await
            .unwrap()
            .unwrap()
        {
            FromWorker::Window(window) => break window,
            FromWorker::Open(open) => assert_eq!(open.inferences, 1),
            FromWorker::Counted | FromWorker::Progress { .. } | FromWorker::Detectors { .. } => {}
            word => panic!("{word:?}"),
        }
    };
    assert_eq!((window.inferences, window.start_ms % 100), (1, 0));
    assert_eq!(window.end_ms - window.start_ms, 100);
    let (windows, _) = worker.drain().await;
    assert_eq!(windows, [], "empty windows are not told");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_pipe_drains_the_worker_and_other_machines_are_not_served() {
    let mut worker = Running::start(1000).await;
    drop(std::mem::replace(&mut worker.say, mpsc::channel(1).0));
    assert_eq!(worker.word().await, FromWorker::Drained);
    worker.task.await.unwrap().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let args = arguments(&dir.path().join("s"), "0.0.0.0:0", 1000);
    let (_say, commands) = mpsc::channel(1);
    let (out, _hear) = mpsc::channel(1);
    let error = inference::run(args, commands, out).await.unwrap_err();
    assert!(error.to_string().contains("loopback"), "{error}");
}

//! What clients do wrong, over the worker's real sockets: it says what was expected, its memory stays
//! bounded, and it goes on serving.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "inference/slot.rs"]
#[allow(dead_code)] // Each test needs a part of it.
mod slot;

use dunlin_agent::inference::{self, WorkerArgs, WorkerError};
use dunlin_agent::pipe::{FromWorker, ToWorker};
use serde_json::{Value, json};
use slot::Slot;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const PATH: &str = "/v2/models/digits/infer";

/// A worker in this process that serves version 2 of the committed model.
struct Serving {
    say: mpsc::Sender<ToWorker>,
    hear: mpsc::Receiver<FromWorker>,
    task: tokio::task::JoinHandle<Result<(), WorkerError>>,
    socket: PathBuf,
    _dir: tempfile::TempDir,
    _slot: Slot,
}

impl Serving {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("inference.sock");
        let args = WorkerArgs {
            models: Vec::new(),
            socket: Some(socket.clone()),
            listen: None,
            grpc_listen: None,
            socket_gid: Some(rustix::process::getegid().as_raw()),
            clients: None,
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
        Self {
            say,
            hear,
            task,
            socket,
            _dir: dir,
            _slot: serving,
        }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// The status and the error of a request made of these headers and this body.
    async fn refused(&self, headers: &[(&str, String)], body: &[u8]) -> (u16, String) {
        let mut stream = self.connect().await;
        stream.write_all(&head(headers, body.len())).await.unwrap();
        // A server that has refused may close before it has read all.
        let _ = stream.write_all(body).await;
        let (status, answer) = answer(&mut stream).await;
        let error = answer["error"].as_str().unwrap_or_default().to_owned();
        (status, error)
    }

    /// It still answers, and ends in order without a failed inference.
    async fn serves_on(mut self) {
        let mut stream = self.connect().await;
        let body = good();
        let request = [head(&[], body.len()), body].concat();
        stream.write_all(&request).await.unwrap();
        let (status, answer) = answer(&mut stream).await;
        assert_eq!(status, 200, "{answer}");
        drop(stream);
        self.say.send(ToWorker::Drain).await.unwrap();
        let mut failed = 0;
        loop {
            match timeout(PATIENCE, self.hear.recv()).await.unwrap().unwrap() {
                FromWorker::Progress { errors, .. } => failed = errors,
                FromWorker::Window(_)
                | FromWorker::Open(_)
                | FromWorker::Counted
                | FromWorker::Detectors { .. } => {}
                FromWorker::Drained => break,
                word => panic!("{word:?}"),
            }
        }
        assert_eq!(failed, 0, "a client's fault is not the model's");
        self.task.await.unwrap().unwrap();
    }
}

fn head(headers: &[(&str, String)], length: usize) -> Vec<u8> {
    let mut head = format!("POST {PATH} HTTP/1.1\r\nhost: device\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn good() -> Vec<u8> {
    let input =
        json!({"name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": vec![1.5; 64]});
    json!({ "inputs": [input] }).to_string().into_bytes()
}

/// One answer, and its body as JSON.
async fn answer(stream: &mut UnixStream) -> (u16, Value) {
    let mut bytes = Vec::new();
    let read = async {
        loop {
            let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
            if let Some(end) = end {
                let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: "));
                let length: usize = length.unwrap().parse().unwrap();
                if bytes.len() >= end + 4 + length {
                    let status = head[9..12].parse().unwrap();
                    return (status, serde_json::from_slice(&bytes[end + 4..]).unwrap());
                }
            }
            let n = stream.read_buf(&mut bytes).await.unwrap();
            assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&bytes));
        }
    };
    timeout(PATIENCE, read).await.unwrap()
}

/// The JSON of a request with the tensor in binary.
fn binary_head(shape: &str, size: &str) -> String {
    format!(
        r#"{{"inputs":[{{"name":"pixels","datatype":"FP32","shape":{shape},"parameters":{{"binary_data_size":{size}}}}}]}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_lengths_and_shapes_are_told() {
    let serving = Serving::start().await;
    let tensor = [0_u8; 256];
    let huge = "[18446744073709551615,18446744073709551615]";
    for (json, json_bytes, tail, status, hint) in [
        (
            binary_head("[1,64]", "256"),
            "999",
            256,
            400,
            "is 999, yet the body has",
        ),
        (
            binary_head("[1,64]", "256"),
            "-1",
            256,
            400,
            "expected the number of bytes",
        ),
        (
            binary_head("[1,64]", "256"),
            "1e2",
            256,
            400,
            "expected the number of bytes",
        ),
        (
            binary_head("[1,64]", "256"),
            "99999999999999999999999",
            256,
            400,
            "expected the number of bytes",
        ),
        (
            binary_head("[1,64]", "256"),
            "5",
            256,
            400,
            "not an inference request",
        ),
        (
            binary_head("[1,64]", "257"),
            "",
            256,
            400,
            "yet 256 bytes are left",
        ),
        (
            binary_head("[1,64]", "255"),
            "",
            256,
            400,
            "belong to no input",
        ),
        (
            binary_head("[1,64]", "18446744073709551615"),
            "",
            256,
            400,
            "yet 256 bytes are left",
        ),
        (
            binary_head("[1,64]", "18446744073709551616"),
            "",
            256,
            400,
            "parameters of input \"pixels\"",
        ),
        (
            binary_head("[64,1]", "256"),
            "",
            256,
            400,
            "got FP32 [64, 1]",
        ),
        (binary_head("[]", "256"), "", 256, 400, "got FP32 []"),
        (
            binary_head(huge, "256"),
            "",
            256,
            400,
            "got FP32 [18446744073709551615",
        ),
        (
            binary_head("[4294967296,4294967296,1,64]", "256"),
            "",
            256,
            400,
            "got FP32 [4294967296, 4294967296, 1, 64]",
        ),
        (
            binary_head("[1,64]", "0"),
            "",
            0,
            400,
            "expected 256 bytes, got 0",
        ),
    ] {
        let given = if json_bytes.is_empty() {
            json.len().to_string()
        } else {
            json_bytes.to_owned()
        };
        let headers = [("inference-header-content-length", given)];
        let body = [json.as_bytes(), &tensor[..tail]].concat();
        let (got, error) = serving.refused(&headers, &body).await;
        assert_eq!(got, status, "{json}: {error}");
        assert!(error.contains(hint), "{json}: expected {hint}, got {error}");
    }
    serving.serves_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_requests_are_told() {
    let serving = Serving::start().await;
    let deep = format!(r#"{{"inputs":{}"#, "[".repeat(10_000));
    let nested = format!(
        r#"{{"inputs":[{{"name":"pixels","datatype":"FP32","shape":[1,64],"data":{}1{}}}]}}"#,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let many = vec![r#"{"name":"a","datatype":"b","shape":[]}"#; 500].join(",");
    let many = format!(r#"{{"inputs":[{many}]}}"#);
    let nan = String::from_utf8(good()).unwrap().replacen("1.5", "NaN", 1);
    let large = String::from_utf8(good())
        .unwrap()
        .replacen("1.5", "1e300", 1);
    let too_long = " ".repeat(1 << 20);
    let gzip = || [("content-encoding", "gzip".to_owned())].to_vec();
    for (headers, body, status, hint) in [
        (vec![], &b""[..], 400, "not an inference request"),
        (vec![], b"{}", 400, "missing field `inputs`"),
        (vec![], b"\xff\xfe{}", 400, "not an inference request"),
        (vec![], &good()[..50], 400, "not an inference request"),
        (vec![], deep.as_bytes(), 400, "not an inference request"),
        (vec![], nested.as_bytes(), 400, "pixels"),
        (vec![], many.as_bytes(), 400, "a list of more than 64"),
        (vec![], nan.as_bytes(), 400, "JSON has no NaN"),
        (vec![], large.as_bytes(), 400, "does not fit FP32"),
        (
            vec![],
            too_long.as_bytes(),
            413,
            "bytes accepted for this model",
        ),
        (gzip(), b"no gzip", 400, "not gzip"),
        (
            vec![("content-encoding", "br".to_owned())],
            b"x",
            415,
            "expected identity, gzip or deflate",
        ),
    ] {
        let (got, error) = serving.refused(&headers, body).await;
        assert_eq!(got, status, "expected {hint}, got {error}");
        assert!(error.contains(hint), "expected {hint}, got {error}");
    }
    serving.serves_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_bomb_is_unpacked_no_further_than_a_request_may_be() {
    use std::io::Write as _;
    let serving = Serving::start().await;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![b' '; 64 << 20]).unwrap();
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 1 << 17);
    let headers = [("content-encoding", "gzip".to_owned())];
    let (status, error) = serving.refused(&headers, &packed[..60_000]).await;
    assert_eq!(status, 413, "{error}");
    serving.serves_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_its_body_costs_nothing() {
    let serving = Serving::start().await;
    let body = good();
    for end in [0, 1, body.len() / 2, body.len() - 1] {
        let mut stream = serving.connect().await;
        let request = [head(&[], body.len()), body[..end].to_vec()].concat();
        stream.write_all(&request).await.unwrap();
        drop(stream);
    }
    serving.serves_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_byte_by_byte_is_answered() {
    let serving = Serving::start().await;
    let body = good();
    let request = [head(&[], body.len()), body].concat();
    let mut stream = serving.connect().await;
    for byte in request {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(answer(&mut stream).await.0, 200);
    drop(stream);
    serving.serves_on().await;
}

/// Requests go in until the kernel takes no more, and no answer is read: the worker stops reading then,
/// and others are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_hold_up_nobody_else() {
    let serving = Serving::start().await;
    let body = good();
    let request = [head(&[], body.len()), body].concat();
    let mut silent = Vec::new();
    for _ in 0..8 {
        let stream = serving.connect().await;
        let mut sent = 0_usize;
        loop {
            stream.writable().await.unwrap();
            let full = async {
                loop {
                    match stream.try_write(&request) {
                        Ok(n) => sent += n,
                        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                            stream.writable().await.unwrap();
                        }
                        Err(e) => panic!("{e}"),
                    }
                    assert!(sent < 64 << 20, "the worker reads on and on");
                }
            };
            // Nothing more is taken for a while: the answers fill the way back.
            if timeout(Duration::from_millis(300), full).await.is_err() {
                let before = sent;
                let more = timeout(Duration::from_millis(300), stream.writable()).await;
                if more.is_err() || before == sent {
                    break;
                }
            }
        }
        silent.push(stream);
        let mut other = serving.connect().await;
        other.write_all(&request).await.unwrap();
        assert_eq!(answer(&mut other).await.0, 200);
    }
    drop(silent);
    serving.serves_on().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_in_a_browser_are_not_answered() {
    let serving = Serving::start().await;
    let origin = [("origin", "https://attacker.example".to_owned())];
    let (status, error) = serving.refused(&origin, &good()).await;
    assert_eq!(status, 403);
    assert!(error.contains("Origin"), "{error}");
    serving.serves_on().await;
}

/// Bodies that were announced and do not come have no share of the memory for bodies: requests to the
/// same model and to others are answered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come_hold_up_nobody() {
    let mut serving = Serving::start().await;
    let pictures = Slot::of_pictures();
    let (bundle, slot) = (pictures.bundle(), pictures.path().to_owned());
    let activate = ToWorker::Activate { slot, bundle };
    serving.say.send(activate).await.unwrap();
    let heard = serving.hear.recv().await;
    assert_eq!(heard, Some(FromWorker::Activated { bundle }));

    let path = "/v2/models/digits-png/infer";
    let head_of = |length: &str| format!("POST {path} HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n");
    let mut silent = Vec::new();
    for length in ["transfer-encoding: chunked", "content-length: 1000000"] {
        for _ in 0..8 {
            let mut stream = serving.connect().await;
            let head = head_of(length);
            stream.write_all(head.as_bytes()).await.unwrap();
            silent.push(stream);
        }
    }
    let answered = async {
        let (status, error) = serving.refused(&[], b"{").await;
        assert_eq!(status, 400, "{error}");
        // More than goes without a share.
        let body = vec![b' '; 500_000];
        let mut stream = serving.connect().await;
        let head = head_of(&format!("content-length: {}", body.len()));
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        assert_eq!(answer(&mut stream).await.0, 400);
    };
    // Less than the time that a body may take.
    let in_time = timeout(Duration::from_secs(20), answered).await;
    assert!(in_time.is_ok(), "others wait for bodies that do not come");
    drop(silent);
    serving.serves_on().await;
}

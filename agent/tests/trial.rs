//! Trials in processes of their own: a model that eats the machine takes neither the supervisor
//! (this test) nor the serving worker along.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "inference/slot.rs"]
mod slot;

use dunlin_agent::pipe::{FromWorker, ToWorker, TrialReport};
use dunlin_agent::worker::{self, Worker, WorkerEvent, WorkerSettings};
use slot::Slot;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const LIMIT_BYTES: u64 = 192 << 20;

fn settings(dir: &Path) -> WorkerSettings {
    WorkerSettings {
        program: PathBuf::from(env!("CARGO_BIN_EXE_dunlin-agent")),
        prefix: Vec::new(),
        models: std::env::temp_dir(),
        socket: dir.join("infer.sock"),
        listen: None,
        grpc_listen: None,
        socket_gid: None,
        clients: dunlin_agent::clients::Clients::default(),
        window_ms: 60_000,
        memory_limit_bytes: LIMIT_BYTES,
        trial_timeout: PATIENCE,
    }
}

/// Enough of the protocol buffers encoding to write an ONNX file (onnx.proto3).
mod onnx {
    fn varint(mut n: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while n >= 0x80 {
            out.push((n as u8) | 0x80);
            n >>= 7;
        }
        out.push(n as u8);
        out
    }

    pub(super) fn number(field: u64, n: u64) -> Vec<u8> {
        [varint(field << 3), varint(n)].concat()
    }

    pub(super) fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
        let head = [varint(field << 3 | 2), varint(content.len() as u64)].concat();
        [&head, content].concat()
    }

    fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
        let mut node: Vec<u8> = inputs.iter().flat_map(|i| bytes(1, i.as_bytes())).collect();
        node.extend(bytes(2, output.as_bytes()));
        node.extend(bytes(4, op.as_bytes()));
        if op == "ConstantOfShape" {
            let zero = [number(1, 1), number(2, 1), bytes(9, &0_f32.to_le_bytes())].concat();
            let value = [bytes(1, b"value"), bytes(5, &zero), number(20, 4)];
            node.extend(bytes(5, &value.concat()));
        }
        bytes(1, &node)
    }

    fn value(name: &str, dims: &[u64]) -> Vec<u8> {
        let dims: Vec<u8> = dims.iter().flat_map(|d| bytes(1, &number(1, *d))).collect();
        let tensor = [number(1, 1), bytes(2, &dims)].concat();
        [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
    }

    /// `probabilities = pixels[0..10] + sum(zeros of rows x columns)`: a file of a few hundred bytes
    /// that needs rows x columns x 4 bytes of memory.
    pub(super) fn hungry(rows: u64, columns: u64) -> Vec<u8> {
        let ints = |name: &str, values: &[u64]| {
            let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let parts = [
                number(1, values.len() as u64),
                number(2, 7),
                bytes(8, name.as_bytes()),
                bytes(9, &raw),
            ];
            bytes(5, &parts.concat())
        };
        let graph = [
            ints("shape", &[rows, columns]),
            ints("starts", &[0]),
            ints("ends", &[10]),
            ints("axes", &[1]),
            node("ConstantOfShape", &["shape"], "zeros"),
            node("ReduceSum", &["zeros"], "sum"),
            node("Slice", &["pixels", "starts", "ends", "axes"], "ten"),
            node("Add", &["ten", "sum"], "probabilities"),
            bytes(2, b"g"),
            bytes(11, &value("pixels", &[1, 64])),
            bytes(12, &value("probabilities", &[1, 10])),
        ];
        let opset = bytes(8, &number(2, 13));
        [number(1, 7), bytes(7, &graph.concat()), opset].concat()
    }
}

/// The worker says that it serves a slot.
async fn activate(worker: &Worker, events: &mut mpsc::Receiver<WorkerEvent>, slot: &Slot) {
    let order = ToWorker::Activate {
        slot: slot.path().to_owned(),
        bundle: slot.bundle(),
    };
    let heard = async {
        loop {
            match events.recv().await.unwrap() {
                WorkerEvent::Says(FromWorker::Listening { .. }) => worker.say(order.clone()).await,
                WorkerEvent::Says(FromWorker::Activated { .. }) => return,
                WorkerEvent::Says(other) => panic!("{other:?}"),
                WorkerEvent::Died(how) => panic!("{how}"),
                WorkerEvent::Started => {}
            }
        }
    };
    timeout(PATIENCE, heard).await.unwrap();
}

async fn answers(socket: &Path) -> bool {
    let ask = async {
        let mut stream = tokio::net::UnixStream::connect(socket).await.ok()?;
        let request =
            b"GET /v2/models/digits/ready HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.starts_with("HTTP/1.1 200"))
    };
    timeout(PATIENCE, ask).await.ok().flatten() == Some(true)
}

fn failed(report: TrialReport) -> (String, String) {
    match report {
        TrialReport::Failed { code, detail } => (code, detail),
        passed @ TrialReport::Passed { .. } => panic!("{passed:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_needs_more_than_the_limit_dies_alone() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let good = Slot::of(1);
    let (worker, mut events) = worker::start(settings.clone());
    activate(&worker, &mut events, &good).await;
    assert!(answers(&settings.socket).await);

    let passed = worker::trial(&settings, good.path()).await;
    assert!(matches!(passed, TrialReport::Passed { .. }), "{passed:?}");

    // 4 GiB, over twenty times the limit; what fits passes, so that the limit alone decides. Where the
    // engine notices that it gets no memory it says so, else the process is gone.
    let hungry = Slot::of(2);
    hungry.write("model.onnx", &onnx::hungry(1 << 15, 1 << 15));
    hungry.sign(|_| ());
    let (code, detail) = failed(worker::trial(&settings, hungry.path()).await);
    match code.as_str() {
        "load" => assert!(detail.contains("failed to allocate"), "{detail}"),
        code => {
            assert_eq!(code, "trial_died", "{detail}");
            let limit = format!("memory limit {LIMIT_BYTES} bytes");
            assert!(detail.contains(&limit), "{detail}");
        }
    }

    hungry.write("model.onnx", &onnx::hungry(16, 16));
    hungry.sign(|_| ());
    let (code, detail) = failed(worker::trial(&settings, hungry.path()).await);
    assert_eq!(code, "golden", "it loads and runs: {detail}");

    assert!(answers(&settings.socket).await);
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, WorkerEvent::Died(_)), "{event:?}");
    }
}

/// Children of this process whose command line has all of these words.
fn children(words: &[&str]) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let is_ours = status.contains(&format!("PPid:\t{}\n", std::process::id()));
        if is_ours && words.iter().all(|w| line.split('\0').any(|a| a == *w)) {
            found.push(pid);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trial_is_the_kernels_first_choice_and_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    // It waits for ever for somebody to write the manifest.
    let slot = dir.path().join("slot");
    std::fs::create_dir(&slot).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        slot.join("manifest.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let mut settings = settings(dir.path());
    settings.trial_timeout = Duration::from_secs(15);
    let trial = tokio::spawn({
        let (settings, slot) = (settings.clone(), slot.clone());
        async move { worker::trial(&settings, &slot).await }
    });
    let words = ["--trial", slot.to_str().unwrap()];
    let first = async {
        loop {
            if let [pid] = children(&words)[..]
                && std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))
                    .is_ok_and(|score| score.trim() == "1000")
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, first).await.unwrap();
    let (code, detail) = failed(trial.await.unwrap());
    assert_eq!(code, "trial_timeout", "{detail}");
    let gone = async {
        while !children(&words).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
}

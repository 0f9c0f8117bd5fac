//! Trials in processes of their own: a model that eats the machine takes neither the supervisor
//! (this test) nor the serving worker along.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "inference/onnx.rs"]
mod onnx;
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
        confesses: false,
        program: PathBuf::from(env!("CARGO_BIN_EXE_dunlin-agent")),
        prefix: Vec::new(),
        models: std::env::temp_dir(),
        socket: dir.join("infer.sock"),
        listen: None,
        grpc_listen: None,
        socket_gid: None,
        clients: dunlin_agent::clients::Clients::default(),
        rules: std::collections::BTreeMap::new(),
        segments: std::collections::BTreeMap::new(),
        capture: None,
        window_ms: 60_000,
        memory_limit_bytes: LIMIT_BYTES,
        trial_timeout: PATIENCE,
    }
}

/// The worker says that it serves a slot.
async fn activate(worker: &Worker, events: &mut mpsc::Receiver<WorkerEvent>, slot: &Slot) {
    let order = ToWorker::Activate {
        slot: slot.path().to_owned(),
        bundle: slot.bundle(),
    };
    let heard = async {
        while !matches!(
            events.recv().await.unwrap(),
            WorkerEvent::Says(FromWorker::Listening { .. })
        ) {}
        worker.say(order).await;
        activate_said(events).await;
    };
    timeout(PATIENCE, heard).await.unwrap();
}

async fn activate_said(events: &mut mpsc::Receiver<WorkerEvent>) {
    loop {
        match events.recv().await.unwrap() {
            WorkerEvent::Says(FromWorker::Activated { .. }) => return,
            WorkerEvent::Says(
                FromWorker::Progress { .. }
                | FromWorker::Window(_)
                | FromWorker::Open(_)
                | FromWorker::Counted,
            ) => {}
            other => panic!("{other:?}"),
        }
    }
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

/// Resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The process that listens on a socket's path, by the command line it was started with.
fn worker_of(socket: &Path) -> u32 {
    let name = socket.to_str().unwrap().as_bytes();
    let mut found = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        line.split(|b| *b == 0)
            .any(|word| word == name)
            .then_some(pid)
    });
    found.next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_replaced_versions_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    // Two megabytes of weights each.
    let slots = [1, 2].map(|version| {
        let slot = Slot::of(version);
        slot.write("model.onnx", &onnx::heavy(1 << 19));
        slot.sign(|_| ());
        slot
    });
    let (worker, mut events) = worker::start(settings.clone());
    activate(&worker, &mut events, &slots[0]).await;
    let mut swap_to = async |n: usize| {
        let (slot, bundle) = (slots[n % 2].path().to_owned(), slots[n % 2].bundle());
        worker.say(ToWorker::Activate { slot, bundle }).await;
        activate_said(&mut events).await;
    };
    let mut resident = Vec::new();
    for n in 1..=100 {
        swap_to(n).await;
        if n % 20 == 0 {
            resident.push(resident_kib(worker_of(&settings.socket)));
        }
    }
    println!("KiB after every twenty swaps: {resident:?}");
    let (before, after) = (resident[0], resident[4]);
    assert!(
        after < before + 8 * 1024,
        "{before} KiB after 20 swaps, {after} after 100"
    );
}

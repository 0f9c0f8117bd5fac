//! What open windows have counted outlives `kill -9` of the worker and of the agent.

#![allow(clippy::unwrap_used)]

use dunlin::demo::stream::{Stream, feed};
use dunlin_protocol::id::DeviceId;
use dunlin_server::{Server, Settings};
use dunlin_tests::fleet::agent_settings;
use dunlin_tests::golden::{infer_body, infer_request};
use dunlin_tests::http;
use dunlin_tests::operator::{Operator, all_at_once, eventually};
use dunlin_tests::process::{Process, children_of, kill_child};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");
const REQUESTS: u64 = 40;

struct World {
    operator: Operator,
    socket: PathBuf,
    journal: PathBuf,
}

impl World {
    async fn ask(&self) {
        let request = infer_request(&infer_body(&json!(vec![8.0; 64])));
        for _ in 0..REQUESTS {
            let answer = http::over_unix(&self.socket, &request).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }

    async fn serves(&self) {
        let ready = http::request("GET", "/v2/models/digits/ready", &[], b"");
        eventually("a worker serves", async || {
            let answer = http::over_unix(&self.socket, &ready).await;
            let is_ready = answer.is_ok_and(|answer| answer.status == 200);
            Ok(is_ready.then_some(()).ok_or("not yet".to_owned()))
        })
        .await
        .unwrap();
    }

    /// All that there is to be kept is: nothing has been written for longer than that takes.
    async fn kept(&self) {
        eventually("the buffer has nothing to write", async || {
            let written = std::fs::metadata(&self.journal)?.modified()?;
            let quiet = written.elapsed().unwrap_or_default();
            let is_kept = quiet > Duration::from_secs(2);
            Ok(is_kept.then_some(()).ok_or(format!("{quiet:?}")))
        })
        .await
        .unwrap();
    }

    /// The server has so many inferences, and no more come.
    async fn counted(&self, expected: u64) {
        let query = [("family", "digits".to_owned()), ("version", "1".to_owned())];
        eventually("what was asked is counted", async || {
            let answer = self.operator.client().drift(&query).await?;
            let got = answer["drift"][0]["inferences"].as_u64().unwrap_or(0);
            anyhow::ensure!(got <= expected, "{got} of {expected} are counted");
            let is_all = got == expected;
            Ok(is_all.then_some(()).ok_or(format!("{got} of {expected}")))
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_open_window_has_counted_outlives_its_worker_and_its_agent() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::loopback("test".parse().unwrap(), dir.path().join("server"));
    settings.rollout_tick_ms = 100;
    let server = Server::start(settings).await.unwrap();
    let token = server.first_admin_token.clone().unwrap();
    let admin = server.admin.to_string();
    let mut operator = Operator::new(dir.path(), &admin, &token).await.unwrap();

    let home = dir.path().join("edge-1");
    let device = agent_settings(&home, "edge-1").unwrap();
    let config = home.join("agent.toml");
    // No window closes by itself, and nothing else is written.
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("window_ms = 250", "window_ms = 3600000");
    let text = text.replace("metrics_every_ms = 1000", "metrics_every_ms = 600000");
    std::fs::write(&config, text).unwrap();
    let claim = operator.claim(1).await.unwrap();
    let enrolled = dunlin_agent::enroll::enroll(&device, &claim).await;
    let id: DeviceId = enrolled.unwrap().device;
    let run = ["agent", "run", "--config", config.to_str().unwrap()];
    let log = home.join("agent.log");
    let mut agent = Process::start(Path::new(PROGRAM), &run, &log).unwrap();

    let (stop, stopped) = watch::channel(false);
    let answered = Arc::new(AtomicU64::new(0));
    let stream = Stream::new(1, 1, Arc::clone(&answered));
    let socket = device.inference.socket.clone();
    let feeder = feed(socket.clone(), stream, Duration::from_millis(20), stopped);
    let feeder = tokio::spawn(feeder);
    let bundle = operator.pack("v1", 1, 1).unwrap();
    operator.publish(&bundle).await.unwrap();
    operator.roll_out(1, all_at_once(1)).await.unwrap();
    operator.settled(&id, 1).await.unwrap();
    stop.send(true).unwrap();
    feeder.await.unwrap();
    let journal = device.state_dir.join("telemetry/journal");
    let world = World {
        operator,
        socket,
        journal,
    };

    world.ask().await;
    let mut asked = answered.load(Ordering::Relaxed) + REQUESTS;
    world.kept().await;
    let children = children_of(agent.pid());
    assert_eq!(children.len(), 1, "the worker alone");
    kill_child(children[0]).unwrap();
    world.counted(asked).await;

    world.serves().await;
    world.ask().await;
    asked += REQUESTS;
    world.kept().await;
    agent.kill().await.unwrap();
    let mut agent = Process::start(Path::new(PROGRAM), &run, &log).unwrap();
    world.counted(asked).await;

    // And an end in order closes it.
    world.serves().await;
    world.ask().await;
    asked += REQUESTS;
    assert!(agent.terminate().await.unwrap().success());
    world.counted(asked).await;
    server.shutdown().await;
}

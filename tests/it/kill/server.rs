//! The fleet server killed in the middle of rollouts.

use super::{Device, PROGRAM, inferences_stored};
use dunlin::api::RolloutView;
use dunlin::demo::stream::{Stream, feed};
use dunlin_protocol::id::RolloutId;
use dunlin_server::rollout::model::RolloutState;
use dunlin_server::store::Store;
use dunlin_tests::mosquitto::free_port;
use dunlin_tests::operator::{Operator, all_at_once, eventually, gated};
use dunlin_tests::process::{Process, start_server};
use dunlin_tests::random::Random;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const DEVICES: u32 = 10;
/// Answers before a device's time on a version can be compared with.
const BASELINE: u64 = 180;
const SOAK_MS: u64 = 4_000;

struct ServerProcess {
    dir: PathBuf,
    process: Process,
    kills: u64,
}

impl ServerProcess {
    /// Ports that stay, so that everybody finds it again.
    async fn start(dir: &Path) -> (Self, dunlin::demo::processes::Addresses) {
        let config = dir.join("server.toml");
        let ports: Vec<u16> = (0..3).map(|_| free_port().unwrap()).collect();
        let text = format!(
            "fleet = \"test\"\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:{}\"\n\
             [devices]\nlisten = \"127.0.0.1:{}\"\n[mqtt]\nmode = \"embedded\"\n\
             listen = \"127.0.0.1:{}\"\n[rollout]\ntick_ms = 100\n",
            dir.join("server"),
            ports[0],
            ports[1],
            ports[2],
        );
        std::fs::write(&config, text).unwrap();
        let (process, addresses) = launch(dir).await;
        let this = Self {
            dir: dir.to_owned(),
            process,
            kills: 0,
        };
        (this, addresses)
    }

    async fn kill_and_restart(&mut self) {
        self.process.kill().await.unwrap();
        self.kills += 1;
        self.process = launch(&self.dir).await.0;
    }

    /// Kills at random moments until the rollout has ended.
    async fn killed_until_ended(
        &mut self,
        operator: &Operator,
        id: &RolloutId,
        most: u64,
        random: &mut Random,
    ) -> RolloutView {
        let mut kills = 0;
        while kills < most {
            let wait_ms = random.below(2_500);
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            let before = operator.client().rollout(id).await;
            if before.is_ok_and(|view| view.state.has_ended()) {
                break;
            }
            self.kill_and_restart().await;
            kills += 1;
        }
        operator.ended(id).await.unwrap()
    }
}

async fn launch(dir: &Path) -> (Process, dunlin::demo::processes::Addresses) {
    let (config, log) = (dir.join("server.toml"), dir.join("server.log"));
    start_server(Path::new(PROGRAM), &config, &log)
        .await
        .unwrap()
}

async fn more_answers(answered: &[Arc<AtomicU64>], each: u64) {
    let now = || answered.iter().map(|a| a.load(Ordering::Relaxed));
    let from: Vec<u64> = now().collect();
    eventually("answers", async || {
        let enough = now().zip(&from).all(|(now, from)| now >= from + each);
        Ok(if enough {
            Ok(())
        } else {
            Err("too few".to_owned())
        })
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_server_killed_in_the_middle_of_rollouts() {
    let begun = Instant::now();
    let mut random = Random::from_environment("server");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::Builder::new()
        .prefix("dunlin-kill-")
        .tempdir()
        .unwrap();
    let (mut server, addresses) = ServerProcess::start(dir.path()).await;
    let token = addresses.token.unwrap();
    let admin = addresses.admin.to_string();
    let mut operator = Operator::new(dir.path(), &admin, &token).await.unwrap();
    let claim = operator.claim(DEVICES).await.unwrap();

    let (stop, stopped) = watch::channel(false);
    let (mut devices, mut feeders, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    for n in 1..=DEVICES {
        let mut device = Device::new(Path::new(PROGRAM), dir.path(), &format!("dev-{n:02}"));
        dunlin_agent::enroll::enroll(&device.settings, &claim)
            .await
            .unwrap();
        device.start();
        let count = Arc::new(AtomicU64::new(0));
        let stream = Stream::new(1, u64::from(n), Arc::clone(&count));
        let socket = device.settings.inference.socket.clone();
        let every = Duration::from_millis(25);
        feeders.push(tokio::spawn(feed(socket, stream, every, stopped.clone())));
        answered.push(count);
        devices.push(device);
    }
    operator.online(devices.len()).await.unwrap();
    let v1 = operator.pack("v1", 1, 1).unwrap();
    operator.publish(&v1).await.unwrap();
    let id = operator.roll_out(1, all_at_once(1)).await.unwrap();
    assert_eq!(
        operator.ended(&id).await.unwrap().state,
        RolloutState::Finished
    );
    more_answers(&answered, BASELINE).await;

    let v2 = operator.pack("v2", 2, 1).unwrap();
    operator.publish(&v2).await.unwrap();
    let id = operator.roll_out(2, gated(5, SOAK_MS)).await.unwrap();
    let ended = server
        .killed_until_ended(&operator, &id, 8, &mut random)
        .await;
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
    assert!(server.kills >= 5, "only {} kills", server.kills);
    for device in &devices {
        operator.on_version(&device.id, 2).await.unwrap();
    }
    more_answers(&answered, BASELINE).await;

    let v3 = operator.pack("v3", 3, 1).unwrap();
    operator.publish(&v3).await.unwrap();
    let id = operator.roll_out(3, gated(6, SOAK_MS)).await.unwrap();
    let ended = server
        .killed_until_ended(&operator, &id, 2, &mut random)
        .await;
    let stopped_at_canaries = matches!(ended.state, RolloutState::Stopped { stage: 0, .. });
    assert!(stopped_at_canaries, "{:?}: {:?}", ended.state, ended.report);
    for device in &devices {
        operator.on_version(&device.id, 2).await.unwrap();
    }

    let _ = stop.send(true);
    let store = Store::open(&dir.path().join("server/dunlin.db"))
        .await
        .unwrap();
    for (device, feeder) in devices.iter().zip(feeders) {
        let fed = feeder.await.unwrap();
        assert_eq!(fed.failed, 0, "{}: {:?}", device.id, fed.last_failure);
        let answered: u64 = fed.by_version.values().map(|(n, _)| n).sum();
        eventually("every answer is counted once", async || {
            let stored = inferences_stored(&store, &operator, device).await?;
            assert!(stored <= answered, "{}: {stored} of {answered}", device.id);
            let exact = stored == answered;
            Ok(if exact {
                Ok(())
            } else {
                Err(format!("{stored} of {answered}"))
            })
        })
        .await
        .unwrap();
    }
    for device in &mut devices {
        device.stop().await;
    }
    store.close().await;
    println!(
        "{} kills of the server in {:.0?}",
        server.kills,
        begun.elapsed()
    );
    assert!(server.process.terminate().await.unwrap().success());
}

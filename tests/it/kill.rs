//! SIGKILL at random moments, of whole processes: agents, workers, the fleet server. The seed is
//! printed; `DUNLIN_TEST_SEED` gives another run the same choices.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "kill/device.rs"]
mod device;
#[path = "kill/server.rs"]
mod server;
#[path = "kill/soak.rs"]
mod soak;

use device::{Device, Kills};
use dunlin::demo::stream::{Stream, feed};
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_server::Server;
use dunlin_server::config::Settings;
use dunlin_server::store::{Store, WindowQuery};
use dunlin_tests::golden::Golden;
use dunlin_tests::operator::{Operator, eventually, probation};
use dunlin_tests::random::Random;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");
const DEVICES: u64 = 4;
const KILLS_EACH: u64 = 14;
/// Of these, kills while the blobs of one version are fetched, and as many for the other.
const FETCHING_KILLS: u64 = 2;

async fn publish(operator: &mut Operator, version: u64) -> DesiredBundle {
    let bundle = operator.pack(&format!("v{version}"), version, 1).unwrap();
    operator.publish(&bundle).await.unwrap();
    DesiredBundle {
        family: operator.family.clone(),
        version,
        target: dunlin_protocol::bundle::target_path(&operator.family, version),
        digest: bundle.digest(),
        rollout: None,
        // A trial that the test kills looks like a model that the kernel killed for its hunger.
        probation: Probation {
            retry_rolled_back: true,
            ..probation()
        },
        asked: None,
    }
}

/// Nothing that happened on the device was a damaged file.
async fn nothing_was_set_aside(store: &Store, device: &Device) {
    let events = store.events(&device.id, 10_000).await.unwrap();
    for stored in events {
        let text = serde_json::to_string(&stored.record).unwrap();
        let damaged = text.contains("set_aside") || text.contains("ledger_damaged");
        assert!(!damaged, "{}: {text}", device.id);
    }
}

/// Which version is wanted at a kill: each as long as it is fetched, then to and fro.
fn which(n: u64) -> usize {
    usize::from(match n < 2 * FETCHING_KILLS {
        true => n >= FETCHING_KILLS,
        false => n % 2 == 1,
    })
}

/// Kills a device again and again while it is driven to and fro, then lets it come to rest.
async fn under_fire(
    mut device: Device,
    store: Store,
    operator: Arc<Operator>,
    wants: [DesiredBundle; 2],
    golden: Golden,
    mut random: Random,
) -> Kills {
    let (stop, stopped) = watch::channel(false);
    let answered = Arc::new(AtomicU64::new(0));
    let stream = Stream::new(1, random.next_u64(), Arc::clone(&answered));
    let socket = device.settings.inference.socket.clone();
    let every = Duration::from_millis(20);
    let feeder = tokio::spawn(feed(socket.clone(), stream, every, stopped.clone()));
    let watcher = golden
        .clone()
        .watch(socket.clone(), Duration::from_millis(50), stopped);
    let watcher = tokio::spawn(watcher);
    device.fetch_slowly();
    device.start();
    for n in 0..KILLS_EACH {
        // The first version first: killed before anything was ever kept, as blobs come in. They
        // stay on the device then, and later updates are as quick as it can.
        let want = &wants[which(n)];
        let fetching = n < 2 * FETCHING_KILLS;
        device
            .kill_while_updating(&store, want, fetching, &mut random)
            .await;
    }

    let last = &wants[usize::try_from(random.below(2)).unwrap()];
    let wanted = [(device.id.clone(), vec![last.clone()])];
    store.set_desired(&wanted).await.unwrap();
    let settled = operator.on_version(&device.id, last.version).await;
    let settled = settled.unwrap_or_else(|e| panic!("{e:#}; its log: {}", device.log_tail()));
    assert_eq!(settled.active.map(|a| a.digest), Some(last.digest));
    eventually("it answers with the version wanted last", async || {
        let got = golden.ask(&socket).await.map_err(anyhow::Error::msg)?;
        Ok(if got == Some(last.version) {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        })
    })
    .await
    .unwrap();

    let _ = stop.send(true);
    let (fed, seen) = (feeder.await.unwrap(), watcher.await.unwrap());
    assert!(seen.wrong.is_empty(), "{}: {:?}", device.id, seen.wrong);
    assert!(seen.right.contains_key(&last.version), "{:?}", seen.right);
    assert!(
        fed.by_version.keys().all(|v| [1, 2].contains(v)),
        "{:?}",
        fed.by_version
    );
    device.durable_has_arrived(&store).await;
    nothing_was_set_aside(&store, &device).await;
    device.stop().await;
    device.kills
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn supervisors_and_workers_killed_at_random_moments_of_updates() {
    let begun = Instant::now();
    let mut random = Random::from_environment("agents");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::Builder::new()
        .prefix("dunlin-kill-")
        .tempdir()
        .unwrap();
    let settings = Settings::loopback("test".parse().unwrap(), dir.path().join("server"));
    let server = Server::start(settings).await.unwrap();
    let token = server.first_admin_token.clone().unwrap();
    let admin = server.admin.to_string();
    let mut operator = Operator::new(dir.path(), &admin, &token).await.unwrap();
    let wants = [
        publish(&mut operator, 1).await,
        publish(&mut operator, 2).await,
    ];
    let golden = Golden::read(&dir.path().join("models"), &[1, 2]).unwrap();
    let claim = operator
        .claim(u32::try_from(DEVICES).unwrap())
        .await
        .unwrap();
    let operator = Arc::new(operator);

    // Their processes live as long as the thread that starts them: this one.
    let devices = LocalSet::new();
    let mut fates = JoinSet::new();
    for n in 1..=DEVICES {
        let device = Device::new(Path::new(PROGRAM), dir.path(), &format!("dev-{n:02}"));
        dunlin_agent::enroll::enroll(&device.settings, &claim)
            .await
            .unwrap();
        let (store, operator) = (server.store.clone(), Arc::clone(&operator));
        let (wants, golden, random) = (wants.clone(), golden.clone(), random.split());
        let fate = under_fire(device, store, operator, wants, golden, random);
        fates.spawn_local_on(fate, &devices);
    }
    let mut all = Kills::default();
    devices
        .run_until(async {
            while let Some(kills) = fates.join_next().await {
                let kills = kills.unwrap();
                all.supervisors += kills.supervisors;
                all.workers += kills.workers;
                all.segments_seen += kills.segments_seen;
                for (phase, n) in kills.by_phase {
                    *all.by_phase.entry(phase).or_default() += n;
                }
            }
        })
        .await;
    println!("{all:?} in {:.0?}", begun.elapsed());
    assert!(all.supervisors + all.workers >= 50, "{all:?}");
    assert!(
        all.segments_seen > 0,
        "no kill ever found a record in a buffer"
    );
    server.shutdown().await;
}

/// Inferences of a device's windows in the server's database.
async fn inferences_stored(
    store: &Store,
    operator: &Operator,
    device: &Device,
) -> anyhow::Result<u64> {
    let query = WindowQuery {
        family: operator.family.clone(),
        version: None,
        devices: Some([device.id.clone()].into()),
        since_ms: None,
        until_ms: None,
    };
    let windows = store.windows(&query).await?;
    Ok(windows.iter().map(|(_, w)| w.inferences).sum())
}

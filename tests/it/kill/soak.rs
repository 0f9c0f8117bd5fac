//! Telemetry through a bad network while everything is killed: agents, workers, the server, the broker.
//!
//! Every segment that was durable on a device arrives once, or is told in a gap; no answer is counted
//! twice. `DUNLIN_SOAK_S` is how long it goes on with each broker (seconds).

use super::{Device, PROGRAM, inferences_stored};
use dunlin::demo::stream::{Fed, Stream, feed};
use dunlin_server::rollout::model::RolloutState;
use dunlin_server::store::Store;
use dunlin_tests::chaos::{Chaos, Faults};
use dunlin_tests::fleet::Broker;
use dunlin_tests::mosquitto::{Mosquitto, free_port};
use dunlin_tests::operator::{Operator, all_at_once, eventually};
use dunlin_tests::process::{Process, start_server};
use dunlin_tests::random::Random;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const DEVICES: u32 = 3;
const SOAK_S: u64 = 15;
/// Longest time between two kills, in milliseconds.
const CALM_MS: u64 = 1_500;

#[derive(Debug, Default)]
struct Done {
    supervisors: u64,
    workers: u64,
    servers: u64,
    brokers: u64,
    cuts: u64,
}

struct Fleet {
    dir: PathBuf,
    server: Process,
    mosquitto: Option<Mosquitto>,
    /// Between devices and broker, and between an external broker and the server.
    ways: Vec<Chaos>,
    devices: Vec<Device>,
    done: Done,
}

async fn launch(dir: &Path) -> (Process, dunlin::demo::processes::Addresses) {
    let (config, log) = (dir.join("server.toml"), dir.join("server.log"));
    start_server(Path::new(PROGRAM), &config, &log)
        .await
        .unwrap()
}

impl Fleet {
    async fn boot(dir: &Path, broker: Broker, random: &mut Random) -> (Self, Operator) {
        let ports: Vec<u16> = (0..3).map(|_| free_port().unwrap()).collect();
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut ways = Vec::new();
        for _ in 0..2 {
            let way = Chaos::start(local(ports[2]), Faults::BAD, random.split()).await;
            ways.push(way.unwrap());
        }
        let acl = dir.join("mosquitto.acl");
        let mqtt = match broker {
            Broker::Embedded => format!("mode = \"embedded\"\nlisten = \"127.0.0.1:{}\"", ports[2]),
            Broker::Mosquitto => format!(
                "mode = \"external\"\nhost = \"127.0.0.1\"\nport = {}\nacl_file = {acl:?}",
                ways[1].port
            ),
        };
        let text = format!(
            "fleet = \"test\"\nstate_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:{}\"\n[devices]\n\
             listen = \"127.0.0.1:{}\"\n[mqtt]\n{mqtt}\npublic_host = \"127.0.0.1\"\n\
             public_port = {}\n[rollout]\ntick_ms = 100\n",
            dir.join("server"),
            ports[0],
            ports[1],
            ways[0].port,
        );
        std::fs::write(dir.join("server.toml"), text).unwrap();
        let (server, addresses) = launch(dir).await;
        let mosquitto = (broker == Broker::Mosquitto)
            .then(|| Mosquitto::start(dir, &dir.join("server/pki"), &acl, ports[2]).unwrap());
        let admin = addresses.admin.to_string();
        let token = addresses.token.unwrap();
        let operator = Operator::new(dir, &admin, &token).await.unwrap();
        let fleet = Self {
            dir: dir.to_owned(),
            server,
            mosquitto,
            ways,
            devices: Vec::new(),
            done: Done::default(),
        };
        (fleet, operator)
    }

    /// One of all that can go wrong.
    async fn mishap(&mut self, random: &mut Random) {
        let at = usize::try_from(random.below(u64::from(DEVICES))).unwrap();
        match random.below(6) {
            0 | 1 => {
                self.devices[at].kill_supervisor().await;
                self.devices[at].start();
                self.done.supervisors += 1;
            }
            2 => {
                self.devices[at].kill_worker(random).await;
                self.done.workers += 1;
            }
            3 => {
                self.server.kill().await.unwrap();
                self.server = launch(&self.dir).await.0;
                self.done.servers += 1;
            }
            4 if self.mosquitto.is_some() => {
                if let Some(mosquitto) = &mut self.mosquitto {
                    mosquitto.kill_and_restart().unwrap();
                }
                self.done.brokers += 1;
            }
            _ => {
                self.ways.iter().for_each(Chaos::cut_all);
                self.done.cuts += 1;
            }
        }
    }
}

/// Every answer that applications got is counted once; one that a kill cut off may be counted too.
async fn answers_are_counted_once(
    store: &Store,
    operator: &Operator,
    device: &Device,
    fed: &Fed,
    killed: u64,
) {
    let answered: u64 = fed.by_version.values().map(|(n, _)| n).sum();
    let stored = inferences_stored(store, operator, device).await.unwrap();
    assert!(
        stored <= answered + killed,
        "{}: {stored} stored, {answered} answered, {killed} kills",
        device.id
    );
    assert!(stored > 0, "{}: nothing arrived", device.id);
}

async fn soak(broker: Broker) {
    let begun = Instant::now();
    let mut random = Random::from_environment("soak");
    let given = std::env::var("DUNLIN_SOAK_S").ok();
    let time = Duration::from_secs(given.and_then(|s| s.parse().ok()).unwrap_or(SOAK_S));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::Builder::new()
        .prefix("dunlin-soak-")
        .tempdir()
        .unwrap();
    let (mut fleet, mut operator) = Fleet::boot(dir.path(), broker, &mut random).await;
    let claim = operator.claim(DEVICES).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let mut feeders: Vec<JoinHandle<Fed>> = Vec::new();
    for n in 1..=DEVICES {
        let mut device = Device::new(Path::new(PROGRAM), dir.path(), &format!("dev-{n:02}"));
        dunlin_agent::enroll::enroll(&device.settings, &claim)
            .await
            .unwrap();
        device.start();
        let stream = Stream::new(1, u64::from(n), Arc::new(AtomicU64::new(0)));
        let socket = device.settings.inference.socket.clone();
        let every = Duration::from_millis(10);
        feeders.push(tokio::spawn(feed(socket, stream, every, stopped.clone())));
        fleet.devices.push(device);
    }
    operator.online(fleet.devices.len()).await.unwrap();
    let v1 = operator.pack("v1", 1, 1).unwrap();
    operator.publish(&v1).await.unwrap();
    let id = operator.roll_out(1, all_at_once(1)).await.unwrap();
    let ended = operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished);

    fleet.ways.iter().for_each(|way| way.set_bad(true));
    let storm = Instant::now();
    while storm.elapsed() < time {
        // What happens meanwhile is what is tested: this is the schedule, not a wait for something.
        tokio::time::sleep(Duration::from_millis(random.below(CALM_MS))).await;
        fleet.mishap(&mut random).await;
    }
    let _ = stop.send(true);
    for device in &mut fleet.devices {
        device.kill_supervisor().await;
        device.start();
    }
    fleet.ways.iter().for_each(|way| way.set_bad(false));
    fleet.ways.iter().for_each(Chaos::cut_all);

    let store = Store::open(&dir.path().join("server/dunlin.db"))
        .await
        .unwrap();
    let killed = fleet.done.supervisors + fleet.done.workers + u64::from(DEVICES);
    let mut segments = 0;
    for (device, feeder) in fleet.devices.iter_mut().zip(feeders) {
        let fed = feeder.await.unwrap();
        device.durable_has_arrived(&store).await;
        device.stop().await;
        answers_are_counted_once(&store, &operator, device, &fed, killed).await;
        super::nothing_was_set_aside(&store, device).await;
        segments += device.kills.segments_seen;
    }
    let tally: Vec<[u64; 3]> = fleet.ways.iter().map(Chaos::tally).collect();
    println!(
        "{broker:?}: {:?}; connections, stalls, cuts: {tally:?}; {segments} durable segments seen; {:.0?}",
        fleet.done,
        begun.elapsed()
    );
    eventually("the server answers", async || {
        Ok(operator.client().fleet().await.map_err(|e| e.to_string()))
    })
    .await
    .unwrap();
    store.close().await;
    assert!(fleet.server.terminate().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn telemetry_through_a_bad_network_and_kills_over_the_embedded_broker() {
    soak(Broker::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn telemetry_through_a_bad_network_and_kills_over_mosquitto() {
    soak(Broker::Mosquitto).await;
}

/// Waits until the server has more segments of a device than so many; how many it has.
async fn more_than(store: &Store, device: &Device, before: usize) -> usize {
    eventually("more telemetry", async || {
        let mut stored = 0;
        for boot in store.boots(&device.id).await? {
            stored += store.segment_numbers(&device.id, &boot).await?.len();
        }
        Ok(if stored > before {
            Ok(stored)
        } else {
            Err(format!("{stored} segments"))
        })
    })
    .await
    .unwrap()
}

/// Mosquitto keeps the session of a server that was killed; the one that comes after it must not be
/// caught in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_killed_behind_mosquitto_hears_and_answers_again() {
    let mut random = Random::from_environment("session");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::Builder::new()
        .prefix("dunlin-soak-")
        .tempdir()
        .unwrap();
    let (mut fleet, operator) = Fleet::boot(dir.path(), Broker::Mosquitto, &mut random).await;
    let claim = operator.claim(1).await.unwrap();
    let mut device = Device::new(Path::new(PROGRAM), dir.path(), "dev-01");
    dunlin_agent::enroll::enroll(&device.settings, &claim)
        .await
        .unwrap();
    device.start();
    operator.online(1).await.unwrap();
    let store = Store::open(&dir.path().join("server/dunlin.db"))
        .await
        .unwrap();
    let mut stored = more_than(&store, &device, 0).await;
    for _ in 0..2 {
        fleet.server.kill().await.unwrap();
        fleet.server = launch(dir.path()).await.0;
        stored = more_than(&store, &device, stored).await;
        // What was acknowledged is gone from the device: it was answered, too.
        device.kill_supervisor().await;
        device.start();
        device.durable_has_arrived(&store).await;
        stored = more_than(&store, &device, stored).await;
    }
    store.close().await;
    device.stop().await;
    assert!(fleet.server.terminate().await.unwrap().success());
}

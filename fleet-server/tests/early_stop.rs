//! A stage of many devices through the real server: planner, database, ingest, deliveries and broker
//! over TLS, with 46 clients that play devices, of which 22 become canaries. The planner is killed
//! and started again on the way.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "messaging/harness.rs"]
mod harness;

use dunlin_protocol::command::{Desired, DesiredBundle, Probation};
use dunlin_protocol::id::{BootId, DeviceId, Digest, Family, RolloutId};
use dunlin_protocol::report::{Installed, Progress, Reported};
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::{Body, Class, Record, Segment, Window};
use dunlin_protocol::topic::Channel;
use dunlin_server::command::deliver::Wake;
use dunlin_server::drift::early::EarlyDecision;
use dunlin_server::rollout::draw;
use dunlin_server::rollout::execute::{self, ExecuteSettings};
use dunlin_server::rollout::model::{DeviceObservation, DeviceState, RolloutState, StopReason};
use dunlin_server::rollout::policy::{Policy, Stage, StageSize};
use dunlin_server::rollout::report::Report;
use dunlin_server::store::{BundleRow, RolloutDeviceRow, RolloutRow, Store};
use harness::{Client, Fleet, presence};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const DEVICES: usize = 46;
const CANARIES: u32 = 22;
const BOOT: BootId = BootId([9; 16]);
const WINDOW: Duration = Duration::from_millis(150);
/// Longest wait for anything, far longer than it takes.
const LONG: Duration = Duration::from_secs(120);

fn family() -> Family {
    "digits".parse().unwrap()
}

fn digest(version: u64) -> Digest {
    Digest::of(&version.to_be_bytes())
}

fn asked(version: u64) -> DesiredBundle {
    DesiredBundle {
        family: family(),
        version,
        target: format!("digits/{version}/manifest.json"),
        digest: digest(version),
        rollout: None,
        probation: Probation::default(),
        asked: None,
    }
}

fn published(version: u64) -> BundleRow {
    BundleRow {
        family: family(),
        version,
        digest: digest(version),
        target: asked(version).target,
        rollback_floor: 1,
        manifest_json: "{}".to_owned(),
        profile: None,
        published_ms: 0,
        listed: true,
    }
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// A client that does at once what it is asked to, and sends a window every [`WINDOW`].
struct Device {
    name: String,
    client: Client,
    topics: BTreeMap<&'static str, String>,
    serves: Option<u64>,
    sequence: u64,
    segment: u64,
    window_from_ms: i64,
    /// Mean confidence of each version, in millionths.
    confidence: BTreeMap<u64, u64>,
}

impl Device {
    async fn connect(fleet: &Fleet, at: usize, confidence_of_2: u64) -> Self {
        let name = format!("edge-{at:02}");
        let client = fleet.device(&name).await;
        let topic = |channel| fleet.topic(&name, channel);
        let topics = BTreeMap::from([
            ("presence", topic(Channel::Presence)),
            ("desired", topic(Channel::Desired)),
            ("reported", topic(Channel::Reported)),
            ("sketch", topic(Channel::Sketch)),
        ]);
        // Devices differ a little.
        let own = at as u64 % 7 * 1000;
        client
            .publish(&topics["presence"], presence(true, "c1"))
            .await
            .unwrap();
        Self {
            name,
            client,
            topics,
            serves: None,
            sequence: 0,
            segment: 0,
            window_from_ms: now_ms(),
            confidence: BTreeMap::from([(1, 900_000 + own), (2, confidence_of_2 + own)]),
        }
    }

    async fn live(mut self, mut stop: watch::Receiver<bool>) {
        let mut windows = tokio::time::interval(WINDOW);
        loop {
            tokio::select! {
                _ = async { stop.wait_for(|stop| *stop).await.is_ok() } => return,
                message = self.client.received.recv() => match message {
                    Some((topic, payload)) if topic == self.topics["desired"] => {
                        self.obey(&payload).await;
                    }
                    Some(_) => {}
                    None => panic!("{} lost its connection", self.name),
                },
                _ = windows.tick() => self.send_window().await,
            }
        }
    }

    async fn obey(&mut self, payload: &[u8]) {
        let desired: Desired = serde_json::from_slice(payload).unwrap();
        let bundle = &desired.bundles[0];
        if self.serves != Some(bundle.version) {
            self.serves = Some(bundle.version);
            self.window_from_ms = now_ms();
        }
        let installed = Installed {
            family: bundle.family.clone(),
            version: bundle.version,
            digest: bundle.digest,
        };
        self.sequence += 1;
        let reported = Reported {
            sequence: self.sequence,
            revision: desired.revision,
            target: Some(installed.clone()),
            rollout: bundle.rollout.clone(),
            progress: Progress::Succeeded,
            waiting: None,
            hold: None,
            active: Some(installed),
            agent_version: "0.1.0".to_owned(),
            trust: None,
            capture: None,
            models: Vec::new(),
        };
        let json = serde_json::to_vec(&reported).unwrap();
        let topic = &self.topics["reported"];
        self.client.publish(topic, json).await.unwrap();
    }

    async fn send_window(&mut self) {
        let (Some(version), end_ms) = (self.serves, now_ms()) else {
            return;
        };
        if end_ms <= self.window_from_ms {
            return;
        }
        let window = Window {
            bundle: digest(version),
            family: family(),
            version,
            start_ms: self.window_from_ms,
            end_ms,
            inferences: 60,
            errors: 0,
            confidence_sum_micro: 60 * self.confidence[&version],
            entropy_sum_micro: 0,
            outputs: vec![30, 30],
            confidence: Histogram::new(2),
            entropy: Histogram::new(2),
            features: Vec::new(),
            profile: None,
            latency: Latency::default(),
            expected_confusion_nano: None,
            segment: None,
            refused: 0,
        };
        self.window_from_ms = end_ms;
        self.segment += 1;
        let segment = Segment {
            boot: BOOT,
            segment: self.segment,
            backfilled: false,
            records: vec![Record {
                time_ms: end_ms,
                body: Body::Window(Box::new(window)),
            }],
        };
        let bytes = segment.encode(Class::Sketch).unwrap();
        let topic = &self.topics["sketch"];
        self.client.publish(topic, bytes).await.unwrap();
    }
}

struct World {
    fleet: Fleet,
    id: RolloutId,
    planner: JoinHandle<()>,
    stop: watch::Sender<bool>,
    devices: Vec<JoinHandle<()>>,
}

impl World {
    /// Everybody on version 1 with some windows of it, then a rollout of version 2.
    async fn start(soak_ms: u64, confidence_of_2: u64) -> Self {
        let fleet = Fleet::start().await;
        let bundles = [published(1), published(2)];
        fleet.store.set_bundles(&bundles).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let (mut devices, mut ids) = (Vec::new(), Vec::<DeviceId>::new());
        for at in 0..DEVICES {
            let device = Device::connect(&fleet, at, confidence_of_2).await;
            ids.push(device.name.parse().unwrap());
            devices.push(tokio::spawn(device.live(stopped.clone())));
        }
        let wanted: Vec<_> = ids.iter().map(|id| (id.clone(), vec![asked(1)])).collect();
        fleet.store.set_desired(&wanted).await.unwrap();
        until("everybody has answered on version 1", async || {
            for id in &ids {
                let sent = fleet.store.segment_numbers(id, &BOOT).await.unwrap();
                if sent.len() < 3 {
                    return false;
                }
            }
            true
        })
        .await;
        let id: RolloutId = "r1".parse().unwrap();
        let (rollout, rows) = rollout(&id, &ids, soak_ms);
        fleet.store.insert_rollout(&rollout, &rows).await.unwrap();
        let planner = planner(&fleet);
        Self {
            fleet,
            id,
            planner,
            stop,
            devices,
        }
    }

    fn store(&self) -> &Store {
        &self.fleet.store
    }

    async fn row(&self) -> RolloutRow {
        self.store().rollout(&self.id).await.unwrap().unwrap()
    }

    async fn state(&self) -> RolloutState {
        serde_json::from_value(self.row().await.state).unwrap()
    }

    async fn report(&self) -> Option<Report> {
        serde_json::from_value(self.row().await.report).ok()
    }

    /// The planner dies in the middle of whatever it does, and another begins.
    async fn kill_planner(&mut self) {
        self.planner.abort();
        let _ = (&mut self.planner).await;
        self.planner = planner(&self.fleet);
    }

    /// Versions that the devices of a stage serve, by their newest reports.
    async fn served(&self, stage: u32) -> Vec<u64> {
        let rows = self.store().rollout_devices(&self.id).await.unwrap();
        let mut served = Vec::new();
        for row in rows.iter().filter(|row| row.stage == stage) {
            let device = self.store().device(&row.device).await.unwrap().unwrap();
            let active = device.reported.and_then(|reported| reported.active);
            served.push(active.map_or(0, |active| active.version));
        }
        served
    }

    async fn end(self) {
        self.stop.send_replace(true);
        for device in self.devices {
            device.await.unwrap();
        }
        self.planner.abort();
        self.fleet.shutdown().await;
    }
}

fn planner(fleet: &Fleet) -> JoinHandle<()> {
    let settings = ExecuteSettings {
        tick: Duration::from_millis(50),
        ..ExecuteSettings::default()
    };
    tokio::spawn(execute::run(
        fleet.store.clone(),
        Wake::default(),
        fleet.mqtt.listening(),
        settings,
        fleet.stop.subscribe(),
    ))
}

fn rollout(id: &RolloutId, ids: &[DeviceId], soak_ms: u64) -> (RolloutRow, Vec<RolloutDeviceRow>) {
    let mut policy = Policy::with_seed(11);
    let stage = |name: &str, size, soak_ms| Stage {
        name: name.to_owned(),
        size,
        soak_ms,
    };
    policy.stages = vec![
        stage("canary", StageSize::Count(CANARIES), soak_ms),
        stage("rest", StageSize::Rest, 0),
    ];
    policy.validate().unwrap();
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let mut rows = Vec::new();
    for (stage, cohort) in draw::cohorts(&policy, &names).stages.iter().enumerate() {
        for device in &cohort.devices {
            let state = DeviceObservation {
                device: device.clone(),
                stage,
                state: DeviceState::Waiting,
                state_since_ms: now_ms(),
                last_seen_ms: None,
                assigned_at_ms: None,
                had_version: false,
                waits_for: None,
                way_back: None,
            };
            rows.push(RolloutDeviceRow {
                device: device.parse().unwrap(),
                stage: u32::try_from(stage).unwrap(),
                position: u32::try_from(rows.len()).unwrap(),
                before: Some(asked(1)),
                state: serde_json::to_value(state).unwrap(),
            });
        }
    }
    let rollout = RolloutRow {
        id: id.clone(),
        family: family(),
        version: 2,
        digest: digest(2),
        policy: serde_json::to_value(&policy).unwrap(),
        selector: BTreeMap::new(),
        probation: Probation::default(),
        created_ms: now_ms(),
        created_by: "test".to_owned(),
        running: true,
        abort_requested_ms: None,
        resume_requested_ms: None,
        state: serde_json::to_value(RolloutState::START).unwrap(),
        report: Value::Null,
    };
    (rollout, rows)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "within {LONG:?}: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn great_harm_ends_a_rollout_in_its_soak_and_canaries_go_back() {
    let soak_ms = 3_600_000;
    let mut world = World::start(soak_ms, 400_000).await;
    until("a canary has the version", async || {
        world.served(0).await.contains(&2)
    })
    .await;
    world.kill_planner().await;
    until("it is stopped", async || world.state().await.has_ended()).await;
    world.kill_planner().await;
    let RolloutState::Stopped {
        stage: 0,
        why: StopReason::Early { verdict },
    } = world.state().await
    else {
        panic!("{:?}", world.state().await);
    };
    let evidence = verdict.evidence.as_ref().unwrap();
    assert!(
        verdict.pairs >= verdict.pairs_min && evidence.effect < -0.4,
        "{verdict:?}"
    );
    until("its canaries are back", async || !world.row().await.running).await;
    let served = world.served(0).await;
    assert!(served.iter().all(|version| *version == 1), "{served:?}");
    assert_eq!(served.len(), CANARIES as usize);
    assert!(world.served(1).await.iter().all(|version| *version == 1));
    assert_eq!(
        world
            .store()
            .rollout_verdicts(&world.id)
            .await
            .unwrap()
            .len(),
        1
    );
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_version_is_looked_at_early_and_goes_to_everybody() {
    let mut world = World::start(4000, 900_000).await;
    until("the pairs are looked at", async || {
        let early = world.report().await.and_then(|report| report.early);
        early.is_some_and(|look| look.decision == EarlyDecision::GoOn)
    })
    .await;
    world.kill_planner().await;
    until("it has ended", async || world.state().await.has_ended()).await;
    assert_eq!(world.state().await, RolloutState::Finished);
    let kept = world.store().rollout_verdicts(&world.id).await.unwrap();
    assert_eq!(kept.len(), 1, "the gate's; looks that go on are not kept");
    assert_eq!(kept[0].verdict["verdict"]["metrics"][0]["alpha"], "3/400");
    for stage in [0, 1] {
        let served = world.served(stage).await;
        assert!(served.iter().all(|version| *version == 2), "{served:?}");
    }
    world.end().await;
}

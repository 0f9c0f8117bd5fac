#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::drift::gate::judge;
use crate::rollout::draw;
use crate::rollout::policy::{Stage, StageSize};
use crate::store::{IncomingSegment, NewDevice};
use dunlin_protocol::command::Probation;
use dunlin_protocol::id::{BootId, Revision};
use dunlin_protocol::report::{Installed, Progress, Reported};
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::{Body, Class, Record, Segment, Window};

#[path = "execute/early_tests.rs"]
mod early;

const DEVICES: usize = 12;
const SETTINGS: ExecuteSettings = ExecuteSettings {
    tick: Duration::from_secs(1),
    baseline_ms: 100_000,
};

fn at(now_ms: i64) -> Moment {
    Moment {
        now_ms,
        listening_since_ms: Some(0),
    }
}

/// A server's database with devices on version 1 and a rollout of version 2.
struct World {
    store: Store,
    id: RolloutId,
    policy: Policy,
    devices: usize,
    segment: u64,
    dir: tempfile::TempDir,
}

fn name(index: usize) -> DeviceId {
    format!("edge-{index:02}").parse().unwrap()
}

fn digest(version: u64) -> Digest {
    Digest::of(&version.to_be_bytes())
}

fn bundle(version: u64) -> BundleRow {
    BundleRow {
        family: "digits".parse().unwrap(),
        version,
        digest: digest(version),
        target: format!("digits/{version}/manifest.json"),
        rollback_floor: 1,
        manifest_json: "{}".into(),
        profile: None,
        published_ms: 0,
        listed: true,
    }
}

fn asked(version: u64) -> DesiredBundle {
    let BundleRow {
        family,
        digest,
        target,
        ..
    } = bundle(version);
    DesiredBundle {
        family,
        version,
        target,
        digest,
        rollout: None,
        probation: Probation::default(),
        asked: None,
    }
}

fn policy() -> Policy {
    let mut policy = Policy::with_seed(7);
    policy.stages = vec![
        Stage {
            name: "canary".into(),
            size: StageSize::Count(3),
            soak_ms: 1000,
        },
        Stage {
            name: "rest".into(),
            size: StageSize::Rest,
            soak_ms: 0,
        },
    ];
    policy
}

impl World {
    async fn new() -> Self {
        Self::of(DEVICES, policy()).await
    }

    async fn of(devices: usize, policy: Policy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("dunlin.db")).await.unwrap();
        store.set_bundles(&[bundle(1), bundle(2)]).await.unwrap();
        let mut world = Self {
            store,
            id: "r1".parse().unwrap(),
            policy,
            devices,
            segment: 0,
            dir,
        };
        for index in 0..devices {
            let new = NewDevice {
                device: name(index),
                hardware: "x".into(),
                arch: "x86_64".into(),
                agent_version: "0.1.0".into(),
                cert_sha256: [index as u8; 32],
                public_key_sha256: [index as u8; 32],
            };
            world
                .store
                .insert_device(&new, &BTreeMap::new(), 0)
                .await
                .unwrap();
            world
                .store
                .set_desired(&[(name(index), vec![asked(1)])])
                .await
                .unwrap();
            world.window(&name(index), 1, 10_000, 900_000).await;
        }
        world.create().await;
        world
    }

    async fn create(&self) {
        let names: Vec<String> = (0..self.devices)
            .map(|index| name(index).to_string())
            .collect();
        let mut rows = Vec::new();
        for (stage, cohort) in draw::cohorts(&self.policy, &names)
            .stages
            .iter()
            .enumerate()
        {
            for device in &cohort.devices {
                let state = DeviceObservation {
                    device: device.clone(),
                    stage,
                    state: DeviceState::Waiting,
                    state_since_ms: 50_000,
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
            id: self.id.clone(),
            family: "digits".parse().unwrap(),
            version: 2,
            digest: digest(2),
            policy: serde_json::to_value(&self.policy).unwrap(),
            selector: BTreeMap::new(),
            probation: Probation::default(),
            created_ms: 50_000,
            created_by: "test".into(),
            running: true,
            abort_requested_ms: None,
            resume_requested_ms: None,
            state: serde_json::to_value(RolloutState::START).unwrap(),
            report: Value::Null,
        };
        self.store.insert_rollout(&rollout, &rows).await.unwrap();
    }

    /// A window of 200 inferences with this mean confidence (in millionths).
    async fn window(&mut self, device: &DeviceId, version: u64, start_ms: i64, confidence: u64) {
        self.segment += 1;
        let window = Window {
            bundle: digest(version),
            family: "digits".parse().unwrap(),
            version,
            start_ms,
            end_ms: start_ms + 500,
            inferences: 200,
            errors: 0,
            // Devices differ a little.
            confidence_sum_micro: 200 * (confidence + self.segment % 7 * 1000),
            entropy_sum_micro: 0,
            outputs: vec![100, 100],
            confidence: Histogram::new(2),
            entropy: Histogram::new(2),
            features: Vec::new(),
            profile: None,
            latency: Latency::default(),
            expected_confusion_nano: None,
            segment: None,
            refused: 0,
        };
        let records = vec![Record {
            time_ms: start_ms,
            body: Body::Window(Box::new(window)),
        }];
        let segment = Segment {
            boot: BootId([1; 16]),
            segment: self.segment,
            backfilled: false,
            records,
        };
        let incoming = IncomingSegment {
            device: device.clone(),
            class: Class::Sketch,
            segment,
            received_ms: start_ms,
        };
        self.store.ingest(&[incoming]).await.unwrap();
    }

    async fn tick(&self, now_ms: i64) -> bool {
        let Some(rollout) = self.store.running_rollouts().await.unwrap().pop() else {
            return false;
        };
        step(&self.store, &rollout, SETTINGS, at(now_ms))
            .await
            .unwrap()
    }

    async fn rollout(&self) -> RolloutRow {
        self.store.rollout(&self.id).await.unwrap().unwrap()
    }

    async fn state(&self) -> String {
        serde_json::from_value::<RolloutState>(self.rollout().await.state)
            .unwrap()
            .to_string()
    }

    async fn asked_version(&self, device: &DeviceId) -> (u64, Revision) {
        let desired = self.store.desired(device).await.unwrap().unwrap();
        (desired.bundles[0].version, desired.revision)
    }

    /// The device does what it was asked to, or says why not.
    async fn obey(&self, device: &DeviceId, progress: Progress, now_ms: i64) {
        let desired = self.store.desired(device).await.unwrap().unwrap();
        let bundle = &desired.bundles[0];
        let installed = Installed {
            family: bundle.family.clone(),
            version: bundle.version,
            digest: bundle.digest,
        };
        let reported = Reported {
            sequence: u64::try_from(now_ms).unwrap(),
            revision: desired.revision,
            target: Some(installed.clone()),
            rollout: bundle.rollout.clone(),
            progress,
            waiting: None,
            hold: None,
            active: Some(installed),
            agent_version: "0.1.0".into(),
            trust: None,
            capture: None,
            models: Vec::new(),
        };
        assert!(
            self.store
                .set_reported(device, &reported, now_ms)
                .await
                .unwrap()
        );
    }

    async fn cohorts(&self) -> (Vec<DeviceId>, Vec<DeviceId>) {
        let rows = self.store.rollout_devices(&self.id).await.unwrap();
        let (canaries, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.stage == 0);
        let names = |rows: Vec<RolloutDeviceRow>| rows.into_iter().map(|row| row.device).collect();
        (names(canaries), names(rest))
    }

    /// Up to the moment the gate is due: canaries on version 2, everybody's telemetry in.
    async fn until_the_gate(&mut self, canary_confidence: u64) -> (Vec<DeviceId>, Vec<DeviceId>) {
        let (canaries, controls) = self.cohorts().await;
        assert!(self.tick(60_000).await, "canaries are assigned");
        for canary in &canaries {
            assert_eq!(self.asked_version(canary).await.0, 2);
            self.obey(canary, Progress::Succeeded, 61_000).await;
        }
        for control in &controls {
            assert_eq!(self.asked_version(control).await.0, 1, "not their turn");
        }
        assert!(!self.tick(62_000).await);
        assert_eq!(self.state().await, "running stage 0", "soaking");
        for canary in &canaries {
            self.window(canary, 2, 62_100, canary_confidence).await;
        }
        for control in &controls {
            self.window(control, 1, 62_100, 900_000).await;
        }
        (canaries, controls)
    }
}

#[tokio::test]
async fn a_good_version_goes_through_to_the_end() {
    let mut world = World::new().await;
    let (_, controls) = world.until_the_gate(895_000).await;
    world.tick(64_000).await;
    assert_eq!(world.state().await, "running stage 1");
    let verdicts = world.store.rollout_verdicts(&world.id).await.unwrap();
    assert_eq!(verdicts.len(), 1);
    assert_eq!(verdicts[0].verdict["verdict"]["decision"], "pass");
    assert!(world.tick(65_000).await);
    assert!(
        !world.tick(65_100).await,
        "the same tick again changes nothing"
    );
    for control in &controls {
        let (version, revision) = world.asked_version(control).await;
        assert_eq!((version, revision.generation), (2, 2));
        world.obey(control, Progress::Succeeded, 66_000).await;
    }
    world.tick(67_000).await;
    world.tick(68_000).await;
    assert_eq!(
        (world.state().await.as_str(), world.rollout().await.running),
        ("finished", false)
    );
}

#[tokio::test]
async fn a_bad_version_is_stopped_its_verdict_replays_and_canaries_go_back() {
    let mut world = World::new().await;
    let (canaries, controls) = world.until_the_gate(600_000).await;
    assert!(world.tick(64_000).await);
    assert_eq!(world.state().await, "stopped at stage 0");
    let verdict = world
        .store
        .rollout_verdicts(&world.id)
        .await
        .unwrap()
        .remove(0)
        .verdict;
    let judged: Judged = serde_json::from_value(verdict).unwrap();
    assert_eq!(judged.verdict.decision, Decision::Stop);
    let again = serde_json::to_vec(&judge(&judged.policy, &judged.input)).unwrap();
    assert_eq!(
        again,
        serde_json::to_vec(&judged.verdict).unwrap(),
        "replayed to the same bytes"
    );
    for canary in &canaries {
        let (version, revision) = world.asked_version(canary).await;
        assert_eq!((version, revision.generation), (1, 3));
        assert!(world.rollout().await.running, "until they are back");
        world.obey(canary, Progress::Succeeded, 65_000).await;
    }
    for control in &controls {
        assert_eq!(
            world.asked_version(control).await.1.generation,
            1,
            "never touched"
        );
    }
    assert!(!world.tick(66_000).await);
    assert!(!world.rollout().await.running);
    let rows = world.store.rollout_devices(&world.id).await.unwrap();
    let back = rows
        .iter()
        .filter(|row| row.state["state"]["state"] == "rolled_back")
        .count();
    assert_eq!(back, 3);
}

#[tokio::test]
async fn without_telemetry_the_gate_holds_and_keeps_no_verdict() {
    let world = World::new().await;
    let (canaries, _) = world.cohorts().await;
    world.tick(60_000).await;
    for canary in &canaries {
        world.obey(canary, Progress::Succeeded, 61_000).await;
    }
    for now_ms in [62_000, 64_000, 65_000] {
        world.tick(now_ms).await;
    }
    assert_eq!(world.state().await, "running stage 0");
    let report: Report = serde_json::from_value(world.rollout().await.report).unwrap();
    assert!(
        report.headline().contains("gate holds"),
        "{}",
        report.headline()
    );
    assert!(
        world
            .store
            .rollout_verdicts(&world.id)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn an_abort_takes_back_what_was_given() {
    let world = World::new().await;
    let (canaries, _) = world.cohorts().await;
    world.tick(60_000).await;
    world.obey(&canaries[0], Progress::Trial, 61_000).await;
    assert!(world.store.request_abort(&world.id, 61_500).await.unwrap());
    assert!(world.tick(62_000).await);
    assert_eq!(world.state().await, "aborted");
    for canary in &canaries {
        assert_eq!(world.asked_version(canary).await.0, 1);
    }
    assert!(!world.tick(62_500).await, "taken back once");
}

#[tokio::test]
async fn a_damaged_rollout_says_so_and_does_not_hold_up_the_others() {
    let world = World::new().await;
    let mut damaged = world.rollout().await;
    damaged.id = "r0".parse().unwrap();
    damaged.family = "letters".parse().unwrap();
    damaged.policy = serde_json::json!({"seed": "seven"});
    world.store.insert_rollout(&damaged, &[]).await.unwrap();
    let failures = tick(&world.store, &Wake::default(), SETTINGS, at(60_000)).await;
    assert!(failures["r0"].contains("policy"), "{failures:?}");
    let shown = world.store.rollout(&damaged.id).await.unwrap().unwrap();
    assert_eq!(shown.report["reasons"][0]["code"], "step_failed");
    let (canaries, _) = world.cohorts().await;
    assert_eq!(world.asked_version(&canaries[0]).await.0, 2);
}

#[tokio::test]
async fn a_device_enrolled_meanwhile_joins_the_last_stage() {
    let world = World::new().await;
    let late = NewDevice {
        device: "late".parse().unwrap(),
        hardware: "x".into(),
        arch: "x86_64".into(),
        agent_version: "0.1.0".into(),
        cert_sha256: [99; 32],
        public_key_sha256: [99; 32],
    };
    world
        .store
        .insert_device(&late, &BTreeMap::new(), 0)
        .await
        .unwrap();
    world.tick(60_000).await;
    world.tick(60_500).await;
    let rows = world.store.rollout_devices(&world.id).await.unwrap();
    let joined: Vec<_> = rows
        .iter()
        .filter(|row| row.device == late.device)
        .collect();
    assert_eq!((joined.len(), joined[0].stage), (1, 1));
}

#[tokio::test]
async fn a_stopped_family_is_free_while_its_devices_go_back() {
    let world = World::new().await;
    world.tick(60_000).await;
    assert!(world.store.request_abort(&world.id, 61_500).await.unwrap());
    assert!(world.tick(62_000).await);
    let ended = world.rollout().await;
    assert!(ended.running, "canaries have not answered");
    assert!(!world.store.request_abort(&world.id, 63_000).await.unwrap());
    let next = RolloutRow {
        id: "r2".parse().unwrap(),
        abort_requested_ms: None,
        state: serde_json::to_value(RolloutState::START).unwrap(),
        ..ended
    };
    world.store.insert_rollout(&next, &[]).await.unwrap();
}

#[tokio::test]
async fn a_paused_rollout_is_resumed_by_request() {
    let world = World::new().await;
    let mut paused = world.rollout().await;
    assert!(
        !world.store.request_resume(&world.id, 1).await.unwrap(),
        "it runs"
    );
    paused.id = "r2".parse().unwrap();
    paused.family = "letters".parse().unwrap();
    let state = RolloutState::START.paused("holiday").unwrap();
    paused.state = serde_json::to_value(state).unwrap();
    world.store.insert_rollout(&paused, &[]).await.unwrap();
    assert!(world.store.request_resume(&paused.id, 2).await.unwrap());
    let row = world.store.rollout(&paused.id).await.unwrap().unwrap();
    step(&world.store, &row, SETTINGS, at(60_000))
        .await
        .unwrap();
    let row = world.store.rollout(&paused.id).await.unwrap().unwrap();
    assert_eq!(row.resume_requested_ms, None);
    assert_eq!(row.state["state"], "running");
}

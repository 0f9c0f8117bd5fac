//! The early look with the real store: 60 devices, 25 of them canaries, a soak of ten minutes.

use super::*;
use crate::drift::early::{self, EarlyDecision, EarlyVerdict};
use crate::rollout::model::StopReason;
use crate::rollout::pairs::Entry;
use crate::store::StageKey;

const FLEET: usize = 60;
const CANARIES: usize = 25;
const SUCCESS_MS: i64 = 61_000;
const SOAK_MS: u64 = 600_000;

fn large() -> Policy {
    let mut policy = policy();
    policy.stages[0].size = StageSize::Count(u32::try_from(CANARIES).unwrap());
    policy.stages[0].soak_ms = SOAK_MS;
    policy.silence_ms = 3_600_000;
    policy
}

impl World {
    /// Canaries on version 2 as of [`SUCCESS_MS`], and soaking.
    async fn soaking() -> (Self, Vec<DeviceId>, Vec<DeviceId>) {
        let world = Self::of(FLEET, large()).await;
        let (canaries, controls) = world.cohorts().await;
        assert_eq!(canaries.len(), CANARIES);
        assert!(world.tick(60_000).await);
        for canary in &canaries {
            world.obey(canary, Progress::Succeeded, SUCCESS_MS).await;
        }
        world.tick(SUCCESS_MS).await;
        (world, canaries, controls)
    }

    /// One window of 200 inferences from each of some pairs.
    async fn pairs_answer(
        &mut self,
        pairs: impl Iterator<Item = (&DeviceId, &DeviceId)>,
        at_ms: i64,
        canary_confidence: u64,
    ) {
        for (canary, control) in pairs {
            self.window(canary, 2, at_ms, canary_confidence).await;
            self.window(control, 1, at_ms, 900_000).await;
        }
    }

    async fn report(&self) -> Report {
        serde_json::from_value(self.rollout().await.report).unwrap()
    }

    async fn look(&self) -> EarlyVerdict {
        self.report().await.early.unwrap()
    }

    async fn entries(&self) -> Vec<Entry> {
        let key = StageKey {
            rollout: &self.id,
            stage: 0,
        };
        self.store.rollout_entries(key).await.unwrap()
    }

    /// The server is killed and started again.
    async fn restart(&mut self) {
        self.store.close().await;
        let path = self.dir.path().join("dunlin.db");
        self.store = Store::open(&path).await.unwrap();
    }
}

fn first<'a>(
    canaries: &'a [DeviceId],
    controls: &'a [DeviceId],
    range: std::ops::Range<usize>,
) -> impl Iterator<Item = (&'a DeviceId, &'a DeviceId)> {
    canaries[range.clone()].iter().zip(&controls[range])
}

#[tokio::test]
async fn a_version_that_does_great_harm_is_stopped_while_it_soaks() {
    let (mut world, canaries, controls) = World::soaking().await;
    assert_eq!(
        world.look().await.reason,
        "too few devices for an early look: 0 of 20 pairs (0 canaries and 0 controls have shown enough)"
    );
    world
        .pairs_answer(first(&canaries, &controls, 0..12), 62_000, 500_000)
        .await;
    world.window(&canaries[12], 2, 62_000, 500_000).await;
    world.tick(63_000).await;
    assert_eq!(world.state().await, "running stage 0");
    let report = world.report().await;
    let last = report.reasons.last().unwrap();
    assert_eq!(last.code, ReasonCode::EarlyLook);
    assert_eq!(
        last.sentence,
        "too few devices for an early look: 12 of 20 pairs (13 canaries and 12 controls have shown enough)"
    );
    assert!(
        report.headline().contains("soaking"),
        "{}",
        report.headline()
    );

    world
        .pairs_answer(first(&canaries, &controls, 12..22), 64_000, 500_000)
        .await;
    assert!(world.tick(65_000).await, "long before the soak is over");
    assert_eq!(world.state().await, "stopped at stage 0");
    let headline = world.report().await.headline().to_owned();
    assert!(
        headline.starts_with("stopped early: 22 pairs of canary and control: confidence -0.4"),
        "{headline}"
    );
    let kept = world.store.rollout_verdicts(&world.id).await.unwrap();
    assert_eq!(kept.len(), 1);
    let judged: JudgedEarly = serde_json::from_value(kept[0].verdict.clone()).unwrap();
    let again = early::judge(&judged.policy, &judged.input).unwrap();
    assert_eq!(
        serde_json::to_vec(&again).unwrap(),
        serde_json::to_vec(&judged.verdict).unwrap(),
        "replayed to the same bytes"
    );
    for canary in &canaries {
        assert_eq!(world.asked_version(canary).await.0, 1, "on the way back");
        world.obey(canary, Progress::Succeeded, 66_000).await;
    }
    for control in &controls {
        assert_eq!(world.asked_version(control).await.1.generation, 1);
    }
    assert!(!world.tick(67_000).await);
    assert!(!world.rollout().await.running);
    assert_eq!(
        world.store.rollout_verdicts(&world.id).await.unwrap().len(),
        1
    );
}

#[tokio::test]
async fn a_good_version_soaks_to_its_end_and_the_gate_has_the_rest_of_alpha() {
    let (mut world, canaries, controls) = World::soaking().await;
    world
        .pairs_answer(first(&canaries, &controls, 0..CANARIES), 62_000, 899_000)
        .await;
    for control in &controls[CANARIES..] {
        world.window(control, 1, 62_000, 900_000).await;
    }
    for now_ms in [63_000, 64_000, 300_000] {
        world.tick(now_ms).await;
        let look = world.look().await;
        assert_eq!((look.decision, look.pairs), (EarlyDecision::GoOn, 25));
        assert!(!look.evidence.unwrap().is_beyond_margin);
        assert_eq!(world.state().await, "running stage 0");
    }
    world
        .tick(SUCCESS_MS + i64::try_from(SOAK_MS).unwrap())
        .await;
    assert_eq!(world.state().await, "running stage 1");
    let kept = world.store.rollout_verdicts(&world.id).await.unwrap();
    assert_eq!(kept.len(), 1, "looks that go on are not kept");
    let judged: Judged = serde_json::from_value(kept[0].verdict.clone()).unwrap();
    let alpha: crate::rollout::ratio::Ratio = "3/400".parse().unwrap();
    assert_eq!(
        judged.verdict.metrics[0].alpha, alpha,
        "half of 1/50 - 1/200"
    );
    assert_eq!(judge(&judged.policy, &judged.input), judged.verdict);
    world.tick(700_000).await;
    assert_eq!(world.report().await.early, None, "no control is left");
}

#[tokio::test]
async fn what_a_device_has_shown_stays_whatever_comes_later_and_across_a_kill() {
    let (mut world, canaries, controls) = World::soaking().await;
    world
        .pairs_answer(first(&canaries, &controls, 0..20), 62_000, 500_000)
        .await;
    // The look is written down; the server dies before it acts.
    let rollout = world.rollout().await;
    let view = View::load(&world.store, &rollout, 63_000).await.unwrap();
    let seen = super::super::early::look(&world.store, &view, SETTINGS.baseline_ms, 63_000)
        .await
        .unwrap()
        .unwrap();
    drop(view);
    let written = world.entries().await;
    assert_eq!((seen.pairs.len(), written.len()), (20, 40));
    world.restart().await;
    // From the buffers of devices: what they had answered before that, and better.
    world
        .pairs_answer(first(&canaries, &controls, 0..20), 61_100, 900_000)
        .await;
    assert!(world.tick(64_000).await);
    assert_eq!(world.state().await, "stopped at stage 0");
    assert_eq!(world.entries().await, written);
    let RolloutState::Stopped {
        why: StopReason::Early { verdict },
        ..
    } = world.report().await.state
    else {
        panic!("stopped early");
    };
    let expected = early::judge(world.policy.gate.as_ref().unwrap(), &seen).unwrap();
    assert_eq!(*verdict, expected, "the decision that it would have made");
}

#[tokio::test]
async fn a_device_enters_by_its_first_inferences_alone() {
    let (mut world, canaries, controls) = World::soaking().await;
    let mut wanted = world.policy.clone();
    wanted.gate.as_mut().unwrap().min_inferences = 300;
    let policy = serde_json::to_value(&wanted).unwrap();
    // Before: 200 in one window at 10 s; another makes it 400.
    for device in [&canaries[0], &controls[0]] {
        world.window(device, 1, 20_000, 900_000).await;
    }
    let rollout = RolloutRow {
        policy,
        ..world.rollout().await
    };
    let step_at = async |world: &World, now_ms| {
        step(&world.store, &rollout, SETTINGS, at(now_ms))
            .await
            .unwrap();
        world.entries().await
    };
    world.window(&canaries[0], 2, 62_000, 600_000).await;
    world.window(&controls[0], 1, 60_900, 100_000).await;
    world.window(&canaries[1], 2, 62_000, 600_000).await;
    assert_eq!(step_at(&world, 63_000).await, [], "200 of 300");
    world.window(&canaries[0], 2, 64_000, 800_000).await;
    world.window(&canaries[0], 2, 65_000, 100_000).await;
    world.window(&canaries[1], 2, 64_000, 600_000).await;
    let entries = step_at(&world, 66_000).await;
    let of = |device: &DeviceId| {
        let mut found = entries
            .iter()
            .filter(|entry| entry.device == device.as_str());
        let entry = found.next().cloned();
        entry.map(|entry| entry.change_nano)
    };
    // The first two windows: .7 after .9, and the devices' little differences.
    let change = of(&canaries[0]).flatten().unwrap();
    assert!((-210_000_000..-190_000_000).contains(&change), "{change}");
    assert_eq!(
        of(&canaries[1]),
        Some(None),
        "its time before is too short: never"
    );
    assert_eq!(
        of(&controls[0]),
        None,
        "what began before its canary's success does not count"
    );
}

#[tokio::test]
async fn a_small_stage_says_so_and_leaves_all_of_alpha_to_the_gate() {
    let mut world = World::new().await;
    world.until_the_gate(895_000).await;
    world.tick(62_500).await;
    let look = world.look().await;
    assert_eq!(look.decision, EarlyDecision::Insufficient);
    assert_eq!(
        look.reason,
        "too few devices for an early look: 3 of 20 pairs of canary and control; the gate decides after the soak"
    );
    assert!(
        world
            .report()
            .await
            .reasons
            .iter()
            .all(|r| r.code != ReasonCode::EarlyLook)
    );
    world.tick(64_000).await;
    let kept = world.store.rollout_verdicts(&world.id).await.unwrap();
    let judged: Judged = serde_json::from_value(kept[0].verdict.clone()).unwrap();
    assert_eq!(judged.verdict.metrics[0].alpha.to_string(), "1/100");
    assert_eq!(world.entries().await, []);
}

#![allow(clippy::unwrap_used, clippy::panic)]
use super::backoff::BACKOFF_MAX_MS;
use super::step::{ATTEMPTS_MAX, LOADING_MAX_MS};
use super::*;
use crate::pipe::TrialReport;
use dunlin_protocol::command::{Desired, Probation};
use dunlin_protocol::id::{Digest, Family, Revision};
use dunlin_protocol::report::{Failure, Hold, Progress};

mod by_hand;
mod deaths;
mod invariants;
mod several;
mod shadow;
mod waiting;

/// Versions from 100 on are of another family.
fn family_of(version: u64) -> Family {
    let name = if version < 100 { "digits" } else { "faces" };
    name.parse().unwrap()
}

fn want(version: u64) -> DesiredBundle {
    let family = family_of(version);
    DesiredBundle {
        target: format!("{family}/{version}/manifest.json"),
        family,
        version,
        digest: Digest::of(&version.to_be_bytes()),
        rollout: None,
        probation: Probation {
            inferences: 10,
            time_ms: 1_000,
            errors_max: 1,
            deadline_ms: 20_000,
            ..Probation::default()
        },
        asked: None,
    }
}

fn desired(generation: u64, version: u64) -> Event {
    Event::Desired(Desired {
        revision: Revision {
            epoch: 1,
            generation,
        },
        bundles: vec![want(version)],
    })
}

/// Asked for although it did not hold before.
fn again(generation: u64, version: u64) -> Event {
    let Event::Desired(mut desired) = desired(generation, version) else {
        unreachable!()
    };
    desired.bundles[0].probation.retry_rolled_back = true;
    Event::Desired(desired)
}

fn passed(version: u64) -> Event {
    Event::TrialDone {
        digest: want(version).digest,
        report: TrialReport::Passed {
            cases: 1,
            difference_max: 0.0,
            latency_median_us: 1,
        },
    }
}

fn consent() -> Event {
    Event::Consent(Consent::default())
}

fn failed_trial(version: u64) -> Event {
    Event::TrialDone {
        digest: want(version).digest,
        report: TrialReport::Failed {
            code: "golden".to_owned(),
            detail: "x".to_owned(),
        },
    }
}

fn activated(version: u64) -> Event {
    Event::Activated {
        digest: want(version).digest,
    }
}

fn activate_failed(slot: Slot, version: u64) -> Event {
    Event::ActivateFailed {
        slot,
        digest: want(version).digest,
        detail: "x".to_owned(),
    }
}

fn slot_damaged(slot: Slot, version: u64) -> Event {
    Event::SlotDamaged {
        slot,
        digest: want(version).digest,
        detail: "x".to_owned(),
    }
}

fn died(listened: bool) -> Event {
    Event::WorkerDied {
        detail: "signal 9".to_owned(),
        listened,
        killed: false,
        at_work: None,
    }
}

fn serve(slot: Slot, version: u64) -> Effect {
    let digest = want(version).digest;
    Effect::Serve {
        family: family_of(version),
        slot,
        digest,
    }
}

fn nothing() -> Effect {
    Effect::ServeNothing { family: family() }
}

fn cancel() -> Effect {
    Effect::Cancel { family: family() }
}

fn failed(version: u64, kind: ReceiveFailureKind) -> Event {
    Event::Received {
        digest: want(version).digest,
        result: Err(ReceiveFailure {
            kind,
            progressed: false,
            failure: Failure::new("connect", "refused"),
        }),
    }
}

fn received(version: u64) -> Event {
    Event::Received {
        digest: want(version).digest,
        result: Ok(()),
    }
}

fn counted(version: u64, inferences: u64, errors: u64) -> Event {
    Event::Counted {
        digest: want(version).digest,
        count: Count {
            inferences,
            errors,
            slow: 0,
        },
    }
}

fn family() -> Family {
    "digits".parse().unwrap()
}

fn model_of(state: &State) -> Model {
    state.models.get(&family()).cloned().unwrap_or_default()
}

struct Device {
    state: State,
    now_ms: i64,
    effects: Vec<Effect>,
}

impl Device {
    fn new() -> Self {
        Self {
            state: State::new(7),
            now_ms: 0,
            effects: vec![],
        }
    }
    fn feed(&mut self, event: Event) -> &mut Self {
        self.now_ms += 600;
        (self.state, self.effects) = step(self.state.clone(), event, self.now_ms);
        self
    }
    fn install(&mut self, generation: u64, version: u64) -> &mut Self {
        self.feed(desired(generation, version))
            .feed(received(version))
            .feed(passed(version))
            .feed(consent())
            .feed(activated(version))
            .feed(Event::Tick)
            .feed(Event::Tick)
            .feed(counted(version, 10, 0))
    }
    fn model(&self) -> Model {
        model_of(&self.state)
    }
    fn last(&self) -> Progress {
        match self.model().phase {
            Phase::Idle { last } => last,
            other => panic!("not idle: {other:?}"),
        }
    }
    fn version(&self) -> Option<u64> {
        self.model().active().map(|a| a.version)
    }
}

#[test]
fn an_update_goes_through_trial_and_probation_before_it_is_kept() {
    let mut d = Device::new();
    d.feed(desired(1, 1));
    assert!(matches!(
        d.effects[0],
        Effect::Receive { slot: Slot::A, .. }
    ));
    d.feed(received(1));
    assert!(matches!(d.effects[0], Effect::Trial { slot: Slot::A, .. }));
    d.feed(passed(1)).feed(consent());
    assert!(d.effects.contains(&serve(Slot::A, 1)));
    d.feed(activated(1)).feed(counted(1, 10, 0));
    assert!(
        matches!(d.model().phase, Phase::Probation { .. }),
        "too early"
    );
    d.feed(Event::Tick).feed(Event::Tick);
    assert_eq!(d.last(), Progress::Succeeded);
    d.install(2, 2);
    assert_eq!((d.version(), d.model().serving()), (Some(2), Some(Slot::B)));
    assert_eq!(d.last(), Progress::Succeeded);
}

#[test]
fn a_failed_trial_leaves_the_kept_version_alone() {
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2)).feed(received(2));
    d.feed(failed_trial(2));
    assert!(matches!(d.last(), Progress::Failed(f) if f.code == "golden"));
    assert!(!d.effects.iter().any(|e| matches!(e, Effect::Serve { .. })));
    assert_eq!(d.version(), Some(1));
}

#[test]
fn errors_deaths_and_deadline_roll_back() {
    type Spoil = fn(&mut Device);
    let cases: [(&str, Spoil); 4] = [
        ("errors", |d| {
            d.feed(counted(2, 3, 2));
        }),
        ("crash_loop", |d| {
            for _ in 0..2 {
                d.feed(died(true));
            }
        }),
        ("probation_deadline", |d| {
            while matches!(d.model().phase, Phase::Probation { .. }) {
                d.feed(Event::Tick);
            }
        }),
        ("load", |d| {
            d.feed(activate_failed(Slot::B, 2));
        }),
    ];
    for (code, spoil) in cases {
        let mut d = Device::new();
        d.install(1, 1)
            .feed(desired(2, 2))
            .feed(received(2))
            .feed(passed(2))
            .feed(consent())
            .feed(activated(2));
        spoil(&mut d);
        assert!(
            matches!(d.last(), Progress::RolledBack(f) if f.code == code),
            "{code}"
        );
        assert!(d.effects.contains(&serve(Slot::A, 1)));
        assert_eq!(d.version(), Some(1), "{code}");
    }
}

#[test]
fn the_server_can_take_an_unkept_version_back() {
    let mut d = Device::new();
    d.install(1, 1)
        .feed(desired(2, 2))
        .feed(received(2))
        .feed(passed(2))
        .feed(consent());
    assert_eq!(d.version(), Some(2));
    d.feed(desired(3, 1));
    assert!(d.effects.contains(&serve(Slot::A, 1)));
    assert_eq!((d.version(), d.last()), (Some(1), Progress::Succeeded));
}

#[test]
fn older_and_repeated_desired_states_change_nothing() {
    let mut d = Device::new();
    d.install(5, 1);
    for generation in [4, 5] {
        let before = d.model().phase.clone();
        d.feed(desired(generation, 2));
        assert_eq!(d.model().phase, before);
        assert!(
            !d.effects
                .iter()
                .any(|e| matches!(e, Effect::Receive { .. }))
        );
    }
}

fn install(id: &str, version: u64) -> Event {
    Event::Install {
        id: id.to_owned(),
        want: want(version),
    }
}

fn receiving(device: &Device) -> Option<DesiredBundle> {
    match device.model().phase {
        Phase::Receiving { want, .. } => Some(DesiredBundle {
            asked: None,
            ..want
        }),
        _ => None,
    }
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2)).feed(Event::Started);
    assert!(d.effects.contains(&serve(Slot::A, 1)));
    assert!(
        d.effects
            .iter()
            .any(|e| matches!(e, Effect::Receive { slot: Slot::B, .. }))
    );
    d.feed(received(2))
        .feed(Event::Started)
        .feed(Event::Started);
    assert!(matches!(d.last(), Progress::Failed(f) if f.code == "trial_interrupted"));
    d.feed(again(3, 2))
        .feed(received(2))
        .feed(passed(2))
        .feed(consent());
    d.feed(counted(2, 6, 0)).feed(Event::Started);
    assert!(d.effects.contains(&serve(Slot::B, 2)));
    d.feed(activated(2)).feed(counted(2, 4, 0));
    d.feed(Event::Tick).feed(Event::Tick);
    assert_eq!(d.last(), Progress::Succeeded);
}

#[test]
fn clean_restarts_are_no_crashes() {
    let restart = |d: &mut Device, cleanly| {
        d.state.ended_cleanly = cleanly;
        d.feed(Event::Started);
        assert!(!d.state.ended_cleanly, "it counts once");
    };
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2)).feed(received(2));
    for _ in 0..10 {
        restart(&mut d, true);
        assert!(matches!(d.model().phase, Phase::Trial { starts: 1, .. }));
    }
    d.feed(passed(2)).feed(consent());
    for _ in 0..10 {
        restart(&mut d, true);
    }
    for restarts in 1..=5 {
        restart(&mut d, false);
        assert!(matches!(&d.model().phase, Phase::Probation { restarts: n, .. } if *n == restarts));
    }
    restart(&mut d, true);
    assert!(matches!(d.model().phase, Phase::Probation { .. }));
    restart(&mut d, false);
    assert!(matches!(d.last(), Progress::RolledBack(f) if f.code == "crash_loop"));
}

#[test]
fn transient_failures_are_retried_later_and_not_for_ever() {
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2));
    let mut tries = 0;
    while matches!(d.model().phase, Phase::Receiving { .. }) {
        d.feed(failed(2, ReceiveFailureKind::Transient));
        tries += 1;
        d.feed(Event::Tick);
        d.now_ms += 2 * BACKOFF_MAX_MS;
        d.feed(Event::Tick);
    }
    assert_eq!(tries, ATTEMPTS_MAX);
    assert!(matches!(d.last(), Progress::Failed(f) if f.code == "unreachable"));
    // The same said again: it goes on from what is there.
    assert!(d.model().is_resumable());
    d.feed(desired(2, 2));
    assert_eq!(receiving(&d), Some(want(2)));
    // Other ends are ends.
    d.feed(failed(2, ReceiveFailureKind::Failed));
    d.feed(desired(2, 2));
    assert_eq!((receiving(&d), d.model().is_resumable()), (None, false));
}

#[test]
fn what_comes_slowly_or_is_all_there_would_be_is_never_given_up() {
    let progress = |version| match failed(version, ReceiveFailureKind::Transient) {
        Event::Received {
            digest,
            result: Err(failure),
        } => Event::Received {
            digest,
            result: Err(ReceiveFailure {
                progressed: true,
                ..failure
            }),
        },
        other => other,
    };
    let mut d = Device::new();
    d.feed(desired(1, 1));
    for _ in 0..3 * ATTEMPTS_MAX {
        d.feed(failed(1, ReceiveFailureKind::Transient));
        d.now_ms += 2 * BACKOFF_MAX_MS;
        d.feed(Event::Tick);
        assert_eq!(receiving(&d), Some(want(1)));
    }
    d.install(2, 1).feed(desired(3, 2));
    for _ in 0..3 * ATTEMPTS_MAX {
        d.feed(progress(2));
        assert!(matches!(
            d.model().phase,
            Phase::Receiving { attempts: 1, .. }
        ));
        d.now_ms += 2 * BACKOFF_MAX_MS;
        d.feed(Event::Tick);
    }
}

#[test]
fn a_version_that_was_never_loaded_is_not_kept() {
    let mut d = Device::new();
    d.install(1, 1)
        .feed(desired(2, 2))
        .feed(received(2))
        .feed(passed(2))
        .feed(consent());
    // Of another life, or another version.
    d.feed(counted(2, 10, 0)).feed(activated(1));
    for _ in 0..10 {
        d.feed(Event::Tick);
    }
    assert!(matches!(
        d.model().phase,
        Phase::Probation { served_ms: 0, .. }
    ));
    d.feed(activated(2)).feed(died(true));
    for _ in 0..10 {
        d.feed(Event::Tick);
    }
    assert_eq!(d.model().kept.as_ref().unwrap().bundle.version, 1);
    d.feed(activated(2)).feed(Event::Tick).feed(Event::Tick);
    assert_eq!((d.version(), d.last()), (Some(2), Progress::Succeeded));

    d.feed(desired(3, 3))
        .feed(received(3))
        .feed(passed(3))
        .feed(consent());
    let began_ms = d.now_ms;
    while matches!(d.model().phase, Phase::Probation { .. }) {
        d.feed(Event::Tick);
    }
    assert!((d.now_ms - began_ms).unsigned_abs() >= LOADING_MAX_MS);
    assert!(matches!(d.last(), Progress::RolledBack(f) if f.code == "load"));
    assert!(d.effects.contains(&serve(Slot::B, 2)));
}

#[test]
fn deaths_before_the_worker_listened_are_not_the_models() {
    let mut d = Device::new();
    d.install(1, 1)
        .feed(desired(2, 2))
        .feed(received(2))
        .feed(passed(2))
        .feed(consent());
    d.feed(died(true));
    for _ in 0..5 {
        d.feed(died(false));
    }
    assert!(matches!(
        d.model().phase,
        Phase::Probation { deaths: 1, .. }
    ));
}

#[test]
fn a_kept_version_that_breaks_is_said_to_serve_no_more() {
    // Rolled back to, while the server wants another one: nothing serves, and the server knows.
    let mut d = Device::new();
    d.install(1, 1)
        .feed(desired(2, 2))
        .feed(received(2))
        .feed(passed(2))
        .feed(consent());
    d.feed(activate_failed(Slot::B, 2));
    d.feed(activate_failed(Slot::A, 1));
    assert!(d.effects.contains(&nothing()));
    assert!(d.effects.contains(&Effect::Report));
    assert_eq!((d.version(), d.model().kept.clone()), (None, None));
    assert!(matches!(d.last(), Progress::RolledBack(f) if f.code == "load"));

    // Still wanted: received again.
    let mut d = Device::new();
    d.install(1, 1).feed(activate_failed(Slot::A, 1));
    assert_eq!(d.effects[1], nothing());
    assert!(matches!(&d.effects[2], Effect::Receive { want, slot: Slot::A } if want.version == 1));
    d.feed(received(1))
        .feed(passed(1))
        .feed(consent())
        .feed(activated(1));
    d.feed(counted(1, 10, 0))
        .feed(Event::Tick)
        .feed(Event::Tick);
    assert_eq!((d.version(), d.last()), (Some(1), Progress::Succeeded));

    // While another one is on its way: that one goes to the slot that is free now.
    d.feed(desired(2, 2)).feed(activate_failed(Slot::A, 1));
    assert!(d.effects.contains(&cancel()));
    assert!(
        d.effects
            .iter()
            .any(|e| matches!(e, Effect::Receive { slot: Slot::A, .. }))
    );
    // Late news of what is served no more changes nothing.
    d.feed(received(2)).feed(passed(2)).feed(consent());
    let before = d.state.clone();
    d.feed(activate_failed(Slot::A, 1));
    assert_eq!((&d.state, d.effects.len()), (&before, 0));
}

#[test]
fn only_counters_may_wait_for_the_disk() {
    let mut d = Device::new();
    d.feed(desired(1, 1))
        .feed(received(1))
        .feed(passed(1))
        .feed(consent());
    let began = d.state.clone();
    d.feed(Event::Tick).feed(counted(1, 2, 0));
    assert!(d.state != began && d.state.equals_but_for_counters(&began));
    // A quarter of the way is reported, and a report's number must never be used twice.
    d.feed(counted(1, 3, 0));
    assert!(d.effects.contains(&Effect::Report));
    assert!(!d.state.equals_but_for_counters(&began));
    d.feed(activated(1));
    assert!(!d.state.equals_but_for_counters(&began));
}

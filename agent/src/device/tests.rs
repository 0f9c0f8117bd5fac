#![allow(clippy::unwrap_used, clippy::panic)]
use super::backoff::BACKOFF_MAX_MS;
use super::step::{ATTEMPTS_MAX, LOADING_MAX_MS};
use super::*;
use dunlin_protocol::command::Probation;
use proptest::prelude::*;

mod by_hand;
mod waiting;

fn want(version: u64) -> DesiredBundle {
    DesiredBundle {
        family: "digits".parse().unwrap(),
        version,
        target: format!("digits/{version}/manifest.json"),
        digest: Digest::of(&version.to_be_bytes()),
        rollout: None,
        probation: Probation {
            inferences: 10,
            time_ms: 1_000,
            errors_max: 1,
            deadline_ms: 20_000,
            ..Probation::default()
        },
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
    }
}

fn serve(slot: Slot, version: u64) -> Effect {
    let digest = want(version).digest;
    Effect::Serve { slot, digest }
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
    fn last(&self) -> Progress {
        match &self.state.phase {
            Phase::Idle { last } => last.clone(),
            other => panic!("not idle: {other:?}"),
        }
    }
    fn version(&self) -> Option<u64> {
        self.state.active().map(|a| a.version)
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
        matches!(d.state.phase, Phase::Probation { .. }),
        "too early"
    );
    d.feed(Event::Tick).feed(Event::Tick);
    assert_eq!(d.last(), Progress::Succeeded);
    d.install(2, 2);
    assert_eq!((d.version(), d.state.serving()), (Some(2), Some(Slot::B)));
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
            while matches!(d.state.phase, Phase::Probation { .. }) {
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
        let before = d.state.phase.clone();
        d.feed(desired(generation, 2));
        assert_eq!(d.state.phase, before);
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

fn receiving(device: &Device) -> Option<&DesiredBundle> {
    match &device.state.phase {
        Phase::Receiving { want, .. } => Some(want),
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
        assert!(matches!(d.state.phase, Phase::Trial { starts: 1, .. }));
    }
    d.feed(passed(2)).feed(consent());
    for _ in 0..10 {
        restart(&mut d, true);
    }
    for restarts in 1..=5 {
        restart(&mut d, false);
        assert!(matches!(&d.state.phase, Phase::Probation { restarts: n, .. } if *n == restarts));
    }
    restart(&mut d, true);
    assert!(matches!(d.state.phase, Phase::Probation { .. }));
    restart(&mut d, false);
    assert!(matches!(d.last(), Progress::RolledBack(f) if f.code == "crash_loop"));
}

#[test]
fn transient_failures_are_retried_later_and_not_for_ever() {
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2));
    let mut tries = 0;
    while matches!(d.state.phase, Phase::Receiving { .. }) {
        d.feed(failed(2, ReceiveFailureKind::Transient));
        tries += 1;
        d.feed(Event::Tick);
        d.now_ms += 2 * BACKOFF_MAX_MS;
        d.feed(Event::Tick);
    }
    assert_eq!(tries, ATTEMPTS_MAX);
    assert!(matches!(d.last(), Progress::Failed(f) if f.code == "unreachable"));
    // The same said again: it goes on from what is there.
    assert!(d.state.is_resumable());
    d.feed(desired(2, 2));
    assert_eq!(receiving(&d), Some(&want(2)));
    // Other ends are ends.
    d.feed(failed(2, ReceiveFailureKind::Failed));
    d.feed(desired(2, 2));
    assert_eq!((receiving(&d), d.state.is_resumable()), (None, false));
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
        assert_eq!(receiving(&d), Some(&want(1)));
    }
    d.install(2, 1).feed(desired(3, 2));
    for _ in 0..3 * ATTEMPTS_MAX {
        d.feed(progress(2));
        assert!(matches!(
            d.state.phase,
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
        d.state.phase,
        Phase::Probation { served_ms: 0, .. }
    ));
    d.feed(activated(2)).feed(died(true));
    for _ in 0..10 {
        d.feed(Event::Tick);
    }
    assert_eq!(d.state.kept.as_ref().unwrap().bundle.version, 1);
    d.feed(activated(2)).feed(Event::Tick).feed(Event::Tick);
    assert_eq!((d.version(), d.last()), (Some(2), Progress::Succeeded));

    d.feed(desired(3, 3))
        .feed(received(3))
        .feed(passed(3))
        .feed(consent());
    let began_ms = d.now_ms;
    while matches!(d.state.phase, Phase::Probation { .. }) {
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
    assert!(matches!(d.state.phase, Phase::Probation { deaths: 1, .. }));
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
    assert!(d.effects.contains(&Effect::ServeNothing));
    assert!(d.effects.contains(&Effect::Report));
    assert_eq!((d.version(), d.state.kept.clone()), (None, None));
    assert!(matches!(d.last(), Progress::RolledBack(f) if f.code == "load"));

    // Still wanted: received again.
    let mut d = Device::new();
    d.install(1, 1).feed(activate_failed(Slot::A, 1));
    assert_eq!(d.effects[1], Effect::ServeNothing);
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
    assert!(d.effects.contains(&Effect::Cancel));
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

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1_u64..40, 1_u64..4).prop_map(|(g, v)| desired(g, v)),
        1 => ("[a-z]", 1_u64..4).prop_map(|(id, v)| install(&id, v)),
        3 => (1_u64..4).prop_map(received),
        3 => (1_u64..4).prop_map(passed),
        1 => (1_u64..4).prop_map(|v| failed(v, ReceiveFailureKind::Refused)),
        1 => (1_u64..4).prop_map(|v| failed(v, ReceiveFailureKind::Transient)),
        1 => (1_u64..4).prop_map(failed_trial),
        5 => (1_u64..4).prop_map(activated),
        2 => (any::<bool>(), 1_u64..4)
            .prop_map(|(b, v)| activate_failed(if b { Slot::B } else { Slot::A }, v)),
        1 => (any::<bool>(), 1_u64..4)
            .prop_map(|(b, v)| slot_damaged(if b { Slot::B } else { Slot::A }, v)),
        3 => ((1_u64..4), 0_u64..20, 0_u64..3).prop_map(|(v, i, e)| counted(v, i, e)),
        1 => any::<bool>().prop_map(died),
        1 => Just(Event::Started),
        3 => Just(Event::Tick),
    ]
}

/// What the world around the device knows.
#[derive(Default)]
struct World {
    /// What each slot holds, and what of it passed its trial.
    content: [Option<Digest>; 2],
    tried: [Option<Digest>; 2],
    /// What the worker that lives now was last told to serve.
    told: Option<(Slot, Digest)>,
    /// What it said that it serves, since it was last told.
    loaded: Option<Digest>,
}

fn at(slot: Slot) -> usize {
    usize::from(slot == Slot::B)
}

impl World {
    fn before(&mut self, event: &Event, state: &State) {
        match event {
            Event::Started | Event::WorkerDied { .. } => (self.told, self.loaded) = (None, None),
            Event::Activated { digest } if self.told.is_some_and(|(_, d)| d == *digest) => {
                self.loaded = Some(*digest);
            }
            Event::TrialDone {
                digest,
                report: TrialReport::Passed { .. },
            } if matches!(&state.phase, Phase::Trial { want, .. } if want.digest == *digest) => {
                self.tried[at(state.spare())] = Some(*digest);
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, effect: &Effect) {
        match effect {
            Effect::Receive { want, slot } => {
                self.content[at(*slot)] = Some(want.digest);
                self.tried[at(*slot)] = None;
            }
            Effect::Serve { slot, digest } => {
                assert_eq!(
                    self.content[at(*slot)],
                    Some(*digest),
                    "what is served is there"
                );
                assert_eq!(self.tried[at(*slot)], Some(*digest), "and was tried");
                (self.told, self.loaded) = (Some((*slot, *digest)), None);
            }
            Effect::ServeNothing => (self.told, self.loaded) = (None, None),
            _ => {}
        }
    }
}

proptest! {
    /// Whatever happens: the serving slot is never written to, only a slot whose content passed
    /// its trial is served, the worker was last told to serve what is reported as active, and a
    /// version is kept only after a probation in which the worker said that it serves.
    #[test]
    fn invariants_hold_under_any_schedule(events in prop::collection::vec(any_event(), 1..120)) {
        let mut d = Device::new();
        let mut world = World::default();
        for event in events {
            let before = d.state.clone();
            world.before(&event, &before);
            let loaded = world.loaded;
            d.feed(event.clone());
            for effect in &d.effects {
                if let Effect::Receive { slot, .. } = effect {
                    prop_assert_ne!(Some(*slot), d.state.serving());
                }
                world.carry_out(effect);
            }
            if matches!(event, Event::WorkerDied { .. }) {
                // The shell tells the next worker.
                d.state.serve().iter().for_each(|effect| world.carry_out(effect));
            }
            prop_assert_eq!(world.told.map(|(slot, _)| slot), d.state.serving());
            prop_assert_eq!(world.told.map(|(_, digest)| digest), d.state.active().map(|a| a.digest));
            match (&d.state.kept, &before.kept) {
                (Some(now), then) if then.as_ref() != Some(now) => {
                    prop_assert!(matches!(before.phase, Phase::Probation { .. }), "kept without probation");
                    prop_assert_eq!(loaded, Some(now.bundle.digest), "kept, never loaded");
                    prop_assert_eq!(d.state.serving(), before.serving());
                }
                (None, Some(_)) => {
                    let broke = matches!(
                        event,
                        Event::ActivateFailed { .. } | Event::SlotDamaged { .. }
                    );
                    prop_assert!(broke, "lost without cause");
                }
                _ => {}
            }
            prop_assert!(d.state.revision >= before.revision);
            prop_assert!(d.state.sequence >= before.sequence);
        }
    }
}

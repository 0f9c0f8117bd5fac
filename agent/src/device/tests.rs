#![allow(clippy::unwrap_used, clippy::panic)]
use super::step::{ATTEMPTS_MAX, BACKOFF_MAX_MS};
use super::*;
use dunlin_protocol::command::Probation;
use proptest::prelude::*;

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

fn received(version: u64) -> Event {
    Event::Received {
        digest: want(version).digest,
        result: Ok(()),
    }
}

fn counted(version: u64, inferences: u64, errors: u64) -> Event {
    Event::Counted {
        digest: want(version).digest,
        count: Count { inferences, errors },
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
    d.feed(passed(1));
    assert!(d.effects.contains(&Effect::Serve { slot: Slot::A }));
    d.feed(counted(1, 10, 0));
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
    d.feed(Event::TrialDone {
        digest: want(2).digest,
        report: TrialReport::Failed {
            code: "golden".to_owned(),
            detail: "x".to_owned(),
        },
    });
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
                d.feed(Event::WorkerDied {
                    detail: "signal 9".to_owned(),
                });
            }
        }),
        ("probation_deadline", |d| {
            while matches!(d.state.phase, Phase::Probation { .. }) {
                d.feed(Event::Tick);
            }
        }),
        ("load", |d| {
            d.feed(Event::ActivateFailed {
                slot: Slot::B,
                detail: "x".to_owned(),
            });
        }),
    ];
    for (code, spoil) in cases {
        let mut d = Device::new();
        d.install(1, 1)
            .feed(desired(2, 2))
            .feed(received(2))
            .feed(passed(2));
        spoil(&mut d);
        assert!(
            matches!(d.last(), Progress::RolledBack(f) if f.code == code),
            "{code}"
        );
        assert!(d.effects.contains(&Effect::Serve { slot: Slot::A }));
        assert_eq!(d.version(), Some(1), "{code}");
    }
}

#[test]
fn the_server_can_take_an_unkept_version_back() {
    let mut d = Device::new();
    d.install(1, 1)
        .feed(desired(2, 2))
        .feed(received(2))
        .feed(passed(2));
    assert_eq!(d.version(), Some(2));
    d.feed(desired(3, 1));
    assert!(d.effects.contains(&Effect::Serve { slot: Slot::A }));
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

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2)).feed(Event::Started);
    assert!(d.effects.contains(&Effect::Serve { slot: Slot::A }));
    assert!(
        d.effects
            .iter()
            .any(|e| matches!(e, Effect::Receive { slot: Slot::B, .. }))
    );
    d.feed(received(2))
        .feed(Event::Started)
        .feed(Event::Started);
    assert!(matches!(d.last(), Progress::Failed(f) if f.code == "trial_interrupted"));
    d.feed(desired(3, 2)).feed(received(2)).feed(passed(2));
    d.feed(counted(2, 6, 0)).feed(Event::Started);
    assert!(d.effects.contains(&Effect::Serve { slot: Slot::B }));
    d.feed(counted(2, 4, 0)).feed(Event::Tick).feed(Event::Tick);
    assert_eq!(d.last(), Progress::Succeeded);
}

#[test]
fn transient_failures_are_retried_later_and_not_for_ever() {
    let mut d = Device::new();
    d.feed(desired(1, 1));
    let mut tries = 0;
    while matches!(d.state.phase, Phase::Receiving { .. }) {
        d.feed(Event::Received {
            digest: want(1).digest,
            result: Err(ReceiveFailure {
                kind: ReceiveFailureKind::Transient,
                failure: Failure::new("connect", "refused"),
            }),
        });
        tries += 1;
        d.feed(Event::Tick);
        d.now_ms += 2 * BACKOFF_MAX_MS;
        d.feed(Event::Tick);
    }
    assert_eq!(tries, ATTEMPTS_MAX);
    assert!(matches!(d.last(), Progress::Failed(f) if f.code == "unreachable"));
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1_u64..40, 1_u64..4).prop_map(|(g, v)| desired(g, v)),
        3 => (1_u64..4).prop_map(received),
        3 => (1_u64..4).prop_map(passed),
        1 => (1_u64..4).prop_map(|v| Event::Received {
            digest: want(v).digest,
            result: Err(ReceiveFailure {
                kind: ReceiveFailureKind::Refused,
                failure: Failure::new("hash", "x"),
            }),
        }),
        3 => ((1_u64..4), 0_u64..20, 0_u64..3).prop_map(|(v, i, e)| counted(v, i, e)),
        1 => Just(Event::WorkerDied { detail: "d".to_owned() }),
        1 => Just(Event::Started),
        3 => Just(Event::Tick),
    ]
}

proptest! {
    /// Whatever happens: the serving slot is never written to, only a slot whose content passed
    /// its trial is served, and a kept version is only replaced by one that was on probation.
    #[test]
    fn invariants_hold_under_any_schedule(events in prop::collection::vec(any_event(), 1..120)) {
        let mut d = Device::new();
        let mut content: [Option<Digest>; 2] = [None, None];
        let mut tried: [Option<Digest>; 2] = [None, None];
        let at = |s: Slot| usize::from(s == Slot::B);
        for event in events {
            let before = d.state.clone();
            let serving_before = before.serving();
            d.feed(event.clone());
            if let (Event::TrialDone { digest, .. }, Phase::Probation { .. }) = (&event, &d.state.phase)
                && !matches!(before.phase, Phase::Probation { .. })
            {
                tried[at(before.spare())] = Some(*digest);
            }
            for effect in &d.effects {
                match effect {
                    Effect::Receive { want, slot } => {
                        prop_assert_ne!(Some(*slot), d.state.serving());
                        content[at(*slot)] = Some(want.digest);
                    }
                    Effect::Serve { slot } => {
                        prop_assert!(content[at(*slot)].is_some());
                        prop_assert_eq!(content[at(*slot)], tried[at(*slot)]);
                    }
                    _ => {}
                }
            }
            if d.state.kept != before.kept {
                prop_assert!(matches!(before.phase, Phase::Probation { .. }), "kept without probation");
                prop_assert_eq!(d.state.serving(), serving_before);
            }
            prop_assert!(d.state.revision >= before.revision);
        }
    }
}

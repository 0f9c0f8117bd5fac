//! Versions that wait for consent, and versions that did not hold.

use super::*;

fn hold(reason: &str) -> Hold {
    Hold {
        reason: reason.to_owned(),
        since_ms: 1,
        until_ms: None,
    }
}

fn consents(hold: Option<Hold>, window_opens_ms: Option<i64>) -> Event {
    Event::Consent(Consent {
        hold,
        window_opens_ms,
    })
}

fn waits_for(d: &Device) -> Option<String> {
    d.state.reported("0").waiting.map(|w| w.code)
}

fn ready(d: &mut Device, generation: u64, version: u64) {
    d.feed(again(generation, version))
        .feed(received(version))
        .feed(passed(version));
}

#[test]
fn what_is_ready_waits_for_the_window_and_the_hold() {
    let mut d = Device::new();
    d.install(1, 1);
    ready(&mut d, 2, 2);
    assert!(matches!(d.model().phase, Phase::Waiting { why: None, .. }));
    d.feed(consents(Some(hold("a test")), Some(9_000)));
    assert_eq!(
        (waits_for(&d).as_deref(), d.version()),
        (Some("hold"), Some(1))
    );
    assert_eq!(d.effects, [Effect::Report]);
    assert_eq!(d.state.reported("0").progress, Progress::Trial);
    // The same again is no news.
    d.feed(consents(Some(hold("a test")), Some(9_000)));
    assert_eq!(d.effects, []);
    d.feed(consents(None, Some(9_000)));
    assert_eq!(waits_for(&d).as_deref(), Some("window"));
    assert_eq!(d.state.reported("0").waiting.unwrap().until_ms, Some(9_000));
    d.feed(consent());
    assert!(d.effects.contains(&serve(Slot::B, 2)));
    assert_eq!((waits_for(&d), d.version()), (None, Some(2)));
}

#[test]
fn waiting_survives_restarts_and_newer_wishes() {
    let mut d = Device::new();
    d.install(1, 1);
    ready(&mut d, 2, 2);
    d.feed(consents(None, Some(9_000))).feed(Event::Started);
    assert!(d.effects.contains(&serve(Slot::A, 1)));
    assert_eq!(waits_for(&d).as_deref(), Some("window"));
    // The same bundle under a newer revision goes on waiting; another takes its place.
    d.feed(desired(3, 2));
    assert_eq!(waits_for(&d).as_deref(), Some("window"));
    d.feed(desired(4, 3));
    assert!(matches!(d.model().phase, Phase::Receiving { .. }));
    // Nothing is wanted any more: what is kept stays.
    ready(&mut d, 5, 2);
    d.feed(Event::Desired(Desired {
        revision: Revision {
            epoch: 1,
            generation: 6,
        },
        bundles: Vec::new(),
    }));
    assert_eq!((d.last(), d.version()), (Progress::Idle, Some(1)));
    d.feed(consent());
    assert_eq!(d.version(), Some(1));
}

#[test]
fn where_nothing_serves_the_window_protects_nothing_and_a_hold_holds() {
    let mut d = Device::new();
    ready(&mut d, 1, 1);
    d.feed(consents(Some(hold("x")), Some(9_000)));
    assert_eq!(waits_for(&d).as_deref(), Some("hold"));
    d.feed(consents(None, Some(9_000)));
    assert_eq!(d.version(), Some(1));
}

#[test]
fn going_back_waits_for_nobody() {
    // By itself.
    let mut d = Device::new();
    d.install(1, 1);
    ready(&mut d, 2, 2);
    d.feed(consent()).feed(activated(2));
    d.feed(consents(Some(hold("x")), Some(9_000)));
    d.feed(counted(2, 0, 2));
    assert_eq!(d.version(), Some(1));
    assert!(d.effects.contains(&serve(Slot::A, 1)));
    // To the version kept before, because the server says so.
    let mut d = Device::new();
    d.install(1, 1).install(2, 2);
    ready(&mut d, 3, 1);
    d.feed(consents(Some(hold("x")), Some(9_000)));
    assert!(matches!(d.model().phase, Phase::Probation { .. }));
    // An older one still was not kept before this one: that is an update.
    let mut d = Device::new();
    d.install(1, 1).install(2, 2).install(3, 3);
    ready(&mut d, 4, 1);
    d.feed(consents(None, Some(9_000)));
    assert_eq!(waits_for(&d).as_deref(), Some("window"));
}

#[test]
fn a_hold_is_reported_whenever_it_begins_or_ends() {
    let mut d = Device::new();
    d.install(1, 1);
    let before = d.state.sequence;
    d.feed(consents(Some(hold("a test")), None));
    assert_eq!(d.state.reported("0").hold, Some(hold("a test")));
    assert_eq!(
        (d.effects.clone(), d.state.sequence),
        (vec![Effect::Report], before + 1)
    );
    d.feed(consent());
    assert_eq!(d.state.reported("0").hold, None);
    assert_eq!(d.effects, [Effect::Report]);
}

#[test]
fn what_did_not_hold_is_not_tried_again_by_itself() {
    let mut d = Device::new();
    d.install(1, 1);
    ready(&mut d, 2, 2);
    d.feed(consent()).feed(activated(2)).feed(counted(2, 0, 2));
    assert!(matches!(d.last(), Progress::RolledBack(_)));
    d.feed(desired(3, 2));
    assert!(matches!(d.last(), Progress::Refused(f) if f.code == "rolled_back_before"));
    assert!(
        !d.effects
            .iter()
            .any(|e| matches!(e, Effect::Receive { .. }))
    );
    // Another version is another matter, and so is an explicit wish.
    d.feed(desired(4, 3));
    assert!(matches!(d.model().phase, Phase::Receiving { .. }));
    ready(&mut d, 5, 2);
    d.feed(consent()).feed(activated(2));
    d.feed(Event::Tick)
        .feed(Event::Tick)
        .feed(counted(2, 10, 0));
    assert_eq!(
        (d.last(), d.model().not_held.len()),
        (Progress::Succeeded, 0)
    );
}

#[test]
fn failed_golden_cases_are_remembered_and_the_devices_own_faults_are_not() {
    for (code, is_remembered) in [
        ("golden", true),
        ("latency", true),
        ("load", true),
        ("trial_died", true),
        ("trial_timeout", true),
        ("staged", false),
        ("trial_start", false),
    ] {
        let mut d = Device::new();
        d.feed(desired(1, 1))
            .feed(received(1))
            .feed(Event::TrialDone {
                digest: want(1).digest,
                report: TrialReport::Failed {
                    code: code.to_owned(),
                    detail: "x".to_owned(),
                },
            });
        d.feed(desired(2, 1));
        let is_refused = matches!(
            d.model().phase,
            Phase::Idle {
                last: Progress::Refused(_)
            }
        );
        assert_eq!(is_refused, is_remembered, "{code}");
    }
}

#[test]
fn a_slot_that_is_damaged_after_the_trial_is_not_the_models_fault() {
    let mut d = Device::new();
    d.install(1, 1);
    ready(&mut d, 2, 2);
    d.feed(consent()).feed(slot_damaged(Slot::B, 2));
    assert!(matches!(d.last(), Progress::RolledBack(f) if f.code == "slot_damaged"));
    assert!(d.effects.contains(&serve(Slot::A, 1)));
    assert_eq!(d.model().not_held, []);
    d.feed(desired(3, 2));
    assert_eq!(receiving(&d), Some(want(2)));
    // Of a kept version: it is received again.
    let mut d = Device::new();
    d.install(1, 1).feed(slot_damaged(Slot::A, 1));
    assert_eq!((d.version(), receiving(&d)), (None, Some(want(1))));
}

#[test]
fn of_what_did_not_hold_the_newest_are_remembered() {
    let mut d = Device::new();
    let many = NOT_HELD_MAX as u64 + 5;
    for version in 1..=many {
        d.feed(desired(version, version))
            .feed(received(version))
            .feed(failed_trial(version));
    }
    assert_eq!(d.model().not_held.len(), NOT_HELD_MAX);
    assert_eq!(d.model().not_held[0].version, 6);
    assert_eq!(d.model().not_held[NOT_HELD_MAX - 1].version, many);
}

#[test]
fn too_many_slow_or_failed_answers_roll_back() {
    let count = |inferences, errors, slow| Event::Counted {
        digest: want(2).digest,
        count: Count {
            inferences,
            errors,
            slow,
        },
    };
    // want() needs 10 inferences and allows one error; the median keeps the budget.
    for (event, code) in [
        (count(9, 0, 5), None),
        (count(9, 0, 6), Some("latency")),
        (count(9, 1, 0), None),
        (count(9, 2, 0), Some("errors")),
    ] {
        let mut d = Device::new();
        d.install(1, 1);
        ready(&mut d, 2, 2);
        d.feed(consent()).feed(activated(2)).feed(event);
        let got = match &d.model().phase {
            Phase::Idle {
                last: Progress::RolledBack(f),
            } => Some(f.code.clone()),
            _ => None,
        };
        assert_eq!(got.as_deref(), code);
    }
}

#[test]
fn all_that_a_device_has_a_use_for_is_in_use() {
    let digests = |versions: &[u64]| -> Vec<Digest> {
        let mut all: Vec<_> = versions.iter().map(|v| want(*v).digest).collect();
        all.sort();
        all
    };
    let in_use = |d: &Device| {
        let mut all = d.state.in_use();
        all.sort();
        all
    };
    let mut d = Device::new();
    d.install(1, 1).install(2, 2);
    assert_eq!(in_use(&d), digests(&[1, 2]));
    // What was kept before gives its slot away to the next.
    d.feed(desired(3, 3));
    assert_eq!(in_use(&d), digests(&[2, 3]));
    d.feed(received(3)).feed(failed_trial(3));
    assert_eq!(in_use(&d), digests(&[2]));
}

//! Versions in the shadow of the one that serves.

use super::*;
use dunlin_protocol::command::Shadow;
use dunlin_protocol::report::ShadowReport;

const RULES: Shadow = Shadow {
    comparisons: 100,
    sample_permille: 100,
    cpu_permille: 100,
    agreement_permille_min: Some(900),
    net_losses_max: Some(2),
    deadline_ms: 60_000,
};

fn asked(generation: u64, version: u64) -> Event {
    let mut bundle = want(version);
    bundle.probation.shadow = Some(RULES);
    bundle.probation.retry_rolled_back = true;
    Event::Desired(Desired {
        revision: Revision {
            epoch: 1,
            generation,
        },
        bundles: vec![bundle],
    })
}

fn shadow(version: u64) -> Effect {
    Effect::Shadow {
        family: family(),
        slot: Slot::B,
        digest: want(version).digest,
        rules: RULES,
    }
}

fn end() -> Effect {
    Effect::EndShadow { family: family() }
}

fn so_far(compared: u64, agreed: u64) -> ShadowReport {
    ShadowReport {
        compared,
        agreed,
        ..ShadowReport::default()
    }
}

fn shadowed(version: u64, so_far: ShadowReport) -> Event {
    Event::Shadowed {
        digest: want(version).digest,
        so_far,
    }
}

/// Version 1 serves, version 2 runs in its shadow.
fn device() -> Device {
    let mut d = Device::new();
    d.install(1, 1)
        .feed(asked(2, 2))
        .feed(received(2))
        .feed(passed(2));
    assert_eq!(d.effects, [shadow(2), Effect::Report]);
    d
}

fn failed_with(d: &Device) -> Option<String> {
    match d.model().phase {
        Phase::Idle {
            last: Progress::Failed(f),
        } => Some(f.code),
        _ => None,
    }
}

#[test]
fn enough_that_agree_lead_on_to_its_activation() {
    let mut d = device();
    assert_eq!(d.version(), Some(1));
    d.feed(shadowed(2, so_far(30, 30)));
    let report = d.state.reported("0");
    assert_eq!(report.progress, Progress::Trial);
    assert_eq!(report.waiting.unwrap().code, "shadow");
    assert_eq!(report.models[0].shadow, Some(so_far(30, 30)));
    // Another version's, or late news, counts for nothing.
    d.feed(shadowed(3, so_far(500, 0)));
    // What was counted before the worker died counts.
    d.feed(died(true)).feed(shadowed(2, so_far(69, 60)));
    assert!(matches!(d.model().phase, Phase::Shadow { deaths: 1, .. }));
    d.feed(shadowed(2, so_far(70, 61)));
    assert!(d.effects.contains(&end()));
    assert!(matches!(d.model().phase, Phase::Waiting { .. }));
    assert_eq!(
        d.state.reported("0").models[0].shadow,
        Some(so_far(100, 91))
    );
    d.feed(consent());
    assert_eq!(d.version(), Some(2));
}

#[test]
fn what_disagrees_loses_or_takes_too_long_is_given_up() {
    type Spoil = fn(&mut Device);
    let cases: [(&str, Spoil); 5] = [
        // Eleven of a hundred may never be made up for again.
        ("shadow_disagrees", |d| {
            d.feed(shadowed(2, so_far(20, 9)));
        }),
        ("shadow_loses", |d| {
            let (won, lost) = (1, 4);
            d.feed(shadowed(
                2,
                ShadowReport {
                    won,
                    lost,
                    ..so_far(100, 95)
                },
            ));
        }),
        ("shadow_deadline", |d| {
            d.feed(shadowed(2, so_far(99, 99)));
            while matches!(d.model().phase, Phase::Shadow { .. }) {
                d.feed(Event::Tick);
            }
        }),
        ("crash_loop", |d| {
            d.feed(died(true)).feed(died(true));
        }),
        ("load", |d| {
            d.feed(activate_failed(Slot::B, 2));
        }),
    ];
    for (code, spoil) in cases {
        let mut d = device();
        spoil(&mut d);
        assert_eq!(failed_with(&d).as_deref(), Some(code));
        assert!(d.effects.contains(&end()), "{code}");
        assert_eq!(d.version(), Some(1), "{code}");
        assert_eq!(d.model().not_held[0].code, code);
    }
    let mut d = device();
    d.feed(slot_damaged(Slot::B, 2));
    assert_eq!(
        (failed_with(&d).as_deref(), d.model().not_held.len()),
        (Some("slot_damaged"), 0)
    );
}

#[test]
fn it_goes_on_after_a_restart_and_gives_way_to_newer_wishes() {
    let mut d = device();
    d.feed(shadowed(2, so_far(40, 40))).feed(Event::Started);
    assert!(d.effects.contains(&serve(Slot::A, 1)) && d.effects.contains(&shadow(2)));
    d.feed(asked(3, 2));
    assert!(matches!(d.model().phase, Phase::Shadow { before, .. } if before.compared == 40));
    d.feed(asked(4, 3));
    assert!(d.effects.contains(&end()) && receiving(&d).is_some());
    let mut d = device();
    d.feed(Event::Desired(Desired {
        revision: Revision {
            epoch: 1,
            generation: 9,
        },
        bundles: Vec::new(),
    }));
    assert!(d.effects.contains(&end()) && d.last() == Progress::Idle);
    // What serves broke: there is no shadow without it.
    let mut d = device();
    d.feed(activate_failed(Slot::A, 1));
    assert!(d.effects.contains(&end()) && receiving(&d).is_some());
}

#[test]
fn where_nothing_serves_and_on_the_way_back_there_is_no_shadow() {
    let mut d = Device::new();
    d.feed(asked(1, 1)).feed(received(1)).feed(passed(1));
    assert!(matches!(d.model().phase, Phase::Waiting { .. }));
    let mut d = Device::new();
    d.install(1, 1).install(2, 2);
    d.feed(asked(3, 1)).feed(received(1)).feed(passed(1));
    assert!(matches!(d.model().phase, Phase::Waiting { .. }));
}

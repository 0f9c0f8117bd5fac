//! Several model families on one device.

use super::*;

fn both(generation: u64, bundles: &[(u64, u64)]) -> Event {
    let revision = |generation| Revision {
        epoch: 1,
        generation,
    };
    let bundle = |&(version, asked): &(u64, u64)| DesiredBundle {
        asked: Some(revision(asked)),
        ..want(version)
    };
    Event::Desired(Desired {
        revision: revision(generation),
        bundles: bundles.iter().map(bundle).collect(),
    })
}

fn bring_up(d: &mut Device, version: u64) {
    d.feed(received(version))
        .feed(passed(version))
        .feed(consent())
        .feed(activated(version))
        .feed(Event::Tick)
        .feed(Event::Tick)
        .feed(counted(version, 10, 0));
}

fn running(d: &Device) -> Vec<u64> {
    d.state.active().iter().map(|a| a.version).collect()
}

fn of(d: &Device, version: u64) -> Model {
    d.state.models[&family_of(version)].clone()
}

#[test]
fn families_come_and_are_served_side_by_side() {
    let mut d = Device::new();
    d.feed(both(1, &[(1, 1), (101, 1)]));
    let receives = d
        .effects
        .iter()
        .filter(|e| matches!(e, Effect::Receive { slot: Slot::A, .. }));
    assert_eq!(receives.count(), 2);
    bring_up(&mut d, 101);
    assert!(matches!(of(&d, 1).phase, Phase::Receiving { .. }));
    bring_up(&mut d, 1);
    assert_eq!(running(&d), [1, 101]);
    d.feed(Event::Started);
    assert!(d.effects.contains(&serve(Slot::A, 1)) && d.effects.contains(&serve(Slot::A, 101)));
    let reported = d.state.reported("0");
    assert_eq!(reported.models.len(), 2);
    assert!(
        reported
            .models
            .iter()
            .all(|m| m.progress == Progress::Succeeded)
    );
}

#[test]
fn what_is_asked_of_one_family_leaves_the_others_alone() {
    let mut d = Device::new();
    d.feed(both(1, &[(1, 1), (101, 1)]));
    bring_up(&mut d, 1);
    d.feed(received(101)).feed(failed_trial(101));
    let failed = of(&d, 101);
    assert!(matches!(
        &failed.phase,
        Phase::Idle {
            last: Progress::Failed(_)
        }
    ));
    // A newer word about digits says the same of faces: nothing new is asked of them.
    d.feed(both(2, &[(2, 2), (101, 1)]));
    assert_eq!(of(&d, 101), failed);
    assert!(matches!(of(&d, 1).phase, Phase::Receiving { .. }));
    // Asked for anew, it says why it will not.
    d.feed(both(3, &[(2, 2), (101, 3)]));
    assert!(matches!(
        &of(&d, 101).phase,
        Phase::Idle {
            last: Progress::Refused(_)
        }
    ));
    assert!(
        matches!(of(&d, 1).phase, Phase::Receiving { .. }),
        "digits went on"
    );
    assert_eq!(d.effects, [event_of(&d, "update_refused"), Effect::Report]);
    // One that is under way is reported for those who know of one alone.
    assert_eq!(d.state.reported("0").target.unwrap().family, family_of(1));
}

fn event_of(d: &Device, code: &str) -> Effect {
    let found = d
        .effects
        .iter()
        .find(|e| matches!(e, Effect::Event { code: c, .. } if *c == code));
    found.unwrap().clone()
}

#[test]
fn what_is_wanted_no_more_goes_on_serving() {
    let mut d = Device::new();
    d.feed(both(1, &[(1, 1), (101, 1)]));
    bring_up(&mut d, 1);
    bring_up(&mut d, 101);
    d.feed(both(2, &[(101, 1)]));
    assert_eq!(running(&d), [1, 101]);
    assert_eq!((of(&d, 1).target, d.last()), (None, Progress::Idle));
}

#[test]
fn a_device_has_room_for_so_many_families_and_says_so() {
    let mut d = Device::new();
    let bundle = |n: usize| DesiredBundle {
        family: format!("family-{n:02}").parse().unwrap(),
        digest: Digest::of(&[u8::try_from(n).unwrap()]),
        ..want(1)
    };
    let desired = |generation, bundles: Vec<DesiredBundle>| {
        let epoch = 1;
        Event::Desired(Desired {
            revision: Revision { epoch, generation },
            bundles,
        })
    };
    d.feed(desired(1, (0..=MODELS_MAX).map(bundle).collect()));
    assert_eq!(d.state.models.len(), MODELS_MAX);
    event_of(&d, "too_many_models");
    // The same family twice: the first counts.
    d.feed(desired(
        2,
        vec![
            bundle(0),
            DesiredBundle {
                version: 9,
                ..bundle(0)
            },
        ],
    ));
    event_of(&d, "desired_twice");
    assert_eq!(
        d.state.models[&bundle(0).family]
            .target
            .as_ref()
            .unwrap()
            .version,
        1
    );
    // Those of which nothing is here and nothing is wanted are forgotten, and there is room again.
    assert_eq!(d.state.models.len(), 1);
}

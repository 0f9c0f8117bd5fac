//! Deaths of the worker, and whose doing they are.

use super::*;

fn died_at(versions: &[u64]) -> Event {
    Event::WorkerDied {
        detail: "signal 6".to_owned(),
        listened: true,
        killed: false,
        at_work: Some(versions.iter().map(|v| want(*v).digest).collect()),
    }
}

/// Digits 1 and then 2 are kept, and faces 101.
fn device() -> Device {
    let mut d = Device::new();
    d.install(1, 1).install(2, 2);
    d.feed(Event::Desired(Desired {
        revision: Revision {
            epoch: 1,
            generation: 3,
        },
        bundles: vec![
            DesiredBundle {
                asked: d.model().asked,
                ..want(2)
            },
            want(101),
        ],
    }));
    d.feed(received(101))
        .feed(passed(101))
        .feed(consent())
        .feed(activated(101));
    d.feed(Event::Tick)
        .feed(Event::Tick)
        .feed(counted(101, 10, 0));
    assert_eq!(running(&d), [2, 101]);
    d
}

fn running(d: &Device) -> Vec<u64> {
    d.state.active().iter().map(|a| a.version).collect()
}

#[test]
fn a_kept_version_that_kills_the_worker_twice_goes_back() {
    let mut d = device();
    // Nobody knows yet whose doing the first one is.
    d.feed(died(true));
    assert_eq!(running(&d), [2, 101]);
    d.feed(died_at(&[2]));
    assert_eq!(running(&d), [1, 101]);
    assert!(d.effects.contains(&serve(Slot::A, 1)));
    assert!(matches!(d.last(), Progress::RolledBack(f) if f.code == "crash_loop"));
    // And is not taken again by itself.
    d.feed(desired(4, 2));
    assert!(matches!(d.last(), Progress::Refused(f) if f.code == "rolled_back_before"));
}

#[test]
fn nobody_is_blamed_for_what_others_may_have_done() {
    // Two at work each time.
    let mut d = device();
    for _ in 0..5 {
        d.feed(died_at(&[2, 101]));
    }
    assert_eq!(running(&d), [2, 101]);
    // One alone after all.
    d.feed(died_at(&[101]));
    assert_eq!(running(&d), [2], "no version before it, and others serve");
    // Each once.
    let mut d = device();
    d.feed(died_at(&[2])).feed(died_at(&[101]));
    assert_eq!(running(&d), [2, 101]);
    // Long ago.
    let mut d = device();
    d.feed(died_at(&[2]));
    d.now_ms += 600_000;
    d.feed(died_at(&[2]));
    assert_eq!(running(&d), [2, 101]);
    // From outside, or before it listened.
    let mut d = device();
    for (killed, listened) in [(true, true), (false, false)] {
        for _ in 0..4 {
            d.feed(Event::WorkerDied {
                detail: "signal 9".to_owned(),
                listened,
                killed,
                at_work: Some(vec![want(2).digest]),
            });
        }
    }
    assert_eq!(running(&d), [2, 101]);
}

#[test]
fn a_version_on_probation_is_blamed_unless_another_was_at_work() {
    let on_probation = || {
        let mut d = device();
        d.feed(Event::Desired(Desired {
            revision: Revision {
                epoch: 1,
                generation: 5,
            },
            bundles: vec![want(2), want(102)],
        }));
        d.feed(received(102))
            .feed(passed(102))
            .feed(consent())
            .feed(activated(102));
        assert_eq!(running(&d), [2, 102]);
        d
    };
    let mut d = on_probation();
    d.feed(died(true)).feed(died_at(&[]));
    assert_eq!(running(&d), [2, 101]);
    let mut d = on_probation();
    d.feed(died_at(&[2])).feed(died(true)).feed(died_at(&[2]));
    assert_eq!(running(&d), [1, 102]);
    // Somebody kills a worker that does nothing, again and again.
    let killed = |at_work: Option<&[u64]>| Event::WorkerDied {
        detail: "signal 9".to_owned(),
        listened: true,
        killed: true,
        at_work: at_work.map(|versions| versions.iter().map(|v| want(*v).digest).collect()),
    };
    let mut d = on_probation();
    d.feed(killed(None));
    for _ in 0..5 {
        d.feed(killed(Some(&[])));
    }
    assert_eq!(running(&d), [2, 102]);
    // At work on it: the kernel kills what takes all memory.
    d.feed(killed(Some(&[102])));
    assert_eq!(running(&d), [2, 101]);
}

#[test]
fn the_only_model_is_not_given_up_for_want_of_another() {
    let mut d = Device::new();
    d.install(1, 1);
    for _ in 0..5 {
        d.feed(died_at(&[1]));
    }
    assert_eq!(d.version(), Some(1));
}

//! What was brought to the device by hand, and what the server asked for.

use super::*;

#[test]
fn what_is_brought_by_hand_stays_until_the_server_wants_something_newer() {
    let mut d = Device::new();
    d.install(5, 1).feed(install("x", 2));
    assert!(d.effects.contains(&Effect::Receive {
        want: want(2),
        slot: Slot::B
    }));
    // The same call again, and the server's same word again, change nothing.
    d.feed(install("x", 2));
    assert!(d.effects.is_empty());
    d.feed(desired(5, 1));
    assert_eq!(d.effects, [Effect::Report]);
    assert_eq!(receiving(&d), Some(want(2)));
    assert_eq!(d.state.revision.generation, 5);
    assert_eq!(d.model().target.as_ref().unwrap().version, 2);
    // Its next one wins, and a new call after it wins over that.
    d.feed(desired(6, 3));
    assert!(d.effects.contains(&cancel()));
    assert_eq!(receiving(&d), Some(want(3)));
    d.feed(install("y", 2));
    assert_eq!(receiving(&d), Some(want(2)));
}

#[test]
fn what_was_brought_by_hand_and_did_not_hold_gives_way_to_what_the_server_asked_for() {
    let failed_trial = || Event::TrialDone {
        digest: want(3).digest,
        report: TrialReport::Failed {
            code: "golden".to_owned(),
            detail: "case 1".to_owned(),
        },
    };
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2)).feed(install("x", 3));
    assert_eq!(receiving(&d), Some(want(3)));
    d.feed(received(3)).feed(failed_trial());
    assert_eq!(receiving(&d), Some(want(2)));
    assert_eq!(d.model().target.as_ref().unwrap().version, 2);
    let gave_way = |model: &Model| matches!(&model.by_hand, Some(ByHand::GaveWay { failure }) if failure.code == "golden");
    assert!(gave_way(&d.model()));
    // Over a restart too; and a second one by hand stands in for the first.
    d.feed(Event::Started);
    assert!(gave_way(&d.model()) && receiving(&d) == Some(want(2)));
    d.feed(install("y", 4)).feed(install("z", 3));
    d.feed(failed(3, ReceiveFailureKind::Refused));
    assert_eq!(receiving(&d), Some(want(2)));

    // What the server brings too is the server's again.
    d.feed(install("v", 4)).feed(install("w", 2));
    assert_eq!(
        (d.model().by_hand.is_none(), receiving(&d)),
        (true, Some(want(2)))
    );
    d.feed(failed(2, ReceiveFailureKind::Refused));
    assert!(matches!(d.last(), Progress::Refused(_)));

    // Nothing gives way to what had ended, nor to what a newer word took back.
    d.feed(install("u", 4))
        .feed(failed(4, ReceiveFailureKind::Refused));
    assert!(matches!(d.last(), Progress::Refused(_)) && receiving(&d).is_none());
    d.feed(desired(3, 5))
        .feed(install("t", 4))
        .feed(desired(4, 1));
    assert_eq!((d.last(), &d.model().by_hand), (Progress::Succeeded, &None));
}

#[test]
fn what_was_brought_by_hand_and_is_kept_stays_when_a_later_one_fails() {
    let mut d = Device::new();
    d.install(1, 1).feed(desired(2, 2)).feed(install("x", 1));
    assert_eq!((d.last(), receiving(&d)), (Progress::Succeeded, None));
    d.feed(install("y", 3))
        .feed(failed(3, ReceiveFailureKind::Refused));
    assert!(matches!(d.last(), Progress::Refused(_)) && receiving(&d).is_none());
    assert_eq!(d.version(), Some(1));
}

#[test]
fn what_the_server_wants_too_stays_the_servers() {
    let mut d = Device::new();
    let of_rollout = DesiredBundle {
        rollout: Some("r-1".parse().unwrap()),
        ..want(2)
    };
    let revision = Revision {
        epoch: 1,
        generation: 1,
    };
    d.feed(Event::Desired(Desired {
        revision,
        bundles: vec![of_rollout.clone()],
    }));
    d.feed(failed(2, ReceiveFailureKind::Failed))
        .feed(install("x", 2));
    assert_eq!(receiving(&d), Some(of_rollout.clone()));
    assert_eq!(d.model().rollout, of_rollout.rollout);
    // What is kept already is not received once more.
    d.install(2, 2).feed(install("y", 2));
    assert_eq!((receiving(&d), d.last()), (None, Progress::Succeeded));
}

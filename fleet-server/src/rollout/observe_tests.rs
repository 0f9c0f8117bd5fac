#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::*;
use crate::store::{DeviceRow, RolloutDeviceRow, RolloutRow};
use dunlin_protocol::command::{Desired, DesiredBundle, Probation};
use dunlin_protocol::id::{Digest, Revision};
use dunlin_protocol::report::{Installed, Waiting};
use serde_json::Value;
use std::collections::BTreeMap;

const NOW: i64 = 5000;

fn installed(version: u64) -> Installed {
    Installed {
        family: "digits".parse().unwrap(),
        version,
        digest: Digest::of(&version.to_be_bytes()),
    }
}

fn bundle(version: u64, rollout: Option<&str>) -> DesiredBundle {
    let Installed {
        family,
        version,
        digest,
    } = installed(version);
    let rollout = rollout.map(|id| id.parse().unwrap());
    DesiredBundle {
        family,
        version,
        target: format!("digits/{version}"),
        digest,
        rollout,
        probation: Probation::default(),
        asked: None,
    }
}

fn rollout() -> RolloutRow {
    RolloutRow {
        id: "r2".parse().unwrap(),
        family: "digits".parse().unwrap(),
        version: 2,
        digest: installed(2).digest,
        policy: Value::Null,
        selector: BTreeMap::new(),
        probation: Probation::default(),
        created_ms: 0,
        created_by: "me".into(),
        running: true,
        abort_requested_ms: None,
        resume_requested_ms: None,
        state: Value::Null,
        report: Value::Null,
    }
}

fn row() -> RolloutDeviceRow {
    RolloutDeviceRow {
        device: "d".parse().unwrap(),
        stage: 0,
        position: 0,
        before: Some(bundle(1, None)),
        state: Value::Null,
    }
}

fn noted(state: DeviceState, assigned_at_ms: Option<i64>) -> DeviceObservation {
    DeviceObservation {
        device: "d".into(),
        stage: 0,
        state,
        state_since_ms: 100,
        last_seen_ms: None,
        assigned_at_ms,
        had_version: false,
        waits_for: None,
        way_back: None,
    }
}

fn device(desired: DesiredBundle, target: u64, active: u64, progress: Progress) -> DeviceRow {
    let asked_by = desired.rollout.clone();
    let revision = Revision {
        epoch: 1,
        generation: 2,
    };
    DeviceRow {
        device: "d".parse().unwrap(),
        labels: BTreeMap::new(),
        hardware: "x".into(),
        arch: "x86_64".into(),
        agent_version: "0.1.0".into(),
        cert_sha256: Digest::of(b""),
        revoked: false,
        online: true,
        last_seen_ms: Some(4000),
        enrolled_ms: 0,
        reported: Some(Reported {
            sequence: 1,
            revision,
            target: Some(installed(target)),
            rollout: asked_by,
            progress,
            waiting: None,
            hold: None,
            active: Some(installed(active)),
            agent_version: "0.1.0".into(),
            trust: None,
            capture: None,
            models: Vec::new(),
        }),
        desired: Some(Desired {
            revision,
            bundles: vec![desired],
        }),
    }
}

fn seen(noted: &DeviceObservation, device: &DeviceRow) -> DeviceObservation {
    observe(&rollout(), &row(), noted, Some(device), NOW)
}

#[test]
fn a_device_that_waits_for_its_window_is_at_work_and_says_why() {
    let assigned = noted(DeviceState::Assigned, Some(100));
    let mut waits = device(bundle(2, Some("r2")), 2, 1, Progress::Trial);
    waits.reported.as_mut().unwrap().waiting = Some(Waiting {
        code: "window".into(),
        detail: "opens at 02:00".into(),
        until_ms: Some(9),
    });
    let now = seen(&assigned, &waits);
    assert_eq!(now.state, DeviceState::Working);
    assert_eq!(now.waits_for.as_deref(), Some("window: opens at 02:00"));
    // Once it serves it waits for nothing.
    let progress = Progress::Probation {
        inferences: 0,
        needed: 1,
    };
    waits.reported.as_mut().unwrap().progress = progress;
    assert_eq!(seen(&now, &waits).waits_for, None);
}

#[test]
fn progress_of_this_rollouts_version_becomes_the_state() {
    let assigned = noted(DeviceState::Assigned, Some(100));
    for (progress, name) in [
        (
            Progress::Receiving {
                done_bytes: 1,
                total_bytes: 2,
            },
            "working",
        ),
        (Progress::Trial, "working"),
        (
            Progress::Probation {
                inferences: 1,
                needed: 2,
            },
            "probation",
        ),
        (Progress::Succeeded, "succeeded"),
        (
            Progress::Refused(Failure::new("threshold", "1 of 2")),
            "rejected",
        ),
        (Progress::Failed(Failure::new("golden", "")), "failed"),
        (
            Progress::RolledBack(Failure::new("crash_loop", "")),
            "rolled_back",
        ),
    ] {
        let seen = seen(&assigned, &device(bundle(2, Some("r2")), 2, 1, progress));
        assert_eq!(
            (seen.state.name(), seen.state_since_ms, seen.last_seen_ms),
            (name, NOW, Some(4000))
        );
    }
}

#[test]
fn a_report_about_something_else_changes_nothing() {
    let assigned = noted(DeviceState::Assigned, Some(100));
    let mut other = device(bundle(2, Some("r2")), 1, 1, Progress::Succeeded);
    assert_eq!(seen(&assigned, &other).state, DeviceState::Assigned);
    other.reported.as_mut().unwrap().rollout = Some("r1".parse().unwrap());
    assert_eq!(seen(&assigned, &other).state, DeviceState::Assigned);
    other.reported = None;
    assert_eq!(seen(&assigned, &other).state, DeviceState::Assigned);
}

#[test]
fn the_same_state_keeps_its_time() {
    let succeeded = noted(DeviceState::Succeeded, Some(50));
    let seen = seen(
        &succeeded,
        &device(bundle(2, Some("r2")), 2, 2, Progress::Succeeded),
    );
    assert_eq!(seen.state_since_ms, 100);
}

#[test]
fn a_pin_by_hand_takes_the_device_out() {
    let seen = seen(
        &noted(DeviceState::Working, Some(100)),
        &device(bundle(1, None), 1, 1, Progress::Succeeded),
    );
    assert_eq!(
        (seen.state, seen.assigned_at_ms),
        (DeviceState::Cancelled, None)
    );
}

#[test]
fn a_device_that_is_gone_is_cancelled_unless_it_was_done() {
    let gone = |state| observe(&rollout(), &row(), &noted(state, Some(1)), None, NOW).state;
    assert_eq!(gone(DeviceState::Waiting), DeviceState::Cancelled);
    assert_eq!(gone(DeviceState::Probation), DeviceState::Cancelled);
    assert_eq!(gone(DeviceState::Succeeded), DeviceState::Succeeded);
}

#[test]
fn a_device_on_the_way_back_arrives() {
    let back = noted(DeviceState::Succeeded, None);
    let still = device(bundle(1, None), 1, 2, Progress::Trial);
    assert_eq!(seen(&back, &still).state, DeviceState::Succeeded);
    let arrived = seen(&back, &device(bundle(1, None), 1, 1, Progress::Succeeded));
    assert_eq!(
        arrived.state,
        DeviceState::RolledBack {
            reason: "back on version 1".into()
        }
    );
    let mut unaware = device(bundle(1, None), 1, 1, Progress::Succeeded);
    unaware.reported.as_mut().unwrap().revision.generation = 1;
    assert_eq!(
        seen(&back, &unaware).state,
        DeviceState::Succeeded,
        "an old report says nothing about now"
    );
}

#[test]
fn a_failed_return_is_tried_again_later_and_later() {
    let mut back = noted(DeviceState::Succeeded, None);
    let failed = || Progress::Failed(Failure::new("hash", "mirror"));
    let stuck = device(bundle(1, None), 1, 2, failed());
    for (tries, wait_ms) in [(1, 30_000), (2, 60_000), (30, 3_600_000)] {
        back.way_back = Some(WayBack {
            tries,
            ..WayBack::default()
        });
        let seen = seen(&back, &stuck);
        let way = seen.way_back.clone().unwrap();
        assert_eq!(
            (seen.state, way.retry_at_ms),
            (DeviceState::Succeeded, Some(NOW + wait_ms))
        );
        assert_eq!(way.problem, "hash: mirror");
    }
}

#[test]
fn without_a_version_before_accepting_the_way_back_is_all() {
    let no_before = RolloutDeviceRow {
        before: None,
        ..row()
    };
    let mut taken_off = device(bundle(1, None), 1, 2, Progress::Idle);
    taken_off.desired.as_mut().unwrap().bundles.clear();
    taken_off.reported.as_mut().unwrap().target = None;
    let back = noted(DeviceState::Succeeded, None);
    let seen = observe(&rollout(), &no_before, &back, Some(&taken_off), NOW);
    assert_eq!(seen.state.name(), "rolled_back");
}

#[test]
fn who_is_wanted_elsewhere_on_the_way_back_is_let_go() {
    let back = noted(DeviceState::Succeeded, None);
    for elsewhere in [bundle(3, None), bundle(1, Some("r3"))] {
        let device = device(elsewhere, 2, 2, Progress::Succeeded);
        assert_eq!(seen(&back, &device).state, DeviceState::Cancelled);
    }
}

#[test]
fn a_silent_device_counts_again_only_once_it_was_heard() {
    let report = device(bundle(2, Some("r2")), 2, 1, Progress::Trial);
    let mut silent = noted(DeviceState::TimedOut, Some(100));
    silent.state_since_ms = 4000;
    assert_eq!(seen(&silent, &report).state, DeviceState::TimedOut);
    silent.state_since_ms = 3999;
    assert_eq!(seen(&silent, &report).state, DeviceState::Working);
}

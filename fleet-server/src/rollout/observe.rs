//! From what is stored of a device to what the planner sees of it. Pure.

use super::model::{DeviceObservation, DeviceState};
use crate::store::{DeviceRow, RolloutDeviceRow, RolloutRow};
use dunlin_protocol::report::{Failure, Progress, Reported};

/// The device as it is now: what was noted at the last tick, brought up to date by its newest
/// report. `None` for `device`: it is not known any more.
#[must_use]
pub fn observe(
    rollout: &RolloutRow,
    row: &RolloutDeviceRow,
    noted: &DeviceObservation,
    device: Option<&DeviceRow>,
    now_ms: i64,
) -> DeviceObservation {
    let mut seen = noted.clone();
    seen.stage = usize::try_from(row.stage).unwrap_or(usize::MAX);
    let Some(device) = device.filter(|device| !device.revoked) else {
        if !noted.state.is_terminal() {
            enter(&mut seen, DeviceState::Cancelled, now_ms);
        }
        seen.assigned_at_ms = None;
        return seen;
    };
    seen.last_seen_ms = device.last_seen_ms;
    if seen.assigned_at_ms.is_some() && !asks_for(rollout, device) {
        // An operator pinned something else; taking that back would undo their decision.
        seen.assigned_at_ms = None;
        enter(&mut seen, DeviceState::Cancelled, now_ms);
        return seen;
    }
    let Some(reported) = &device.reported else {
        return seen;
    };
    if seen.assigned_at_ms.is_some() {
        if let Some(state) = progress(rollout, reported) {
            enter(&mut seen, state, now_ms);
        }
    } else if is_on_the_way_back(&seen) && is_back(rollout, row, device, reported) {
        let reason = match &row.before {
            Some(before) => format!("back on version {}", before.version),
            None => "taken off, there was no version before".to_owned(),
        };
        enter(&mut seen, DeviceState::RolledBack { reason }, now_ms);
    }
    seen
}

/// Given back, and still on the version as far as anybody knows.
#[must_use]
pub fn is_on_the_way_back(device: &DeviceObservation) -> bool {
    device.assigned_at_ms.is_none()
        && (device.state.is_active() || device.state == DeviceState::Succeeded)
}

fn enter(seen: &mut DeviceObservation, state: DeviceState, now_ms: i64) {
    if seen.state.name() != state.name() {
        seen.state_since_ms = now_ms;
        seen.state = state;
    }
}

fn asks_for(rollout: &RolloutRow, device: &DeviceRow) -> bool {
    let bundles = device.desired.iter().flat_map(|desired| &desired.bundles);
    bundles
        .into_iter()
        .any(|bundle| bundle.rollout.as_ref() == Some(&rollout.id))
}

/// What the newest report says about this rollout's version, if it is about that at all.
fn progress(rollout: &RolloutRow, reported: &Reported) -> Option<DeviceState> {
    let is_ours = reported.rollout.as_ref() == Some(&rollout.id)
        && reported
            .target
            .as_ref()
            .is_some_and(|target| target.digest == rollout.digest);
    if !is_ours {
        return None;
    }
    let words = |failure: &Failure| format!("{}: {}", failure.code, failure.detail);
    match &reported.progress {
        Progress::Idle => None,
        Progress::Receiving { .. } | Progress::Trial => Some(DeviceState::Working),
        Progress::Probation { .. } => Some(DeviceState::Probation),
        Progress::Succeeded => Some(DeviceState::Succeeded),
        Progress::Refused(failure) => Some(DeviceState::Rejected {
            reason: words(failure),
        }),
        Progress::Failed(failure) => Some(DeviceState::Failed {
            reason: words(failure),
        }),
        Progress::RolledBack(failure) => Some(DeviceState::RolledBack {
            reason: words(failure),
        }),
    }
}

fn is_back(
    rollout: &RolloutRow,
    row: &RolloutDeviceRow,
    device: &DeviceRow,
    reported: &Reported,
) -> bool {
    let accepted = device
        .desired
        .as_ref()
        .is_none_or(|desired| reported.revision >= desired.revision);
    let active = reported
        .active
        .as_ref()
        .filter(|active| active.family == rollout.family);
    match (&row.before, active) {
        (Some(before), Some(active)) => accepted && active.digest == before.digest,
        (Some(_), None) => false,
        (None, active) => accepted && active.is_none_or(|active| active.digest != rollout.digest),
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;

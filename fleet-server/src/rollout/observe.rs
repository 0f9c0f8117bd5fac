//! From what is stored of a device to what the planner sees of it. Pure.

use super::model::{DeviceObservation, DeviceState, WayBack};
use crate::store::{DeviceRow, RolloutDeviceRow, RolloutRow};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::report::{Failure, ModelReport, Progress, Reported};

/// Least and longest wait before a device that could not go back is asked again.
const RETURN_RETRY_MIN_MS: i64 = 30_000;
const RETURN_RETRY_MAX_MS: i64 = 3_600_000;

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
    seen.waits_for = None;
    seen.had_version |= had_version(rollout, row, noted, device);
    if seen.assigned_at_ms.is_some() && !asks_for(rollout, device) {
        // An operator pinned something else; taking that back would undo their decision.
        seen.assigned_at_ms = None;
        enter(&mut seen, DeviceState::Cancelled, now_ms);
        return seen;
    }
    if seen.is_on_the_way_back() && !is_asked_back(rollout, row, device) {
        // Somebody, or a newer rollout, wants something else of it by now.
        enter(&mut seen, DeviceState::Cancelled, now_ms);
        return seen;
    }
    let Some(reported) = &device.reported else {
        return seen;
    };
    let model = reported.of(&rollout.family);
    if seen.assigned_at_ms.is_some() {
        // A silent device's old report says nothing: it must have been heard of since.
        let was_silent = matches!(noted.state, DeviceState::TimedOut | DeviceState::NotStarted);
        let heard_since = seen.last_seen_ms > Some(noted.state_since_ms);
        let state = model.as_ref().and_then(|model| progress(rollout, model));
        if let Some(state) = state.filter(|_| !was_silent || heard_since) {
            seen.waits_for = model.as_ref().and_then(|model| waits_for(&state, model));
            enter(&mut seen, state, now_ms);
        }
    } else if seen.is_on_the_way_back() {
        match way_back(row, device, reported, model.as_ref()) {
            Return::Underway => {}
            Return::Arrived => {
                let reason = match &row.before {
                    Some(before) => format!("back on version {}", before.version),
                    None => "taken off, there was no version before".to_owned(),
                };
                seen.way_back = None;
                enter(&mut seen, DeviceState::RolledBack { reason }, now_ms);
            }
            Return::Failed(problem) => note_failed_return(&mut seen, problem, now_ms),
        }
    }
    seen
}

/// Whether it ran the version before the rollout gave it.
fn had_version(
    rollout: &RolloutRow,
    row: &RolloutDeviceRow,
    noted: &DeviceObservation,
    device: &DeviceRow,
) -> bool {
    let before = row.before.as_ref();
    let reported = device.reported.as_ref();
    let model = reported.and_then(|reported| reported.of(&rollout.family));
    let active = model.and_then(|model| model.active);
    before.is_some_and(|before| before.digest == rollout.digest)
        || (noted.state == DeviceState::Waiting
            && active.is_some_and(|active| active.digest == rollout.digest))
}

/// Whether the device's desired state still names what it went back to.
fn is_asked_back(rollout: &RolloutRow, row: &RolloutDeviceRow, device: &DeviceRow) -> bool {
    let mut bundles = device.desired.iter().flat_map(|desired| &desired.bundles);
    let now = bundles.find(|bundle| bundle.family == rollout.family);
    let digest = |bundle: &DesiredBundle| bundle.digest;
    let is_of_a_rollout = now.is_some_and(|bundle| bundle.rollout.is_some());
    !is_of_a_rollout && now.map(digest) == row.before.as_ref().map(digest)
}

fn note_failed_return(seen: &mut DeviceObservation, problem: String, now_ms: i64) {
    let back = seen.way_back.get_or_insert_with(WayBack::default);
    if back.retry_at_ms.is_none() {
        let doublings = back.tries.saturating_sub(1).min(16);
        let wait_ms = (RETURN_RETRY_MIN_MS << doublings).min(RETURN_RETRY_MAX_MS);
        back.retry_at_ms = Some(now_ms.saturating_add(wait_ms));
        back.problem = problem;
    }
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
fn progress(rollout: &RolloutRow, reported: &ModelReport) -> Option<DeviceState> {
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

/// What the device itself says it waits for.
fn waits_for(state: &DeviceState, reported: &ModelReport) -> Option<String> {
    let waiting = reported.waiting.as_ref()?;
    (*state == DeviceState::Working).then(|| format!("{}: {}", waiting.code, waiting.detail))
}

/// How a device's return stands.
enum Return {
    Underway,
    Arrived,
    Failed(String),
}

/// A report counts only once it answers the newest desired state. Without a version before there
/// is nothing to install: the device keeps serving what it has, and accepting is all.
fn way_back(
    row: &RolloutDeviceRow,
    device: &DeviceRow,
    reported: &Reported,
    model: Option<&ModelReport>,
) -> Return {
    let desired = device.desired.as_ref();
    if desired.is_some_and(|desired| reported.revision < desired.revision) {
        return Return::Underway;
    }
    let Some(before) = &row.before else {
        return Return::Arrived;
    };
    let target = model.and_then(|model| model.target.as_ref());
    let Some(model) = model.filter(|_| target.is_some_and(|t| t.digest == before.digest)) else {
        return Return::Underway;
    };
    match &model.progress {
        Progress::Succeeded => Return::Arrived,
        Progress::Refused(failure) | Progress::Failed(failure) | Progress::RolledBack(failure) => {
            Return::Failed(format!("{}: {}", failure.code, failure.detail))
        }
        _ => Return::Underway,
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;

//! The planner: what to do next, and why nothing moves. Pure and total; the same input gives the
//! same output, in whatever order the devices are given. One transition per call.
//!
//! See [`Policy`] for the semantics it publishes and [`super::model`] for the drawing.

use super::model::{
    Action, DeviceObservation, DeviceState, PauseReason, Plan, RolloutState, StopReason,
};
use super::pairs;
use super::policy::{Policy, Stage};
use super::report::{GateRequest, Reason, ReasonCode, Report, StageReport, StateCounts};
use crate::drift::early::{EarlyInput, EarlyVerdict};
use crate::drift::gate::{self, Decision, GateInput, name_some};
use std::collections::BTreeSet;

mod early;

/// Everything a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// The rollout's policy, validated.
    pub policy: &'a Policy,
    /// Where it stands.
    pub state: &'a RolloutState,
    /// Its devices, one entry each.
    pub fleet: &'a [DeviceObservation],
    /// Devices that match the rollout and are not in its fleet. They join the last stage as long
    /// as that is not complete.
    pub joined: &'a [String],
    /// What the last report's [`GateRequest`] asked for; only looked at when the gate is due.
    pub gate: Option<&'a GateInput>,
    /// What the stage's pairs have shown so far; `None`: not looked at.
    pub early: Option<&'a EarlyInput>,
    /// Since when the server can hear devices without a break, unix ms; `None`: it cannot now.
    /// Silence counts from here at the earliest: an outage of the server is nobody's silence.
    pub listening_since_ms: Option<i64>,
    /// Unix ms.
    pub now_ms: i64,
}

/// Decides. See the module's text.
#[must_use]
pub fn plan(input: &PlanInput<'_>) -> (Plan, Report) {
    let mut planner = Planner::new(input);
    match input.state {
        RolloutState::Running { stage } => planner.run(*stage, true),
        RolloutState::Paused { stage, why } => {
            let (code, sentence) = pause_sentence(why);
            planner.run(*stage, false);
            if !planner.state.has_ended() {
                planner.headline(code, sentence);
            }
        }
        RolloutState::Stopped { why, .. } => planner.end(stop_code(why), stop_sentence(why)),
        RolloutState::Aborted { why } => {
            planner.end(
                ReasonCode::Aborted,
                format!("aborted by an operator: {why}"),
            );
        }
        RolloutState::Finished => {
            planner.say(
                ReasonCode::Finished,
                "finished: every stage is done".to_owned(),
            );
        }
    }
    planner.finish()
}

struct Planner<'a> {
    input: &'a PlanInput<'a>,
    stages: Vec<Stage>,
    /// Sorted by device id; marks of this tick are applied.
    fleet: Vec<DeviceObservation>,
    state: RolloutState,
    actions: Vec<Action>,
    reasons: Vec<Reason>,
    gate_request: Option<GateRequest>,
    verdict: Option<gate::Verdict>,
    early: Option<EarlyVerdict>,
}

impl<'a> Planner<'a> {
    fn new(input: &'a PlanInput<'a>) -> Self {
        let stages = input.policy.effective_stages();
        let mut fleet = input.fleet.to_vec();
        fleet.sort_by(|a, b| a.device.cmp(&b.device));
        fleet.dedup_by(|a, b| a.device == b.device);
        for device in &mut fleet {
            device.stage = device.stage.min(stages.len() - 1);
        }
        Self {
            input,
            stages,
            fleet,
            state: input.state.clone(),
            actions: Vec::new(),
            reasons: Vec::new(),
            gate_request: None,
            verdict: None,
            early: None,
        }
    }

    /// The order of evaluation that [`Policy`] publishes.
    fn run(&mut self, stage: usize, may_move: bool) {
        let stage = stage.min(self.stages.len() - 1);
        self.join();
        self.mark_silent(stage);
        if self.stop_on_errors(stage) || self.stop_early(stage) || !may_move {
            return;
        }
        if self.fleet.is_empty() {
            let sentence =
                "the rollout holds no devices: nothing to do, nothing verified".to_owned();
            return self.say(ReasonCode::NoDevices, sentence);
        }
        let assigned = self.assign(stage);
        let counts = self.counts(stage);
        let total = self.total(stage);
        if assigned > 0 {
            return;
        }
        if total == 0 {
            let sentence = format!(
                "stage {} has no devices and is skipped",
                self.stages[stage].name
            );
            self.say(ReasonCode::EmptyStageSkipped, sentence);
            return self.advance(stage);
        }
        if counts.active() > 0 {
            return self.wait_for_devices(stage, counts.active(), total);
        }
        let threshold = self.input.policy.success.0;
        if !threshold.met_by(counts.succeeded.into(), total.into()) {
            let succeeded = counts.succeeded;
            return self.pause(
                stage,
                PauseReason::BelowSuccess {
                    succeeded,
                    total,
                    threshold,
                },
            );
        }
        if self.soaks(stage) {
            return;
        }
        if self.gate_allows(stage) {
            self.advance(stage);
        }
    }

    fn join(&mut self) {
        let last = self.stages.len() - 1;
        let is_complete = self.total(last) > 0 && {
            let mut members = self.fleet.iter().filter(|device| device.stage == last);
            members.all(|device| device.state.is_terminal())
        };
        let known: BTreeSet<&str> = self
            .fleet
            .iter()
            .map(|device| device.device.as_str())
            .collect();
        let new: BTreeSet<&String> = self
            .input
            .joined
            .iter()
            .filter(|device| !known.contains(device.as_str()))
            .collect();
        if new.is_empty() {
            return;
        }
        let names: Vec<String> = new.iter().map(|device| (*device).clone()).collect();
        let last_name = self.stages[last].name.clone();
        if is_complete {
            let sentence = format!(
                "{} came too late: stage {last_name} is complete",
                name_some(&names, ", ")
            );
            return self.say(ReasonCode::Joining, sentence);
        }
        self.say(
            ReasonCode::Joining,
            format!("{} join stage {last_name}", name_some(&names, ", ")),
        );
        self.actions
            .extend(names.into_iter().map(|device| Action::Join {
                device,
                stage: last,
            }));
    }

    fn mark_silent(&mut self, stage: usize) {
        let (now_ms, deadline_ms) = (self.input.now_ms, self.input.policy.silence_ms);
        let Some(listening_ms) = self.input.listening_since_ms else {
            let sentence =
                "the server is not connected to the broker: silence is not counted".to_owned();
            return self.say(ReasonCode::NotListening, sentence);
        };
        let mut sentences = Vec::new();
        for device in self.fleet.iter_mut().filter(|device| device.stage <= stage) {
            let Some((state, silent_ms)) = silence(device, listening_ms, now_ms, deadline_ms)
            else {
                continue;
            };
            let name = device.device.clone();
            let (seconds, deadline) = (seconds(silent_ms), seconds(deadline_ms));
            if state == DeviceState::TimedOut {
                sentences.push(format!(
                    "{name} timed out: silent for {seconds} s, deadline {deadline} s"
                ));
                self.actions.push(Action::MarkTimedOut {
                    device: name,
                    silent_ms,
                });
            } else {
                sentences.push(format!(
                    "{name} not started: offline since before it was assigned, {seconds} s ago, deadline {deadline} s"
                ));
                self.actions.push(Action::MarkNotStarted {
                    device: name,
                    silent_ms,
                });
            }
            device.state = state;
            device.state_since_ms = now_ms;
        }
        if !sentences.is_empty() {
            self.say(ReasonCode::Silent, name_some(&sentences, "; "));
        }
    }

    fn stop_on_errors(&mut self, stage: usize) -> bool {
        let threshold = self.input.policy.error.0;
        for started in 0..=stage {
            let (errors, total) = (self.counts(started).errors(), self.total(started));
            if threshold.exceeded_by(errors.into(), total.into()) {
                let stage_name = self.stages[started].name.clone();
                self.stop(
                    stage,
                    StopReason::Errors {
                        stage_name,
                        errors,
                        total,
                        threshold,
                    },
                );
                return true;
            }
        }
        false
    }

    /// Gives the version to every waiting device of the started stages; returns how many.
    fn assign(&mut self, stage: usize) -> usize {
        let waiting: Vec<(String, usize)> = self
            .fleet
            .iter()
            .filter(|device| device.stage <= stage && device.state == DeviceState::Waiting)
            .map(|device| (device.device.clone(), device.stage))
            .collect();
        if !waiting.is_empty() {
            let names: Vec<String> = waiting.iter().map(|(device, _)| device.clone()).collect();
            let (name, count) = (&self.stages[stage].name, waiting.len());
            let sentence = format!(
                "stage {name}: assigning {count} devices: {}",
                name_some(&names, ", ")
            );
            self.headline(ReasonCode::Assigning, sentence);
        }
        let count = waiting.len();
        self.actions.extend(
            waiting
                .into_iter()
                .map(|(device, stage)| Action::Assign { device, stage }),
        );
        count
    }

    fn wait_for_devices(&mut self, stage: usize, active: u32, total: u32) {
        let deadline = seconds(self.input.policy.silence_ms);
        let now_ms = self.input.now_ms;
        let members = self
            .fleet
            .iter()
            .filter(|device| device.stage == stage && device.state.is_active());
        let named: Vec<String> = members
            .map(|device| {
                let heard_ms = device.last_seen_ms.unwrap_or(device.state_since_ms);
                let silent = seconds(elapsed_ms(heard_ms, now_ms));
                let (name, state) = (&device.device, device.state.name());
                match &device.waits_for {
                    Some(why) => format!("{name} waits ({why}), silent for {silent} s"),
                    None => format!("{name} {state}, silent for {silent} s"),
                }
            })
            .collect();
        let (name, named) = (&self.stages[stage].name, name_some(&named, "; "));
        let sentence = format!(
            "stage {name}: waiting for {active} of {total} devices ({named}; deadline for silence {deadline} s)"
        );
        self.say(ReasonCode::WaitingForDevices, sentence);
    }

    fn last_success_ms(&self, stage: usize) -> Option<i64> {
        let members = self.fleet.iter().filter(|device| device.stage == stage);
        members
            .filter(|device| device.state == DeviceState::Succeeded)
            .map(|d| d.state_since_ms)
            .max()
    }

    fn soaks(&mut self, stage: usize) -> bool {
        let Stage { name, soak_ms, .. } = self.stages[stage].clone();
        let since_ms = self.last_success_ms(stage).unwrap_or(self.input.now_ms);
        let left_ms = soak_ms.saturating_sub(elapsed_ms(since_ms, self.input.now_ms));
        if left_ms > 0 {
            let (left, soak) = (seconds(left_ms), seconds(soak_ms));
            self.say(
                ReasonCode::Soaking,
                format!("stage {name}: soaking, {left} of {soak} s left"),
            );
        }
        left_ms > 0
    }

    /// Whether the stage may be left; looks at the gate if there is one and it was fed.
    fn gate_allows(&mut self, stage: usize) -> bool {
        let name = self.stages[stage].name.clone();
        let Some(policy) = &self.input.policy.gate else {
            self.say(
                ReasonCode::GateOff,
                format!("stage {name}: the policy has no gate"),
            );
            return true;
        };
        let request = self.gate_request_for(stage);
        if request.controls.is_empty() {
            let sentence =
                format!("stage {name}: no gate, since no device is left on the version before");
            self.say(ReasonCode::NoControl, sentence);
            return true;
        }
        let Some(input) = self.input.gate else {
            let (canaries, controls) = (request.canaries.len(), request.controls.len());
            let sentence = format!(
                "stage {name}: the gate is due and waits for the telemetry of {canaries} canaries and {controls} controls"
            );
            self.gate_request = Some(request);
            self.say(ReasonCode::GateDue, sentence);
            return false;
        };
        let policy = policy.at_fixed_look(pairs::drawn(&self.fleet, stage));
        let verdict = gate::judge(&policy, &request.complete(input));
        self.verdict = Some(verdict.clone());
        match verdict.decision {
            Decision::Pass => {
                self.say(
                    ReasonCode::GatePassed,
                    format!("stage {name}: gate passed: {}", verdict.reason),
                );
                true
            }
            Decision::Hold => {
                self.gate_request = Some(request);
                self.say(
                    ReasonCode::GateHolds,
                    format!("stage {name}: gate holds: {}", verdict.reason),
                );
                false
            }
            Decision::Stop => {
                self.stop(
                    stage,
                    StopReason::Gate {
                        verdict: Box::new(verdict),
                    },
                );
                false
            }
        }
    }

    /// All successes up to the stage against all that still wait. A success of an *earlier* stage
    /// that has gone silent since is left out: its own stage was judged with it, and one device
    /// that is switched off must not hold the gates of all later stages.
    fn gate_request_for(&self, stage: usize) -> GateRequest {
        let PlanInput { now_ms, policy, .. } = *self.input;
        let is_present = |device: &DeviceObservation| {
            let heard_ms = device.last_seen_ms.unwrap_or(device.state_since_ms);
            device.stage == stage || elapsed_ms(heard_ms, now_ms) <= policy.silence_ms
        };
        let ids = |filter: &dyn Fn(&DeviceObservation) -> bool| {
            self.fleet
                .iter()
                .filter(|d| filter(d))
                .map(|d| d.device.clone())
                .collect::<Vec<_>>()
        };
        let first_assigned_ms = self
            .fleet
            .iter()
            .filter_map(|device| device.assigned_at_ms)
            .min();
        GateRequest {
            stage,
            canaries: ids(&|d| {
                d.stage <= stage
                    && d.state == DeviceState::Succeeded
                    && !d.had_version
                    && is_present(d)
            }),
            controls: ids(&|d| {
                d.stage > stage && d.state == DeviceState::Waiting && !d.had_version
            }),
            before_until_ms: first_assigned_ms.unwrap_or(now_ms),
            after_from_ms: self.last_success_ms(stage).unwrap_or(now_ms),
            after_until_ms: now_ms,
        }
    }

    fn advance(&mut self, stage: usize) {
        let next = stage + 1;
        if let Some(following) = self.stages.get(next) {
            let sentence = format!(
                "stage {} is done, on to stage {}",
                self.stages[stage].name, following.name
            );
            self.say(ReasonCode::Advancing, sentence);
            self.actions.push(Action::Advance { stage: next });
            self.state = RolloutState::Running { stage: next };
        } else {
            self.say(
                ReasonCode::Finished,
                "finished: every stage is done".to_owned(),
            );
            self.actions.push(Action::Finish);
            self.state = RolloutState::Finished;
        }
    }

    fn pause(&mut self, stage: usize, why: PauseReason) {
        let (code, sentence) = pause_sentence(&why);
        self.headline(
            code,
            format!("stage {}: {sentence}", self.stages[stage].name),
        );
        self.actions.push(Action::Pause {
            stage,
            why: why.clone(),
        });
        self.state = RolloutState::Paused { stage, why };
    }

    fn stop(&mut self, stage: usize, why: StopReason) {
        self.actions
            .retain(|action| !matches!(action, Action::Join { .. }));
        self.reasons
            .retain(|reason| reason.code != ReasonCode::Joining);
        self.headline(stop_code(&why), stop_sentence(&why));
        self.actions.push(Action::Stop {
            stage,
            why: why.clone(),
        });
        self.state = RolloutState::Stopped { stage, why };
        self.roll_back();
    }

    /// A rollout that has ended badly: takes back what still names the version.
    fn end(&mut self, code: ReasonCode, sentence: String) {
        self.say(code, sentence);
        self.roll_back();
        let underway: Vec<String> = self
            .fleet
            .iter()
            .filter(|device| device.is_on_the_way_back())
            .map(|device| device.device.clone())
            .collect();
        if !underway.is_empty() {
            let sentence = format!("on the way back: {}", name_some(&underway, ", "));
            self.say(ReasonCode::RollingBack, sentence);
        }
        self.say_who_cannot_go_back();
    }

    fn say_who_cannot_go_back(&mut self) {
        let now_ms = self.input.now_ms;
        let stuck: Vec<String> = self
            .fleet
            .iter()
            .filter_map(|device| Some((&device.device, device.way_back.as_ref()?)))
            .filter(|(_, back)| back.retry_at_ms.is_some())
            .map(|(device, back)| {
                let left_s =
                    seconds(elapsed_ms(now_ms, back.retry_at_ms.unwrap_or(now_ms)) / 1000 * 1000);
                format!(
                    "{device} could not go back ({}), asked {} times, again in {left_s} s",
                    back.problem, back.tries
                )
            })
            .collect();
        if !stuck.is_empty() {
            self.say(ReasonCode::WayBackFailed, name_some(&stuck, "; "));
        }
    }

    /// Takes back what was given, and asks again those that could not go back and are due.
    fn roll_back(&mut self) {
        let now_ms = self.input.now_ms;
        let is_due = |device: &DeviceObservation| {
            let back = device.way_back.as_ref();
            let retry_at_ms = back.and_then(|back| back.retry_at_ms);
            device.is_on_the_way_back() && retry_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
        };
        let given = self
            .fleet
            .iter()
            .filter(|device| device.assigned_at_ms.is_some() || is_due(device));
        let devices: Vec<String> = given.map(|device| device.device.clone()).collect();
        if devices.is_empty() {
            return;
        }
        let (count, named) = (devices.len(), name_some(&devices, ", "));
        let sentence = format!("{count} devices go back to the version before: {named}");
        self.say(ReasonCode::RollingBack, sentence);
        self.actions.push(Action::RollBack { devices });
    }

    fn total(&self, stage: usize) -> u32 {
        let members = self.fleet.iter().filter(|device| device.stage == stage);
        u32::try_from(members.count()).unwrap_or(u32::MAX)
    }

    fn counts(&self, stage: usize) -> StateCounts {
        let mut counts = StateCounts::default();
        let members = self.fleet.iter().filter(|device| device.stage == stage);
        members.for_each(|device| counts.add(&device.state));
        counts
    }

    fn say(&mut self, code: ReasonCode, sentence: String) {
        self.reasons.push(Reason { code, sentence });
    }

    fn headline(&mut self, code: ReasonCode, sentence: String) {
        self.reasons.insert(0, Reason { code, sentence });
    }

    fn finish(mut self) -> (Plan, Report) {
        self.say_early();
        let stages = (0..self.stages.len())
            .map(|index| StageReport {
                name: self.stages[index].name.clone(),
                total: self.total(index),
                counts: self.counts(index),
            })
            .collect();
        let report = Report {
            state: self.state.clone(),
            stages,
            reasons: self.reasons,
            gate_request: self.gate_request,
            verdict: self.verdict,
            early: self.early,
        };
        (
            Plan {
                actions: self.actions,
                next_state: self.state,
            },
            report,
        )
    }
}

/// The state a device falls into by silence, and how long it has been silent, if it is overdue.
fn silence(
    device: &DeviceObservation,
    listening_ms: i64,
    now_ms: i64,
    deadline_ms: u64,
) -> Option<(DeviceState, u64)> {
    if !device.state.is_active() {
        return None;
    }
    let assigned_ms = device.assigned_at_ms.unwrap_or(device.state_since_ms);
    let seen_ms = device.last_seen_ms.filter(|seen| *seen >= assigned_ms);
    let (state, heard_ms) = match (seen_ms, &device.state) {
        (None, DeviceState::Assigned) => (DeviceState::NotStarted, assigned_ms),
        (None, _) => (
            DeviceState::TimedOut,
            device.state_since_ms.max(assigned_ms),
        ),
        (Some(seen), _) => (DeviceState::TimedOut, seen),
    };
    let silent_ms = elapsed_ms(heard_ms.max(listening_ms), now_ms);
    (silent_ms > deadline_ms).then_some((state, silent_ms))
}

/// Time between two moments in milliseconds, 0 if the clock was set back in between.
fn elapsed_ms(from_ms: i64, now_ms: i64) -> u64 {
    u64::try_from(now_ms.saturating_sub(from_ms)).unwrap_or(0)
}

/// Milliseconds as seconds with one decimal where it is not whole.
fn seconds(ms: u64) -> String {
    match ms % 1000 / 100 {
        0 => format!("{}", ms / 1000),
        tenths => format!("{}.{tenths}", ms / 1000),
    }
}

fn pause_sentence(why: &PauseReason) -> (ReasonCode, String) {
    match why {
        PauseReason::BelowSuccess {
            succeeded,
            total,
            threshold,
        } => {
            let needed = threshold.in_words();
            let sentence = format!(
                "paused: complete, but {succeeded} of {total} succeeded and {needed} is needed"
            );
            (ReasonCode::BelowSuccess, sentence)
        }
        PauseReason::Operator { why } => (
            ReasonCode::PausedByOperator,
            format!("paused by an operator: {why}"),
        ),
    }
}

fn stop_code(why: &StopReason) -> ReasonCode {
    match why {
        StopReason::Errors { .. } => ReasonCode::TooManyErrors,
        StopReason::Gate { .. } => ReasonCode::GateStopped,
        StopReason::Early { .. } => ReasonCode::EarlyStopped,
    }
}

fn stop_sentence(why: &StopReason) -> String {
    match why {
        StopReason::Errors {
            stage_name,
            errors,
            total,
            threshold,
        } => {
            let tolerated = threshold.in_words();
            format!(
                "stopped: {errors} of {total} devices of stage {stage_name} failed, {tolerated} is tolerated"
            )
        }
        StopReason::Gate { verdict } => format!("stopped by the gate: {}", verdict.reason),
        StopReason::Early { verdict } => format!("stopped early: {}", verdict.reason),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

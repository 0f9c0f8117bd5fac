//! What the planner tells people: counts per stage, and why nothing moves.

use super::model::{DeviceState, RolloutState};
use crate::drift::early::EarlyVerdict;
use crate::drift::gate::{DeviceSample, GateInput, Period, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use utoipa::ToSchema;

/// The planner's account of one tick.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// The rollout's state after the plan.
    pub state: RolloutState,
    /// One per effective stage, in order; marks of this tick are counted already.
    pub stages: Vec<StageReport>,
    /// What happens or why nothing does; the first is the headline. Never empty.
    pub reasons: Vec<Reason>,
    /// Set while the gate waits to be fed: call the planner again with what this asks for.
    pub gate_request: Option<GateRequest>,
    /// Set when the gate was looked at in this tick.
    pub verdict: Option<Verdict>,
    /// How the stage looks early, while there is anything to compare it with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early: Option<EarlyVerdict>,
}

impl Report {
    /// The first reason's sentence.
    #[must_use]
    pub fn headline(&self) -> &str {
        self.reasons.first().map_or("", |reason| &reason.sentence)
    }
}

/// Counts of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageReport {
    /// The stage's name.
    pub name: String,
    /// The denominator of its thresholds.
    pub total: u32,
    /// Devices by state.
    pub counts: StateCounts,
}

/// Devices by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[allow(
    missing_docs,
    reason = "named and documented as the variants of DeviceState"
)]
pub struct StateCounts {
    pub waiting: u32,
    pub assigned: u32,
    pub working: u32,
    pub probation: u32,
    pub succeeded: u32,
    pub failed: u32,
    pub rejected: u32,
    pub rolled_back: u32,
    pub timed_out: u32,
    pub not_started: u32,
    pub cancelled: u32,
}

impl StateCounts {
    /// Counts one more device.
    pub fn add(&mut self, state: &DeviceState) {
        let count = match state {
            DeviceState::Waiting => &mut self.waiting,
            DeviceState::Assigned => &mut self.assigned,
            DeviceState::Working => &mut self.working,
            DeviceState::Probation => &mut self.probation,
            DeviceState::Succeeded => &mut self.succeeded,
            DeviceState::Failed { .. } => &mut self.failed,
            DeviceState::Rejected { .. } => &mut self.rejected,
            DeviceState::RolledBack { .. } => &mut self.rolled_back,
            DeviceState::TimedOut => &mut self.timed_out,
            DeviceState::NotStarted => &mut self.not_started,
            DeviceState::Cancelled => &mut self.cancelled,
        };
        *count += 1;
    }

    /// Failed + rejected + rolled back + timed out.
    #[must_use]
    pub fn errors(&self) -> u32 {
        self.failed + self.rejected + self.rolled_back + self.timed_out
    }

    /// Assigned + working + probation.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.assigned + self.working + self.probation
    }

    fn named(&self) -> [(&'static str, u32); 11] {
        [
            ("waiting", self.waiting),
            ("assigned", self.assigned),
            ("working", self.working),
            ("probation", self.probation),
            ("succeeded", self.succeeded),
            ("failed", self.failed),
            ("rejected", self.rejected),
            ("rolled back", self.rolled_back),
            ("timed out", self.timed_out),
            ("not started", self.not_started),
            ("cancelled", self.cancelled),
        ]
    }
}

/// What happened or what is waited for, for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// The rollout holds no device: nothing to do and nothing verified.
    NoDevices,
    /// Devices are given the version now.
    Assigning,
    /// Later comers are put into the last stage.
    Joining,
    /// Devices fell silent beyond the deadline.
    Silent,
    /// Devices of the stage have not reported their end.
    WaitingForDevices,
    /// The fixed soak runs.
    Soaking,
    /// The gate is to be fed.
    GateDue,
    /// The gate holds for lack of data.
    GateHolds,
    /// The gate passed.
    GatePassed,
    /// The stage has no concurrent control, hence no gate.
    NoControl,
    /// The policy has no gate.
    GateOff,
    /// The stage has no devices and is skipped.
    EmptyStageSkipped,
    /// On to the next stage.
    Advancing,
    /// Complete, but fewer succeeded than asked for.
    BelowSuccess,
    /// An operator paused it.
    PausedByOperator,
    /// More errors than tolerated.
    TooManyErrors,
    /// The gate found a regression.
    GateStopped,
    /// What the early look sees, or how many devices it lacks.
    EarlyLook,
    /// The early look found a regression.
    EarlyStopped,
    /// Devices go back to the version before.
    RollingBack,
    /// Devices said that they cannot go back; they are asked again.
    WayBackFailed,
    /// The server cannot hear devices, so that nobody's silence counts.
    NotListening,
    /// The last look at the rollout failed; nothing was changed by it.
    StepFailed,
    /// All stages are done.
    Finished,
    /// An operator ended it.
    Aborted,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// For machines.
    pub code: ReasonCode,
    /// For people, with the numbers.
    pub sentence: String,
}

/// What the gate wants to be fed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GateRequest {
    /// Index of the stage that is to be judged.
    pub stage: usize,
    /// Devices on the new version, sorted: the stage's successes and those of earlier stages.
    pub canaries: Vec<String>,
    /// Devices still on the version before, sorted.
    pub controls: Vec<String>,
    /// `before` of every device ends here: the rollout's first assignment, unix ms.
    pub before_until_ms: i64,
    /// `after` of every device begins here: the stage's last success, unix ms.
    pub after_from_ms: i64,
    /// `after` of every device ends here, unix ms. Grows with each tick while the gate holds.
    pub after_until_ms: i64,
}

impl GateRequest {
    /// Exactly the devices asked for, sorted: one that the telemetry does not know gets empty
    /// periods, so that a canary without data makes the gate hold instead of dropping out of it;
    /// one that was not asked for is dropped. This is what is judged, and what to store beside
    /// the verdict so that it can be replayed.
    #[must_use]
    pub fn complete(&self, found: &GateInput) -> GateInput {
        let side = |wanted: &[String], samples: &[DeviceSample]| {
            let mut by_device = BTreeMap::<&str, Vec<&DeviceSample>>::new();
            for sample in samples {
                by_device.entry(&sample.device).or_default().push(sample);
            }
            let empty = |device: &String| DeviceSample {
                device: device.clone(),
                before: Period::default(),
                after: Period::default(),
            };
            wanted
                .iter()
                .flat_map(|device| match by_device.get(device.as_str()) {
                    Some(found) => found.iter().copied().cloned().collect(),
                    None => vec![empty(device)],
                })
                .collect()
        };
        GateInput {
            canaries: side(&self.canaries, &found.canaries),
            controls: side(&self.controls, &found.controls),
        }
    }
}

impl fmt::Display for RolloutState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { stage } => write!(f, "running stage {stage}"),
            Self::Paused { stage, .. } => write!(f, "paused at stage {stage}"),
            Self::Stopped { stage, .. } => write!(f, "stopped at stage {stage}"),
            Self::Finished => f.write_str("finished"),
            Self::Aborted { .. } => f.write_str("aborted"),
        }
    }
}

impl fmt::Display for StageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.total)?;
        let filled = self
            .counts
            .named()
            .into_iter()
            .filter(|(_, count)| *count > 0);
        for (at, (name, count)) in filled.enumerate() {
            write!(f, "{} {count} {name}", if at == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

/// As a few lines of text, the same for the same report.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.state)?;
        for stage in &self.stages {
            writeln!(f, "  {stage}")?;
        }
        for reason in &self.reasons {
            writeln!(f, "  - {}", reason.sentence)?;
        }
        Ok(())
    }
}

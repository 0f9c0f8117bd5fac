//! A running rollout as the planner sees it: its state, its devices, and what may be done.
//!
//! ```text
//!              Advance            Finish
//!  Running{0} ────────▶ … Running{last} ────────▶ Finished
//!     │  ▲                  │  ▲
//!     │  └── resume ──┐     │  │       Pause: complete but below success, or an operator
//!     ├── Pause ──▶ Paused ◀┘  │
//!     │               │  └─────┘ resume (looks at the same stage again)
//!     │               │
//!     └── Stop ◀──────┘            Stop: errors above their threshold, the early look or the gate
//!           ▼                      Aborted: an operator, from Running or Paused
//!        Stopped / Aborted ──▶ every device given the version goes back to the one before
//! ```

use crate::drift::early::EarlyVerdict;
use crate::drift::gate::Verdict;
use crate::rollout::ratio::Ratio;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// A rollout's id, as the store gave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct RolloutId(pub String);

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One device of a rollout at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceObservation {
    /// Device id.
    pub device: String,
    /// Index of its effective stage; an index beyond the last counts as the last.
    pub stage: usize,
    /// How far it is.
    pub state: DeviceState,
    /// When it entered that state, by the server's clock, unix ms.
    pub state_since_ms: i64,
    /// When the server last heard anything of it, unix ms.
    pub last_seen_ms: Option<i64>,
    /// When its desired state was set to this rollout's version, unix ms; `None` before that,
    /// and again once its desired state was set back.
    pub assigned_at_ms: Option<i64>,
    /// It ran the version before the rollout gave it, so that it can show nothing about it: it is
    /// neither canary nor control.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub had_version: bool,
    /// What it waits for before it activates the version, in its own words: its maintenance window,
    /// or somebody there who holds it back. It is in progress all the while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// The way back, once it was asked to go back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_back: Option<WayBack>,
}

impl DeviceObservation {
    /// Given back, and still on the version as far as anybody knows.
    #[must_use]
    pub fn is_on_the_way_back(&self) -> bool {
        self.assigned_at_ms.is_none()
            && (self.state.is_active() || self.state == DeviceState::Succeeded)
    }
}

/// A device's way back to the version before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct WayBack {
    /// How often it was asked.
    pub tries: u32,
    /// Its own words when it last could not; empty while nothing of the kind is known.
    pub problem: String,
    /// When it is asked again, unix ms; `None` while its answer is waited for.
    pub retry_at_ms: Option<i64>,
}

/// How far a device is with the version. See [`Policy`](super::policy::Policy) for what each
/// counts as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DeviceState {
    /// Its stage has not begun; it stays on the version before and serves as a control.
    Waiting,
    /// Its desired state names the version; nothing was heard of it about that yet.
    Assigned,
    /// It reported that it received the desired state and downloads, verifies, stages or waits.
    Working,
    /// The version runs and is on probation.
    Probation,
    /// Verified health: golden cases and probation passed, committed.
    Succeeded,
    /// An error: it tried and could not (download, disk, golden cases).
    Failed {
        /// The device's own words.
        reason: String,
    },
    /// An error: it refused before trying (signature, rollback floor, hardware).
    Rejected {
        /// The device's own words.
        reason: String,
    },
    /// An error while the rollout runs: it had the version and went back. After a stop or abort,
    /// simply that it is back.
    RolledBack {
        /// The device's own words.
        reason: String,
    },
    /// An error: it was heard of after the assignment and then fell silent.
    TimedOut,
    /// Neither error nor success: never heard of since before the assignment.
    NotStarted,
    /// Neither error nor success: taken out by an operator, or deleted.
    Cancelled,
}

impl DeviceState {
    /// Given the version and still expected to report.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self, Self::Assigned | Self::Working | Self::Probation)
    }

    /// Counts against the error threshold.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(
            self,
            Self::Failed { .. } | Self::Rejected { .. } | Self::RolledBack { .. } | Self::TimedOut
        )
    }

    /// Nothing more is expected of the device in its stage.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        !self.is_active() && *self != Self::Waiting
    }

    /// Its name as in JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Assigned => "assigned",
            Self::Working => "working",
            Self::Probation => "probation",
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Rejected { .. } => "rejected",
            Self::RolledBack { .. } => "rolled_back",
            Self::TimedOut => "timed_out",
            Self::NotStarted => "not_started",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where a rollout stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum RolloutState {
    /// Devices up to this stage are given the version.
    Running {
        /// Index of the stage.
        stage: usize,
    },
    /// No device is given the version until somebody resumes; errors still stop it.
    Paused {
        /// Index of the stage.
        stage: usize,
        /// Why.
        why: PauseReason,
    },
    /// Ended by errors, by the early look or by the gate; its devices go back.
    Stopped {
        /// Index of the stage it had reached.
        stage: usize,
        /// Why.
        why: StopReason,
    },
    /// Every stage is done.
    Finished,
    /// Ended by an operator; its devices go back.
    Aborted {
        /// The operator's words.
        why: String,
    },
}

impl RolloutState {
    /// A new rollout.
    pub const START: Self = Self::Running { stage: 0 };

    /// Nothing more will be given to devices.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(
            self,
            Self::Stopped { .. } | Self::Finished | Self::Aborted { .. }
        )
    }

    /// Resumed by an operator: the *same* stage is looked at again, so that one which still is
    /// below its threshold pauses again. `None` unless paused.
    #[must_use]
    pub fn resumed(&self) -> Option<Self> {
        match self {
            Self::Paused { stage, .. } => Some(Self::Running { stage: *stage }),
            _ => None,
        }
    }

    /// Paused by an operator; `None` unless running.
    #[must_use]
    pub fn paused(&self, why: &str) -> Option<Self> {
        match self {
            Self::Running { stage } => {
                let why = PauseReason::Operator {
                    why: why.to_owned(),
                };
                Some(Self::Paused { stage: *stage, why })
            }
            _ => None,
        }
    }

    /// Aborted by an operator; `None` if it has ended already.
    #[must_use]
    pub fn aborted(&self, why: &str) -> Option<Self> {
        if self.has_ended() {
            None
        } else {
            Some(Self::Aborted {
                why: why.to_owned(),
            })
        }
    }
}

/// Why a rollout is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum PauseReason {
    /// The stage is complete and fewer succeeded than the policy asks for.
    BelowSuccess {
        /// Devices that succeeded.
        succeeded: u32,
        /// Devices of the stage.
        total: u32,
        /// Least share that must succeed.
        threshold: Ratio,
    },
    /// An operator.
    Operator {
        /// The operator's words.
        why: String,
    },
}

/// Why a rollout was stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum StopReason {
    /// More devices of a stage failed than tolerated.
    Errors {
        /// Name of the stage whose devices failed.
        stage_name: String,
        /// Devices that failed, rejected, rolled back or timed out.
        errors: u32,
        /// Devices of the stage.
        total: u32,
        /// Share that is tolerated.
        threshold: Ratio,
    },
    /// The gate found a regression.
    Gate {
        /// Everything it rests on.
        verdict: Box<Verdict>,
    },
    /// The early look found a regression.
    Early {
        /// Everything it rests on.
        verdict: Box<EarlyVerdict>,
    },
}

/// What the executor must do. Each may be done twice without harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Add a later comer to a stage, as `waiting`.
    Join {
        /// Device id.
        device: String,
        /// Index of the stage (the last).
        stage: usize,
    },
    /// Set the device's desired state to the version, mark it `assigned` with the time.
    Assign {
        /// Device id.
        device: String,
        /// Index of its stage.
        stage: usize,
    },
    /// Mark the device `timed_out`. Its desired state stays: it may come back and go on.
    MarkTimedOut {
        /// Device id.
        device: String,
        /// Time since the last sign of life, in milliseconds.
        silent_ms: u64,
    },
    /// Mark the device `not_started`. Its desired state stays: it may come back and begin.
    MarkNotStarted {
        /// Device id.
        device: String,
        /// Time since the assignment, in milliseconds.
        silent_ms: u64,
    },
    /// Go on to this stage.
    Advance {
        /// Index of the stage to run now.
        stage: usize,
    },
    /// Pause at this stage.
    Pause {
        /// Index of the stage.
        stage: usize,
        /// Why.
        why: PauseReason,
    },
    /// End the rollout; always with a [`RollBack`](Self::RollBack).
    Stop {
        /// Index of the stage it had reached.
        stage: usize,
        /// Why.
        why: StopReason,
    },
    /// Set these devices' desired state back to the version they had before (anew for those asked
    /// already), and clear their `assigned_at_ms`.
    RollBack {
        /// Device ids, sorted.
        devices: Vec<String>,
    },
    /// The rollout is done.
    Finish,
}

/// What to do now. Execution has no choices left; actions and the next state are to be written
/// in one transaction, together with the verdict in the report if there is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// In this order.
    pub actions: Vec<Action>,
    /// The rollout's state afterwards.
    pub next_state: RolloutState,
}

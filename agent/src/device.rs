//! The device's update state machine, pure: `step(state, event, now) -> (state, effects)`.
//!
//! The shell persists the new state *before* it carries out the effects, and carries out every
//! effect as if it might be the second time: after a cut at any moment, [`Event::Started`] asks
//! for what the persisted state still needs.
//!
//! ```text
//!            Desired           Received          Passed            Consent
//!   Idle ─────────────▶ Receiving ──────▶ Trial ─────────▶ Waiting ─────────▶ Probation
//!    ▲                   │  ▲ retry,       │        window, │  ▲               │   │
//!    │  refused, failed  └──┘ backoff      │ golden,  hold  └──┘               │   │ inferences
//!    ├───────────────────┴─────────────────┘ load, latency                     │   │ and time
//!    │   errors, slow, two deaths, five restarts, deadline, or the server      │   │ reached
//!    ├── RollingBack ◀── wants another version ────────────────────────────────┘   │
//!    │       (previous version serves again)                                       │
//!    └─────────────────────────────────────────────────────────────── kept ◀───────┘
//! ```
//!
//! `docs/update-states.md` has every transition; a test keeps it so.
//!
//! The slot that serves is never the slot that is written to. A version is kept only after the
//! worker said that it serves. A kept version that can no longer be served is kept no more: the
//! worker is emptied, the server is told, and the version is received again if it is still wanted.

mod backoff;
mod step;
pub mod window;

pub use step::step;

use crate::pipe::TrialReport;
use dunlin_protocol::command::{Desired, DesiredBundle};
use dunlin_protocol::id::{Digest, Revision, RolloutId};
use dunlin_protocol::report::{Failure, Hold, Installed, Progress, Reported, Waiting};
use serde::{Deserialize, Serialize};

/// One of the two places a bundle can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `slots/a`.
    A,
    /// `slots/b`.
    B,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Name of its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// A bundle in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Where.
    pub slot: Slot,
    /// What.
    pub bundle: Installed,
}

/// Where an update is. Each variant holds exactly what its state needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Nothing under way; how the last update ended.
    Idle {
        /// How it ended.
        last: Progress,
    },
    /// Metadata and blobs are fetched and staged.
    Receiving {
        /// What is wanted.
        want: DesiredBundle,
        /// Failed attempts so far.
        attempts: u32,
        /// Not before this time, in milliseconds since 1970.
        retry_at_ms: i64,
        /// Whether a fetch is under way.
        busy: bool,
    },
    /// Golden cases run in a process of their own.
    Trial {
        /// What is wanted.
        want: DesiredBundle,
        /// Times the trial was begun, clean ends of the agent left out: a model that takes the machine down is not tried for ever.
        starts: u32,
    },
    /// Passed its trial; is activated once the device's owner consents.
    Waiting {
        /// What is wanted.
        want: DesiredBundle,
        /// What it waits for; `None` until it was asked for.
        #[serde(default)]
        why: Option<Waiting>,
    },
    /// Serves, and is watched.
    Probation {
        /// What is wanted.
        want: DesiredBundle,
        /// Time in service so far.
        served_ms: u64,
        /// Whether the worker that lives now said that it serves this version; time in service
        /// counts, and the version may be kept, only then.
        #[serde(default)]
        activated: bool,
        /// Time spent waiting for the worker to say so.
        #[serde(default)]
        loading_ms: u64,
        /// Time of the last look.
        looked_at_ms: i64,
        /// Successful inferences of earlier worker lives.
        before: Count,
        /// Totals of this worker life.
        live: Count,
        /// Times the worker died.
        deaths: u32,
        /// Times the supervisor was started again after it had not ended cleanly.
        restarts: u32,
    },
    /// The version before is being put back.
    RollingBack {
        /// What did not hold.
        want: DesiredBundle,
        /// Why.
        failure: Failure,
    },
}

/// Inferences and errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Answered.
    pub inferences: u64,
    /// Failed.
    pub errors: u64,
    /// Of those answered, how many took longer than the manifest's latency budget.
    #[serde(default)]
    pub slow: u64,
}

impl Count {
    fn plus(self, other: Self) -> Self {
        Self {
            inferences: self.inferences.saturating_add(other.inferences),
            errors: self.errors.saturating_add(other.errors),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

/// All that survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Newest desired state accepted.
    pub revision: Revision,
    /// What that asked for, and for which rollout.
    pub target: Option<Installed>,
    /// The rollout that asked.
    pub rollout: Option<RolloutId>,
    /// The target as it was asked for, to receive it again should it break.
    #[serde(default)]
    pub wanted: Option<DesiredBundle>,
    /// The version that is kept: what serves, or what an unkept one falls back to.
    pub kept: Option<Held>,
    /// The version that was kept before, as long as its slot holds it: nobody's consent is needed
    /// to go back to it.
    #[serde(default)]
    pub previous: Option<Held>,
    /// Versions that did not hold here, the newest last; at most [`NOT_HELD_MAX`].
    #[serde(default)]
    pub not_held: Vec<NotHeld>,
    /// Whether somebody at the device holds updates back.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// Where the update is.
    pub phase: Phase,
    /// Newest installation by hand that was accepted.
    #[serde(default)]
    pub install: Option<String>,
    /// Set from an installation by hand on until the server says something newer.
    #[serde(default)]
    pub by_hand: Option<ByHand>,
    /// Whether the agent was asked to end and did, so that its next start is no sign of a crash.
    #[serde(default)]
    pub ended_cleanly: bool,
    /// Number of the last report.
    pub sequence: u64,
    /// Spreads retries of a fleet; derived from the device id.
    pub jitter_seed: u64,
}

/// What became of an installation by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ByHand {
    /// It is what is wanted.
    Wanted {
        /// What the server asked for and had not got yet.
        instead_of: Option<DesiredBundle>,
    },
    /// It did not hold, and what the server asked for is wanted again.
    GaveWay {
        /// Why.
        failure: Failure,
    },
}

/// Most versions that are remembered as not to be tried again.
pub const NOT_HELD_MAX: usize = 32;

/// A version that did not hold on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotHeld {
    /// The bundle.
    pub digest: Digest,
    /// Its version.
    pub version: u64,
    /// Code of the failure.
    pub code: String,
}

/// What the device's owner has to say about activating a version now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Consent {
    /// Held back by hand.
    pub hold: Option<Hold>,
    /// Outside the maintenance window, which opens then (milliseconds since 1970; `i64::MAX`: never).
    pub window_opens_ms: Option<i64>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The supervisor has started; the worker serves nothing yet.
    Started,
    /// The server says what it wants.
    Desired(Desired),
    /// Somebody at the device wants a bundle that was brought by hand.
    Install {
        /// Of the request: the same one counts once.
        id: String,
        /// What is wanted.
        want: DesiredBundle,
    },
    /// A fetch ended.
    Received {
        /// The bundle it was for.
        digest: Digest,
        /// Staged, or why not.
        result: Result<(), ReceiveFailure>,
    },
    /// A trial ended.
    TrialDone {
        /// The bundle it was for.
        digest: Digest,
        /// What it found.
        report: TrialReport,
    },
    /// The worker serves a bundle now.
    Activated {
        /// The bundle.
        digest: Digest,
    },
    /// The worker could not load a bundle that was to be served.
    ActivateFailed {
        /// The slot.
        slot: Slot,
        /// The bundle that was asked for.
        digest: Digest,
        /// Why.
        detail: String,
    },
    /// A bundle that was to be served is not whole on disk: the device's fault, not the bundle's.
    SlotDamaged {
        /// The slot.
        slot: Slot,
        /// The bundle that should be in it.
        digest: Digest,
        /// Why.
        detail: String,
    },
    /// The worker died; the shell starts another and has it serve [`State::serving`].
    WorkerDied {
        /// Exit status in words.
        detail: String,
        /// Whether it had opened its sockets: before that, no model can be the cause.
        listened: bool,
    },
    /// Totals of this worker life for a bundle.
    Counted {
        /// The bundle.
        digest: Digest,
        /// Its totals.
        count: Count,
    },
    /// What the device's owner has to say, as of now; asked for while a version waits, and told
    /// whenever a hold begins or ends.
    Consent(Consent),
    /// Time passed.
    Tick,
}

/// Why a fetch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveFailure {
    /// Whether trying again may help.
    pub kind: ReceiveFailureKind,
    /// Whether it brought bytes that the next attempt goes on from.
    pub progressed: bool,
    /// Code and detail.
    pub failure: Failure,
}

/// What a failed fetch means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveFailureKind {
    /// Never to be installed as it is.
    Refused,
    /// This device could not.
    Failed,
    /// The network or the server could not; try again.
    Transient,
}

/// What the shell must do, in order. Every effect may be repeated.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Fetch, verify and stage into the slot; answer with [`Event::Received`].
    Receive {
        /// What.
        want: DesiredBundle,
        /// Where to; never the slot that serves.
        slot: Slot,
    },
    /// Give up a fetch or trial that is under way.
    Cancel,
    /// Run the golden cases of a slot in a process of its own; answer with [`Event::TrialDone`].
    Trial {
        /// Which slot.
        slot: Slot,
        /// The bundle in it.
        digest: Digest,
    },
    /// Point `slots/current` at the slot, check that it is whole, tell the worker to serve it;
    /// answer with [`Event::SlotDamaged`] if it is not. Gives up an earlier one under way.
    Serve {
        /// Which slot.
        slot: Slot,
        /// The bundle in it.
        digest: Digest,
    },
    /// Nothing is fit to serve: take `slots/current` away and restart the worker empty.
    ServeNothing,
    /// Publish the reported state.
    Report,
    /// Record an event for the server.
    Event {
        /// Short and stable.
        code: &'static str,
        /// For people.
        detail: String,
        /// The bundle it is about.
        bundle: Option<Digest>,
    },
}

impl State {
    /// A device that has nothing yet.
    #[must_use]
    pub fn new(jitter_seed: u64) -> Self {
        Self {
            revision: Revision::default(),
            target: None,
            rollout: None,
            wanted: None,
            kept: None,
            previous: None,
            not_held: Vec::new(),
            hold: None,
            phase: Phase::Idle {
                last: Progress::Idle,
            },
            install: None,
            by_hand: None,
            ended_cleanly: false,
            sequence: 0,
            jitter_seed,
        }
    }

    /// The slot that serves, or should.
    #[must_use]
    pub fn serving(&self) -> Option<Slot> {
        match &self.phase {
            Phase::Probation { .. } => Some(self.spare()),
            _ => self.kept.as_ref().map(|h| h.slot),
        }
    }

    /// What a worker that serves nothing yet has to be told, if anything.
    #[must_use]
    pub fn serve(&self) -> Option<Effect> {
        let (slot, bundle) = self.serving().zip(self.active())?;
        let digest = bundle.digest;
        Some(Effect::Serve { slot, digest })
    }

    /// The bundles that this device has a use for: what is kept, what was kept before, what is under
    /// way. All else on its disk is garbage.
    #[must_use]
    pub fn in_use(&self) -> Vec<Digest> {
        let held = self.kept.iter().chain(&self.previous);
        let under_way = self.under_way().map(|want| want.digest);
        held.map(|h| h.bundle.digest).chain(under_way).collect()
    }

    /// What is wanted and not kept yet.
    #[must_use]
    pub fn under_way(&self) -> Option<&DesiredBundle> {
        match &self.phase {
            Phase::Idle { .. } => None,
            Phase::Receiving { want, .. }
            | Phase::Trial { want, .. }
            | Phase::Waiting { want, .. }
            | Phase::Probation { want, .. }
            | Phase::RollingBack { want, .. } => Some(want),
        }
    }

    /// Whether an update was given up for want of a link, so that what is half fetched of it is
    /// gone on from once it is asked for again.
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        let Phase::Idle {
            last: Progress::Failed(failure),
        } = &self.phase
        else {
            return false;
        };
        self.wanted.is_some() && failure.code == step::UNREACHABLE
    }

    /// Whether an update is under way, or will be gone on with.
    fn is_unfinished(&self) -> bool {
        self.under_way().is_some() || self.is_resumable()
    }

    /// The slot that may be written to.
    #[must_use]
    pub fn spare(&self) -> Slot {
        self.kept.as_ref().map_or(Slot::A, |h| h.slot.other())
    }

    /// What serves now.
    #[must_use]
    pub fn active(&self) -> Option<Installed> {
        match &self.phase {
            Phase::Probation { want, .. } => Some(installed(want)),
            _ => self.kept.as_ref().map(|h| h.bundle.clone()),
        }
    }

    /// Whether `other` differs from this in nothing but the counters of a probation: a cut may
    /// lose a few seconds of those.
    #[must_use]
    pub fn equals_but_for_counters(&self, other: &Self) -> bool {
        let plain = |state: &Self| {
            let mut state = state.clone();
            if let Phase::Probation {
                served_ms,
                loading_ms,
                looked_at_ms,
                live,
                ..
            } = &mut state.phase
            {
                (*served_ms, *loading_ms, *looked_at_ms) = (0, 0, 0);
                *live = Count::default();
            }
            state
        };
        plain(self) == plain(other)
    }

    /// What to tell the server.
    #[must_use]
    pub fn reported(&self, agent_version: &str) -> Reported {
        Reported {
            sequence: self.sequence,
            revision: self.revision,
            target: self.target.clone(),
            rollout: self.rollout.clone(),
            progress: self.progress(),
            waiting: self.waiting(),
            hold: self.hold.clone(),
            active: self.active(),
            agent_version: agent_version.to_owned(),
            trust: None,
        }
    }

    fn waiting(&self) -> Option<Waiting> {
        match &self.phase {
            Phase::Waiting { why, .. } => why.clone(),
            _ => None,
        }
    }

    fn progress(&self) -> Progress {
        match &self.phase {
            Phase::Idle { last } => last.clone(),
            Phase::Receiving { .. } => Progress::Receiving {
                done_bytes: 0,
                total_bytes: 0,
            },
            // Servers of before know no such state; [`Self::waiting`] says it.
            Phase::Trial { .. } | Phase::Waiting { .. } => Progress::Trial,
            Phase::Probation {
                want, before, live, ..
            } => Progress::Probation {
                inferences: before.plus(*live).inferences,
                needed: want.probation.inferences,
            },
            Phase::RollingBack { failure, .. } => Progress::RolledBack(failure.clone()),
        }
    }
}

fn installed(want: &DesiredBundle) -> Installed {
    Installed {
        family: want.family.clone(),
        version: want.version,
        digest: want.digest,
    }
}

#[cfg(test)]
mod tests;

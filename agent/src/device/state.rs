//! What a device remembers, and what follows from it.

use super::{Effect, installed, step};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::{Digest, Family, Revision, RolloutId};
use dunlin_protocol::report::{
    Failure, Hold, Installed, ModelReport, Progress, Reported, ShadowReport, Waiting,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// Runs in the shadow of the version that is kept and serves.
    Shadow {
        /// What is wanted.
        want: DesiredBundle,
        /// What it did in earlier worker lives.
        before: ShadowReport,
        /// What it did in this worker life.
        live: ShadowReport,
        /// Time of it so far.
        shadowed_ms: u64,
        /// Time of the last look.
        looked_at_ms: i64,
        /// Times the worker died at work on it.
        deaths: u32,
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
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            inferences: self.inferences.saturating_add(other.inferences),
            errors: self.errors.saturating_add(other.errors),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

/// Most model families a device runs.
pub const MODELS_MAX: usize = 16;

/// All of one model family that survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The desired state that asked for what is asked for now; none if nothing is.
    #[serde(default)]
    pub asked: Option<Revision>,
    /// What is asked for, and for which rollout.
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
    /// Where the update is.
    pub phase: Phase,
    /// Set from an installation by hand on until the server says something newer.
    #[serde(default)]
    pub by_hand: Option<ByHand>,
    /// How the target did in the shadow of the version before, once that has ended.
    #[serde(default)]
    pub shadowed: Option<ShadowReport>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            asked: None,
            target: None,
            rollout: None,
            wanted: None,
            kept: None,
            previous: None,
            not_held: Vec::new(),
            phase: Phase::Idle {
                last: Progress::Idle,
            },
            by_hand: None,
            shadowed: None,
        }
    }
}

/// All that survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Newest desired state accepted.
    pub revision: Revision,
    /// Every family that is or was asked for.
    pub models: BTreeMap<Family, Model>,
    /// Whether somebody at the device holds updates back.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// Newest installation by hand that was accepted.
    #[serde(default)]
    pub install: Option<String>,
    /// Whether the agent was asked to end and did, so that its next start is no sign of a crash.
    #[serde(default)]
    pub ended_cleanly: bool,
    /// Deaths of the worker that one of the kept versions may be the cause of.
    #[serde(default)]
    pub deaths: Deaths,
    /// Number of the last report.
    pub sequence: u64,
    /// Spreads retries of a fleet; derived from the device id.
    pub jitter_seed: u64,
}

/// Deaths of the worker in a row, and what was at work each time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deaths {
    /// How many.
    pub count: u32,
    /// When the last one was, in milliseconds since 1970.
    pub at_ms: i64,
    /// Bundles that were at work in every one of them.
    pub suspects: Vec<Digest>,
}

/// What became of an installation by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ByHand {
    /// It is what is wanted.
    Wanted {
        /// What the server asked for and had not got yet.
        instead_of: Option<Box<DesiredBundle>>,
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

impl Model {
    /// The slot that serves, or should.
    #[must_use]
    pub fn serving(&self) -> Option<Slot> {
        match &self.phase {
            Phase::Probation { .. } => Some(self.spare()),
            _ => self.kept.as_ref().map(|h| h.slot),
        }
    }

    /// What is wanted and not kept yet.
    #[must_use]
    pub fn under_way(&self) -> Option<&DesiredBundle> {
        match &self.phase {
            Phase::Idle { .. } => None,
            Phase::Receiving { want, .. }
            | Phase::Trial { want, .. }
            | Phase::Shadow { want, .. }
            | Phase::Waiting { want, .. }
            | Phase::Probation { want, .. }
            | Phase::RollingBack { want, .. } => Some(want),
        }
    }

    /// Whether a bundle is being fetched.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        matches!(self.phase, Phase::Receiving { .. })
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
    pub(super) fn is_unfinished(&self) -> bool {
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

    /// What a worker that serves nothing yet has to be told.
    pub(super) fn serve(&self, family: &Family) -> Vec<Effect> {
        let serving = self.serving().zip(self.active());
        let serve = serving.map(|(slot, bundle)| Effect::Serve {
            family: family.clone(),
            slot,
            digest: bundle.digest,
        });
        serve.into_iter().chain(self.shadow(family)).collect()
    }

    /// What it has to be told of a version in the shadow, if there is one.
    pub(super) fn shadow(&self, family: &Family) -> Option<Effect> {
        let Phase::Shadow { want, .. } = &self.phase else {
            return None;
        };
        Some(Effect::Shadow {
            family: family.clone(),
            slot: self.spare(),
            digest: want.digest,
            rules: want.probation.shadow.unwrap_or_default(),
        })
    }

    /// Bundles that there is a use for: what is kept, what was kept before, what is under way.
    fn in_use(&self) -> impl Iterator<Item = Digest> {
        let held = self.kept.iter().chain(&self.previous);
        let under_way = self.under_way().map(|want| want.digest);
        held.map(|h| h.bundle.digest).chain(under_way)
    }

    /// Whether nothing of the family is here, nor on its way, nor to be remembered.
    pub(super) fn is_blank(&self) -> bool {
        self.asked.is_none()
            && self.target.is_none()
            && self.kept.is_none()
            && self.under_way().is_none()
            && self.not_held.is_empty()
    }

    /// Without the counters of a probation.
    fn plain(&self) -> Self {
        let mut model = self.clone();
        if let Phase::Probation {
            served_ms,
            loading_ms,
            looked_at_ms,
            live,
            ..
        } = &mut model.phase
        {
            (*served_ms, *loading_ms, *looked_at_ms) = (0, 0, 0);
            *live = Count::default();
        }
        if let Phase::Shadow {
            live,
            shadowed_ms,
            looked_at_ms,
            ..
        } = &mut model.phase
        {
            (*shadowed_ms, *looked_at_ms) = (0, 0);
            *live = ShadowReport::default();
        }
        model
    }

    fn reported(&self, family: &Family) -> ModelReport {
        ModelReport {
            family: family.clone(),
            target: self.target.clone(),
            rollout: self.rollout.clone(),
            progress: self.progress(),
            waiting: self.waiting(),
            active: self.active(),
            shadow: self.shadow_so_far(),
        }
    }

    fn shadow_so_far(&self) -> Option<ShadowReport> {
        match &self.phase {
            Phase::Shadow { before, live, .. } => Some(before.plus(live)),
            _ => self.shadowed,
        }
    }

    /// Why it goes no further for now, if it waits.
    #[must_use]
    pub fn waiting(&self) -> Option<Waiting> {
        match &self.phase {
            Phase::Waiting { why, .. } => why.clone(),
            Phase::Shadow {
                want, before, live, ..
            } => Some(step::in_shadow(want, &before.plus(live))),
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
            Phase::Trial { .. } | Phase::Shadow { .. } | Phase::Waiting { .. } => Progress::Trial,
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

impl State {
    /// A device that has nothing yet.
    #[must_use]
    pub fn new(jitter_seed: u64) -> Self {
        Self {
            revision: Revision::default(),
            models: BTreeMap::new(),
            hold: None,
            install: None,
            ended_cleanly: false,
            deaths: Deaths::default(),
            sequence: 0,
            jitter_seed,
        }
    }

    /// What a worker that serves nothing yet has to be told.
    #[must_use]
    pub fn serve(&self) -> Vec<Effect> {
        let models = self.models.iter();
        models
            .flat_map(|(family, model)| model.serve(family))
            .collect()
    }

    /// What serves now, in order of the families.
    #[must_use]
    pub fn active(&self) -> Vec<Installed> {
        self.models.values().filter_map(Model::active).collect()
    }

    /// Whether the worker died and a version may be the cause of it.
    #[must_use]
    pub fn has_suspects(&self) -> bool {
        let mut phases = self.models.values().map(|model| &model.phase);
        let is_suspect = |phase: &Phase| match phase {
            Phase::Probation { deaths, .. } | Phase::Shadow { deaths, .. } => *deaths > 0,
            _ => false,
        };
        self.deaths.count > 0 || phases.any(is_suspect)
    }

    /// The bundles that this device has a use for. All else on its disk is garbage.
    #[must_use]
    pub fn in_use(&self) -> Vec<Digest> {
        self.models.values().flat_map(Model::in_use).collect()
    }

    /// Whether any update waits for the owner's consent.
    #[must_use]
    pub fn waits(&self) -> bool {
        let mut models = self.models.values();
        models.any(|model| matches!(model.phase, Phase::Waiting { .. }))
    }

    /// Whether `other` differs from this in nothing but the counters of probations: a cut may
    /// lose a few seconds of those.
    #[must_use]
    pub fn equals_but_for_counters(&self, other: &Self) -> bool {
        let plain = |state: &Self| {
            let mut state = state.clone();
            for model in state.models.values_mut() {
                *model = model.plain();
            }
            state
        };
        plain(self) == plain(other)
    }

    /// What to tell the server.
    #[must_use]
    pub fn reported(&self, agent_version: &str) -> Reported {
        let reports = self.models.iter().map(|(family, m)| m.reported(family));
        let models: Vec<ModelReport> = reports.collect();
        let busy = models.iter().find(|model| !model.progress.is_terminal());
        let first = busy.or_else(|| models.first()).cloned();
        let (target, rollout, progress, waiting, active) = match first {
            Some(m) => (m.target, m.rollout, m.progress, m.waiting, m.active),
            None => (None, None, Progress::Idle, None, None),
        };
        Reported {
            sequence: self.sequence,
            revision: self.revision,
            target,
            rollout,
            progress,
            waiting,
            hold: self.hold.clone(),
            active,
            agent_version: agent_version.to_owned(),
            trust: None,
            capture: None,
            models,
        }
    }
}

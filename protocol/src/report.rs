//! Device to server: presence and reported state.

use crate::id::{Digest, Family, Revision, RolloutId};
use serde::{Deserialize, Serialize};

/// Connected or not (channel `presence`, retained; the offline form is the last will).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Presence {
    /// Whether the device is connected.
    pub online: bool,
    /// Random id of the connection: the late last will of an old connection names another one
    /// than the hello of the new, and is ignored.
    pub connection: String,
    /// Version of the agent.
    pub agent_version: String,
}

/// A bundle on the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Installed {
    /// Its family.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Digest of its manifest.
    pub digest: Digest,
}

/// How far the device is with the newest desired state it accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Progress {
    /// Nothing was asked for yet.
    Idle,
    /// Metadata or blobs are being fetched.
    Receiving {
        /// Bytes on the device.
        done_bytes: u64,
        /// Bytes in all (0: not known yet).
        total_bytes: u64,
    },
    /// Golden cases are being run, or were passed: then [`Reported::waiting`] says what is waited for.
    Trial,
    /// Serving, not yet kept.
    Probation {
        /// Successful live inferences so far.
        inferences: u64,
        /// Inferences needed.
        needed: u64,
    },
    /// Kept: golden cases and probation passed.
    Succeeded,
    /// Not even tried: the metadata, the bundle or the device's capabilities forbid it.
    Refused(Failure),
    /// Tried, not activated: download, golden cases or loading failed.
    Failed(Failure),
    /// Activated, did not hold, back on the version before.
    RolledBack(Failure),
}

impl Progress {
    /// Whether the device will not move by itself any more.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(
            self,
            Self::Idle | Self::Succeeded | Self::Refused(_) | Self::Failed(_) | Self::RolledBack(_)
        )
    }
}

/// Why an update ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Failure {
    /// Short and stable, such as `threshold`, `hash`, `below_floor`, `golden`, `crash_loop`.
    pub code: String,
    /// What, where, expected and got; at most 500 characters.
    pub detail: String,
}

impl Failure {
    /// A failure whose detail is cut to what the wire allows.
    #[must_use]
    pub fn new(code: &str, detail: impl std::fmt::Display) -> Self {
        Self {
            code: code.to_owned(),
            detail: detail.to_string().chars().take(500).collect(),
        }
    }
}

/// Why a version that passed its golden cases is not activated yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Waiting {
    /// `window`: for the maintenance window; `hold`: somebody at the device holds updates back;
    /// `shadow`: it runs in the shadow of the version that serves, and is being compared.
    pub code: String,
    /// For people; at most 500 characters.
    pub detail: String,
    /// When that ends, in milliseconds since 1970 by the device's clock, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

/// Updates are held back at the device itself; what serves goes on, and it may always go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hold {
    /// Why, in the words of whoever did it; at most 200 characters.
    pub reason: String,
    /// Since when, in milliseconds since 1970 by the device's clock.
    pub since_ms: i64,
    /// Until when; absent: until it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

/// Versions of the newest metadata that a device trusts: after a restored backup the server signs
/// above them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TrustedVersions {
    /// Of the timestamp.
    pub timestamp: u64,
    /// Of the snapshot that it names.
    pub snapshot: u64,
}

/// What a version that runs in the shadow of another did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ShadowReport {
    /// Answers that were compared.
    pub compared: u64,
    /// Of those, how many agreed: the same class, or numbers within a hundredth of each other.
    pub agreed: u64,
    /// Of the labelled, how many it alone got right, or came closer with.
    pub won: u64,
    /// Of the labelled, how many only the serving version got right, or came closer with.
    pub lost: u64,
    /// Inputs that it failed on.
    pub failed: u64,
    /// Samples passed over: it was busy, or had used up its computing time.
    pub passed_over: u64,
    /// Its time for one answer, in microseconds: median since the worker started.
    pub latency_us: u64,
    /// The serving version's for the same inputs.
    pub serving_latency_us: u64,
}

impl ShadowReport {
    /// Both together, with the latencies of the other if it has any.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let latest = if other.compared > 0 { other } else { self };
        Self {
            compared: self.compared.saturating_add(other.compared),
            agreed: self.agreed.saturating_add(other.agreed),
            won: self.won.saturating_add(other.won),
            lost: self.lost.saturating_add(other.lost),
            failed: self.failed.saturating_add(other.failed),
            passed_over: self.passed_over.saturating_add(other.passed_over),
            latency_us: latest.latency_us,
            serving_latency_us: latest.serving_latency_us,
        }
    }
}

/// How a device stands with keeping inputs of its models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct CaptureReport {
    /// Whether its owner allows it at all.
    pub allow: bool,
    /// Sealed batches that wait to be fetched.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Batches since the agent started that were dropped unfetched: quota, age, or a disk that failed.
    pub lost: u64,
}

/// How a device stands with one model family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ModelReport {
    /// The family.
    pub family: Family,
    /// What the accepted desired state asks for of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Installed>,
    /// The rollout that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// How far the device is.
    pub progress: Progress,
    /// Why it goes no further for now, if it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// What serves now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Installed>,
    /// How the target did in the shadow of what serves, as long as it is the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowReport>,
}

/// The state a device is in (channel `reported`), sent at connect and at every change.
///
/// `target`, `rollout`, `progress`, `waiting` and `active` are those of one family, for readers that
/// know no more than one: of one under way if any is, else of the first. `models` has all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reported {
    /// Rises with every report of this device, over restarts: the server ignores older ones.
    pub sequence: u64,
    /// The newest desired state the device accepted.
    pub revision: Revision,
    /// What that desired state asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Installed>,
    /// The rollout that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// How far the device is.
    pub progress: Progress,
    /// Why it goes no further for now, if it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Whether updates are held back at the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// What serves now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Installed>,
    /// Version of the agent.
    pub agent_version: String,
    /// The metadata that it trusts; none before its first update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustedVersions>,
    /// Inputs that it keeps; agents of before leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureReport>,
    /// Every family that the device has something of, in order; agents of before leave it out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelReport>,
}

impl Reported {
    /// How the device stands with every family that it speaks of.
    #[must_use]
    pub fn all(&self) -> Vec<ModelReport> {
        if !self.models.is_empty() {
            return self.models.clone();
        }
        let of = |installed: &Installed| installed.family.clone();
        let target = self.target.as_ref().map(of);
        let active = self.active.as_ref().map(of);
        let mut all = Vec::new();
        if let Some(family) = target.clone().or_else(|| active.clone()) {
            all.push(ModelReport {
                active: self.active.clone().filter(|a| a.family == family),
                family,
                target: self.target.clone(),
                rollout: self.rollout.clone(),
                progress: self.progress.clone(),
                waiting: self.waiting.clone(),
                shadow: None,
            });
        }
        // An agent that runs one family alone may be on its way from one to another.
        if let Some(family) = active.filter(|family| target.is_some_and(|t| t != *family)) {
            all.push(ModelReport {
                family,
                target: None,
                rollout: None,
                progress: Progress::Idle,
                waiting: None,
                active: self.active.clone(),
                shadow: None,
            });
        }
        all
    }

    /// How the device stands with one family, if it speaks of it.
    #[must_use]
    pub fn of(&self, family: &Family) -> Option<ModelReport> {
        self.all().into_iter().find(|model| model.family == *family)
    }
}

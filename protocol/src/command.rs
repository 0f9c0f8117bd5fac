//! Server to device: desired state, commands and acknowledgements.
//!
//! Wire messages only ever gain optional fields; unknown fields are ignored.

use crate::id::{BootId, Digest, Family, Revision, RolloutId};
use serde::{Deserialize, Serialize};

/// Why a message from the wire is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than its kind may be.
    #[error("{what}: {got} bytes, at most {max} are accepted")]
    TooLarge {
        /// Kind of message.
        what: &'static str,
        /// Limit in bytes.
        max: usize,
        /// Length found.
        got: usize,
    },
    /// Not JSON of the kind's shape.
    #[error("{what}: {problem}")]
    Malformed {
        /// Kind of message.
        what: &'static str,
        /// What is wrong, and where.
        problem: String,
    },
}

/// Parses a bounded JSON message.
///
/// # Errors
/// Too long, or not of this shape.
pub fn parse<T: serde::de::DeserializeOwned>(
    what: &'static str,
    max: usize,
    bytes: &[u8],
) -> Result<T, MessageError> {
    if bytes.len() > max {
        return Err(MessageError::TooLarge {
            what,
            max,
            got: bytes.len(),
        });
    }
    serde_json::from_slice(bytes).map_err(|e| MessageError::Malformed {
        what,
        problem: e.to_string(),
    })
}

/// What a version has to go through on the device before it is kept.
///
/// It is kept once both `inferences` and `time_ms` are reached; the device goes back by itself
/// when `errors_max` or a share is exceeded, when the worker dies twice, or when `deadline_ms`
/// passes first.
///
/// A share of n ‰ is exceeded as soon as more than n ‰ of the inferences counted so far, or of
/// `inferences` while those are fewer, are of the kind: a verdict never falls on a handful, and one
/// that can no longer be avoided falls at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Probation {
    /// Least successful live inferences.
    pub inferences: u64,
    /// Least time in service, in milliseconds.
    pub time_ms: u64,
    /// Most failed inferences.
    pub errors_max: u64,
    /// Longest time, in milliseconds.
    pub deadline_ms: u64,
    /// Most failed inferences, in ‰ of all; absent: `errors_max` alone counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_permille_max: Option<u64>,
    /// Most inferences that take longer than the manifest's latency budget, in ‰ of those answered;
    /// absent: [`SLOW_PERMILLE_MAX`]; 1000: as many as may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_permille_max: Option<u64>,
    /// Whether to begin at all if the version did not hold on this device before. A person decides
    /// that; a device does not try such a version again by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry_rolled_back: bool,
    /// What comes before it is activated, where another version serves: it runs in that one's shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
}

/// A version runs in the shadow of the one that serves: on a sample of its inputs, off the way of
/// requests, its answers compared and thrown away.
///
/// It goes on to be activated once `comparisons` are reached and neither bound is broken, and counts
/// as failed when one is, when the worker dies of it twice, or when `deadline_ms` passes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Shadow {
    /// Least comparisons.
    pub comparisons: u64,
    /// Share of requests that are compared, in ‰.
    pub sample_permille: u64,
    /// Most computing time, in ‰ of one core; samples beyond are passed over, and counted.
    pub cpu_permille: u64,
    /// Least comparisons that agree, in ‰ of all; absent: counted only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement_permille_min: Option<u64>,
    /// Of the requests whose label an application sent along: most that it lost, less those that it
    /// won; absent: counted only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_losses_max: Option<u64>,
    /// Longest time, in milliseconds.
    pub deadline_ms: u64,
}

impl Default for Shadow {
    fn default() -> Self {
        Self {
            comparisons: 200,
            sample_permille: 100,
            cpu_permille: 100,
            agreement_permille_min: None,
            net_losses_max: None,
            deadline_ms: 24 * 3600 * 1000,
        }
    }
}

/// Half of all inferences, in ‰: as in a trial, the median has to keep the budget.
pub const SLOW_PERMILLE_MAX: u64 = 500;

impl Probation {
    /// Whether so many failed inferences are too many.
    #[must_use]
    pub fn forbids_errors(&self, errors: u64, answered: u64) -> bool {
        let all = answered.saturating_add(errors);
        let share = |permille| self.exceeds(errors, all, permille);
        errors > self.errors_max || self.errors_permille_max.is_some_and(share)
    }

    /// Whether so many inferences over the latency budget are too many.
    #[must_use]
    pub fn forbids_slow(&self, slow: u64, answered: u64) -> bool {
        let permille = self.slow_permille_max.unwrap_or(SLOW_PERMILLE_MAX);
        self.exceeds(slow, answered, permille)
    }

    fn exceeds(&self, part: u64, all: u64, permille: u64) -> bool {
        let all = u128::from(all.max(self.inferences));
        u128::from(part) * 1000 > all * u128::from(permille)
    }
}

impl Default for Probation {
    fn default() -> Self {
        Self {
            inferences: 50,
            time_ms: 60_000,
            errors_max: 0,
            deadline_ms: 24 * 3600 * 1000,
            errors_permille_max: None,
            slow_permille_max: None,
            retry_rolled_back: false,
            shadow: None,
        }
    }
}

/// One bundle the device should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DesiredBundle {
    /// The family it belongs to.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Path of its manifest among the signed targets.
    pub target: String,
    /// Digest of its manifest, as the server knows it. The signed metadata decide; a device whose
    /// metadata say otherwise refuses.
    pub digest: Digest,
    /// The rollout that asks for it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// What it must go through.
    #[serde(default)]
    pub probation: Probation,
    /// The desired state that asked for this bundle first: under another one since, with the same in
    /// here, nothing new is asked of the family. Absent: the desired state that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Revision>,
}

/// The state a device should reach (channel `desired`), republished at every connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Desired {
    /// Which desired state this is; a device refuses an older one.
    pub revision: Revision,
    /// What to run, at most one bundle a family.
    #[serde(default)]
    pub bundles: Vec<DesiredBundle>,
}

/// Something to do once (channel `command`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Command {
    /// Order; an older one is refused.
    pub revision: Revision,
    /// What to do.
    pub action: Action,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Publish presence and reported state again.
    Report,
    /// Close the current window and send all that is buffered.
    Flush,
    /// Ask the devices' routes what is wanted of the samples that the device keeps. Of no order: it
    /// may come often, late and twice.
    Capture,
}

/// Segments the server has committed (channel `ack`): exactly these may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ack {
    /// Life of the telemetry store.
    pub boot: BootId,
    /// Segment numbers, each one named.
    pub segments: Vec<u64>,
    /// The server's clock when this was sent, in milliseconds since 1970: how a device learns how far
    /// its own is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_time_ms: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_what_is_needed_until_there_is_more() {
        let rules = Probation {
            inferences: 100,
            errors_max: u64::MAX,
            errors_permille_max: Some(50),
            slow_permille_max: Some(10),
            ..Probation::default()
        };
        assert!(!rules.forbids_errors(5, 1) && rules.forbids_errors(6, 1));
        assert!(!rules.forbids_errors(10, 190) && rules.forbids_errors(11, 190));
        assert!(!rules.forbids_slow(1, 2) && rules.forbids_slow(2, 2));
        assert!(!rules.forbids_slow(2, 200) && rules.forbids_slow(3, 200));
        let most = Probation {
            slow_permille_max: Some(1000),
            ..rules
        };
        assert!(!most.forbids_slow(u64::MAX, u64::MAX));
    }

    #[test]
    fn without_shares_errors_are_counted_and_the_median_keeps_the_budget() {
        let rules = Probation {
            inferences: 10,
            errors_max: 2,
            ..Probation::default()
        };
        assert!(!rules.forbids_errors(2, 0) && rules.forbids_errors(3, 1_000_000));
        assert!(!rules.forbids_slow(5, 10) && rules.forbids_slow(6, 10));
        assert!(!rules.forbids_slow(6, 12));
    }
}

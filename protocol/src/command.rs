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
/// when `errors_max` is exceeded, when the worker dies twice, or when `deadline_ms` passes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// Least successful live inferences.
    pub inferences: u64,
    /// Least time in service, in milliseconds.
    pub time_ms: u64,
    /// Most failed inferences.
    pub errors_max: u64,
    /// Longest time, in milliseconds.
    pub deadline_ms: u64,
}

impl Default for Probation {
    fn default() -> Self {
        Self {
            inferences: 50,
            time_ms: 60_000,
            errors_max: 0,
            deadline_ms: 24 * 3600 * 1000,
        }
    }
}

/// One bundle the device should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// The state a device should reach (channel `desired`), republished at every connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Which desired state this is; a device refuses an older one.
    pub revision: Revision,
    /// What to run, at most one bundle a family.
    #[serde(default)]
    pub bundles: Vec<DesiredBundle>,
}

/// Something to do once (channel `command`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Order; an older one is refused.
    pub revision: Revision,
    /// What to do.
    pub action: Action,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Publish presence and reported state again.
    Report,
    /// Close the current window and send all that is buffered.
    Flush,
}

/// Segments the server has committed (channel `ack`): exactly these may be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Life of the telemetry store.
    pub boot: BootId,
    /// Segment numbers, each one named.
    pub segments: Vec<u64>,
}

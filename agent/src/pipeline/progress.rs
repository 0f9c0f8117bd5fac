//! What the pipelines' process says to the supervisor: JSON lines on its standard output.

use super::queue::Counts;
use serde::{Deserialize, Serialize};

/// Longest line, in bytes.
pub(crate) const LINE_MAX_BYTES: usize = 64 * 1024;

/// Why records fail or nothing moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Short and stable, such as `record` or `sink`.
    pub code: String,
    /// The last words.
    pub detail: String,
    /// How often since it was last told.
    pub times: u64,
}

/// One pipeline's counters since its process started, and what is new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its name.
    pub pipeline: String,
    /// Its counters.
    #[serde(flatten)]
    pub counts: Counts,
    /// What went wrong since the last time it was told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

//! What a pipeline runs by; checked where the configuration is read.

use super::place::{Sink, Source};
use super::queue::WhenFull;
use super::record::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Most pipelines of a device.
pub const PIPELINES_MAX: usize = 16;
/// Longest payload of one record, in bytes; a longer one is refused before it is read.
pub const PAYLOAD_MAX_BYTES: usize = 8 << 20;
/// Places in the queue unless the configuration says otherwise.
pub const QUEUE_DEFAULT: usize = 64;
/// Most places in a queue.
pub const QUEUE_MAX: usize = 4096;
/// Longest wait for an answer unless the configuration says otherwise, in milliseconds.
pub const TIMEOUT_DEFAULT_MS: u64 = 30_000;

/// What becomes of a file whose records are settled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// It goes to `done/` or `failed/` in its folder.
    #[default]
    Move,
    /// It is deleted if all its records were answered, and goes to `failed/` otherwise.
    Delete,
    /// It stays, and is remembered so that it is not read again.
    Keep,
}

impl After {
    /// Reads `move`, `delete` or `keep`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "move" => Some(Self::Move),
            "delete" => Some(Self::Delete),
            "keep" => Some(Self::Keep),
            _ => None,
        }
    }
}

/// One pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineSettings {
    /// Its name in metrics, logs and client ids: 1 to 32 of `a-z`, `0-9`, `-`, `_`.
    pub name: String,
    /// Where records come from.
    pub source: Source,
    /// The model family that answers.
    pub model: String,
    /// Where results go.
    pub sink: Sink,
    /// What a full queue does.
    pub when_full: WhenFull,
    /// How payloads are read; by source and file extension if none.
    pub format: Option<Format>,
    /// Places in the queue, 1 to 4096.
    pub queue: usize,
    /// Longest wait for one answer, in milliseconds.
    pub timeout_ms: u64,
    /// What becomes of files.
    pub after: After,
    /// Parameters of every request that does not say otherwise, such as the segment it belongs to.
    pub parameters: BTreeMap<String, String>,
    /// File with the broker's user (first line) and password (second line).
    pub credentials: Option<PathBuf>,
}

/// Whether a text may name a pipeline.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    (1..=32).contains(&text.len()) && text.chars().all(allowed)
}

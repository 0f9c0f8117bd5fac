//! A window as a row holds it: its counts as one Protocol Buffers message, whose numbers take a byte each
//! while they are small. What other columns hold (device, bundle, family, version, span) is not in it.
//! Rows of a server before this form are JSON.

use super::{Result, StoreError, digest, from_json, parsed, uint};
use crate::drift::query::Soundness;
use dunlin_protocol::distinct::Distinct;
use dunlin_protocol::id::DeviceId;
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::Window;
use prost::Message as _;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};

/// A stored window, or the sum of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedWindow {
    /// Who sent it.
    pub device: DeviceId,
    /// When it arrived, the last of several, in milliseconds since 1970.
    pub received_ms: i64,
    /// Windows of the device that it is the sum of; 1: as it came.
    pub parts: u64,
    /// How each part's confidences, entropies and features, in this order, were judged before they were
    /// added up; `None`: was not judged yet, or counts in no score.
    pub soundness: Option<Vec<Soundness>>,
    /// The window.
    pub window: Window,
}

impl ReceivedWindow {
    /// One that arrived.
    #[must_use]
    pub fn single(device: DeviceId, received_ms: i64, window: Window) -> Self {
        Self {
            device,
            received_ms,
            parts: 1,
            soundness: None,
            window,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Counts {
    #[prost(string, optional, tag = "1")]
    segment: Option<String>,
    #[prost(uint64, tag = "2")]
    inferences: u64,
    #[prost(uint64, tag = "3")]
    errors: u64,
    #[prost(uint64, tag = "4")]
    refused: u64,
    #[prost(uint64, tag = "5")]
    confidence_sum_micro: u64,
    #[prost(uint64, tag = "6")]
    entropy_sum_micro: u64,
    #[prost(uint64, repeated, tag = "7")]
    outputs: Vec<u64>,
    #[prost(message, optional, tag = "8")]
    confidence: Option<Bins>,
    #[prost(message, optional, tag = "9")]
    entropy: Option<Bins>,
    #[prost(message, repeated, tag = "10")]
    features: Vec<Bins>,
    #[prost(bytes = "vec", optional, tag = "11")]
    profile: Option<Vec<u8>>,
    #[prost(uint64, repeated, tag = "12")]
    latency: Vec<u64>,
    #[prost(message, optional, tag = "13")]
    expected_confusion: Option<Cells>,
}

/// One histogram.
#[derive(Clone, PartialEq, prost::Message)]
struct Bins {
    #[prost(uint64, repeated, tag = "1")]
    counts: Vec<u64>,
    #[prost(uint64, tag = "2")]
    under: u64,
    #[prost(uint64, tag = "3")]
    over: u64,
    #[prost(uint64, tag = "4")]
    nan: u64,
    #[prost(uint64, tag = "5")]
    pos_inf: u64,
    #[prost(uint64, tag = "6")]
    neg_inf: u64,
    #[prost(uint64, tag = "7")]
    missing: u64,
    /// See [`Distinct::to_bytes`].
    #[prost(bytes = "vec", optional, tag = "8")]
    distinct: Option<Vec<u8>>,
}

/// Wrapped, so that none and no cells differ.
#[derive(Clone, PartialEq, prost::Message)]
struct Cells {
    #[prost(uint64, repeated, tag = "1")]
    nano: Vec<u64>,
}

impl From<&Histogram> for Bins {
    fn from(histogram: &Histogram) -> Self {
        Self {
            counts: histogram.counts.clone(),
            under: histogram.under,
            over: histogram.over,
            nan: histogram.nan,
            pos_inf: histogram.pos_inf,
            neg_inf: histogram.neg_inf,
            missing: histogram.missing,
            distinct: histogram.distinct.as_ref().map(Distinct::to_bytes),
        }
    }
}

impl TryFrom<Bins> for Histogram {
    type Error = StoreError;

    fn try_from(bins: Bins) -> Result<Self> {
        let sketch = bins.distinct.as_deref().map(Distinct::from_bytes);
        let sketch = sketch.transpose().map_err(|e| StoreError::Damaged {
            what: "window",
            problem: e.to_string(),
        })?;
        Ok(Self {
            counts: bins.counts,
            under: bins.under,
            over: bins.over,
            nan: bins.nan,
            pos_inf: bins.pos_inf,
            neg_inf: bins.neg_inf,
            missing: bins.missing,
            distinct: sketch,
        })
    }
}

/// A window's counts as a row holds them.
pub(super) fn encode(window: &Window) -> Vec<u8> {
    let cells = window.expected_confusion_nano.as_ref();
    let counts = Counts {
        segment: window.segment.clone(),
        inferences: window.inferences,
        errors: window.errors,
        refused: window.refused,
        confidence_sum_micro: window.confidence_sum_micro,
        entropy_sum_micro: window.entropy_sum_micro,
        outputs: window.outputs.clone(),
        confidence: Some((&window.confidence).into()),
        entropy: Some((&window.entropy).into()),
        features: window.features.iter().map(Bins::from).collect(),
        profile: window.profile.map(|digest| digest.0.to_vec()),
        latency: window.latency.buckets.clone(),
        expected_confusion: cells.map(|nano| Cells { nano: nano.clone() }),
    };
    counts.encode_to_vec()
}

/// The window of a whole row.
pub(super) fn window(row: &SqliteRow) -> Result<Window> {
    let raw = row.try_get_raw("window")?;
    if raw.type_info().name() == "TEXT" {
        return from_json("window", row.try_get_unchecked("window")?);
    }
    let bytes: &[u8] = row.try_get_unchecked("window")?;
    let counts = Counts::decode(bytes).map_err(|e| StoreError::Damaged {
        what: "window",
        problem: e.to_string(),
    })?;
    let bundle: Vec<u8> = row.try_get("bundle")?;
    let profile = counts.profile.as_deref();
    let features = counts.features.into_iter();
    Ok(Window {
        bundle: digest("bundle", &bundle)?,
        family: parsed("family", row.try_get("family")?)?,
        version: uint(row, "version")?,
        start_ms: row.try_get("start_ms")?,
        end_ms: row.try_get("end_ms")?,
        segment: counts.segment,
        inferences: counts.inferences,
        errors: counts.errors,
        refused: counts.refused,
        confidence_sum_micro: counts.confidence_sum_micro,
        entropy_sum_micro: counts.entropy_sum_micro,
        outputs: counts.outputs,
        confidence: counts.confidence.unwrap_or_default().try_into()?,
        entropy: counts.entropy.unwrap_or_default().try_into()?,
        features: features.map(Histogram::try_from).collect::<Result<_>>()?,
        profile: profile.map(|raw| digest("profile", raw)).transpose()?,
        latency: Latency {
            buckets: counts.latency,
        },
        expected_confusion_nano: counts.expected_confusion.map(|cells| cells.nano),
    })
}

/// The row as it was received.
pub(super) fn received(row: &SqliteRow) -> Result<ReceivedWindow> {
    let judged: Option<Vec<u8>> = row.try_get("soundness")?;
    Ok(ReceivedWindow {
        device: parsed("device id", row.try_get("device")?)?,
        received_ms: row.try_get("received_ms")?,
        parts: uint(row, "parts")?,
        soundness: judged
            .map(|codes| codes.into_iter().map(soundness).collect())
            .transpose()?,
        window: window(row)?,
    })
}

/// The column `soundness`.
pub(super) fn codes(judged: &[Soundness]) -> Vec<u8> {
    let code = |one: &Soundness| match one {
        Soundness::Sound => 0,
        Soundness::Unusable => 1,
        Soundness::Constant => 2,
    };
    judged.iter().map(code).collect()
}

fn soundness(code: u8) -> Result<Soundness> {
    match code {
        0 => Ok(Soundness::Sound),
        1 => Ok(Soundness::Unusable),
        2 => Ok(Soundness::Constant),
        other => Err(StoreError::Damaged {
            what: "soundness",
            problem: format!("expected 0, 1 or 2, got {other}"),
        }),
    }
}

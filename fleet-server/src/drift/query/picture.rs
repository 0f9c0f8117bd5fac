//! What a picture of one signal shows: its bins, reference and live counts, and the deciding score.

use super::pool::{Column, Pool};
use super::{Drift, HistogramScore, Reference};
use crate::drift::statistics::Score;
use dunlin_protocol::sketch::{Edges, Histogram};

/// Names of the signals that are no input feature.
const OUTPUT_MIX: &str = "output_mix";
const CONFIDENCE: &str = "confidence";
const ENTROPY: &str = "entropy";

/// What the bins stand for.
#[derive(Debug, Clone, PartialEq)]
pub enum Bins {
    /// Left-closed bins between edges, and what lies outside.
    Edges(Vec<f64>),
    /// Classes by name.
    Classes(Vec<String>),
}

/// One signal of one version, reference and live.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The family.
    pub family: String,
    /// The version.
    pub version: u64,
    /// `canary`, `control` or `all`.
    pub cohort: String,
    /// The signal: a feature's name, `confidence`, `entropy` or `output_mix`.
    pub signal: String,
    /// Its bins.
    pub bins: Bins,
    /// Reference rows by bin.
    pub reference: Vec<u64>,
    /// Live values by bin.
    pub live: Vec<u64>,
    /// Live values below the lowest edge.
    pub under: u64,
    /// Live values at or above the highest.
    pub over: u64,
    /// NaN, infinite or missing values, which are in no bin.
    pub unusable: u64,
    /// Values of broken sensors, which are in no bin.
    pub isolated: u64,
    /// Population stability index; none if the reference fills fewer than two bins.
    pub score: Option<Score>,
    /// Start and end of the live windows, in milliseconds since 1970.
    pub span_ms: Option<(i64, i64)>,
}

/// A signal's picture; `None` if there is no such signal, or no reference.
pub(super) fn picture(
    drift: &Drift,
    pool: &Pool,
    reference: Option<&Reference>,
    signal: &str,
) -> Option<Picture> {
    let profile = &reference?.profile;
    let counts = pool.scored.as_ref();
    let empty = |edges: &Edges| Column::new(edges.bins());
    match signal {
        OUTPUT_MIX => {
            let mix = drift.output_mix.as_ref();
            let classes = &profile.outputs;
            let live = mix.map_or_else(|| vec![0; classes.counts.len()], |m| m.current.clone());
            let live = Histogram {
                counts: live,
                ..Histogram::default()
            };
            let mut picture = blank(drift, signal, &classes.counts, &live);
            picture.bins = Bins::Classes(classes.classes.clone());
            picture.score = mix.and_then(|mix| mix.scores.psi);
            Some(picture)
        }
        CONFIDENCE | ENTROPY => {
            let (of, column, score) = if signal == CONFIDENCE {
                let column = counts.map(|c| &c.confidence);
                (&profile.confidence, column, drift.confidence.as_ref())
            } else {
                let column = counts.map(|c| &c.entropy);
                (&profile.entropy, column, drift.entropy.as_ref())
            };
            let column = column.cloned().unwrap_or_else(|| empty(&of.edges));
            Some(histogram(
                drift,
                signal,
                (&of.edges, &of.counts),
                &column,
                score,
            ))
        }
        name => {
            let at = profile.features.iter().position(|f| f.name == name)?;
            let feature = profile.features.get(at)?;
            let column = counts.and_then(|c| c.features.get(at)).cloned();
            let column = column.unwrap_or_else(|| empty(&feature.edges));
            let of = (&feature.edges, feature.counts.as_slice());
            Some(histogram(drift, name, of, &column, drift.features.get(at)))
        }
    }
}

fn blank(drift: &Drift, signal: &str, reference: &[u64], live: &Histogram) -> Picture {
    Picture {
        family: drift.family.clone(),
        version: drift.version,
        cohort: drift.cohort.clone(),
        signal: signal.to_owned(),
        bins: Bins::Classes(Vec::new()),
        reference: reference.to_vec(),
        live: live.counts.clone(),
        under: live.under,
        over: live.over,
        unusable: 0,
        isolated: 0,
        score: None,
        span_ms: drift.from_ms.zip(drift.until_ms),
    }
}

fn histogram(
    drift: &Drift,
    signal: &str,
    (edges, reference): (&Edges, &[u64]),
    column: &Column,
    score: Option<&HistogramScore>,
) -> Picture {
    Picture {
        bins: Bins::Edges(edges.as_slice().to_vec()),
        unusable: column.unusable,
        isolated: column.isolated_values,
        score: score.and_then(|score| score.scores.psi),
        ..blank(drift, signal, reference, &column.sound)
    }
}

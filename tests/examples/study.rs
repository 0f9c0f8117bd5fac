//! `study`: Dunlin's drift code for `tests/bench/study`, which asks it questions one after another.
//!
//! A question on standard input is a line of JSON, then `values` little-endian doubles; an answer on
//! standard output is a line of JSON. Rows are features, then confidence, entropy, class and latency
//! in microseconds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use dunlin_agent::detect::watch::{Detection, Seen, Watch};
use dunlin_agent::telemetry::segment::{Kind, Prepared, Sealed, read_message};
use dunlin_protocol::bundle::{ClassProfile, FeatureProfile, OutputProfile, Profile};
use dunlin_protocol::id::{BootId, Digest};
use dunlin_protocol::sketch::{Edges, Histogram, Latency, to_micro};
use dunlin_protocol::telemetry::{Body, Class, Record, Window};
use dunlin_server::drift::query::{
    Drift, DriftQuery, HistogramScore, Reference, SENSITIVITY, of_windows,
};
use dunlin_server::drift::statistics::{Score, Status, range};
use dunlin_server::store::ReceivedWindow;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, Read, Write};

const START_MS: i64 = 1_790_000_000_000;
const WINDOW_MS: i64 = 60_000;
/// Confidence, entropy, class and latency follow a row's features.
const AFTER_FEATURES: usize = 4;

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Question {
    /// Pairs of entropy and confidence, as a device's detectors take them; NaN is not watched.
    Watch { values: usize },
    /// The rows that the profile of later questions is made of.
    Reference {
        values: usize,
        classes: usize,
        features: Vec<Edges>,
        confidence: Edges,
        entropy: Edges,
    },
    /// Rows of so many devices, device after device, in windows of at most `window_rows`.
    Fleet {
        values: usize,
        device_rows: Vec<usize>,
        window_rows: usize,
    },
    /// Rows of one device's window: what it weighs.
    Wire { values: usize },
}

impl Question {
    fn values(&self) -> usize {
        match self {
            Self::Watch { values }
            | Self::Reference { values, .. }
            | Self::Fleet { values, .. }
            | Self::Wire { values } => *values,
        }
    }
}

fn main() {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut reference = None;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).unwrap() == 0 {
            return;
        }
        let question: Question = serde_json::from_str(&line).unwrap();
        let mut bytes = vec![0; question.values() * size_of::<f64>()];
        input.read_exact(&mut bytes).unwrap();
        let numbers = bytes.as_chunks::<8>().0.iter();
        let values: Vec<f64> = numbers.map(|eight| f64::from_le_bytes(*eight)).collect();
        let asked = || reference.as_ref().expect("a reference comes first");
        let answer = match question {
            Question::Watch { .. } => watch(&values),
            Question::Reference {
                classes,
                features,
                confidence,
                entropy,
                ..
            } => {
                let profile = profile(&values, classes, features, confidence, entropy);
                let digest = Digest::of(&serde_json::to_vec(&profile).unwrap());
                reference = Some(Reference { profile, digest });
                json!({})
            }
            Question::Fleet {
                device_rows,
                window_rows,
                ..
            } => fleet(asked(), &values, &device_rows, window_rows),
            Question::Wire { .. } => wire(asked(), &values),
        };
        writeln!(output, "{answer}").unwrap();
        output.flush().unwrap();
    }
}

// --- on the device ----------------------------------------------------------------------------

fn watch(values: &[f64]) -> Value {
    let mut watch = Watch::default();
    let mut seen: Vec<(usize, Detection)> = Vec::new();
    for (at, pair) in values.as_chunks::<2>().0.iter().enumerate() {
        let [entropy, confidence] = *pair;
        let found = watch.take(Seen {
            entropy,
            confidence,
        });
        seen.extend(found.into_iter().map(|detection| (at, detection)));
    }
    let told = seen
        .iter()
        .map(|(at, d)| json!([at, d.detector, d.signal, d.width]));
    json!({"detections": told.collect::<Vec<_>>()})
}

/// Windows of one device, counted as the agent's worker counts answers.
fn windows(reference: &Reference, rows: &[&[f64]], window_rows: usize) -> Vec<Window> {
    let spans = rows.chunks(window_rows).zip(0_i64..);
    let starts = spans.map(|(rows, at)| (rows, START_MS + at * WINDOW_MS));
    starts
        .map(|(rows, start_ms)| window(reference, rows, start_ms))
        .collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "classes and microseconds, written as doubles"
)]
fn window(reference: &Reference, rows: &[&[f64]], start_ms: i64) -> Window {
    let profile = &reference.profile;
    let empty = |edges: &Edges| Histogram::new(edges.bins());
    let mut window = Window {
        bundle: Digest::of(b"bundle"),
        family: "study".parse().unwrap(),
        version: 1,
        start_ms,
        end_ms: start_ms + WINDOW_MS,
        segment: None,
        refused: 0,
        inferences: 0,
        errors: 0,
        confidence_sum_micro: 0,
        entropy_sum_micro: 0,
        outputs: vec![0; profile.outputs.classes.len()],
        confidence: empty(&profile.confidence.edges),
        entropy: empty(&profile.entropy.edges),
        features: profile.features.iter().map(|f| empty(&f.edges)).collect(),
        profile: Some(reference.digest),
        latency: Latency::default(),
        expected_confusion_nano: None,
    };
    for row in rows {
        let (features, rest) = row.split_at(profile.features.len());
        let [confidence, entropy, class, latency_us] = rest.try_into().unwrap();
        window.inferences += 1;
        window.latency.add_us(latency_us as u64);
        window.confidence_sum_micro += to_micro(confidence);
        window.entropy_sum_micro += to_micro(entropy);
        window.outputs[class as usize] += 1;
        window.confidence.add(&profile.confidence.edges, confidence);
        window.entropy.add(&profile.entropy.edges, entropy);
        let histograms = window.features.iter_mut().zip(&profile.features);
        for ((histogram, feature), value) in histograms.zip(features) {
            histogram.add(&feature.edges, *value);
        }
    }
    window
}

// --- the reference ----------------------------------------------------------------------------

fn profile(
    values: &[f64],
    classes: usize,
    features: Vec<Edges>,
    confidence: Edges,
    entropy: Edges,
) -> Profile {
    let width = features.len() + AFTER_FEATURES;
    let rows = values.chunks_exact(width);
    let counted = |edges: &Edges, at: usize| {
        let mut histogram = Histogram::new(edges.bins());
        rows.clone().for_each(|row| histogram.add(edges, row[at]));
        histogram.with_tails()
    };
    let output = |edges: Edges, at: usize| OutputProfile {
        counts: counted(&edges, at),
        edges,
    };
    let (confidence, entropy) = (
        output(confidence, features.len()),
        output(entropy, features.len() + 1),
    );
    let mut answers = vec![0; classes];
    for row in rows.clone() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let class = row[features.len() + 2] as usize;
        answers[class] += 1;
    }
    let features = features.into_iter().enumerate();
    Profile {
        schema: "dunlin.profile/1".to_owned(),
        rows: rows.len() as u64,
        features: features
            .map(|(index, edges)| FeatureProfile {
                name: format!("x[{index}]"),
                tensor: "x".to_owned(),
                statistic: None,
                axis: None,
                categories: None,
                after_steps: false,
                index,
                counts: counted(&edges, index),
                edges,
            })
            .collect(),
        outputs: ClassProfile {
            classes: (0..classes).map(|class| class.to_string()).collect(),
            counts: answers,
        },
        confidence,
        entropy,
        segments: None,
        calibration: None,
    }
}

// --- in the fleet -----------------------------------------------------------------------------

fn fleet(
    reference: &Reference,
    values: &[f64],
    device_rows: &[usize],
    window_rows: usize,
) -> Value {
    let width = reference.profile.features.len() + AFTER_FEATURES;
    let mut rows = values.chunks_exact(width);
    let mut received = Vec::new();
    for (device, count) in device_rows.iter().enumerate() {
        let of_device: Vec<&[f64]> = rows.by_ref().take(*count).collect();
        for window in windows(reference, &of_device, window_rows) {
            let id = format!("dev-{device:04}").parse().unwrap();
            received.push(ReceivedWindow::single(id, window.end_ms, window));
        }
    }
    let query = DriftQuery {
        family: "study".parse().unwrap(),
        version: None,
        cohort: "all".to_owned(),
        devices: None,
        segment: None,
        since_ms: None,
        until_ms: None,
        sensitivity: SENSITIVITY,
        out_of_range_margin: range::MARGIN,
    };
    let drift = of_windows(&query, 1, &received, None, Some(reference));
    assert!(drift.left_out.is_empty(), "{:?}", drift.left_out);
    judged(&drift)
}

fn judged(drift: &Drift) -> Value {
    let status = |score: Option<Score>| score.map_or(Status::Insufficient, |s| s.status);
    let every = |of: &dyn Fn(&HistogramScore) -> Status| -> Vec<Status> {
        drift.features.iter().map(of).collect()
    };
    let deciding = |of: &Option<HistogramScore>| -> [Status; 2] {
        let of = of.as_ref();
        let range = of.and_then(|of| of.out_of_range);
        [
            status(of.and_then(|of| of.scores.psi)),
            status(range.map(|range| range.score)),
        ]
    };
    let mix = drift.output_mix.as_ref().map(|mix| mix.scores);
    let is_significant = |f: &HistogramScore| f.p_adjusted.is_some_and(|p| p <= SENSITIVITY.alpha);
    json!({
        "whole": drift.status,
        "psi": every(&|f| status(f.scores.psi)),
        "out_of_range": every(&|f| status(f.out_of_range.map(|range| range.score))),
        "kolmogorov_smirnov": every(&|f| status(f.kolmogorov_smirnov.map(|k| k.score))),
        "wasserstein": every(&|f| status(f.wasserstein.map(|w| w.score))),
        "isolated": every(&|f| f.isolated.status),
        // Beyond what sampling explains, however small.
        "significant": drift.features.iter().map(is_significant).collect::<Vec<_>>(),
        "confidence": deciding(&drift.confidence),
        "entropy": deciding(&drift.entropy),
        "mix": [status(mix.and_then(|m| m.psi)), status(mix.and_then(|m| m.total_variation))],
    })
}

// --- on the wire ------------------------------------------------------------------------------

fn wire(reference: &Reference, values: &[f64]) -> Value {
    let width = reference.profile.features.len() + AFTER_FEATURES;
    let rows: Vec<&[f64]> = values.chunks_exact(width).collect();
    let window = window(reference, &rows, START_MS);
    let record = Record {
        time_ms: window.end_ms,
        body: Body::Window(Box::new(window)),
    };
    let prepared = Prepared::new(&record).unwrap();
    let record_bytes = prepared.len();
    // A window is sealed 200 ms after it closed: it travels alone.
    let sealed = Sealed::new(1, Kind::of(Class::Sketch), &[prepared]).unwrap();
    let boot: BootId = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let message = read_message(boot, 1, &sealed.entry, record.time_ms).unwrap();
    json!({
        "record_bytes": record_bytes,
        "message_bytes": message.len(),
        "stored_bytes": sealed.entry.len(),
    })
}

//! What answered requests leave behind: counts in windows. Pure: time is an argument.

use super::engine::{COUNTER_BYTES, Engine, Inference};
use super::segment::Segment;
use super::tensor::Values;
use super::watching::WAITING_MAX;
use crate::detect::watch::Seen;
use dunlin_protocol::SEGMENT_MAX_BYTES;
use dunlin_protocol::bundle::{FeatureProfile, Profile, TensorSpec};
use dunlin_protocol::calibration::add_answer;
use dunlin_protocol::distinct::{Distinct, TEXT_MAX_BYTES};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::sketch::{Edges, Histogram, Latency, to_micro};
use dunlin_protocol::telemetry::Window;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most closed windows that wait for the supervisor. When it is slower than that, the open window
/// grows beyond its span instead: nothing is lost, and memory stays bounded.
const CLOSED_MAX: usize = 8;
/// Most bytes of a sketch in a segment, its name and punctuation with it.
const SKETCH_BYTES: usize = TEXT_MAX_BYTES + 16;

/// One answered request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observation {
    /// Values of the profile's features, in the profile's order.
    features: Vec<f64>,
    /// Places of the features whose value is none of their categories, and its hash.
    unseen: Vec<(usize, u64)>,
    /// Index of the observed scores' largest element; `None` if an element is NaN.
    class: Option<usize>,
    /// The observed scores' largest element; NaN if an element is.
    confidence: f64,
    /// Entropy of the observed scores in nats; NaN if an element is NaN or negative.
    entropy: f64,
    /// Probabilities of the classes by the profile's calibration, if it has one.
    probabilities: Option<Vec<f64>>,
}

impl Observation {
    /// What was sent and what was computed show.
    pub(crate) fn of(engine: &Engine, sent: &[Values], inference: &Inference<'_>) -> Self {
        let profiled = engine.profile().map_or(&[][..], |(_, p)| &p.features);
        let features = profiled.iter().map(|f| look(engine, sent, inference, f));
        let features: Vec<f64> = features.collect();
        // Hashing costs more than comparing: only what is none of the categories.
        let unseen = profiled.iter().zip(&features).enumerate();
        let unseen = unseen.filter(|(_, (feature, value))| is_unseen(feature, **value));
        let unseen = unseen.filter_map(|(at, (feature, _))| {
            let (_, values) = values_of(engine, sent, inference, feature)?;
            Some((at, values.hash(feature.index)?))
        });
        let unseen = unseen.collect();
        let observed = inference.observed();
        let (class, confidence, entropy) = observed.map_or((None, f64::NAN, f64::NAN), top);
        let calibration = engine.profile().and_then(|(_, p)| p.calibration.as_ref());
        let probabilities = observed
            .zip(calibration)
            .and_then(|(values, calibration)| calibration.probabilities(values.iter_f64()));
        Self {
            features,
            unseen,
            class,
            confidence,
            entropy,
            probabilities,
        }
    }
}

/// Whether a feature's value is none of its categories.
#[allow(clippy::cast_precision_loss, reason = "a profile has few categories")]
fn is_unseen(feature: &FeatureProfile, value: f64) -> bool {
    let categories = feature.categories.as_ref();
    categories.is_some_and(|categories| value >= categories.len() as f64)
}

/// The tensor that a feature looks at.
fn values_of<'a>(
    engine: &'a Engine,
    sent: &'a [Values],
    inference: &'a Inference<'_>,
    feature: &FeatureProfile,
) -> Option<(&'a TensorSpec, &'a Values)> {
    if feature.after_steps {
        let specs = engine.manifest().inputs.iter();
        let mut all = specs.zip(inference.graph_inputs());
        all.find(|(spec, _)| spec.name == feature.tensor)
    } else {
        let inputs = engine.plan().inputs().iter();
        let mut all = inputs.map(|i| &i.spec).zip(sent);
        all.find(|(spec, _)| spec.name == feature.tensor)
    }
}

/// The value of one feature; NaN if there is none.
#[allow(clippy::cast_precision_loss, reason = "a profile has few categories")]
pub(super) fn look(
    engine: &Engine,
    sent: &[Values],
    inference: &Inference<'_>,
    feature: &FeatureProfile,
) -> f64 {
    let Some((spec, values)) = values_of(engine, sent, inference, feature) else {
        return f64::NAN;
    };
    let value = match (feature.statistic, &feature.categories) {
        (Some(statistic), _) => {
            let at = feature.axis.map(|axis| (axis, feature.index));
            Some(values.statistic(statistic, &spec.shape, at))
        }
        (None, Some(categories)) => values
            .category(feature.index, categories)
            .map(|place| place as f64),
        (None, None) => values.get(feature.index),
    };
    value.unwrap_or(f64::NAN)
}

impl Observation {
    /// The class that was observed.
    pub(crate) fn class(&self) -> Option<usize> {
        self.class
    }

    /// The observed scores' largest element; NaN if there are none.
    pub(crate) fn confidence(&self) -> f64 {
        self.confidence
    }

    /// Their entropy in nats.
    pub(crate) fn entropy(&self) -> f64 {
        self.entropy
    }

    /// Values of the profile's features, in the profile's order.
    pub(crate) fn features(&self) -> &[f64] {
        &self.features
    }

    /// One that was seen like this.
    #[cfg(test)]
    pub(crate) fn seen(features: Vec<f64>, confidence: f64) -> Self {
        Self {
            features,
            unseen: Vec::new(),
            class: None,
            confidence,
            entropy: f64::NAN,
            probabilities: None,
        }
    }
}

fn top(values: &Values) -> (Option<usize>, f64, f64) {
    let mut best: (Option<usize>, f64) = (None, f64::NEG_INFINITY);
    let mut negative = false;
    for (index, p) in values.iter_f64().enumerate() {
        if p.is_nan() {
            return (None, f64::NAN, f64::NAN);
        }
        if best.0.is_none() || p > best.1 {
            best = (Some(index), p);
        }
        negative |= p < 0.0;
    }
    // Logarithms are most of the work, and what is no distribution has no entropy.
    let entropy = if negative {
        f64::NAN
    } else {
        let some = values.iter_f64().filter(|p| *p != 0.0);
        some.fold(0.0, |sum, p| sum - p * p.ln())
    };
    (best.0, best.1, entropy)
}

/// The windows of one active bundle: one open, those closed that wait to be taken, and totals.
#[derive(Debug)]
pub(crate) struct Windows {
    bundle: Digest,
    family: Family,
    version: u64,
    classes: usize,
    profile: Option<Arc<(Digest, Profile)>>,
    window_ms: i64,
    /// The present span's, one for each segment that was heard of; all of the same span.
    open: Vec<Window>,
    closed: VecDeque<Window>,
    /// When a window was last closed before its end; the next one starts there.
    resumed_ms: i64,
    totals: Totals,
    /// Signals of answers that the detectors have not taken yet.
    signals: Vec<Seen>,
    /// Requests that went into windows.
    counted: u64,
}

/// Requests since the bundle was activated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Answered.
    pub(crate) inferences: u64,
    /// Failed.
    pub(crate) errors: u64,
    /// Of those answered, over the latency budget.
    pub(crate) slow: u64,
}

impl Windows {
    /// No window yet. `window_ms` is at least 1.
    pub(crate) fn new(engine: &Engine, window_ms: i64) -> Self {
        let manifest = engine.manifest();
        let profile = engine.profile_shared();
        let named = profile
            .as_ref()
            .map_or(0, |shared| shared.1.outputs.classes.len());
        Self {
            bundle: engine.bundle(),
            family: manifest.family.clone(),
            version: manifest.version,
            classes: manifest.labels.len().max(named),
            profile,
            window_ms: window_ms.max(1),
            open: Vec::new(),
            closed: VecDeque::new(),
            resumed_ms: i64::MIN,
            totals: Totals::default(),
            signals: Vec::new(),
            counted: 0,
        }
    }

    fn segment(&self, segment: Segment) -> Option<String> {
        let segments = self.profile.as_ref()?.1.segments.as_ref()?;
        segment.name(segments).map(str::to_owned)
    }

    /// What was counted since the bundle was activated.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// Notes that the model took longer for the request just answered than its budget.
    pub(crate) fn was_slow(&mut self) {
        self.totals.slow = self.totals.slow.saturating_add(1);
    }

    /// Counts an answered request; the span of the window that it counts in, in milliseconds since 1970.
    pub(crate) fn answered(
        &mut self,
        now_ms: i64,
        segment: Segment,
        seen: &Observation,
        latency_us: u64,
    ) -> (i64, i64) {
        self.totals.inferences = self.totals.inferences.saturating_add(1);
        if self.signals.len() < WAITING_MAX {
            self.signals.push(Seen {
                entropy: seen.entropy,
                confidence: seen.confidence,
            });
        }
        let profile = self.profile.clone();
        let window = self.window_at(now_ms, segment);
        window.inferences += 1;
        window.latency.add_us(latency_us);
        window.confidence_sum_micro = window
            .confidence_sum_micro
            .saturating_add(to_micro(seen.confidence));
        window.entropy_sum_micro = window
            .entropy_sum_micro
            .saturating_add(to_micro(seen.entropy));
        if let Some(count) = seen.class.and_then(|c| window.outputs.get_mut(c)) {
            *count += 1;
        }
        if let (Some(cells), Some(class), Some(probabilities)) = (
            &mut window.expected_confusion_nano,
            seen.class,
            &seen.probabilities,
        ) {
            add_answer(cells, class, probabilities);
        }
        if let Some((_, profile)) = profile.as_deref() {
            window
                .confidence
                .add(&profile.confidence.edges, seen.confidence);
            window.entropy.add(&profile.entropy.edges, seen.entropy);
            let features = profile.features.iter().zip(&seen.features);
            for (histogram, (feature, value)) in window.features.iter_mut().zip(features) {
                histogram.add(&feature.edges, *value);
            }
            for (at, hash) in &seen.unseen {
                let histogram = window.features.get_mut(*at);
                if let Some(sketch) = histogram.and_then(|h| h.distinct.as_mut()) {
                    sketch.add(*hash);
                }
            }
        }
        (window.start_ms, window.end_ms)
    }

    /// How many requests went into windows; it tells whether open ones have changed.
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }

    /// The windows that have not been taken.
    pub(crate) fn untaken(&self) -> Vec<Window> {
        self.closed.iter().chain(&self.open).cloned().collect()
    }

    /// The span of the open window, if there is one.
    pub(crate) fn open_span(&self) -> Option<(i64, i64)> {
        self.open.first().map(|w| (w.start_ms, w.end_ms))
    }

    /// Takes the signals of the answers since the last time, oldest first.
    pub(crate) fn take_signals(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.signals)
    }

    /// Counts a request that the engine failed.
    pub(crate) fn failed(&mut self, now_ms: i64, segment: Segment) {
        self.totals.errors = self.totals.errors.saturating_add(1);
        self.window_at(now_ms, segment).errors += 1;
    }

    /// Counts a request that does not fit the manifest.
    pub(crate) fn refused(&mut self, now_ms: i64, segment: Segment) {
        self.window_at(now_ms, segment).refused += 1;
    }

    /// Takes the windows whose time has passed, oldest first.
    pub(crate) fn take_due(&mut self, now_ms: i64) -> Vec<Window> {
        if !self.is_open_at(now_ms) {
            self.closed.extend(self.open.drain(..));
        }
        self.closed.drain(..).collect()
    }

    /// Closes the open windows now and takes all, oldest first.
    pub(crate) fn take_all(&mut self, now_ms: i64) -> Vec<Window> {
        let mut taken = self.take_due(now_ms);
        for mut window in self.open.drain(..) {
            window.end_ms = now_ms.saturating_add(1).min(window.end_ms);
            self.resumed_ms = now_ms;
            taken.push(window);
        }
        taken
    }

    fn is_open_at(&self, now_ms: i64) -> bool {
        let mut open = self.open.iter();
        open.any(|w| (w.start_ms..w.end_ms).contains(&now_ms))
    }

    /// Most closed windows that wait.
    fn closed_max(&self) -> usize {
        let profile = self.profile.as_ref();
        let segments = profile.and_then(|p| p.1.segments.as_ref());
        CLOSED_MAX * segments.map_or(1, |s| s.values.len() + 2)
    }

    /// The span that a request finished now belongs to. The clock may be set in either direction at
    /// any time.
    fn span_at(&mut self, now_ms: i64) -> (i64, i64) {
        let aligned_ms = now_ms.div_euclid(self.window_ms) * self.window_ms;
        let end_ms = aligned_ms.saturating_add(self.window_ms);
        if !self.is_open_at(now_ms) {
            if self.closed.len() < self.closed_max() {
                self.closed.extend(self.open.drain(..));
            }
            for window in &mut self.open {
                window.start_ms = window.start_ms.min(aligned_ms);
                window.end_ms = window.end_ms.max(end_ms);
            }
        }
        if let Some(window) = self.open.first() {
            return (window.start_ms, window.end_ms);
        }
        if (aligned_ms..=now_ms).contains(&self.resumed_ms) {
            (self.resumed_ms, end_ms)
        } else {
            (aligned_ms, end_ms)
        }
    }

    /// The window of a segment that a request finished now belongs to.
    fn window_at(&mut self, now_ms: i64, segment: Segment) -> &mut Window {
        self.counted = self.counted.wrapping_add(1);
        let span = self.span_at(now_ms);
        let segment = self.segment(segment);
        let found = self.open.iter().position(|w| w.segment == segment);
        let at = found.unwrap_or_else(|| {
            let empty = self.empty(span, segment);
            self.open.push(empty);
            self.open.len() - 1
        });
        &mut self.open[at]
    }

    /// Sketches of unseen categories as far as half of the room that counters leave of a segment is
    /// enough for them when they are full.
    fn empty_features(&self) -> Vec<Histogram> {
        let Some((_, profile)) = self.profile.as_deref() else {
            return Vec::new();
        };
        let outputs = [&profile.confidence.edges, &profile.entropy.edges];
        let inputs = profile.features.iter().map(|f| &f.edges);
        let bins: usize = outputs.into_iter().chain(inputs).map(Edges::bins).sum();
        let counters_bytes = (bins + self.classes).saturating_mul(COUNTER_BYTES);
        let mut room = SEGMENT_MAX_BYTES.saturating_sub(counters_bytes) / 2 / SKETCH_BYTES;
        let features = profile.features.iter().map(|feature| {
            let has_sketch = feature.categories.is_some() && room > 0;
            room -= usize::from(has_sketch);
            Histogram {
                distinct: has_sketch.then(Distinct::default),
                ..Histogram::new(feature.edges.bins())
            }
        });
        features.collect()
    }

    fn empty(&self, (start_ms, end_ms): (i64, i64), segment: Option<String>) -> Window {
        let profile = self.profile.as_deref();
        let reference = profile.map(|(_, p)| p);
        let bins = |edges: &Edges| Histogram::new(edges.bins());
        Window {
            bundle: self.bundle,
            family: self.family.clone(),
            version: self.version,
            start_ms,
            end_ms,
            segment,
            inferences: 0,
            errors: 0,
            refused: 0,
            confidence_sum_micro: 0,
            entropy_sum_micro: 0,
            outputs: vec![0; self.classes],
            confidence: reference.map_or_else(Histogram::default, |p| bins(&p.confidence.edges)),
            entropy: reference.map_or_else(Histogram::default, |p| bins(&p.entropy.edges)),
            features: self.empty_features(),
            profile: profile.map(|(digest, _)| *digest),
            latency: Latency::default(),
            expected_confusion_nano: reference
                .and_then(|p| p.calibration.as_ref())
                .map(|calibration| vec![0; calibration.curves.len().pow(2)]),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "observe_tests.rs"]
mod tests;

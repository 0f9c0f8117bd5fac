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
mod tests {
    use super::*;
    use dunlin_protocol::bundle::Segments;
    use dunlin_protocol::bundle::{ClassProfile, OutputProfile};
    use dunlin_protocol::calibration::{Calibration, Curve};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn edges(values: &[f64]) -> Edges {
        Edges::try_from(values.to_vec()).unwrap()
    }

    fn windows(window_ms: i64) -> Windows {
        let output = |values: &[f64]| OutputProfile {
            edges: edges(values),
            counts: vec![0; values.len() - 1],
        };
        let profile = Profile {
            schema: String::new(),
            rows: 1,
            features: vec![FeatureProfile {
                name: "f".to_owned(),
                tensor: "x".to_owned(),
                after_steps: false,
                categories: None,
                statistic: None,
                axis: None,
                index: 0,
                edges: edges(&[0.0, 1.0, 2.0]),
                counts: vec![0, 0],
            }],
            outputs: ClassProfile {
                classes: vec!["a".to_owned(), "b".to_owned()],
                counts: vec![0, 0],
            },
            confidence: output(&[0.0, 0.5, 1.1]),
            entropy: output(&[0.0, 0.3, 0.8]),
            calibration: None,
            segments: None,
        };
        Windows {
            bundle: Digest([1; 32]),
            family: "digits".parse().unwrap(),
            version: 1,
            classes: 2,
            profile: Some(Arc::new((Digest([2; 32]), profile))),
            window_ms,
            open: Vec::new(),
            closed: VecDeque::new(),
            resumed_ms: i64::MIN,
            totals: Totals::default(),
            signals: Vec::new(),
        }
    }

    const NONE: Segment = Segment::NONE;

    fn seen(feature: f64, outputs: Vec<f32>) -> Observation {
        let (class, confidence, entropy) = top(&Values::FP32(outputs));
        Observation {
            features: vec![feature],
            unseen: Vec::new(),
            class,
            confidence,
            entropy,
            probabilities: None,
        }
    }

    #[test]
    fn outputs_give_class_confidence_and_entropy() {
        let (class, confidence, entropy) = top(&Values::FP32(vec![0.25, 0.75, 0.0]));
        assert_eq!((class, confidence), (Some(1), 0.75));
        assert!((entropy - 0.562_335_144_618_808_3).abs() < 1e-12);
        assert_eq!(top(&Values::FP32(vec![0.5, 0.5])).0, Some(0));
        let (class, confidence, entropy) = top(&Values::FP32(vec![0.5, f32::NAN]));
        assert!(class.is_none() && confidence.is_nan() && entropy.is_nan());
        assert!(top(&Values::FP32(vec![-1.0, 2.0])).2.is_nan());
    }

    #[test]
    fn windows_are_aligned_and_close_when_their_time_has_passed() {
        let mut w = windows(1000);
        w.answered(1500, NONE, &seen(0.5, vec![0.9, 0.1]), 10);
        w.failed(1999, NONE);
        assert_eq!(w.take_due(1999), []);
        w.answered(2000, NONE, &seen(9.0, vec![0.5, 0.5]), 10);
        let due = w.take_due(2500);
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].start_ms, due[0].end_ms), (1000, 2000));
        assert_eq!((due[0].inferences, due[0].errors), (1, 1));
        assert_eq!(due[0].outputs, [1, 0]);
        assert_eq!(due[0].features[0].counts, [1, 0]);
        assert_eq!(due[0].confidence.counts, [0, 1]);
        assert_eq!(due[0].confidence_sum_micro, 900_000);
        assert_eq!(due[0].profile, Some(Digest([2; 32])));
        // Also without any further request.
        let idle = w.take_due(3000);
        assert_eq!(idle[0].features[0].over, 1);
        assert_eq!(w.take_due(9000), []);
        assert_eq!(w.take_all(9000), []);
        w.was_slow();
        let totals = w.totals();
        assert_eq!((totals.inferences, totals.errors, totals.slow), (2, 1, 1));
        let signals = w.take_signals();
        assert_eq!((signals.len(), signals[1].confidence), (2, 0.5));
        assert_eq!(w.take_signals(), []);
    }

    #[test]
    fn calibrated_answers_are_expected_to_be_right_so_often() {
        let mut w = windows(1000);
        let curve = Curve {
            scores: vec![0.0, 1.0],
            probabilities: vec![0.0, 1.0],
        };
        let mut shared = w.profile.as_deref().unwrap().clone();
        shared.1.calibration = Some(Calibration {
            curves: vec![curve.clone(), curve],
            rows: 10,
            right: 9,
        });
        let calibration = shared.1.calibration.clone().unwrap();
        w.profile = Some(Arc::new(shared));
        for scores in [[0.75_f64, 0.25], [0.4, 0.6], [0.9, 0.1]] {
            #[allow(clippy::cast_possible_truncation)]
            let mut seen = seen(0.5, scores.map(|p| p as f32).to_vec());
            seen.probabilities = calibration.probabilities(scores.into_iter());
            w.answered(100, NONE, &seen, 1);
        }
        let window = w.take_all(200).remove(0);
        let cells = [1_650_000_000, 350_000_000, 400_000_000, 600_000_000];
        assert_eq!(window.expected_confusion_nano, Some(cells.to_vec()));
    }

    #[test]
    fn segments_are_counted_apart_over_the_same_span() {
        let mut w = windows(1000);
        let mut shared = w.profile.as_deref().unwrap().clone();
        shared.1.segments = Some(Segments {
            key: "camera".to_owned(),
            values: vec!["north".to_owned(), "south".to_owned()],
        });
        w.profile = Some(Arc::new(shared.clone()));
        let of = |value: &str| {
            let said = serde_json::json!({"camera": value});
            Segment::of(Some(&shared.1), said.as_object(), &BTreeMap::new())
        };
        w.answered(10, of("south"), &seen(0.5, vec![0.9, 0.1]), 1);
        w.answered(20, NONE, &seen(0.5, vec![0.9, 0.1]), 1);
        w.answered(30, of("south"), &seen(0.5, vec![0.9, 0.1]), 1);
        w.failed(40, of("attic"));
        w.refused(50, of("north"));
        let taken = w.take_due(1000);
        let counted: Vec<_> = taken
            .iter()
            .map(|w| (w.segment.as_deref(), w.inferences, w.errors, w.refused))
            .collect();
        let expected = [
            (Some("south"), 2, 0, 0),
            (None, 1, 0, 0),
            (Some("other"), 0, 1, 0),
            (Some("north"), 0, 0, 1),
        ];
        assert_eq!(counted, expected);
        assert!(taken.iter().all(|w| (w.start_ms, w.end_ms) == (0, 1000)));
        // However long the supervisor does not come, no more than these are kept.
        for n in 0..1000_i64 {
            for value in ["north", "south", "west"] {
                w.answered(n * 1000, of(value), &seen(0.5, vec![0.9, 0.1]), 1);
            }
        }
        let taken = w.take_all(2_000_000);
        assert!(taken.len() <= CLOSED_MAX * 4 + 4, "{}", taken.len());
        assert_eq!(taken.iter().map(|w| w.inferences).sum::<u64>(), 3000);
    }

    #[test]
    fn values_that_are_no_category_are_sketched_and_nothing_else_is() {
        let mut w = windows(1000);
        let mut shared = w.profile.as_deref().unwrap().clone();
        let categories = vec!["ash".to_owned(), "elm".to_owned()];
        shared.1.features[0].categories = Some(categories.clone());
        let feature = shared.1.features[0].clone();
        w.profile = Some(Arc::new(shared));
        let texts = ["ash", "yew", "elm", "larch", "yew", "ash"];
        for text in texts {
            let values = Values::BYTES(vec![text.as_bytes().to_vec()]);
            #[allow(clippy::cast_precision_loss)]
            let value = values.category(0, &categories).unwrap() as f64;
            let mut seen = seen(value, vec![0.9, 0.1]);
            if is_unseen(&feature, value) {
                seen.unseen.push((0, values.hash(0).unwrap()));
            }
            w.answered(10, NONE, &seen, 1);
        }
        let window = w.take_all(20).remove(0);
        let mut expected = Distinct::default();
        for text in ["yew", "larch"] {
            expected.add(dunlin_protocol::distinct::hash(text.as_bytes()));
        }
        assert_eq!(
            (&window.features[0].counts[..], window.features[0].over),
            (&[2, 1][..], 3)
        );
        assert_eq!(window.features[0].distinct, Some(expected));
        assert!(window.confidence.distinct.is_none());
        // Numbers are hashed as they are compared: as JSON writes them.
        assert_eq!(
            Values::FP32(vec![7.0]).hash(0),
            Values::INT64(vec![7]).hash(0)
        );
        assert_eq!(
            Values::BOOL(vec![true]).hash(0),
            Values::BYTES(vec![b"true".to_vec()]).hash(0)
        );
        assert_eq!(Values::INT64(vec![7]).hash(1), None);
    }

    #[test]
    fn windows_with_full_sketches_fit_a_segment() {
        let mut w = windows(1000);
        let mut shared = w.profile.as_deref().unwrap().clone();
        shared.1.features[0].categories = Some(vec!["a".to_owned(), "b".to_owned()]);
        shared.1.features = vec![shared.1.features[0].clone(); 4000];
        w.profile = Some(Arc::new(shared));
        w.failed(10, NONE);
        let mut window = w.take_all(20).remove(0);
        let full = (0..100_000_u32).fold(Distinct::default(), |mut full, n| {
            full.add(dunlin_protocol::distinct::hash(&n.to_be_bytes()));
            full
        });
        let mut sketches = window
            .features
            .iter_mut()
            .filter_map(|f| f.distinct.as_mut());
        sketches
            .by_ref()
            .for_each(|sketch| sketch.clone_from(&full));
        let with = window
            .features
            .iter()
            .filter(|f| f.distinct.is_some())
            .count();
        assert!((400..500).contains(&with), "{with}");
        let json = serde_json::to_vec(&window).unwrap();
        assert!(json.len() < SEGMENT_MAX_BYTES, "{}", json.len());
    }

    #[test]
    fn a_flush_splits_the_span() {
        let mut w = windows(1000);
        w.answered(100, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
        let first = w.take_all(200);
        w.answered(300, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
        let second = w.take_due(1000);
        assert_eq!((first[0].start_ms, first[0].end_ms), (0, 201));
        assert_eq!((second[0].start_ms, second[0].end_ms), (200, 1000));
    }

    #[test]
    fn not_a_number_is_counted_as_such() {
        let mut w = windows(1000);
        w.answered(0, NONE, &seen(f64::NAN, vec![f32::NAN, 0.1]), 1);
        let window = w.take_all(1).remove(0);
        assert_eq!(window.inferences, 1);
        assert_eq!((window.confidence.nan, window.entropy.nan), (1, 1));
        assert_eq!(window.features[0].nan, 1);
        assert_eq!(window.outputs, [0, 0]);
        assert_eq!(window.confidence_sum_micro, 0);
    }

    #[test]
    fn a_clock_set_back_closes_the_window() {
        let mut w = windows(1000);
        w.answered(10_000, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
        w.answered(500, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
        let spans: Vec<_> = w
            .take_all(600)
            .iter()
            .map(|w| (w.start_ms, w.end_ms))
            .collect();
        assert_eq!(spans, [(10_000, 11_000), (0, 601)]);
    }

    #[test]
    fn a_slow_supervisor_costs_resolution_but_no_counts() {
        let mut w = windows(10);
        for n in 0..100 {
            w.answered(n * 10, NONE, &seen(0.0, vec![1.0, 0.0]), 1);
        }
        let all = w.take_due(5000);
        assert_eq!(all.len(), CLOSED_MAX + 1);
        assert_eq!(all.iter().map(|w| w.inferences).sum::<u64>(), 100);
        assert_eq!(all.last().unwrap().end_ms, 1000);
    }

    proptest! {
        #[test]
        fn every_request_is_in_exactly_one_window(
            events in prop::collection::vec((0_i64..5000, 0_u8..6), 0..300),
        ) {
            let mut w = windows(100);
            let mut taken = Vec::new();
            let (mut answered, mut failed) = (0, 0);
            for (now, action) in events {
                match action {
                    0 => taken.extend(w.take_due(now)),
                    1 => taken.extend(w.take_all(now)),
                    2 => { w.failed(now, NONE); failed += 1; }
                    _ => { w.answered(now, NONE, &seen(1.5, vec![0.2, 0.8]), 5); answered += 1; }
                }
            }
            taken.extend(w.take_all(5000));
            prop_assert_eq!(taken.iter().map(|w| w.inferences).sum::<u64>(), answered);
            prop_assert_eq!(taken.iter().map(|w| w.errors).sum::<u64>(), failed);
            prop_assert_eq!(taken.iter().map(|w| w.latency.total()).sum::<u64>(), answered);
            prop_assert_eq!(taken.iter().map(|w| w.outputs[1]).sum::<u64>(), answered);
            prop_assert!(taken.iter().all(|w| w.start_ms < w.end_ms && w.inferences + w.errors > 0));
        }
    }
}

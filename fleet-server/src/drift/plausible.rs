//! Windows that no honest device sends: they count towards nothing, and it is said that they came.
//!
//! The bounds leave honest devices room and keep sums exact: with [`COUNT_MAX`] inferences a window, no
//! sum over as many windows as a query gives can overflow, so what is merged never depends on order.

use dunlin_protocol::sketch::{Edges, Histogram, MICRO};
use dunlin_protocol::telemetry::Window;

/// Most inferences of a millisecond.
const INFERENCES_PER_MS_MAX: u64 = 1000;
/// Longest span, in milliseconds: two days, twice the longest window that can be configured.
const SPAN_MS_MAX: u64 = 2 * 24 * 3_600_000;
/// Most inferences of a window.
pub const COUNT_MAX: u64 = INFERENCES_PER_MS_MAX * SPAN_MS_MAX;
/// How far a rank may lie above the logarithm of the number of values: beyond with 2⁻⁴⁰.
const RANK_ABOVE_MAX: u32 = 41;
/// Earliest start, in milliseconds since 1970: 1 January 2020, before there was any Dunlin.
const START_MS_MIN: i64 = 1_577_836_800_000;
/// How far a clock may be ahead of the server's, in milliseconds: a day.
const AHEAD_MS_MAX: i64 = 24 * 3_600_000;

/// What is wrong with a window. The texts are few and fixed: they name counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Implausible {
    /// A version that there cannot be.
    #[error("absurd: a version beyond 2^63−1")]
    Version,
    /// Ends before it begins, or long after.
    #[error("absurd: its span is empty or longer than two days")]
    Span,
    /// More than any device computes.
    #[error("absurd: more inferences than its span has room for")]
    Inferences,
    /// Histograms or answers count other inferences than it says there were.
    #[error("absurd: its histograms count other inferences than it names")]
    Counts,
    /// Sums that its own histograms contradict.
    #[error("absurd: its sums do not fit its histograms")]
    Sums,
    /// A sketch that its own counters contradict.
    #[error("absurd: its sketches do not fit the values they are of")]
    Sketches,
    /// The device's clock was before 2020.
    #[error("clock: before 2020")]
    ClockBehind,
    /// The device's clock was ahead of the server's.
    #[error("clock: more than a day ahead")]
    ClockAhead,
}

impl Implausible {
    /// Short and stable, for metrics.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Span => "span",
            Self::Inferences => "inferences",
            Self::Counts => "counts",
            Self::Sums => "sums",
            Self::Sketches => "sketches",
            Self::ClockBehind => "clock_behind",
            Self::ClockAhead => "clock_ahead",
        }
    }
}

/// Whether its numbers can be those of one window.
///
/// # Errors
/// Why not.
pub fn numbers(window: &Window) -> Result<(), Implausible> {
    if i64::try_from(window.version).is_err() {
        return Err(Implausible::Version);
    }
    let span_ms = u64::try_from(window.end_ms.saturating_sub(window.start_ms)).unwrap_or(0);
    if span_ms == 0 || span_ms > SPAN_MS_MAX {
        return Err(Implausible::Span);
    }
    let requests = window.inferences.saturating_add(window.errors);
    let requests = requests.saturating_add(window.refused);
    if requests > span_ms.saturating_mul(INFERENCES_PER_MS_MAX) {
        return Err(Implausible::Inferences);
    }
    let answers = window
        .outputs
        .iter()
        .fold(0_u64, |sum, n| sum.saturating_add(*n));
    let histograms = [&window.confidence, &window.entropy].into_iter();
    let is_whole = |total: u64| total == window.inferences || total == 0;
    if answers > window.inferences
        || !is_whole(window.latency.total())
        || !histograms
            .chain(&window.features)
            .all(|histogram| is_whole(histogram.total()))
    {
        return Err(Implausible::Counts);
    }
    let outputs = [&window.confidence, &window.entropy];
    let is_plain = outputs.iter().all(|output| output.distinct.is_none());
    if !is_plain || !window.features.iter().all(sketch_fits) {
        return Err(Implausible::Sketches);
    }
    Ok(())
}

/// Whether the values counted as `over` can have filled the histogram's sketch.
fn sketch_fits(histogram: &Histogram) -> bool {
    let Some(sketch) = &histogram.distinct else {
        return true;
    };
    let rank_max = histogram.over.checked_ilog2().unwrap_or(0) + RANK_ABOVE_MAX;
    let is_of_values = usize::try_from(histogram.over).map_or(true, |n| sketch.filled() <= n);
    is_of_values && u32::from(sketch.rank_max()) <= rank_max
}

/// Whether its span can be right, seen from when it arrived.
///
/// # Errors
/// Why not.
pub fn clock(window: &Window, received_ms: i64) -> Result<(), Implausible> {
    if window.start_ms < START_MS_MIN {
        return Err(Implausible::ClockBehind);
    }
    if window.end_ms > received_ms.saturating_add(AHEAD_MS_MAX) {
        return Err(Implausible::ClockAhead);
    }
    Ok(())
}

/// Whether a sum in millionths can be that of the values in a histogram.
///
/// # Errors
/// It cannot.
#[allow(clippy::cast_precision_loss, reason = "with a margin for it")]
pub fn sum(sum_micro: u64, edges: &Edges, histogram: &Histogram) -> Result<(), Implausible> {
    let edge = |at: usize| edges.as_slice().get(at).map_or(0.0, |edge| edge.max(0.0));
    let last = edge(edges.bins());
    let (mut least, mut most) = (histogram.over as f64 * last, 0.0);
    for (at, count) in histogram.counts.iter().enumerate() {
        least += *count as f64 * edge(at);
        most += *count as f64 * edge(at + 1);
    }
    // Half a unit of rounding a value, and the last digits of these sums themselves.
    let slack = histogram.total() as f64 + most.max(least) * MICRO * 1e-9;
    let sum = sum_micro as f64;
    let is_open = histogram.over > 0;
    if sum < least * MICRO - slack || (!is_open && sum > most * MICRO + slack) {
        return Err(Implausible::Sums);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dunlin_protocol::distinct::{self, Distinct};
    use dunlin_protocol::id::Digest;
    use dunlin_protocol::sketch::{Latency, to_micro};
    use proptest::prelude::*;

    const NOW_MS: i64 = 1_790_000_000_000;

    fn window() -> Window {
        let confidence = Histogram {
            counts: vec![2, 3],
            ..Histogram::default()
        };
        Window {
            bundle: Digest::of(b"b"),
            family: "digits".parse().unwrap(),
            version: 1,
            start_ms: NOW_MS,
            end_ms: NOW_MS + 60_000,
            inferences: 5,
            errors: 0,
            confidence_sum_micro: 3_000_000,
            entropy_sum_micro: 0,
            outputs: vec![3, 1],
            confidence,
            entropy: Histogram::new(2),
            features: Vec::new(),
            profile: None,
            latency: Latency {
                buckets: vec![0, 5],
            },
            expected_confusion_nano: None,
            segment: None,
            refused: 0,
        }
    }

    #[test]
    fn each_absurdity_is_named() {
        assert_eq!(numbers(&window()), Ok(()));
        type Spoil = fn(&mut Window);
        let cases: [(Implausible, Spoil); 10] = [
            (Implausible::Version, |w| w.version = 1 << 63),
            (Implausible::Span, |w| w.end_ms = w.start_ms),
            (Implausible::Span, |w| {
                (w.start_ms, w.end_ms) = (i64::MIN, i64::MAX)
            }),
            (Implausible::Span, |w| {
                (w.start_ms, w.end_ms) = (i64::MAX, i64::MIN)
            }),
            (Implausible::Inferences, |w| w.inferences = 60_000_001),
            (Implausible::Inferences, |w| w.errors = u64::MAX),
            (Implausible::Counts, |w| {
                w.outputs = vec![u64::MAX, u64::MAX]
            }),
            (Implausible::Counts, |w| w.confidence.counts[0] = u64::MAX),
            (Implausible::Counts, |w| w.latency.buckets[1] = 4),
            (Implausible::Counts, |w| {
                w.features = vec![Histogram {
                    nan: u64::MAX,
                    ..Histogram::new(1)
                }];
            }),
        ];
        for (expected, spoil) in cases {
            let mut spoiled = window();
            spoil(&mut spoiled);
            assert_eq!(numbers(&spoiled), Err(expected), "{spoiled:?}");
        }
    }

    #[test]
    fn a_sketch_of_more_values_than_were_counted_is_named() {
        let mut sketch = Distinct::default();
        for value in ["yew", "larch", "oak"] {
            sketch.add(distinct::hash(value.as_bytes()));
        }
        let with = |over: u64, sketch: &Distinct| Window {
            features: vec![Histogram {
                counts: vec![5 - over],
                over,
                distinct: Some(sketch.clone()),
                ..Histogram::default()
            }],
            ..window()
        };
        assert_eq!(numbers(&with(3, &sketch)), Ok(()));
        assert_eq!(numbers(&with(5, &sketch)), Ok(()));
        assert_eq!(numbers(&with(0, &Distinct::default())), Ok(()));
        assert_eq!(numbers(&with(2, &sketch)), Err(Implausible::Sketches));
        assert_eq!(numbers(&with(0, &sketch)), Err(Implausible::Sketches));
        let mut absurd = Distinct::default();
        absurd.add(0);
        assert_eq!(numbers(&with(5, &absurd)), Err(Implausible::Sketches));
        let mut of_output = window();
        of_output.entropy.distinct = Some(Distinct::default());
        assert_eq!(numbers(&of_output), Err(Implausible::Sketches));
    }

    #[test]
    fn clocks_in_1970_and_2106_are_named() {
        let at = |start_ms: i64| Window {
            start_ms,
            end_ms: start_ms + 60_000,
            ..window()
        };
        assert_eq!(clock(&at(NOW_MS), NOW_MS), Ok(()));
        // Back-filled after a month without a network.
        assert_eq!(clock(&at(NOW_MS - 30 * 24 * 3_600_000), NOW_MS), Ok(()));
        assert_eq!(clock(&at(5_000), NOW_MS), Err(Implausible::ClockBehind));
        assert_eq!(clock(&at(-1), NOW_MS), Err(Implausible::ClockBehind));
        let february_2106 = 4_294_967_296_000;
        assert_eq!(
            clock(&at(february_2106), NOW_MS),
            Err(Implausible::ClockAhead)
        );
    }

    #[test]
    fn no_sum_over_a_query_overflows() {
        let windows = u64::from(crate::store::WINDOW_ROWS_MAX);
        assert!(COUNT_MAX.checked_mul(windows).is_some());
    }

    #[test]
    fn a_sum_its_histogram_contradicts_is_named() {
        let edges = Edges::try_from(vec![0.0, 0.5, 1.0]).unwrap();
        let histogram = window().confidence;
        assert_eq!(sum(3_000_000, &edges, &histogram), Ok(()));
        assert_eq!(sum(1_400_000, &edges, &histogram), Err(Implausible::Sums));
        assert_eq!(sum(u64::MAX, &edges, &histogram), Err(Implausible::Sums));
        let open = Histogram {
            over: 1,
            ..histogram
        };
        assert_eq!(sum(u64::MAX, &edges, &open), Ok(()));
    }

    proptest! {
        #[test]
        fn honest_sums_pass(values in prop::collection::vec(prop_oneof![-1.0_f64..3.0, Just(f64::NAN), Just(f64::INFINITY)], 0..200)) {
            let edges = Edges::try_from(vec![-0.5, 0.0, 0.3, 1.0, 2.0]).unwrap();
            let mut histogram = Histogram::new(edges.bins());
            let mut micro = 0;
            for value in values {
                histogram.add(&edges, value);
                micro += to_micro(value);
            }
            prop_assert_eq!(sum(micro, &edges, &histogram), Ok(()));
        }
    }
}

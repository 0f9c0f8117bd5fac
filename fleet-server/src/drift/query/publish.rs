//! Sums into scores.

use super::pool::{Column, Pool, Scored};
use super::{
    BinScores, Drift, DriftQuery, HistogramScore, Isolated, LatencyQuantiles, Mix, NewValues,
    Reference,
};
use crate::drift::statistics::estimated::estimate;
use crate::drift::statistics::multiplicity::benjamini_hochberg;
use crate::drift::statistics::ordered::{OrderedComparison, std_of_middles};
use crate::drift::statistics::range::RangeComparison;
use crate::drift::statistics::{Comparison, Sensitivity, Status, pool_rare};
use dunlin_protocol::bundle::Profile;
use dunlin_protocol::distinct::STANDARD_ERROR;
use dunlin_protocol::sketch::{Edges, Histogram, MICRO};

/// Bins of the reference that a score compares: about a tenth of its rows each.
const GROUPS: u64 = 10;
/// Least fall of the estimated accuracy that matters.
const ACCURACY_MARGIN: f64 = 0.05;
/// Isolated values are an alarm from one in so many.
const ISOLATED_ONE_IN: u64 = 10;

/// What is published of a version in a cohort.
pub(super) fn scores(
    query: &DriftQuery,
    version: u64,
    pool: &Pool,
    reference: Option<&Reference>,
    note: Option<String>,
) -> Drift {
    let mut drift = Drift {
        family: query.family.to_string(),
        version,
        cohort: query.cohort.clone(),
        segment: pool.segment.clone(),
        segments: pool.segments.clone(),
        devices: pool.devices.len() as u64,
        windows: pool.windows,
        left_out: pool.left_out.clone(),
        from_ms: pool.from_ms,
        until_ms: pool.until_ms,
        inferences: pool.inferences,
        errors: pool.errors,
        refused: pool.refused,
        confidence_mean: mean(pool.confidence_sum_micro, pool.inferences),
        entropy_mean: mean(pool.entropy_sum_micro, pool.inferences),
        latency: LatencyQuantiles {
            p50_us: pool.latency.quantile_us(0.5),
            p90_us: pool.latency.quantile_us(0.9),
            p99_us: pool.latency.quantile_us(0.99),
        },
        status: Status::Insufficient,
        note,
        output_mix: None,
        confidence: None,
        entropy: None,
        estimated_accuracy: None,
        features: Vec::new(),
    };
    if let (Some(Reference { profile, .. }), Some(counts)) = (reference, &pool.scored) {
        score(&mut drift, query, profile, counts);
    }
    drift
}

fn score(drift: &mut Drift, query: &DriftQuery, profile: &Profile, counts: &Scored) {
    let whole = query.sensitivity;
    let mix = Mixed::new(profile, &counts.outputs, query.out_of_range_margin);
    let outputs = [
        ("confidence", &profile.confidence, &counts.confidence),
        ("entropy", &profile.entropy, &counts.entropy),
    ];
    let range = |counts: &[u64], column: &Column| {
        let margin = query.out_of_range_margin;
        Some(RangeComparison::new(
            counts,
            profile.rows,
            &column.sound,
            margin,
        ))
    };
    let [confidence, entropy] = outputs.map(|(name, reference, column)| Compared {
        range: range(&reference.counts, column),
        ..Compared::new(name, &reference.edges, &reference.counts, column)
    });
    drift.estimated_accuracy = profile.calibration.as_ref().and_then(|calibration| {
        let margin = ACCURACY_MARGIN;
        estimate(
            counts.expected.as_ref()?,
            calibration,
            Sensitivity { margin, ..whole },
        )
    });
    let pairs = profile.features.iter().zip(&counts.features);
    let features: Vec<Compared<'_>> = pairs
        .map(|(reference, column)| {
            let (name, edges, counts) = (&reference.name, &reference.edges, &reference.counts);
            if reference.categories.is_some() {
                let sound = &column.sound;
                let (beyond, margin) = (unseen(sound), query.out_of_range_margin);
                let range = RangeComparison::of_categories(
                    counts,
                    profile.rows,
                    &sound.counts,
                    beyond,
                    margin,
                );
                return Compared {
                    range: Some(range),
                    ..Compared::of_categories(name, edges, counts, column)
                };
            }
            Compared {
                range: range(counts, column),
                ..Compared::new(name, edges, counts, column)
            }
        })
        .collect();
    let columns = [&confidence, &entropy].into_iter().chain(&features);
    let ranges = columns.clone().filter_map(|column| column.range.as_ref());
    let ranges = Ranges::of(whole.alpha, ranges.chain([&mix.range]));
    let bins = columns.map(|column| column.p_value);
    let bins = Bins::of(
        whole,
        ranges.alpha_left,
        [mix.p_value()].into_iter().chain(bins),
    );
    let mut of_bins = bins.adjusted.iter().copied();
    let mut of_ranges = ranges.adjusted.iter().copied();
    let mixed = mix.publish(bins.level(mix.p_value(), &mut of_bins).0);
    let mut judged = |range: RangeComparison| {
        let p_adjusted = range.p_value().and_then(|_| of_ranges.next());
        range.score(ranges.level, p_adjusted)
    };
    let mut publish = |compared: &Compared<'_>| {
        let (sensitivity, p_adjusted) = bins.level(compared.p_value, &mut of_bins);
        HistogramScore {
            out_of_range: compared.range.map(&mut judged),
            ..compared.publish(sensitivity, p_adjusted)
        }
    };
    drift.confidence = Some(publish(&confidence));
    drift.entropy = Some(publish(&entropy));
    drift.features = features.iter().map(publish).collect();
    drift.output_mix = Some(Mix {
        out_of_range: Some(judged(mix.range)),
        ..mixed
    });
    drift.status = overall(drift);
}

/// Ranges and what was never seen, held against each other at half of alpha. What they can cost when
/// nothing has drifted is known exactly, and is next to nothing where the reference has a thousand rows:
/// the rest is left to the bins, so that both together keep to alpha.
struct Ranges {
    /// By range that takes part, out of alpha.
    adjusted: Vec<f64>,
    level: f64,
    alpha_left: f64,
}

impl Ranges {
    fn of<'a>(alpha: f64, ranges: impl Iterator<Item = &'a RangeComparison>) -> Self {
        let own = alpha / 2.0;
        let (mut p_values, mut cost) = (Vec::new(), 0.0);
        for range in ranges {
            if let Some(p_value) = range.p_value() {
                p_values.push(p_value);
                cost += range.chance(own);
            }
        }
        let found = benjamini_hochberg(&p_values, own);
        Self {
            adjusted: out_of(found.adjusted, own, alpha),
            level: found.level,
            alpha_left: alpha - own.min(cost),
        }
    }
}

/// The bins of features, confidence and entropy and the mix of classes, held against each other. What
/// nothing can be said about takes no part.
struct Bins {
    /// By p-value, out of alpha.
    adjusted: Vec<f64>,
    found: Sensitivity,
    apart: Sensitivity,
}

impl Bins {
    fn of(
        whole: Sensitivity,
        alpha_left: f64,
        p_values: impl Iterator<Item = Option<f64>>,
    ) -> Self {
        let all: Vec<Option<f64>> = p_values.collect();
        let some: Vec<f64> = all.iter().copied().flatten().collect();
        let found = benjamini_hochberg(&some, alpha_left);
        let count = u32::try_from(all.len().max(1)).unwrap_or(u32::MAX);
        Self {
            adjusted: out_of(found.adjusted, alpha_left, whole.alpha),
            found: Sensitivity {
                alpha: found.level,
                ..whole
            },
            // What else is published of one that took no part is held against its share of alpha.
            apart: Sensitivity {
                alpha: whole.alpha / f64::from(count),
                ..whole
            },
        }
    }

    /// What a p-value's scores are held against, and the next adjusted one if it took part.
    fn level(
        &self,
        p_value: Option<f64>,
        adjusted: &mut impl Iterator<Item = f64>,
    ) -> (Sensitivity, Option<f64>) {
        match p_value {
            Some(_) => (self.found, adjusted.next()),
            None => (self.apart, None),
        }
    }
}

/// Adjusted p-values to be compared with `alpha` instead of the part of it that they had.
fn out_of(adjusted: Vec<f64>, part: f64, alpha: f64) -> Vec<f64> {
    let scaled = |p: f64| (p * alpha / part).min(1.0);
    adjusted.into_iter().map(scaled).collect()
}

fn overall(drift: &Drift) -> Status {
    let mix = drift
        .output_mix
        .iter()
        .flat_map(|mix| [mix.scores.psi, mix.scores.total_variation]);
    let histograms = || {
        let outputs = drift.confidence.iter().chain(&drift.entropy);
        outputs.chain(&drift.features)
    };
    let accuracy = drift.estimated_accuracy.iter().map(|a| Some(a.fall));
    let statuses: Vec<Status> = mix
        .chain(accuracy)
        .chain(histograms().map(|h| h.scores.psi))
        .flatten()
        .map(|score| score.status)
        .collect();
    let is_broken = histograms().any(|h| h.isolated.status == Status::Alarm);
    // A range that is kept says nothing of what happens within it.
    let is_left = |h: &HistogramScore| {
        let range = h.out_of_range.as_ref();
        range.is_some_and(|range| range.score.status == Status::Alarm)
    };
    let new_classes = drift.output_mix.iter().filter_map(|mix| mix.out_of_range);
    let mut new_classes = new_classes.map(|range| range.score.status);
    let is_left = histograms().any(is_left) || new_classes.any(|s| s == Status::Alarm);
    if is_broken || is_left || statuses.contains(&Status::Alarm) {
        Status::Alarm
    } else if statuses.contains(&Status::Quiet) {
        Status::Quiet
    } else {
        Status::Insufficient
    }
}

/// Predicted classes against their reference, before it is known what the others say.
struct Mixed<'a> {
    profile: &'a Profile,
    current: &'a [u64],
    comparison: Option<Comparison>,
    range: RangeComparison,
}

impl<'a> Mixed<'a> {
    fn new(profile: &'a Profile, current: &'a [u64], margin: f64) -> Self {
        let reference = &profile.outputs.counts;
        let (pooled_reference, pooled_current) = pool_rare(reference, current);
        Self {
            profile,
            current,
            comparison: Comparison::new(&pooled_reference, &pooled_current).ok(),
            range: RangeComparison::of_categories(reference, profile.rows, current, 0, margin),
        }
    }

    fn p_value(&self) -> Option<f64> {
        self.comparison.as_ref().and_then(Comparison::psi_p_value)
    }

    fn publish(&self, sensitivity: Sensitivity) -> Mix {
        let outputs = &self.profile.outputs;
        let pairs = outputs.counts.iter().zip(self.current);
        Mix {
            classes: outputs.classes.clone(),
            reference: outputs.counts.clone(),
            current: self.current.to_vec(),
            unseen: pairs
                .filter(|(reference, _)| **reference == 0)
                .fold(0, |sum, (_, n)| sum.saturating_add(*n)),
            scores: bin_scores(self.comparison.as_ref(), sensitivity),
            out_of_range: None,
        }
    }
}

/// Values that are none of the categories.
fn unseen(sound: &Histogram) -> u64 {
    sound.under.saturating_add(sound.over)
}

/// Every score of a comparison, each with a margin as large as the PSI's in its own unit; those that
/// are differences of shares have the PSI's number as it is.
fn bin_scores(comparison: Option<&Comparison>, psi: Sensitivity) -> BinScores {
    let with = |margin: f64| Sensitivity { margin, ..psi };
    comparison.map_or_else(BinScores::default, |comparison| BinScores {
        psi: Some(comparison.psi(psi)),
        total_variation: Some(comparison.total_variation(psi)),
        jensen_shannon: Some(
            comparison.jensen_shannon(with(psi.margin / (8.0 * std::f64::consts::LN_2))),
        ),
        hellinger: Some(comparison.hellinger(with((psi.margin / 8.0).sqrt()))),
        l_infinity: Some(comparison.l_infinity(psi)),
        chi_squared: Some(comparison.chi_squared(with(comparison.chi_squared_of(psi.margin)))),
    })
}

/// One column against its reference, before it is known what the others say.
struct Compared<'a> {
    name: &'a str,
    edges: &'a Edges,
    reference: &'a [u64],
    is_ordered: bool,
    column: &'a Column,
    grouped: Option<Comparison>,
    p_value: Option<f64>,
    range: Option<RangeComparison>,
}

impl<'a> Compared<'a> {
    fn new(name: &'a str, edges: &'a Edges, reference: &'a [u64], column: &'a Column) -> Self {
        let groups = group(reference, &column.sound.with_tails());
        Self::grouped(name, edges, reference, column, groups)
    }

    /// Bins that have no order; what the reference has not seen is one of them.
    fn of_categories(
        name: &'a str,
        edges: &'a Edges,
        reference: &'a [u64],
        column: &'a Column,
    ) -> Self {
        let sound = &column.sound;
        let unseen = unseen(sound);
        let with_unseen = |counts: &[u64], n| counts.iter().copied().chain([n]).collect::<Vec<_>>();
        let groups = pool_rare(
            &with_unseen(reference, 0),
            &with_unseen(&sound.counts, unseen),
        );
        Self {
            is_ordered: false,
            ..Self::grouped(name, edges, reference, column, groups)
        }
    }

    fn grouped(
        name: &'a str,
        edges: &'a Edges,
        reference: &'a [u64],
        column: &'a Column,
        (groups, grouped): (Vec<u64>, Vec<u64>),
    ) -> Self {
        let grouped = Comparison::new(&groups, &grouped).ok();
        Self {
            name,
            edges,
            reference,
            is_ordered: true,
            column,
            p_value: grouped.as_ref().and_then(Comparison::psi_p_value),
            grouped,
            range: None,
        }
    }

    fn publish(&self, sensitivity: Sensitivity, p_adjusted: Option<f64>) -> HistogramScore {
        let reference = Histogram {
            counts: self.reference.to_vec(),
            ..Histogram::default()
        };
        let sound = &self.column.sound;
        let ordered = OrderedComparison::new(self.edges, &reference, sound).ok();
        let ordered = ordered.filter(|_| self.is_ordered);
        let unit = std_of_middles(self.edges, self.reference);
        HistogramScore {
            name: self.name.to_owned(),
            scores: bin_scores(self.grouped.as_ref(), sensitivity),
            p_value: self.p_value,
            p_adjusted,
            kolmogorov_smirnov: ordered
                .as_ref()
                .map(|ordered| ordered.kolmogorov_smirnov(sensitivity)),
            wasserstein: ordered
                .as_ref()
                .map(|ordered| ordered.wasserstein(unit, sensitivity)),
            outside: sound.under.saturating_add(sound.over),
            out_of_range: None,
            new_values: if self.is_ordered {
                None
            } else {
                new_values(self.column)
            },
            unusable: self.column.unusable,
            isolated: isolated(self.column),
        }
    }
}

/// At most as many as there were.
#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn new_values(column: &Column) -> Option<NewValues> {
    let sketch = column.sound.distinct.as_ref()?;
    let distinct = sketch.estimate().min(column.sketched as f64);
    Some(NewValues {
        distinct,
        standard_error: distinct * STANDARD_ERROR,
        values: column.sketched,
    })
}

fn isolated(column: &Column) -> Isolated {
    let all = column.sound.total().saturating_add(column.isolated_values);
    let is_much = column.isolated_values.saturating_mul(ISOLATED_ONE_IN) > all;
    Isolated {
        unusable_windows: column.unusable_windows,
        constant_windows: column.constant_windows,
        devices: column.isolated_devices.len() as u64,
        values: column.isolated_values,
        status: match all {
            0 => Status::Insufficient,
            _ if is_much => Status::Alarm,
            _ => Status::Quiet,
        },
    }
}

/// Joins neighbouring bins until each group holds a tenth of the reference, so that the fine bins
/// (whose edges include the deciles) become about deciles again; a heavy atom stays by itself.
pub(super) fn group(reference: &[u64], current: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let total = reference
        .iter()
        .fold(0_u64, |sum, n| sum.saturating_add(*n));
    let (mut groups, mut grouped) = (Vec::new(), Vec::new());
    let (mut open_reference, mut open_current, mut is_open) = (0_u64, 0_u64, false);
    for (r, c) in reference.iter().zip(current) {
        open_reference = open_reference.saturating_add(*r);
        open_current = open_current.saturating_add(*c);
        is_open = true;
        if u128::from(open_reference) * u128::from(GROUPS) >= u128::from(total)
            && open_reference > 0
        {
            groups.push(open_reference);
            grouped.push(open_current);
            (open_reference, open_current, is_open) = (0, 0, false);
        }
    }
    if is_open {
        match (groups.last_mut(), grouped.last_mut()) {
            (Some(r), Some(c)) => {
                *r = r.saturating_add(open_reference);
                *c = c.saturating_add(open_current);
            }
            _ => {
                groups.push(open_reference);
                grouped.push(open_current);
            }
        }
    }
    (groups, grouped)
}

#[allow(clippy::cast_precision_loss, reason = "a mean to six digits")]
fn mean(sum_micro: u128, count: u64) -> Option<f64> {
    (count > 0).then(|| sum_micro as f64 / MICRO / count as f64)
}

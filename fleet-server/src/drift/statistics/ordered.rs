//! Scores that need the bins' order: Kolmogorov–Smirnov and Wasserstein-1, each as an interval that
//! holds what the raw values would have given.
//!
//! Bins are left-closed, so the share of values below an edge is known exactly, and nothing between
//! two edges is. At the edges the gap |F−G| is a certain lower bound of the Kolmogorov–Smirnov
//! distance; within a bin it is at most max(F₊−G, G₊−F), F and F₊ the shares below its two edges. A
//! bin that holds a single number (an atom) hides nothing. For Wasserstein-1, ∫|F−G|, a value stands
//! at the middle of its bin and is moved by at most half the width, so the estimate is off by at most
//! ½Σ(p+q)·width; values in the open tails stand at the outer edge, which can only make it smaller.

use super::{Score, Sensitivity, StatisticsError, Status, size};
use crate::drift::chi_squared::upper_quantile;
use dunlin_protocol::sketch::{Edges, Histogram};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Fewest values on either side; below, the bounds don't hold.
pub const SIZE_MIN: u64 = 30;
/// Least unit of Wasserstein-1, for references of almost a single value.
pub const STD_MIN: f64 = 1e-3;
/// Most steps of the exact distribution, N·M; beyond, its limit is taken.
const EXACT_STEPS_MAX: u128 = 1 << 20;

/// The Kolmogorov–Smirnov distance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KolmogorovSmirnov {
    /// The largest gap at an edge: the distance is at least this.
    pub score: Score,
    /// The distance is at most this.
    pub upper: f64,
    /// Probability of so large a gap as the score's when nothing has drifted.
    pub p_value: f64,
}

/// Wasserstein-1 in standard deviations of the reference's bins, see [`std_of_middles`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Wasserstein {
    /// The distance is at least this: the estimate less what the bins' widths hide.
    pub score: Score,
    /// Every value at the middle of its bin.
    pub estimate: f64,
    /// The distance is at most this; `None` if values lie in the open tails.
    pub upper: Option<f64>,
}

/// Two histograms over the same edges, checked once.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderedComparison<'a> {
    edges: &'a [f64],
    /// Values below each edge.
    below_ref: Vec<u64>,
    below_cur: Vec<u64>,
    n_ref: u64,
    n_cur: u64,
}

impl<'a> OrderedComparison<'a> {
    /// Checks the two histograms. NaN, infinite and missing values count as nothing.
    ///
    /// # Errors
    /// A histogram has another number of bins than the edges make.
    pub fn new(
        edges: &'a Edges,
        reference: &Histogram,
        current: &Histogram,
    ) -> Result<Self, StatisticsError> {
        for counts in [&reference.counts, &current.counts] {
            if counts.len() != edges.bins() {
                return Err(StatisticsError::BinsDiffer {
                    reference: edges.bins(),
                    current: counts.len(),
                });
            }
        }
        let (below_ref, n_ref) = cumulative(reference);
        let (below_cur, n_cur) = cumulative(current);
        Ok(Self {
            edges: edges.as_slice(),
            below_ref,
            below_cur,
            n_ref,
            n_cur,
        })
    }

    fn is_sufficient(&self) -> bool {
        self.n_ref.min(self.n_cur) >= SIZE_MIN
    }

    /// 1/N + 1/M.
    fn sampling(&self) -> f64 {
        1.0 / size(self.n_ref) + 1.0 / size(self.n_cur)
    }

    fn score(&self, value: f64, bound: f64, sensitivity: Sensitivity) -> Score {
        let (value, bound) = if self.n_ref == 0 || self.n_cur == 0 {
            (0.0, 0.0)
        } else {
            (value, bound)
        };
        let threshold = bound.max(sensitivity.margin);
        let status = if !self.is_sufficient() {
            Status::Insufficient
        } else if value > threshold {
            Status::Alarm
        } else {
            Status::Quiet
        };
        Score {
            value,
            n_ref: self.n_ref,
            n_cur: self.n_cur,
            bound,
            threshold,
            status,
        }
    }

    /// Kolmogorov–Smirnov; its bound is Smirnov's limit √(−½ln(alpha/2)·(1/N+1/M)).
    #[must_use]
    pub fn kolmogorov_smirnov(&self, sensitivity: Sensitivity) -> KolmogorovSmirnov {
        let (n, m) = (u128::from(self.n_ref), u128::from(self.n_cur));
        let scale = ratio(1, n) * ratio(1, m);
        // Gaps times N·M are whole numbers, so the lower bound is exact to the last rounding.
        let gap = |f: u64, g: u64| (u128::from(f) * m).abs_diff(u128::from(g) * n);
        let ahead = |f: u64, g: u64| (u128::from(f) * m).saturating_sub(u128::from(g) * n);
        let behind = |g: u64, f: u64| (u128::from(g) * n).saturating_sub(u128::from(f) * m);
        let (mut lower, mut upper) = (0, 0);
        for (f, g) in self.below_ref.iter().zip(&self.below_cur) {
            lower = lower.max(gap(*f, *g));
        }
        for (f, f_next, g, g_next, hides) in self.stretches() {
            if hides {
                upper = upper.max(ahead(f_next, g)).max(behind(g_next, f));
            }
        }
        let value = scaled(lower, n, m);
        let bound = (-0.5 * (sensitivity.alpha / 2.0).ln() * self.sampling()).sqrt();
        let is_empty = scale == 0.0;
        KolmogorovSmirnov {
            score: self.score(value, bound, sensitivity),
            upper: if is_empty {
                1.0
            } else {
                scaled(upper.max(lower), n, m)
            },
            p_value: if is_empty {
                1.0
            } else {
                smirnov_tail(self.n_ref, self.n_cur, lower)
            },
        }
    }

    /// What lies between neighbouring edges and beyond the outer ones: shares of the reference below
    /// it and up to its end, the same of the current values, and whether it can hide anything.
    fn stretches(&self) -> impl Iterator<Item = (u64, u64, u64, u64, bool)> + '_ {
        let last = self.edges.len();
        (0..=last).map(move |at| {
            let from = |below: &[u64]| at.checked_sub(1).map_or(0, |at| below[at]);
            let to = |below: &[u64], all: u64| below.get(at).copied().unwrap_or(all);
            let is_atom = (1..last).contains(&at) && self.edges[at - 1].next_up() >= self.edges[at];
            (
                from(&self.below_ref),
                to(&self.below_ref, self.n_ref),
                from(&self.below_cur),
                to(&self.below_cur, self.n_cur),
                !is_atom,
            )
        })
    }

    /// Wasserstein-1 divided by the greater of `reference_std` and [`STD_MIN`].
    ///
    /// Its bound: when nothing has drifted F−G is a Brownian bridge of F times √(1/N+1/M), whose
    /// integral in absolute value has the mean √(2/π)·I and a standard deviation of at most
    /// √(1−2/π)·I, I = ∫√(F(1−F)).
    #[must_use]
    pub fn wasserstein(&self, reference_std: f64, sensitivity: Sensitivity) -> Wasserstein {
        let unit = if reference_std.is_finite() {
            reference_std.max(STD_MIN)
        } else {
            STD_MIN
        };
        let share = |count: u64, all: u64| size(count) / size(all.max(1));
        let (n, m) = (size(self.n_ref), size(self.n_cur));
        let places = places(self.edges);
        let (mut distance, mut spread) = (0.0, 0.0);
        // Between two neighbouring places, shares below the edge between them.
        for (at, pair) in places.windows(2).enumerate() {
            let width = pair[1] - pair[0];
            let f = share(self.below_ref[at], self.n_ref);
            let g = share(self.below_cur[at], self.n_cur);
            distance += (f - g).abs() * width;
            let pooled = (f * n + g * m) / (n + m).max(1.0);
            spread += (pooled * (1.0 - pooled)).max(0.0).sqrt() * width;
        }
        let hidden: f64 = self
            .edges
            .windows(2)
            .enumerate()
            .map(|(at, edge)| {
                let p = share(self.below_ref[at + 1] - self.below_ref[at], self.n_ref);
                let q = share(self.below_cur[at + 1] - self.below_cur[at], self.n_cur);
                let is_atom = edge[0].next_up() >= edge[1];
                if is_atom {
                    0.0
                } else {
                    0.5 * (p + q) * (edge[1] - edge[0])
                }
            })
            .sum();
        let tails =
            self.tails(&self.below_ref, self.n_ref) + self.tails(&self.below_cur, self.n_cur);
        let quantile = upper_quantile(2.0 * sensitivity.alpha.min(0.5), 1).sqrt();
        let two_over_pi = std::f64::consts::FRAC_2_PI;
        let bound = spread
            * self.sampling().sqrt()
            * (two_over_pi.sqrt() + quantile * (1.0 - two_over_pi).sqrt());
        let estimate = distance / unit;
        Wasserstein {
            score: self.score(
                (distance - hidden).max(0.0) / unit,
                bound / unit,
                sensitivity,
            ),
            estimate,
            upper: (tails == 0).then_some((distance + hidden) / unit),
        }
    }

    fn tails(&self, below: &[u64], all: u64) -> u64 {
        let first = below.first().copied().unwrap_or(0);
        let last = below.last().copied().unwrap_or(all);
        first.saturating_add(all - last)
    }
}

/// Standard deviation (divisor N) of a histogram, each value at the middle of its bin: 0 if empty. With
/// wide outer bins it is larger than that of the values themselves.
#[must_use]
pub fn std_of_middles(edges: &Edges, counts: &[u64]) -> f64 {
    let places = places(edges.as_slice());
    let middles = places.get(1..places.len() - 1).unwrap_or_default();
    let total: f64 = counts.iter().map(|n| size(*n)).sum();
    if total == 0.0 {
        return 0.0;
    }
    let mean = |of: &dyn Fn(f64) -> f64| {
        let pairs = middles.iter().zip(counts);
        pairs.map(|(x, n)| of(*x) * size(*n)).sum::<f64>() / total
    };
    let centre = mean(&|x| x);
    mean(&|x| (x - centre).powi(2)).sqrt()
}

/// Where the values of each bin stand, the tails' places first and last.
fn places(edges: &[f64]) -> Vec<f64> {
    let middles = edges.windows(2).map(|edge| {
        if edge[0].next_up() >= edge[1] {
            edge[0]
        } else {
            edge[0] + 0.5 * (edge[1] - edge[0])
        }
    });
    let (first, last) = (edges.first(), edges.last());
    first
        .copied()
        .into_iter()
        .chain(middles)
        .chain(last.copied())
        .collect()
}

/// Values below each edge, and all that are finite.
fn cumulative(histogram: &Histogram) -> (Vec<u64>, u64) {
    let mut below = Vec::with_capacity(histogram.counts.len() + 1);
    let mut sum = histogram.under;
    below.push(sum);
    for count in &histogram.counts {
        sum = sum.saturating_add(*count);
        below.push(sum);
    }
    (below, sum.saturating_add(histogram.over))
}

#[allow(clippy::cast_precision_loss, reason = "one rounding")]
fn ratio(num: u128, den: u128) -> f64 {
    if den == 0 {
        0.0
    } else {
        num as f64 / den as f64
    }
}

fn scaled(gap: u128, n: u128, m: u128) -> f64 {
    ratio(gap, n.saturating_mul(m))
}

/// P(D ≥ gap/(N·M)) for two samples of one continuous distribution: by counting paths (Hodges 1958,
/// arranged so that small probabilities keep their digits, as in R's `psmirnov`) while N·M is at most
/// [`EXACT_STEPS_MAX`], by Kolmogorov's limit beyond. With ties it is too large, never too small.
fn smirnov_tail(n: u64, m: u64, gap: u128) -> f64 {
    let steps = u128::from(n) * u128::from(m);
    if gap == 0 {
        return 1.0;
    }
    if steps > EXACT_STEPS_MAX {
        let en = size(n) * size(m) / (size(n) + size(m));
        return kolmogorov_tail(en.sqrt() * scaled(gap, u128::from(n), u128::from(m)));
    }
    let is_outside = |i: u64, j: u64| {
        (u128::from(i) * u128::from(m)).abs_diff(u128::from(j) * u128::from(n)) >= gap
    };
    let mut row: Vec<f64> = Vec::new();
    for j in 0..=m {
        let before = row.last().copied().unwrap_or(0.0);
        row.push(if is_outside(0, j) { 1.0 } else { before });
    }
    for i in 1..=n {
        let mut before = 0.0;
        for (j, slot) in (0..=m).zip(&mut row) {
            if is_outside(i, j) {
                *slot = 1.0;
            } else if j > 0 {
                let all = size(i + j);
                *slot = size(i) / all * *slot + size(j) / all * before;
            }
            before = *slot;
        }
    }
    row.last().copied().unwrap_or(1.0)
}

/// 2·Σ(−1)^(k−1)·exp(−2k²x²); for small x by its theta-function twin, which converges there.
fn kolmogorov_tail(x: f64) -> f64 {
    if x < 1.0 {
        let front = (2.0 * std::f64::consts::PI).sqrt() / x;
        let term = |k: i32| {
            let odd = f64::from(2 * k - 1) * std::f64::consts::PI / x;
            (-odd * odd / 8.0).exp()
        };
        return (1.0 - front * (1..=20).map(term).sum::<f64>()).clamp(0.0, 1.0);
    }
    let term = |k: i32| {
        let sign = if k % 2 == 1 { 2.0 } else { -2.0 };
        sign * (-2.0 * f64::from(k * k) * x * x).exp()
    };
    (1..=20).map(term).sum::<f64>().clamp(0.0, 1.0)
}

#[cfg(test)]
#[path = "ordered_tests.rs"]
mod tests;

//! Values outside the reference's range: the few that lie so far off that bins of tenths do not see
//! them move.
//!
//! When nothing has drifted, the share of new values beyond the extremes of N reference rows is
//! Beta(2, N−1)-distributed, whatever the distribution (Wilks 1941): 2/(N+1) on average. Where r of the
//! rows lie outside themselves it is at most Beta(r+2, N−r−1). How many of M new values do is then
//! beta-binomial, which is a hypergeometric sum of r+2 terms: exact, and an upper bound where values
//! tie. Categories that the reference has not seen take its place where there is no order: their share in
//! the long run is about that of the f₁ categories that it has seen once, f₁/N (Good 1953), so these count
//! among its r. A second test holds the share against what the reference allows and the practical margin
//! together (Clopper & Pearson 1934). An alarm needs both.

use super::{Score, Status, ordered::SIZE_MIN, size};
use crate::drift::beta::upper_share;
use crate::drift::chi_squared::ln_gamma;
use dunlin_protocol::sketch::Histogram;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Least share beyond what the reference allows that matters.
pub const MARGIN: f64 = 0.02;
/// Sizes beyond this are scaled down to it: it tells shares apart that are so near that nobody minds,
/// and the beta distribution's fraction takes about the root of it in steps.
const SIZE_MAX: u64 = 1 << 20;

/// The share of values outside the reference's range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutOfRange {
    /// The share, 0 to 1. Its bound is what sampling alone exceeds; its threshold the greater of that
    /// and the share from which on `lower` passes `allowed` and the margin.
    pub score: Score,
    /// The share in the long run is at least this, at the level of the bound.
    pub lower: f64,
    /// The share that the reference itself allows.
    pub allowed: f64,
    /// Probability of so many: the larger of that when nothing has drifted and that when the share is
    /// `allowed` and the margin.
    pub p_value: f64,
    /// The smallest alpha at which this would be among what drifted, everything looked at together.
    #[serde(default)]
    pub p_adjusted: Option<f64>,
}

/// Counts outside and in all, checked once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RangeComparison {
    n_ref: u64,
    outside_ref: u64,
    n_cur: u64,
    outside_cur: u64,
    margin: f64,
}

impl RangeComparison {
    /// `reference` counts by bin, of `rows` rows: those in no bin count as outside. NaN, infinite and
    /// missing values of `current` count as nothing. `margin` is a share; from 1 on nothing alarms.
    #[must_use]
    pub fn new(reference: &[u64], rows: u64, current: &Histogram, margin: f64) -> Self {
        let sum = |counts: &[u64]| counts.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
        let (inside_ref, inside_cur) = (sum(reference), sum(&current.counts));
        let outside_cur = current.under.saturating_add(current.over);
        let (n_ref, n_cur) = (rows.max(inside_ref), inside_cur.saturating_add(outside_cur));
        Self {
            n_ref,
            outside_ref: n_ref - inside_ref,
            n_cur,
            outside_cur,
            margin,
        }
    }

    /// The same of categories: those that the reference has none of are outside, `beyond` of them not
    /// even among its bins.
    #[must_use]
    pub fn of_categories(
        reference: &[u64],
        rows: u64,
        current: &[u64],
        beyond: u64,
        margin: f64,
    ) -> Self {
        let sum = |counts: &mut dyn Iterator<Item = u64>| counts.fold(0_u64, u64::saturating_add);
        let inside_ref = sum(&mut reference.iter().copied());
        let once = sum(&mut reference.iter().copied().filter(|n| *n == 1));
        let inside_cur = sum(&mut current.iter().copied());
        let pairs = reference.iter().zip(current);
        let new = sum(&mut pairs.filter(|(known, _)| **known == 0).map(|(_, n)| *n));
        let n_ref = rows.max(inside_ref);
        Self {
            n_ref,
            outside_ref: n_ref - inside_ref + once,
            n_cur: inside_cur.saturating_add(beyond),
            outside_cur: new.saturating_add(beyond),
            margin,
        }
    }

    /// Few values say nothing, and a reference that is mostly outside its own bins has no range.
    fn is_sufficient(&self) -> bool {
        self.n_cur >= SIZE_MIN && self.n_ref - self.outside_ref >= SIZE_MIN
    }

    /// (r+2)/(N+1).
    fn allowed(&self) -> f64 {
        ((size(self.outside_ref) + 2.0) / (size(self.n_ref) + 1.0)).min(1.0)
    }

    /// `None` where there are too few values.
    #[must_use]
    pub fn p_value(&self) -> Option<f64> {
        let scaled = self.scaled();
        self.is_sufficient()
            .then(|| scaled.tail(scaled.outside_cur))
    }

    /// Probability of an alarm at the level `alpha` when nothing has drifted: less than that, for the
    /// margin forbids most of it.
    #[must_use]
    pub fn chance(&self, alpha: f64) -> f64 {
        let scaled = self.scaled();
        let last = scaled.last_above(alpha, |k| scaled.tail(k));
        if last < scaled.n_cur {
            scaled.sampling_tail(last + 1)
        } else {
            0.0
        }
    }

    /// The share against its threshold at the level `alpha`.
    #[must_use]
    pub fn score(&self, alpha: f64, p_adjusted: Option<f64>) -> OutOfRange {
        let scaled = self.scaled();
        let share = |count: u64| size(count) / size(scaled.n_cur.max(1));
        let bound = scaled.last_above(alpha, |k| scaled.sampling_tail(k));
        let margin = scaled.last_above(alpha, |k| scaled.margin_tail(k));
        let p_value = scaled.tail(scaled.outside_cur);
        let status = if !self.is_sufficient() {
            Status::Insufficient
        } else if scaled.outside_cur > bound.max(margin) {
            Status::Alarm
        } else {
            Status::Quiet
        };
        OutOfRange {
            score: Score {
                value: size(self.outside_cur) / size(self.n_cur.max(1)),
                n_ref: self.n_ref,
                n_cur: self.n_cur,
                bound: share(bound),
                threshold: share(bound.max(margin)),
                status,
            },
            lower: lower(scaled.outside_cur, scaled.n_cur, alpha),
            allowed: self.allowed(),
            p_value,
            p_adjusted,
        }
    }

    /// Sizes for which logarithms of factorials keep their digits.
    fn scaled(&self) -> Self {
        let shift = |n: u64| (n / SIZE_MAX).checked_ilog2().map_or(0, |bits| bits + 1);
        let (of_ref, of_cur) = (shift(self.n_ref), shift(self.n_cur));
        Self {
            n_ref: self.n_ref >> of_ref,
            outside_ref: self.outside_ref >> of_ref,
            n_cur: self.n_cur >> of_cur,
            outside_cur: self.outside_cur >> of_cur,
            margin: self.margin,
        }
    }

    /// The largest count whose tail is above alpha: all above it are significant.
    fn last_above(&self, alpha: f64, tail: impl Fn(u64) -> f64) -> u64 {
        if tail(self.n_cur) > alpha {
            return self.n_cur;
        }
        let (mut low, mut high) = (0, self.n_cur);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if tail(middle) > alpha {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }

    fn tail(&self, outside: u64) -> f64 {
        self.sampling_tail(outside).max(self.margin_tail(outside))
    }

    /// P(K ≥ `outside`) when nothing has drifted. So many new values lie beyond the two order statistics
    /// exactly if, of as many of all N + M values as these and the r + 1 reference rows beyond, at
    /// most r + 1 are the reference's.
    fn sampling_tail(&self, outside: u64) -> f64 {
        if outside == 0 {
            return 1.0;
        }
        let most = self.outside_ref + 1;
        let drawn = outside + most;
        if most >= self.n_ref {
            return 1.0;
        }
        let ways = ln_choose(self.n_ref, most) + ln_choose(self.n_cur, outside);
        let mut term = (ways - ln_choose(self.n_ref + self.n_cur, drawn)).exp();
        let mut sum = term;
        for of_ref in (1..=most).rev() {
            let of_cur = drawn - of_ref;
            if of_cur >= self.n_cur {
                break;
            }
            let ratio = size(of_ref) / size(of_cur + 1) * size(self.n_cur - of_cur)
                / size(self.n_ref - of_ref + 1);
            term *= ratio;
            sum += term;
            if ratio < 1.0 && term < sum * 1e-17 {
                break;
            }
        }
        sum.min(1.0)
    }

    /// P(K ≥ `outside`) when the share is what the reference allows and the margin.
    fn margin_tail(&self, outside: u64) -> f64 {
        binomial_tail(outside, self.n_cur, self.allowed() + self.margin)
    }
}

/// P(K ≥ k) of n trials with the probability `share`.
fn binomial_tail(k: u64, n: u64, share: f64) -> f64 {
    if k == 0 || share >= 1.0 {
        return 1.0;
    }
    if k > n {
        return 0.0;
    }
    upper_share(1.0 - share, size(n - k) + 1.0, size(k))
}

/// One-sided lower limit of a share, k of n, at the level alpha (Clopper & Pearson).
fn lower(k: u64, n: u64, alpha: f64) -> f64 {
    let (mut low, mut high) = (0.0, size(k) / size(n.max(1)));
    for _ in 0..40 {
        if k == 0 {
            break;
        }
        let middle = 0.5 * (low + high);
        if binomial_tail(k, n, middle) > alpha {
            high = middle;
        } else {
            low = middle;
        }
    }
    low
}

fn ln_choose(n: u64, k: u64) -> f64 {
    let factorial = |n: u64| ln_gamma(size(n) + 1.0);
    factorial(n) - factorial(k) - factorial(n.saturating_sub(k))
}

#[cfg(test)]
#[path = "range_tests.rs"]
mod tests;

//! Scores between a reference and a current distribution, both as counts over the same frozen
//! bins or categories. p and q are the shares, N and M the sizes.
//!
//! Every score comes with the sizes, the bound that sampling alone would exceed with probability
//! alpha, and the threshold it was held against, also when quiet. The threshold is the greater
//! of the bound and the practical margin: an alarm needs significance *and* effect.
//!
//! The bounds all follow from Pearson's X² = Σ(p−q)²/π̂ · NM/(N+M) ~ χ² with B−1 degrees of
//! freedom when nothing has drifted (s = 1/N + 1/M, c = χ²_{B−1, 1−alpha}):
//! PSI ≈ X²·s (Yurdakul 2018), Jensen–Shannon ≈ X²·s/(8 ln 2) bits, Hellinger² ≈ X²·s/8, total
//! variation ≤ ½√(X²·s) by Cauchy–Schwarz, and L∞ by the normal quantile of its largest bin
//! shared among the bins.

pub mod estimated;
pub mod multiplicity;
pub mod ordered;
pub mod paired;
pub mod range;
pub mod sequential;

use super::chi_squared::{upper_quantile, upper_tail};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Share that stands for an empty bin in the PSI.
pub const EMPTY_SHARE: f64 = 1e-4;
/// Least expected count of a bin; below, the scores' bounds don't hold.
pub const EXPECTED_COUNT_MIN: f64 = 10.0;
/// Most bins that are compared.
pub const BINS_MAX: usize = 4096;

/// Why two count vectors can't be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatisticsError {
    /// The vectors belong to different bins.
    #[error(
        "the reference has {reference} bins, the current window {current}: they must share frozen bins"
    )]
    BinsDiffer {
        /// Bins of the reference.
        reference: usize,
        /// Bins of the current window.
        current: usize,
    },
    /// Too few or too many bins.
    #[error("expected 2 to {BINS_MAX} bins, got {bins}")]
    BinCount {
        /// Bins found.
        bins: usize,
    },
}

/// How a score is held against its threshold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sensitivity {
    /// Probability of exceeding the bound when nothing has drifted, 0 to 1.
    pub alpha: f64,
    /// Least score of practical importance.
    pub margin: f64,
}

/// What a score says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// At or below the threshold.
    Quiet,
    /// Above the threshold.
    Alarm,
    /// Too few values for the bound to say anything (a bin's expected count below 10, or fewer than 30
    /// values in all where bins don't matter): never an alarm, never an all-clear.
    #[default]
    Insufficient,
}

/// A score with everything needed to judge it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Score {
    /// The score itself; 0 when one side is empty.
    pub value: f64,
    /// Size of the reference, N.
    pub n_ref: u64,
    /// Size of the current window, M.
    pub n_cur: u64,
    /// What sampling alone exceeds with probability alpha; 0 when one side is empty.
    pub bound: f64,
    /// The greater of bound and margin.
    pub threshold: f64,
    /// The judgement.
    pub status: Status,
}

/// Result of the contingency test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChiSquared {
    /// The statistic as a score; its bound is the quantile, its margin in units of the statistic.
    pub score: Score,
    /// Probability of so large a statistic when nothing has drifted.
    pub p_value: f64,
    /// Degrees of freedom: non-empty bins less one.
    pub degrees: u32,
}

/// Two count vectors over the same bins, checked once, from which every score is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    p: Vec<f64>,
    q: Vec<f64>,
    n_ref: u64,
    n_cur: u64,
    is_sufficient: bool,
}

impl Comparison {
    /// Checks the two vectors.
    ///
    /// # Errors
    /// When the vectors differ in length or have fewer than 2 or more than [`BINS_MAX`] bins.
    /// Empty vectors of counts are no error: their scores are `insufficient`.
    pub fn new(reference: &[u64], current: &[u64]) -> Result<Self, StatisticsError> {
        if reference.len() != current.len() {
            let (reference, current) = (reference.len(), current.len());
            return Err(StatisticsError::BinsDiffer { reference, current });
        }
        if !(2..=BINS_MAX).contains(&reference.len()) {
            return Err(StatisticsError::BinCount {
                bins: reference.len(),
            });
        }
        let total = |counts: &[u64]| {
            counts
                .iter()
                .fold(0_u64, |sum, count| sum.saturating_add(*count))
        };
        let (n_ref, n_cur) = (total(reference), total(current));
        let p = shares(reference, n_ref);
        let smallest = size(n_ref.min(n_cur));
        let is_sufficient = p.iter().all(|share| share * smallest >= EXPECTED_COUNT_MIN);
        Ok(Self {
            q: shares(current, n_cur),
            p,
            n_ref,
            n_cur,
            is_sufficient,
        })
    }

    fn is_empty(&self) -> bool {
        self.n_ref == 0 || self.n_cur == 0
    }

    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.p.iter().copied().zip(self.q.iter().copied())
    }

    /// 1/N + 1/M.
    fn sampling(&self) -> f64 {
        1.0 / size(self.n_ref) + 1.0 / size(self.n_cur)
    }

    /// c·(1/N + 1/M), the bound of the PSI.
    fn spread(&self, alpha: f64) -> f64 {
        upper_quantile(alpha, self.degrees()) * self.sampling()
    }

    fn degrees(&self) -> u32 {
        u32::try_from(self.p.len() - 1).unwrap_or(u32::MAX)
    }

    fn score(&self, value: f64, bound: f64, sensitivity: Sensitivity) -> Score {
        let (value, bound) = if self.is_empty() {
            (0.0, 0.0)
        } else {
            (value, bound)
        };
        let threshold = bound.max(sensitivity.margin);
        let status = if !self.is_sufficient || self.is_empty() {
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

    /// Population stability index, Σ(p−q)·ln(p/q), an empty bin taken as [`EMPTY_SHARE`]. It alarms
    /// only if the contingency test finds the difference too: where few are expected, the logarithm
    /// makes the index's tail heavier than χ², while Pearson's statistic keeps to its level.
    #[must_use]
    pub fn psi(&self, sensitivity: Sensitivity) -> Score {
        let score = self.score(
            self.stability_index(),
            self.spread(sensitivity.alpha),
            sensitivity,
        );
        let is_found =
            score.status != Status::Alarm || self.contingency_p_value() <= sensitivity.alpha;
        Score {
            status: if is_found {
                score.status
            } else {
                Status::Quiet
            },
            ..score
        }
    }

    fn stability_index(&self) -> f64 {
        let or_empty = |share: f64| if share == 0.0 { EMPTY_SHARE } else { share };
        let term = |(p, q): (f64, f64)| {
            let (p, q) = (or_empty(p), or_empty(q));
            (p - q) * (p / q).ln()
        };
        self.pairs().map(term).sum()
    }

    /// Probability of so large a PSI when nothing has drifted: the larger of what its own limit and the
    /// contingency test say. `None` where its status is insufficient.
    #[must_use]
    pub fn psi_p_value(&self) -> Option<f64> {
        if !self.is_sufficient || self.is_empty() {
            return None;
        }
        let of_limit = upper_tail(self.stability_index() / self.sampling(), self.degrees());
        Some(of_limit.max(self.contingency_p_value()))
    }

    /// The χ² statistic that a PSI of this size amounts to.
    #[must_use]
    pub fn chi_squared_of(&self, psi: f64) -> f64 {
        if self.is_empty() {
            psi
        } else {
            psi / self.sampling()
        }
    }

    /// Jensen–Shannon divergence in bits, 0 to 1; its root is the distance.
    #[must_use]
    pub fn jensen_shannon(&self, sensitivity: Sensitivity) -> Score {
        let part = |share: f64, middle: f64| {
            if share == 0.0 {
                0.0
            } else {
                share * (share / middle).log2()
            }
        };
        let term = |(p, q): (f64, f64)| {
            let middle = 0.5 * (p + q);
            0.5 * (part(p, middle) + part(q, middle))
        };
        let bound = self.spread(sensitivity.alpha) / (8.0 * std::f64::consts::LN_2);
        self.score(
            self.pairs().map(term).sum::<f64>().max(0.0),
            bound,
            sensitivity,
        )
    }

    /// Hellinger distance, 0 to 1.
    #[must_use]
    pub fn hellinger(&self, sensitivity: Sensitivity) -> Score {
        let sum: f64 = self
            .pairs()
            .map(|(p, q)| (p.sqrt() - q.sqrt()).powi(2))
            .sum();
        let bound = (self.spread(sensitivity.alpha) / 8.0).sqrt();
        self.score((0.5 * sum).sqrt(), bound, sensitivity)
    }

    /// Total-variation distance, ½Σ|p−q|, 0 to 1.
    #[must_use]
    pub fn total_variation(&self, sensitivity: Sensitivity) -> Score {
        let sum: f64 = self.pairs().map(|(p, q)| (p - q).abs()).sum();
        self.score(
            0.5 * sum,
            0.5 * self.spread(sensitivity.alpha).sqrt(),
            sensitivity,
        )
    }

    /// L∞ = max|p−q|, 0 to 1.
    #[must_use]
    pub fn l_infinity(&self, sensitivity: Sensitivity) -> Score {
        let value = self.pairs().map(|(p, q)| (p - q).abs()).fold(0.0, f64::max);
        let (n, m) = (size(self.n_ref), size(self.n_cur));
        let variance = |(p, q): (f64, f64)| {
            let pooled = (p * n + q * m) / (n + m);
            pooled * (1.0 - pooled) * self.sampling()
        };
        let largest = self.pairs().map(variance).fold(0.0, f64::max);
        // The two-sided normal quantile squared is the χ² quantile of one degree of freedom.
        #[allow(clippy::cast_precision_loss, reason = "at most BINS_MAX")]
        let shared_alpha = sensitivity.alpha / self.p.len() as f64;
        self.score(
            value,
            (upper_quantile(shared_alpha, 1) * largest).sqrt(),
            sensitivity,
        )
    }

    /// χ² test of homogeneity on the K×2 contingency table, without continuity correction;
    /// bins empty on both sides are left out.
    #[must_use]
    pub fn chi_squared(&self, sensitivity: Sensitivity) -> ChiSquared {
        let (value, degrees) = self.contingency();
        let bound = upper_quantile(sensitivity.alpha, degrees);
        ChiSquared {
            score: self.score(value, bound, sensitivity),
            p_value: self.contingency_p_value(),
            degrees,
        }
    }

    /// Pearson's statistic and its degrees of freedom.
    fn contingency(&self) -> (f64, u32) {
        let (n, m) = (size(self.n_ref), size(self.n_cur));
        let (mut value, mut filled) = (0.0, 0_u32);
        for (p, q) in self.pairs().filter(|(p, q)| p + q > 0.0) {
            let pooled = (p * n + q * m) / (n + m);
            value += (p - q).powi(2) / pooled;
            filled += 1;
        }
        (value / self.sampling(), filled.saturating_sub(1).max(1))
    }

    fn contingency_p_value(&self) -> f64 {
        if self.is_empty() {
            return 1.0;
        }
        let (value, degrees) = self.contingency();
        upper_tail(value, degrees)
    }
}

/// Pools the bins whose expected count (reference share × the smaller size) is below 10 into one,
/// which comes last; if that is too small itself, the next smallest bin joins it. For class mixes,
/// whose rare classes would otherwise make every score insufficient. The choice depends on the
/// reference and the sizes alone, never on where the current counts fell.
#[must_use]
pub fn pool_rare(reference: &[u64], current: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let total = |counts: &[u64]| {
        counts
            .iter()
            .fold(0_u64, |sum, count| sum.saturating_add(*count))
    };
    let (n_ref, n_cur) = (total(reference), total(current));
    let scale = if n_ref == 0 {
        0.0
    } else {
        size(n_ref.min(n_cur)) / size(n_ref)
    };
    let is_enough = |count: u64| size(count) * scale >= EXPECTED_COUNT_MIN;
    let mut order: Vec<usize> = (0..reference.len().min(current.len())).collect();
    order.sort_by_key(|&bin| (reference[bin], bin));
    let (mut pooled_ref, mut pooled_cur, mut pooled) = (0_u64, 0_u64, Vec::new());
    for bin in order {
        if is_enough(reference[bin]) && (pooled.is_empty() || is_enough(pooled_ref)) {
            break;
        }
        pooled_ref = pooled_ref.saturating_add(reference[bin]);
        pooled_cur = pooled_cur.saturating_add(current[bin]);
        pooled.push(bin);
    }
    let kept = |counts: &[u64], rest: u64| {
        let length = reference.len().min(current.len());
        let mut out: Vec<u64> = (0..length)
            .filter(|bin| !pooled.contains(bin))
            .map(|bin| counts[bin])
            .collect();
        if !pooled.is_empty() {
            out.push(rest);
        }
        out
    };
    (kept(reference, pooled_ref), kept(current, pooled_cur))
}

fn shares(counts: &[u64], total: u64) -> Vec<f64> {
    counts
        .iter()
        .map(|count| size(*count) / size(total.max(1)))
        .collect()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "scores are published to ten digits, counts have at most 53 bits of them"
)]
fn size(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;

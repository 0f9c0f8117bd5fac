//! Two versions that answered the same requests: wins and losses of the candidate where they
//! disagree, as evidence that may be looked at after every request. An e-value of 1/alpha or more
//! rejects at alpha, whenever one stops (Ville 1939).

use super::size;
use crate::drift::beta::upper_share;
use crate::drift::chi_squared::ln_gamma;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Disagreements of a shadow comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disagreements {
    /// The candidate was right, the serving version wrong.
    pub wins: u64,
    /// The serving version was right, the candidate wrong.
    pub losses: u64,
}

impl Disagreements {
    /// Evidence that the versions are not equally good: 2^(s+f)/((s+f+1)·C(s+f, f)) for s wins and f
    /// losses, the likelihood of a win share uniform on 0 to 1 over that of one half.
    #[must_use]
    pub fn differ(self) -> f64 {
        let (s, f) = (size(self.wins), size(self.losses));
        (self.ln_beta() + (s + f) * std::f64::consts::LN_2).exp()
    }

    /// Evidence that the candidate is not inferior by more than `margin`: against every win share of
    /// at most ½ − margin, for one uniform above it. `margin` is held to 0 to .499.
    #[must_use]
    pub fn not_inferior(self, margin: f64) -> f64 {
        let share = 0.5
            - if margin.is_nan() {
                0.0
            } else {
                margin.clamp(0.0, 0.499)
            };
        let (s, f) = (size(self.wins), size(self.losses));
        let mixed = self.ln_beta() + upper_share(share, s + 1.0, f + 1.0).ln() - (1.0 - share).ln();
        (mixed - s * share.ln() - f * (1.0 - share).ln()).exp()
    }

    /// Evidence that the candidate is inferior: against every win share of at least one half.
    #[must_use]
    pub fn inferior(self) -> f64 {
        let mirrored = Self {
            wins: self.losses,
            losses: self.wins,
        };
        mirrored.not_inferior(0.0)
    }

    /// ln B(s+1, f+1) = −ln((s+f+1)·C(s+f, f)).
    fn ln_beta(self) -> f64 {
        let (s, f) = (size(self.wins), size(self.losses));
        ln_gamma(s + 1.0) + ln_gamma(f + 1.0) - ln_gamma(s + f + 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(wins: u64, losses: u64) -> Disagreements {
        Disagreements { wins, losses }
    }

    #[test]
    fn the_fixture() {
        // 2^25/(26·53130)
        assert!((of(20, 5).differ() - 24.290_515).abs() < 5e-7);
        assert!((of(20, 5).differ() - 33_554_432.0 / 1_381_380.0).abs() < 1e-9);
        assert!((of(0, 0).differ() - 1.0).abs() < 1e-12);
        assert!((of(0, 0).not_inferior(0.1) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_sided_evidence_is_one_sided() {
        assert!(of(40, 10).not_inferior(0.0) > 100.0 && of(10, 40).not_inferior(0.0) < 0.1);
        assert!(of(10, 40).inferior() > 100.0);
        // As good as each other: not inferior by a fifth, and that is found.
        assert!(of(100, 100).not_inferior(0.2) > 100.0 && of(100, 100).not_inferior(0.0) < 1.0);
        assert!(of(u64::MAX / 4, 3).differ().is_infinite());
        assert!(of(3, 5).not_inferior(f64::NAN) > 0.0);
    }

    /// The mean of the e-value under the null is at most 1: summed over every outcome of 12.
    #[test]
    fn the_mean_under_the_null_is_at_most_one() {
        for (share, margin) in [(0.5, 0.0), (0.4, 0.1), (0.3, 0.1), (0.2, 0.0)] {
            let mean: f64 = (0..=12_u32)
                .map(|wins| {
                    let losses = 12 - wins;
                    let ways = (-of(u64::from(wins), u64::from(losses)).ln_beta()).exp() / 13.0;
                    let likelihood = f64::powi(share, wins.cast_signed())
                        * f64::powi(1.0 - share, losses.cast_signed());
                    ways * likelihood * of(wins.into(), losses.into()).not_inferior(margin)
                })
                .sum();
            assert!(mean <= 1.0 + 1e-9, "{share} {margin}: {mean}");
        }
    }
}

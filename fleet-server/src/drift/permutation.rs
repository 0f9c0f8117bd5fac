//! The one-sided permutation test over devices, in integers: the same bytes on every machine.
//!
//! Under the hypothesis "the new version changes nothing", which devices became canaries is an
//! accident of the draw, so that the observed canary sum is one draw from the sums of all
//! assignments. p is the share of assignments at least as extreme, the observed one included
//! (Fisher 1935; for drawn assignments Phipson & Smyth 2010, "Permutation p-values should never
//! be zero"). No assumption on variances, nor on how much devices differ.

use crate::rollout::ratio::Ratio;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Most assignments that are enumerated; beyond, [`MONTE_CARLO_DRAWS`] are drawn.
pub const EXACT_ASSIGNMENTS_MAX: u64 = 200_000;
/// Assignments drawn when there are too many to enumerate.
pub const MONTE_CARLO_DRAWS: u64 = 9_999;

/// A p-value as the exact ratio of two counts of assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PValue {
    /// Assignments at least as extreme as the observed one, which is among them.
    pub num: u64,
    /// Assignments looked at, the observed one included.
    pub den: u64,
}

impl PValue {
    /// Whether p ≤ `level`, exactly.
    #[must_use]
    pub fn at_most(self, level: Ratio) -> bool {
        u128::from(self.num) * u128::from(level.den())
            <= u128::from(level.num()) * u128::from(self.den)
    }

    /// To nine decimals, rounded up, so that a text of it is read back as the same number.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "at most 10^9")]
    pub fn to_f64(self) -> f64 {
        let nano = (u128::from(self.num) * 1_000_000_000).div_ceil(u128::from(self.den.max(1)));
        nano.min(1_000_000_000) as f64 / 1e9
    }
}

impl fmt::Display for PValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.num, self.den)
    }
}

/// Result of [`falls`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    /// The p-value.
    pub p: PValue,
    /// Whether all assignments were enumerated.
    pub is_exact: bool,
}

/// Number of ways to choose `canaries` of `canaries + controls` devices, if at most
/// [`EXACT_ASSIGNMENTS_MAX`].
fn assignments(canaries: u64, controls: u64) -> Option<u64> {
    let total = canaries.checked_add(controls)?;
    let chosen = canaries.min(controls);
    let mut ways = 1_u64;
    for step in 0..chosen {
        // Exact at each step: the product of i + 1 consecutive numbers is divisible by (i + 1)!.
        ways = ways * (total - step).min(u64::from(u32::MAX)) / (step + 1);
        if ways > EXACT_ASSIGNMENTS_MAX {
            return None;
        }
    }
    Some(ways)
}

/// The smallest p that a test of so many devices can reach.
#[must_use]
pub fn smallest_p(canaries: u64, controls: u64) -> PValue {
    PValue {
        num: 1,
        den: assignments(canaries, controls).unwrap_or(MONTE_CARLO_DRAWS + 1),
    }
}

/// Tests whether the canaries' values are lower than the controls': the p-value of the canaries'
/// sum among the sums of all assignments; ties count as at least as extreme. `seed` is used only
/// where there are more than [`EXACT_ASSIGNMENTS_MAX`] assignments, and then alone decides the
/// draws. Values must be within ±2³² in absolute value (they are clamped).
#[must_use]
pub fn falls(canaries: &[i64], controls: &[i64], seed: u64) -> Permutation {
    let limit = 1_i64 << 32;
    let clamp = |value: &i64| (*value).clamp(-limit, limit);
    let values: Vec<i64> = canaries.iter().chain(controls).map(clamp).collect();
    let observed: i64 = values.iter().take(canaries.len()).sum();
    match assignments(canaries.len() as u64, controls.len() as u64) {
        Some(den) => {
            let num = enumerate(&values, canaries.len(), observed);
            Permutation {
                p: PValue { num, den },
                is_exact: true,
            }
        }
        None => {
            let num = 1 + draw(values, canaries.len(), observed, seed);
            Permutation {
                p: PValue {
                    num,
                    den: MONTE_CARLO_DRAWS + 1,
                },
                is_exact: false,
            }
        }
    }
}

/// Counts the choices of `size` values whose sum is at most `observed`, by going through the
/// index sets in lexicographic order.
fn enumerate(values: &[i64], size: usize, observed: i64) -> u64 {
    let mut chosen: Vec<usize> = (0..size).collect();
    let mut count = 0;
    loop {
        let sum: i64 = chosen.iter().map(|&index| values[index]).sum();
        count += u64::from(sum <= observed);
        // The rightmost index that can still move to the right.
        let movable = (0..size)
            .rev()
            .find(|&at| chosen[at] < values.len() - size + at);
        let Some(at) = movable else { return count };
        let next = chosen[at] + 1;
        for (offset, index) in chosen[at..].iter_mut().enumerate() {
            *index = next + offset;
        }
    }
}

/// Counts among [`MONTE_CARLO_DRAWS`] random assignments those whose sum is at most `observed`.
fn draw(mut values: Vec<i64>, size: usize, observed: i64, seed: u64) -> u64 {
    let mut random = SplitMix64 { state: seed };
    let mut count = 0;
    for _ in 0..MONTE_CARLO_DRAWS {
        let mut sum = 0;
        for at in 0..size {
            let left = (values.len() - at) as u64;
            let offset = usize::try_from(random.below(left)).unwrap_or(0);
            values.swap(at, at + offset);
            sum += values[at];
        }
        count += u64::from(sum <= observed);
    }
    count
}

/// Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform below `bound` without bias: draws beyond the largest multiple are thrown away.
    fn below(&mut self, bound: u64) -> u64 {
        let bound = bound.max(1);
        let usable = u64::MAX - u64::MAX % bound;
        loop {
            let drawn = self.next();
            if drawn < usable {
                return drawn % bound;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_most_extreme_assignment_has_the_smallest_p() {
        let result = falls(&[-9, -8, -7], &[0, 1, 2, 3, 4, 5, 6, 7, 8], 0);
        assert_eq!(
            result,
            Permutation {
                p: PValue { num: 1, den: 220 },
                is_exact: true
            }
        );
        assert_eq!(smallest_p(3, 9), result.p);
        let opposite = falls(&[7, 8, 9], &[0, 1, 2, 3, 4, 5, 6, -1, -2], 0);
        assert_eq!(opposite.p, PValue { num: 220, den: 220 });
    }

    #[test]
    fn ties_count_as_extreme() {
        assert_eq!(falls(&[5, 5], &[5, 5, 5], 0).p, PValue { num: 10, den: 10 });
        // {1,2} is the least sum; the other 2 makes a second assignment with it.
        assert_eq!(falls(&[1, 2], &[2, 3, 4], 0).p, PValue { num: 2, den: 10 });
    }

    #[test]
    fn no_devices_on_one_side_prove_nothing() {
        assert_eq!(falls(&[], &[1, 2], 0).p, PValue { num: 1, den: 1 });
        assert_eq!(falls(&[1, 2], &[], 0).p, PValue { num: 1, den: 1 });
        assert_eq!(falls(&[], &[], 0).p, PValue { num: 1, den: 1 });
    }

    #[test]
    fn many_devices_are_drawn_and_the_draw_can_be_repeated() {
        let canaries: Vec<i64> = (0..20).map(|value| value * 3 - 200).collect();
        let controls: Vec<i64> = (0..40).collect();
        let result = falls(&canaries, &controls, 7);
        assert_eq!(
            result.p,
            PValue {
                num: 1,
                den: 10_000
            }
        );
        assert!(!result.is_exact);
        let alike: Vec<i64> = (0..40).map(|value| (value * 7) % 40).collect();
        let quiet = falls(&alike[..20], &alike[20..], 7);
        assert!(quiet.p.to_f64() > 0.05, "{}", quiet.p);
        assert_eq!(quiet, falls(&alike[..20], &alike[20..], 7));
    }

    #[test]
    fn binomials_are_exact_up_to_the_bound() {
        assert_eq!(assignments(3, 9), Some(220));
        assert_eq!(assignments(10, 10), Some(184_756));
        assert_eq!(assignments(1, 199_999), Some(200_000));
        assert_eq!(assignments(1, 200_000), None);
        assert_eq!(assignments(u64::MAX, 1), None);
        assert_eq!(assignments(1 << 40, 1 << 40), None);
        assert!(PValue { num: 1, den: 100 }.at_most(Ratio::percent(1)));
        assert!(!PValue { num: 1, den: 99 }.at_most(Ratio::percent(1)));
    }

    proptest! {
        #[test]
        fn p_is_valid_and_independent_of_order(mut canaries in prop::collection::vec(-50i64..50, 1..5), mut controls in prop::collection::vec(-50i64..50, 1..7)) {
            let before = falls(&canaries, &controls, 0);
            prop_assert!(before.p.num >= 1 && before.p.num <= before.p.den);
            canaries.reverse();
            controls.reverse();
            prop_assert_eq!(falls(&canaries, &controls, 0), before);
        }

        /// Over all relabellings of the same values, at most a share q has p ≤ q: the test's level.
        #[test]
        fn the_level_holds_over_all_relabellings(values in prop::collection::vec(-20i64..20, 7)) {
            let mut small = 0;
            for a in 0..7 { for b in a + 1..7 {
                let canaries = [values[a], values[b]];
                let controls: Vec<i64> = (0..7).filter(|&i| i != a && i != b).map(|i| values[i]).collect();
                small += u64::from(falls(&canaries, &controls, 0).p.num <= 4);
            }}
            prop_assert!(small <= 4, "{} of 21 relabellings have p <= 4/21", small);
        }
    }
}

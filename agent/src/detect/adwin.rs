//! ADWIN2 (Bifet & Gavaldà 2007, "Learning from Time-Changing Data with Adaptive Windowing").
//!
//! The values since the last change lie in buckets of 1, 2, 4, … values, at most six of each size, of
//! which only sum and spread are kept: some hundred numbers for any length. Every 32nd value each
//! border between two buckets is looked at: where the means before and after it differ by more than
//! chance allows, what is older is forgotten.

use super::bits;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Chance of a change being seen where there is none, δ.
const CONFIDENCE: f64 = 0.002;
/// Values between two looks.
const CLOCK: u64 = 32;
/// Most buckets of a size before the two oldest become one of the next size.
const BUCKETS_MAX: usize = 5;
/// Fewest values on either side of a border.
const SIDE_MIN: f64 = 5.0;
/// Values before the first look.
const GRACE: u64 = 10;
/// Sizes up to 2^39: no device gets that far.
const SIZES_MAX: usize = 40;

/// Values that count as one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Bucket {
    #[serde(with = "bits")]
    sum: f64,
    /// Sum of squared distances from their mean.
    #[serde(with = "bits")]
    spread: f64,
}

/// The detector and its window.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Adwin {
    /// By size, the smallest first; each the oldest first.
    sizes: Vec<VecDeque<Bucket>>,
    width: u64,
    #[serde(with = "bits")]
    sum: f64,
    #[serde(with = "bits")]
    spread: f64,
    ticks: u64,
    has_detected: bool,
}

impl Adwin {
    /// Takes a finite value; whether the mean has changed. The value after a detection begins a new
    /// window.
    pub fn update(&mut self, value: f64) -> bool {
        if self.has_detected {
            *self = Self::default();
        }
        self.insert(value);
        self.ticks += 1;
        if self.ticks.is_multiple_of(CLOCK) && self.width > GRACE {
            while self.cut() {
                self.has_detected = true;
            }
        }
        self.has_detected
    }

    /// Values in the window.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.width
    }

    /// Mean of the window; 0 if it is empty.
    #[must_use]
    pub fn estimate(&self) -> f64 {
        if self.width == 0 {
            0.0
        } else {
            self.sum / count(self.width)
        }
    }

    /// Whether a state from elsewhere can be one of this detector.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let sizes = self.sizes.iter().enumerate();
        let width: u64 = sizes
            .map(|(at, b)| (b.len() as u64) << at.min(SIZES_MAX))
            .sum();
        let buckets = self.sizes.iter().flatten();
        self.sizes.len() <= SIZES_MAX
            && self
                .sizes
                .iter()
                .all(|buckets| buckets.len() <= BUCKETS_MAX + 1)
            && width == self.width
            && buckets.fold(true, |sound, b| {
                sound && b.sum.is_finite() && b.spread.is_finite()
            })
            && self.sum.is_finite()
            && self.spread.is_finite()
    }

    fn insert(&mut self, value: f64) {
        if self.sizes.is_empty() {
            self.sizes.push(VecDeque::new());
        }
        self.sizes[0].push_back(Bucket {
            sum: value,
            spread: 0.0,
        });
        self.width += 1;
        if self.width > 1 {
            let others = count(self.width - 1);
            let distance = value - self.sum / others;
            self.spread += others * distance * distance / count(self.width);
        }
        self.sum += value;
        self.merge_oldest();
    }

    /// Where there are too many buckets of a size, the two oldest become one of the next.
    fn merge_oldest(&mut self) {
        for at in 0..SIZES_MAX - 1 {
            let Some(buckets) = self.sizes.get_mut(at) else {
                return;
            };
            if buckets.len() <= BUCKETS_MAX {
                return;
            }
            let (Some(a), Some(b)) = (buckets.pop_front(), buckets.pop_front()) else {
                return;
            };
            let n = size(at);
            let both = Bucket {
                sum: a.sum + b.sum,
                spread: a.spread + b.spread + between(n, a.sum / n, n, b.sum / n),
            };
            if self.sizes.len() == at + 1 {
                self.sizes.push(VecDeque::new());
            }
            self.sizes[at + 1].push_back(both);
        }
    }

    /// Forgets the oldest bucket if some border shows a change.
    fn cut(&mut self) -> bool {
        let (mut n0, mut n1) = (0.0, count(self.width));
        let (mut sum0, mut sum1) = (0.0, self.sum);
        for (at, buckets) in self.sizes.iter().enumerate().rev() {
            for (position, bucket) in buckets.iter().enumerate() {
                if at == 0 && position + 1 == buckets.len() {
                    break;
                }
                n0 += size(at);
                n1 -= size(at);
                sum0 += bucket.sum;
                sum1 -= bucket.sum;
                let has_enough = n0 >= SIDE_MIN && n1 >= SIDE_MIN;
                if has_enough && self.differ(n0, n1, sum0 / n0 - sum1 / n1) {
                    self.forget_oldest();
                    return true;
                }
            }
        }
        false
    }

    /// Whether two means of so many values differ by more than chance allows.
    fn differ(&self, n0: f64, n1: f64, difference: f64) -> bool {
        let width = count(self.width);
        let confidence = (2.0 * width.ln() / CONFIDENCE).ln();
        let m = 1.0 / (n0 - SIDE_MIN + 1.0) + 1.0 / (n1 - SIDE_MIN + 1.0);
        let variance = self.spread / width;
        let limit = (2.0 * m * variance * confidence).sqrt() + 2.0 / 3.0 * confidence * m;
        difference.abs() > limit
    }

    fn forget_oldest(&mut self) {
        let Some(at) = self.sizes.len().checked_sub(1) else {
            return;
        };
        let Some(oldest) = self.sizes[at].pop_front() else {
            return;
        };
        let n = size(at);
        self.width -= 1 << at;
        self.sum -= oldest.sum;
        let rest = count(self.width);
        self.spread -= oldest.spread + between(n, oldest.sum / n, rest, self.sum / rest);
        if self.sizes[at].is_empty() {
            self.sizes.pop();
        }
    }
}

/// What two groups' distance adds to the sum of squared distances from the common mean.
fn between(n0: f64, mean0: f64, n1: f64, mean1: f64) -> f64 {
    n0 * n1 * (mean0 - mean1) * (mean0 - mean1) / (n0 + n1)
}

fn size(at: usize) -> f64 {
    count(1 << at)
}

#[allow(clippy::cast_precision_loss, reason = "below 2^53")]
fn count(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fixture::changing;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fixture_to_the_index() {
        let mut detector = Adwin::default();
        let at: Vec<usize> = changing()
            .enumerate()
            .filter_map(|(at, value)| detector.update(value).then_some(at))
            .collect();
        assert_eq!(at, [2079]);
        assert_eq!(detector.width(), 1920);
        assert!((detector.estimate() - 0.498_958).abs() < 5e-7);
    }

    proptest! {
        #[test]
        fn a_state_taken_up_again_goes_on_as_if_nothing_had_happened(
            values in prop::collection::vec(0.0_f64..1.0, 0..400), cut in 0_usize..400, step in 0.0_f64..3.0,
        ) {
            let mut whole = Adwin::default();
            let mut part = Adwin::default();
            for (at, value) in values.iter().enumerate() {
                let value = value + if at > 200 { step } else { 0.0 };
                if at == cut {
                    let json = serde_json::to_string(&part).unwrap();
                    prop_assert!(json.len() < 16 << 10);
                    part = serde_json::from_str(&json).unwrap();
                    prop_assert!(part.is_sound());
                }
                prop_assert_eq!(whole.update(value), part.update(value));
            }
            prop_assert_eq!(whole, part);
        }

        #[test]
        fn the_window_adds_up(values in prop::collection::vec(-5.0_f64..5.0, 1..500)) {
            let mut detector = Adwin::default();
            let mut kept: Vec<f64> = Vec::new();
            for value in values {
                if detector.has_detected {
                    kept.clear();
                }
                kept.push(value);
                detector.update(value);
                let gone = kept.len() - usize::try_from(detector.width()).unwrap();
                kept.drain(..gone);
                let mean = kept.iter().sum::<f64>() / count(kept.len() as u64);
                prop_assert!((mean - detector.estimate()).abs() < 1e-9);
                prop_assert!(detector.is_sound());
            }
        }
    }
}

//! The Page–Hinkley test (Page 1954), two-sided, with forgetting: how far the sum of distances from the
//! mean so far has risen above its lowest point, or fallen below its highest.

use super::bits;
use serde::{Deserialize, Serialize};

/// Values before the first answer.
const VALUES_MIN: u64 = 30;
/// Distance from the mean that is tolerated, δ.
const TOLERANCE: f64 = 0.005;
/// How far the sum may go, λ.
const THRESHOLD: f64 = 50.0;
/// What is kept of the sum at each value, α.
const KEPT: f64 = 1.0 - 0.0001;

/// The detector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PageHinkley {
    values: u64,
    #[serde(with = "bits")]
    mean: f64,
    #[serde(with = "bits")]
    rise: f64,
    #[serde(with = "bits")]
    fall: f64,
    #[serde(with = "bits")]
    rise_min: f64,
    #[serde(with = "bits")]
    fall_max: f64,
    has_detected: bool,
}

impl Default for PageHinkley {
    fn default() -> Self {
        Self {
            values: 0,
            mean: 0.0,
            rise: 0.0,
            fall: 0.0,
            rise_min: f64::INFINITY,
            // As in river, where a sum that never rises above −1 leaves no highest point.
            fall_max: -1.0,
            has_detected: false,
        }
    }
}

impl PageHinkley {
    /// Takes a finite value; whether the mean has changed. The value after a detection begins anew.
    pub fn update(&mut self, value: f64) -> bool {
        if self.has_detected {
            *self = Self::default();
        }
        self.values += 1;
        #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
        let weight = 1.0 / self.values as f64;
        self.mean += weight * (value - self.mean);
        let distance = value - self.mean;
        self.rise = KEPT * self.rise + distance - TOLERANCE;
        self.fall = KEPT * self.fall + distance + TOLERANCE;
        self.rise_min = self.rise_min.min(self.rise);
        self.fall_max = self.fall_max.max(self.fall);
        self.has_detected = self.values >= VALUES_MIN
            && (self.rise - self.rise_min > THRESHOLD || self.fall_max - self.fall > THRESHOLD);
        self.has_detected
    }

    /// Values since it began.
    #[must_use]
    pub fn width(&self) -> u64 {
        self.values
    }

    /// Their mean; 0 if there are none.
    #[must_use]
    pub fn estimate(&self) -> f64 {
        self.mean
    }

    /// Whether a state from elsewhere can be one of this detector.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let numbers = [self.mean, self.rise, self.fall, self.fall_max];
        numbers.iter().all(|n| n.is_finite())
            && (self.rise_min.is_finite() || self.values == 0)
            && self.values < 1 << 53
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fixture::changing;
    use super::*;

    #[test]
    fn the_fixture_to_the_index() {
        let mut detector = PageHinkley::default();
        let mut at = changing()
            .enumerate()
            .filter(|(_, value)| detector.update(*value));
        assert_eq!(at.next().map(|(at, _)| at), Some(2115));
    }

    #[test]
    fn a_fall_is_seen_too_and_a_state_is_taken_up_again() {
        let mut detector = PageHinkley::default();
        assert!(!(0..1000).any(|_| detector.update(0.9)));
        let json = serde_json::to_string(&detector).unwrap();
        let mut again: PageHinkley = serde_json::from_str(&json).unwrap();
        assert!(again.is_sound());
        assert_eq!(again, detector);
        let seen = |d: &mut PageHinkley| (0..1000).position(|_| d.update(0.1));
        let at = seen(&mut detector);
        assert!(at.is_some_and(|at| at < 100), "{at:?}");
        assert_eq!(seen(&mut again), at);
    }

    #[test]
    fn a_new_one_is_sound_and_a_broken_one_is_not() {
        let new: PageHinkley =
            serde_json::from_str(&serde_json::to_string(&PageHinkley::default()).unwrap()).unwrap();
        assert!(new.is_sound());
        let broken = PageHinkley {
            mean: f64::NAN,
            ..PageHinkley::default()
        };
        assert!(!broken.is_sound());
    }
}

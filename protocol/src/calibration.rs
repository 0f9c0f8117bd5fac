//! From a model's scores to probabilities, and what they say about its accuracy without a label:
//! confidence-based performance estimation. If the probabilities are right, an answer is right with
//! the probability of its class; the expected confusion matrix is the sum of such probabilities.
//!
//! It is right about inputs that come more or less often than they did. It misses a change of what is
//! true for the same input, P(y|x): then the probabilities are wrong themselves.

use crate::sketch::SketchError;
use serde::{Deserialize, Serialize};

/// Most classes of a calibration; a window carries their number squared.
pub const CLASSES_MAX: usize = 32;
/// Most points of a curve.
pub const POINTS_MAX: usize = 1024;
/// One inference, in the unit of the expected confusion matrix.
pub const ONE_NANO: u64 = 1_000_000_000;

/// What is wrong with a calibration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    /// Another number of curves than classes.
    #[error("expected {expected} curves, one a class and at most {CLASSES_MAX}, got {got}")]
    Classes {
        /// Classes of the profile.
        expected: usize,
        /// Curves found.
        got: usize,
    },
    /// A curve that is none.
    #[error("curve {class}: {problem}")]
    Curve {
        /// Index of the class.
        class: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// More right answers than rows.
    #[error("{right} of {rows} rows right")]
    Reference {
        /// Right answers.
        right: u64,
        /// Rows.
        rows: u64,
    },
}

/// A rising curve from a class's score to its probability: straight between points, level beyond
/// them, as isotonic regression gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Scores, strictly rising.
    pub scores: Vec<f64>,
    /// Probabilities at the scores, 0 to 1, not falling.
    pub probabilities: Vec<f64>,
}

/// Calibration of a classifier's observed scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// One curve a class, in the order of the profile's classes.
    pub curves: Vec<Curve>,
    /// Labelled rows of the reference.
    pub rows: u64,
    /// Those of them that the model got right.
    pub right: u64,
}

impl Curve {
    fn at(&self, score: f64) -> f64 {
        let after = self.scores.partition_point(|s| *s <= score);
        let ends = |at: usize| {
            let pair = self.scores.get(at).zip(self.probabilities.get(at));
            pair.map(|(s, p)| (*s, *p))
        };
        match (after.checked_sub(1).and_then(ends), ends(after)) {
            (Some((s, p)), Some((s_next, p_next))) => {
                p + (p_next - p) * ((score - s) / (s_next - s))
            }
            (Some((_, p)), None) | (None, Some((_, p))) => p,
            (None, None) => 0.0,
        }
    }

    fn problem(&self) -> Option<&'static str> {
        let rising = |values: &[f64]| values.windows(2).all(|pair| pair[0] < pair[1]);
        let falls = |values: &[f64]| values.windows(2).any(|pair| pair[0] > pair[1]);
        if self.scores.is_empty() || self.scores.len() > POINTS_MAX {
            Some("expected 1 to 1024 points")
        } else if self.scores.len() != self.probabilities.len() {
            Some("as many probabilities as scores")
        } else if !(self.scores.iter().all(|s| s.is_finite()) && rising(&self.scores)) {
            Some("scores must be finite and rise strictly")
        } else if !self.probabilities.iter().all(|p| (0.0..=1.0).contains(p))
            || falls(&self.probabilities)
        {
            Some("probabilities must be from 0 to 1 and not fall")
        } else {
            None
        }
    }
}

impl Calibration {
    /// Checks it against a profile's number of classes.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, classes: usize) -> Result<(), CalibrationError> {
        if self.curves.len() != classes || classes == 0 || classes > CLASSES_MAX {
            return Err(CalibrationError::Classes {
                expected: classes,
                got: self.curves.len(),
            });
        }
        let mut curves = self.curves.iter().enumerate();
        if let Some((class, problem)) = curves.find_map(|(at, c)| Some((at, c.problem()?))) {
            return Err(CalibrationError::Curve { class, problem });
        }
        if self.right > self.rows {
            return Err(CalibrationError::Reference {
                right: self.right,
                rows: self.rows,
            });
        }
        Ok(())
    }

    /// Probabilities of the classes, which sum to 1: all equal where every curve says 0. `None` if a
    /// score is NaN, or if there are not as many as classes.
    #[must_use]
    pub fn probabilities(&self, scores: impl Iterator<Item = f64>) -> Option<Vec<f64>> {
        let mut curves = self.curves.iter();
        let mut out = Vec::with_capacity(self.curves.len());
        for score in scores {
            let curve = curves.next()?;
            if score.is_nan() {
                return None;
            }
            out.push(curve.at(score));
        }
        if curves.next().is_some() || out.is_empty() {
            return None;
        }
        let sum: f64 = out.iter().sum();
        #[allow(clippy::cast_precision_loss, reason = "at most CLASSES_MAX")]
        let equal = 1.0 / out.len() as f64;
        for p in &mut out {
            *p = if sum > 0.0 { *p / sum } else { equal };
        }
        Some(out)
    }
}

/// Counts an answer in the cells of an expected confusion matrix, row by row: rows are predicted
/// classes, columns true ones. Each answer adds exactly [`ONE_NANO`], so the sum says how many there
/// were. A class that there is not counts as nothing.
pub fn add_answer(cells: &mut [u64], predicted: usize, probabilities: &[f64]) {
    let Some(row) = cells
        .chunks_mut(probabilities.len().max(1))
        .nth(predicted)
        .filter(|row| row.len() == probabilities.len())
    else {
        return;
    };
    let (mut sum, mut given) = (0.0, 0);
    for (at, (cell, p)) in row.iter_mut().zip(probabilities).enumerate() {
        sum += p;
        // Rounded sums, so that the parts add up to one.
        let so_far = if at + 1 == probabilities.len() {
            ONE_NANO
        } else {
            nano(sum).max(given)
        };
        *cell = cell.saturating_add(so_far - given);
        given = so_far;
    }
}

/// Expected confusion matrices of many windows, added up. Merging is exact, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedConfusion {
    classes: usize,
    cells: Vec<u128>,
}

impl ExpectedConfusion {
    /// Nothing yet.
    #[must_use]
    pub fn new(classes: usize) -> Self {
        Self {
            classes,
            cells: vec![0; classes * classes],
        }
    }

    /// Adds a window's cells; gives how many answers they stand for.
    ///
    /// # Errors
    /// Another number of cells, or a sum that is not a whole number of answers; nothing is added then.
    pub fn add(&mut self, cells: &[u64]) -> Result<(), SketchError> {
        answers(self.classes, cells)?;
        for (sum, n) in self.cells.iter_mut().zip(cells) {
            *sum = sum.saturating_add(u128::from(*n));
        }
        Ok(())
    }

    /// The cells, row by row, in billionths of an answer.
    #[must_use]
    pub fn cells(&self) -> &[u128] {
        &self.cells
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Answers counted.
    #[must_use]
    pub fn answers(&self) -> u64 {
        let sum = self
            .cells
            .iter()
            .fold(0_u128, |sum, n| sum.saturating_add(*n));
        u64::try_from(sum / u128::from(ONE_NANO)).unwrap_or(u64::MAX)
    }
}

/// How many answers a window's cells stand for.
///
/// # Errors
/// Another number of cells than `classes` squared, or a sum that is not a whole number of answers.
pub fn answers(classes: usize, cells: &[u64]) -> Result<u64, SketchError> {
    let expected = classes * classes;
    if cells.len() != expected {
        let got = cells.len();
        return Err(SketchError::Bins { expected, got });
    }
    let sum = cells.iter().try_fold(0_u64, |sum, n| sum.checked_add(*n));
    let sum = sum.filter(|sum| sum.is_multiple_of(ONE_NANO));
    sum.map(|sum| sum / ONE_NANO).ok_or(SketchError::Overflow)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
fn nano(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * ONE_NANO as f64).round() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn calibration() -> Calibration {
        let curve = Curve {
            scores: vec![0.2, 0.4, 0.8],
            probabilities: vec![0.1, 0.5, 0.7],
        };
        Calibration {
            curves: vec![curve.clone(), curve],
            rows: 10,
            right: 9,
        }
    }

    #[test]
    fn curves_are_straight_between_points_and_level_beyond() {
        let curve = &calibration().curves[0];
        for (score, p) in [
            (0.0, 0.1),
            (0.2, 0.1),
            (0.3, 0.3),
            (0.4, 0.5),
            (0.6, 0.6),
            (9.0, 0.7),
        ] {
            assert!((curve.at(score) - p).abs() < 1e-12, "{score}");
        }
        assert!((curve.at(f64::NEG_INFINITY) - 0.1).abs() < 1e-12);
        let probabilities = calibration().probabilities([0.3, 0.8].into_iter()).unwrap();
        assert!((probabilities[0] - 0.3).abs() < 1e-12 && (probabilities[1] - 0.7).abs() < 1e-12);
        for bad in [vec![0.3], vec![0.3, f64::NAN], vec![0.3, 0.3, 0.3]] {
            assert_eq!(calibration().probabilities(bad.into_iter()), None);
        }
    }

    #[test]
    fn what_is_no_calibration_is_refused() {
        assert_eq!(calibration().check(2), Ok(()));
        assert!(matches!(
            calibration().check(3),
            Err(CalibrationError::Classes { .. })
        ));
        type Spoil = fn(&mut Calibration);
        let spoils: [Spoil; 5] = [
            |c| c.curves[1].scores[1] = 0.1,
            |c| c.curves[1].scores[2] = f64::NAN,
            |c| c.curves[1].probabilities[2] = 1.1,
            |c| c.curves[1].probabilities[2] = 0.2,
            |c| c.curves[1].scores.clear(),
        ];
        for spoil in spoils {
            let mut spoiled = calibration();
            spoil(&mut spoiled);
            assert!(matches!(
                spoiled.check(2),
                Err(CalibrationError::Curve { class: 1, .. })
            ));
        }
        let boast = Calibration {
            right: 11,
            ..calibration()
        };
        assert!(matches!(
            boast.check(2),
            Err(CalibrationError::Reference { .. })
        ));
    }

    #[test]
    fn cells_off_the_wire_are_whole_answers() {
        assert_eq!(
            answers(2, &[ONE_NANO / 2, ONE_NANO / 2, 0, ONE_NANO]),
            Ok(2)
        );
        assert!(answers(2, &[1, 0, 0, 0]).is_err());
        assert!(answers(2, &[0; 9]).is_err());
        assert!(answers(2, &[u64::MAX, u64::MAX, 0, 0]).is_err());
        let mut cells = [0; 4];
        add_answer(&mut cells, 2, &[0.5, 0.5]);
        add_answer(&mut cells, 0, &[]);
        assert_eq!(cells, [0; 4]);
    }

    proptest! {
        #[test]
        fn any_partition_in_any_order_merges_to_the_same(
            given in prop::collection::vec((0_usize..3, [0.0_f64..1.0, 0.0..1.0, 0.001..1.0], 0_usize..4), 0..100),
        ) {
            let (mut whole, mut parts) = ([0; 9], [[0; 9]; 4]);
            for (predicted, p, part) in &given {
                let sum: f64 = p.iter().sum();
                let p = p.map(|p| p / sum);
                add_answer(&mut whole, *predicted, &p);
                add_answer(&mut parts[*part], *predicted, &p);
            }
            prop_assert_eq!(answers(3, &whole), Ok(given.len() as u64));
            let mut merged = ExpectedConfusion::new(3);
            for part in parts.iter().rev() {
                merged.add(part).unwrap();
            }
            let mut at_once = ExpectedConfusion::new(3);
            at_once.add(&whole).unwrap();
            prop_assert_eq!(merged.answers(), given.len() as u64);
            prop_assert_eq!(merged, at_once);
        }
    }
}

//! Accuracy without labels, from the expected confusion matrix ([`dunlin_protocol::calibration`]).
//!
//! It misses a change of what is true for the same input, P(y|x).

use super::{Score, Sensitivity, Status, ordered::SIZE_MIN, size};
use crate::drift::chi_squared::upper_quantile;
use dunlin_protocol::calibration::{Calibration, ExpectedConfusion, ONE_NANO};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the calibrated probabilities say about a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EstimatedAccuracy {
    /// Expected share of right answers, 0 to 1. Blind to a change of what is true for the same input.
    pub accuracy: f64,
    /// Share of right answers on the labelled reference.
    pub reference: f64,
    /// The fall from reference to estimate, one-sided.
    pub fall: Score,
    /// By class.
    pub classes: Vec<EstimatedClass>,
    /// Expected confusion matrix, in answers: a row a predicted class, a column a true one.
    pub confusion: Vec<Vec<f64>>,
}

/// What they say about one class; `None` where it would be divided by nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EstimatedClass {
    /// Of the answers of this class, those expected to be right, 0 to 1.
    pub precision: Option<f64>,
    /// Of the inputs expected to be of this class, those answered so, 0 to 1.
    pub recall: Option<f64>,
    /// Their harmonic mean.
    pub f1: Option<f64>,
}

/// Estimates; the fall's bound is the normal quantile of two shares' difference, where the variance
/// of the estimate is at most that of as many labelled answers. `None` without any answer or row.
#[must_use]
pub fn estimate(
    expected: &ExpectedConfusion,
    calibration: &Calibration,
    sensitivity: Sensitivity,
) -> Option<EstimatedAccuracy> {
    let classes = expected.classes();
    let answers = expected.answers();
    if answers == 0 || calibration.rows == 0 {
        return None;
    }
    let confusion: Vec<Vec<f64>> = expected
        .cells()
        .chunks(classes)
        .map(|row| row.iter().map(|n| answers_of(*n)).collect())
        .collect();
    let right = |class: usize| confusion[class][class];
    let said = |class: usize| confusion[class].iter().sum::<f64>();
    let is = |class: usize| confusion.iter().map(|row| row[class]).sum::<f64>();
    let share = |part: f64, whole: f64| (whole > 0.0).then(|| part / whole);
    let by_class = (0..classes).map(|class| EstimatedClass {
        precision: share(right(class), said(class)),
        recall: share(right(class), is(class)),
        f1: share(2.0 * right(class), said(class) + is(class)),
    });
    let accuracy = (0..classes).map(right).sum::<f64>() / size(answers);
    let reference = size(calibration.right) / size(calibration.rows);
    let variance = |share: f64, n: u64| share * (1.0 - share) / size(n);
    let quantile = upper_quantile(2.0 * sensitivity.alpha.min(0.5), 1).sqrt();
    let bound = quantile
        * (variance(accuracy, answers).max(0.0) + variance(reference, calibration.rows)).sqrt();
    let threshold = bound.max(sensitivity.margin);
    let value = reference - accuracy;
    let status = if answers.min(calibration.rows) < SIZE_MIN {
        Status::Insufficient
    } else if value > threshold {
        Status::Alarm
    } else {
        Status::Quiet
    };
    Some(EstimatedAccuracy {
        accuracy,
        reference,
        fall: Score {
            value,
            n_ref: calibration.rows,
            n_cur: answers,
            bound,
            threshold,
            status,
        },
        classes: by_class.collect(),
        confusion,
    })
}

#[allow(clippy::cast_precision_loss, reason = "one rounding")]
fn answers_of(nano: u128) -> f64 {
    nano as f64 / size(ONE_NANO)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FIVE_PERCENT: Sensitivity = Sensitivity {
        alpha: 0.05,
        margin: 0.05,
    };

    fn calibration() -> Calibration {
        Calibration {
            curves: Vec::new(),
            rows: 1000,
            right: 900,
        }
    }

    fn of(rows: [[u64; 2]; 2]) -> ExpectedConfusion {
        let cells = rows.into_iter().flatten().map(|n| n * ONE_NANO / 100);
        let mut sum = ExpectedConfusion::new(2);
        sum.add(&cells.collect::<Vec<u64>>()).unwrap();
        sum
    }

    #[test]
    fn shares_of_the_expected_matrix() {
        // 40 said the first class, 32 of them right; 60 the second, 54 right.
        let estimate = estimate(
            &of([[3200, 800], [600, 5400]]),
            &calibration(),
            FIVE_PERCENT,
        )
        .unwrap();
        assert!((estimate.accuracy - 0.86).abs() < 1e-12);
        assert!((estimate.classes[0].precision.unwrap() - 0.8).abs() < 1e-12);
        assert!((estimate.classes[0].recall.unwrap() - 32.0 / 38.0).abs() < 1e-12);
        assert!((estimate.classes[0].f1.unwrap() - 64.0 / 78.0).abs() < 1e-12);
        assert!((estimate.fall.value - 0.04).abs() < 1e-12);
        assert_eq!(estimate.fall.status, Status::Quiet);
    }

    #[test]
    fn a_fall_alarms_a_rise_does_not_and_few_say_nothing() {
        let status = |matrix| {
            estimate(&of(matrix), &calibration(), FIVE_PERCENT)
                .unwrap()
                .fall
                .status
        };
        assert_eq!(status([[25_000, 25_000], [25_000, 25_000]]), Status::Alarm);
        assert_eq!(status([[50_000, 0], [0, 50_000]]), Status::Quiet);
        assert_eq!(status([[500, 500], [500, 500]]), Status::Insufficient);
        assert_eq!(
            estimate(&of([[0; 2]; 2]), &calibration(), FIVE_PERCENT),
            None
        );
        // A class that was never answered.
        let one = estimate(&of([[0, 0], [5000, 5000]]), &calibration(), FIVE_PERCENT).unwrap();
        assert_eq!(
            (one.classes[0].precision, one.classes[0].recall),
            (None, Some(0.0))
        );
    }
}

//! Statistics of a whole tensor: what there is to look at in images and sound, where a single element
//! says nothing.

use serde::{Deserialize, Serialize};

/// One number of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Mean: the brightness of an image, the offset of a microphone.
    Mean,
    /// Standard deviation (over n): the contrast of an image.
    Std,
    /// Smallest.
    Min,
    /// Largest.
    Max,
    /// Root of the mean square: loudness.
    Rms,
    /// Mean distance of neighbours along the innermost dimension: sharpness, noise.
    StepMean,
    /// Share of neighbours along the innermost dimension whose sign differs, 0 to 1: the pitch of
    /// sound.
    CrossingShare,
    /// Share of elements that equal the smallest or the largest, 0 to 1: what is over- or underexposed,
    /// or clipped. Of a constant: 1.
    ClippedShare,
}

impl Statistic {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Mean,
        Self::Std,
        Self::Min,
        Self::Max,
        Self::Rms,
        Self::StepMean,
        Self::CrossingShare,
        Self::ClippedShare,
    ];

    /// Stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Std => "std",
            Self::Min => "min",
            Self::Max => "max",
            Self::Rms => "rms",
            Self::StepMean => "step_mean",
            Self::CrossingShare => "crossing_share",
            Self::ClippedShare => "clipped_share",
        }
    }

    /// Computes it in two passes at most, in the elements' order. `row` is the length of the innermost
    /// dimension: neighbours are not looked for across its ends. NaN if an element is, or if there is
    /// none (of neighbours: no two).
    #[must_use]
    pub fn of(self, values: impl Iterator<Item = f64> + Clone, row: usize) -> f64 {
        let (mut n, mut sum, mut squares) = (0_u64, 0.0, 0.0);
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for x in values.clone() {
            if x.is_nan() {
                return f64::NAN;
            }
            n += 1;
            sum += x;
            squares += x * x;
            min = min.min(x);
            max = max.max(x);
        }
        if n == 0 {
            return f64::NAN;
        }
        #[allow(clippy::cast_precision_loss)] // a tensor has far fewer than 2^53 elements
        let n = n as f64;
        match self {
            Self::Mean => sum / n,
            Self::Min => min,
            Self::Max => max,
            Self::Rms => (squares / n).sqrt(),
            Self::Std => {
                let mean = sum / n;
                let spread: f64 = values.map(|x| (x - mean) * (x - mean)).sum();
                (spread / n).sqrt()
            }
            Self::StepMean => neighbours(values, row, |a, b| (b - a).abs()),
            Self::CrossingShare => neighbours(values, row, |a, b| {
                f64::from(u8::from((a < 0.0) != (b < 0.0)))
            }),
            Self::ClippedShare => {
                let at_ends = values.filter(|x| *x == min || *x == max);
                #[allow(clippy::cast_precision_loss)] // as above
                let clipped = at_ends.count() as f64;
                clipped / n
            }
        }
    }
}

/// Mean over the pairs of neighbours.
fn neighbours(values: impl Iterator<Item = f64>, row: usize, of: impl Fn(f64, f64) -> f64) -> f64 {
    let (mut before, mut pairs, mut sum) = (0.0, 0.0, 0.0);
    for (at, x) in values.enumerate() {
        if at % row.max(1) != 0 {
            sum += of(before, x);
            pairs += 1.0;
        }
        before = x;
    }
    sum / pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(statistic: Statistic, values: &[f64], row: usize) -> f64 {
        statistic.of(values.iter().copied(), row)
    }

    #[test]
    fn each_is_what_it_says() {
        let values = [-3.0, 1.0, 5.0, 5.0, -1.0, -1.0];
        let expected = [
            1.0,
            (56.0_f64 / 6.0).sqrt(),
            -3.0,
            5.0,
            (62.0_f64 / 6.0).sqrt(),
            (4.0 + 4.0 + 6.0 + 0.0) / 4.0,
            2.0 / 4.0,
            3.0 / 6.0,
        ];
        for (statistic, expected) in Statistic::ALL.into_iter().zip(expected) {
            let got = of(statistic, &values, 3);
            assert!(
                (got - expected).abs() < 1e-12,
                "{statistic:?}: {got}, expected {expected}"
            );
        }
    }

    #[test]
    fn what_cannot_be_said_is_not_a_number() {
        for statistic in Statistic::ALL {
            assert!(of(statistic, &[], 1).is_nan(), "{statistic:?}");
            assert!(of(statistic, &[1.0, f64::NAN], 2).is_nan(), "{statistic:?}");
            let of_one = of(statistic, &[2.0], 1);
            let of_pairs = [Statistic::StepMean, Statistic::CrossingShare].contains(&statistic);
            assert_eq!(of_one.is_nan(), of_pairs, "{statistic:?}: {of_one}");
            let name = serde_json::to_value(statistic).ok();
            assert_eq!(name, Some(statistic.as_str().into()));
        }
    }
}

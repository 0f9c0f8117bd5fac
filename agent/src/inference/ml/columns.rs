//! What skl2onnx puts around trees and linear models, over the rows of a table, as ONNX Runtime
//! computes it. Pure. Slices hold whole rows of the stated width; their lengths were checked.

use super::forest::{Number, PostTransform, transform};
use std::collections::HashMap;

/// `(x - offset) · scale`. Offsets and scales: one for all columns, or one for each.
pub(super) fn scale<T: Number>(
    rows: &[T],
    width: usize,
    offsets: &[T],
    scales: &[T],
    out: &mut [f32],
) {
    let of = |list: &[T], column| per_column(list, column);
    for (at, (out, &x)) in out.iter_mut().zip(rows).enumerate() {
        let column = at.checked_rem(width).unwrap_or(0);
        *out = ((x - of(offsets, column)) * of(scales, column)).to_f32();
    }
}

/// What a list says of a column: it has one entry for all columns, or one for each.
fn per_column<T: Copy + Default>(list: &[T], column: usize) -> T {
    let at = if list.len() == 1 { 0 } else { column };
    list.get(at).copied().unwrap_or_default()
}

/// Puts the column's value where `missing`; values: one for all columns, or one for each.
pub(super) fn impute<T: Copy + Default>(
    rows: &mut [T],
    width: usize,
    values: &[T],
    missing: impl Fn(T) -> bool,
) {
    for (at, x) in rows.iter_mut().enumerate() {
        if missing(*x) {
            *x = per_column(values, at.checked_rem(width).unwrap_or(0));
        }
    }
}

/// 1 above the threshold, else 0.
pub(super) fn binarize(x: &mut [f32], threshold: f32) {
    for x in x {
        *x = f32::from(u8::from(*x > threshold));
    }
}

/// What a row is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norm {
    /// Its largest value (not the largest magnitude).
    Max,
    /// The sum of magnitudes.
    L1,
    /// The root of the sum of squares.
    L2,
}

/// Divides each row by its norm; a row whose norm is zero stays.
pub(super) fn normalize(rows: &mut [f32], width: usize, norm: Norm) {
    for row in rows.chunks_mut(width.max(1)) {
        let divisor = match norm {
            Norm::Max => row
                .iter()
                .copied()
                .fold(f32::MIN, |m, x| if m < x { x } else { m }),
            Norm::L1 => row.iter().map(|x| x.abs()).sum(),
            Norm::L2 => row.iter().map(|x| x * x).sum(),
        };
        if divisor == 0.0 {
            continue;
        }
        for x in row {
            *x = match norm {
                // Rounded like this where it is compared with.
                Norm::L2 if *x < 0.0 => -(*x * *x / divisor).sqrt(),
                Norm::L2 => (*x * *x / divisor).sqrt(),
                _ => *x / divisor,
            };
        }
    }
}

/// A linear classifier: one row of coefficients a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    /// Models times width.
    pub(super) coefficients: Vec<f32>,
    /// One a model.
    pub(super) intercepts: Vec<f32>,
    /// Two classes from one model.
    pub(super) adds_second: bool,
    pub(super) post_transform: PostTransform,
}

impl Linear {
    /// Scores of a row and the number of its class. The class is that of the highest score before
    /// the post transform, whose results may be rounded to a tie.
    pub(super) fn classify(&self, row: &[f32], raw: &mut [f32], out: &mut [f32]) -> usize {
        let models = self.coefficients.chunks(row.len().max(1));
        for ((raw, model), intercept) in raw.iter_mut().zip(models).zip(&self.intercepts) {
            let dot: f32 = model.iter().zip(row).map(|(c, x)| c * x).sum();
            *raw = dot + intercept;
        }
        if let [score] = *raw {
            match self.post_transform {
                PostTransform::Probit => transform(PostTransform::Probit, raw, out),
                PostTransform::Logistic if self.adds_second => {
                    transform(PostTransform::Logistic, &[-score, score], out);
                }
                _ if self.adds_second => out.copy_from_slice(&[1.0 - score, score]),
                _ => out.copy_from_slice(raw),
            }
            return usize::from(score > 0.0);
        }
        let mut best = 0;
        for (class, score) in raw.iter().enumerate() {
            if *score > raw[best] {
                best = class;
            }
        }
        transform(self.post_transform, raw, out);
        best
    }
}

/// Finds a key's place in a list; of equal keys, the first counts. NaN equals NaN, -0 equals 0.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Places(HashMap<u64, usize>);

impl Places {
    pub(super) fn of(keys: impl IntoIterator<Item = u64>) -> Self {
        let mut places = HashMap::new();
        for (at, key) in keys.into_iter().enumerate() {
            places.entry(key).or_insert(at);
        }
        Self(places)
    }

    /// Of equal keys, the last counts.
    pub(super) fn of_last(keys: impl IntoIterator<Item = u64>) -> Self {
        Self(keys.into_iter().zip(0..).collect())
    }

    pub(super) fn get(&self, key: u64) -> Option<usize> {
        self.0.get(&key).copied()
    }
}

/// The key of an integer.
pub(super) fn integer_key(x: i64) -> u64 {
    x.cast_unsigned()
}

/// The key of a float.
pub(super) fn float_key(x: f64) -> u64 {
    if x.is_nan() {
        f64::NAN.to_bits()
    } else if x == 0.0 {
        0
    } else {
        x.to_bits()
    }
}

/// One column a category: 1 where the value is it. `out` is zero before.
///
/// # Errors
/// The place of a value that is no category, if `known_only`.
pub(super) fn one_hot(
    values: impl Iterator<Item = i64>,
    categories: &Places,
    count: usize,
    known_only: bool,
    out: &mut [f32],
) -> Result<(), usize> {
    for ((at, value), out) in values.enumerate().zip(out.chunks_mut(count.max(1))) {
        match categories.get(integer_key(value)) {
            Some(category) => out[category] = 1.0,
            None if known_only => return Err(at),
            None => {}
        }
    }
    Ok(())
}

/// Writes a table into the columns from `first` on of a wider one, as far as they reach; columns
/// that it does not have stay.
pub(super) fn place_columns(
    table: &[f32],
    width: usize,
    first: usize,
    columns: usize,
    out: &mut [f32],
    out_width: usize,
) {
    let kept = width.min(columns);
    let rows = table.chunks(width.max(1));
    for (row, out) in rows.zip(out.chunks_mut(out_width.max(1))) {
        out[first..first + kept].copy_from_slice(&row[..kept]);
    }
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;

//! Steps on tables of features, as scikit-learn computes them.

use super::{Shaped, numbers};
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::DType;
use dunlin_protocol::bundle::step::{Categories, MinMax, Unknown};
use std::collections::BTreeMap;

/// Below this range a feature counts as constant: ten times the distance from 1 to the next float.
const CONSTANT_MAX: f64 = 10.0 * f64::EPSILON;

/// `MinMaxScaler.transform`: `x · scale + offset`, then clipped if so signed.
pub(crate) fn min_max(s: &MinMax, value: Shaped) -> Result<Shaped, String> {
    let row = value.row();
    let features: Vec<(f64, f64)> = s
        .min
        .iter()
        .zip(&s.max)
        .map(|(&min, &max)| {
            let range = max - min;
            let range = if range < CONSTANT_MAX { 1.0 } else { range };
            let scale = (s.high - s.low) / range;
            (scale, s.low - min * scale)
        })
        .collect();
    if features.len() != row {
        return Err(format!("expected {} features, got {row}", features.len()));
    }
    let clip = |x: f64| if s.clip { x.clamp(s.low, s.high) } else { x };
    // Each operation is rounded to the tensor's own type, as NumPy does in place.
    #[allow(clippy::cast_possible_truncation)]
    let values = match value.values {
        Values::FP32(mut v) => {
            for (x, (scale, offset)) in v.iter_mut().zip(features.iter().cycle()) {
                let scaled = (f64::from(*x) * scale) as f32;
                *x = clip(f64::from((f64::from(scaled) + offset) as f32)) as f32;
            }
            Values::FP32(v)
        }
        Values::FP64(mut v) => {
            for (x, (scale, offset)) in v.iter_mut().zip(features.iter().cycle()) {
                *x = clip(*x * scale + offset);
            }
            Values::FP64(v)
        }
        other => return Err(format!("expected floats, got {}", other.dtype().as_str())),
    };
    Ok(Shaped::new(value.shape, values))
}

/// `SimpleImputer.transform`: the feature's value in place of each NaN.
pub(crate) fn impute(values: &[f64], value: Shaped) -> Result<Shaped, String> {
    let known = numbers::each(values, value.row())?;
    #[allow(clippy::cast_possible_truncation)]
    let values = match value.values {
        Values::FP32(mut v) => {
            let gaps = v.iter_mut().zip(known.iter().cycle());
            gaps.filter(|(x, _)| x.is_nan())
                .for_each(|(x, known)| *x = *known as f32);
            Values::FP32(v)
        }
        Values::FP64(mut v) => {
            let gaps = v.iter_mut().zip(known.iter().cycle());
            gaps.filter(|(x, _)| x.is_nan())
                .for_each(|(x, known)| *x = *known);
            Values::FP64(v)
        }
        other => return Err(format!("expected floats, got {}", other.dtype().as_str())),
    };
    Ok(Shaped::new(value.shape, values))
}

/// The column of each category.
#[derive(Debug)]
pub(crate) enum Columns {
    Numbers(BTreeMap<i64, usize>),
    Texts(BTreeMap<Vec<u8>, usize>),
}

impl Columns {
    pub(crate) fn of(categories: &Categories) -> Self {
        match categories {
            Categories::Numbers(list) => Self::Numbers(list.iter().copied().zip(0..).collect()),
            Categories::Texts(list) => {
                let texts = list.iter().map(|t| t.clone().into_bytes());
                Self::Texts(texts.zip(0..).collect())
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Numbers(all) => all.len(),
            Self::Texts(all) => all.len(),
        }
    }

    /// Column of each value; of one that is no category, what it is, cut short.
    fn find(&self, values: &Values) -> Result<Vec<Result<usize, String>>, String> {
        let expected = |what| format!("expected {what}, got {}", values.dtype().as_str());
        Ok(match (self, values) {
            (Self::Texts(all), Values::BYTES(v)) => v
                .iter()
                .map(|text| {
                    let shown = || String::from_utf8_lossy(text).chars().take(32).collect();
                    all.get(text).copied().ok_or_else(shown)
                })
                .collect(),
            // A number beyond 64 signed bits is no category, as none can be signed.
            (Self::Numbers(all), Values::UINT64(v)) => v
                .iter()
                .map(|n| {
                    let column = i64::try_from(*n).ok().and_then(|n| all.get(&n));
                    column.copied().ok_or_else(|| n.to_string())
                })
                .collect(),
            (Self::Numbers(all), _) => match numbers::cast(values, DType::INT64) {
                Values::INT64(v) => v
                    .iter()
                    .map(|n| all.get(n).copied().ok_or_else(|| n.to_string()))
                    .collect(),
                _ => return Err(expected("integers")),
            },
            (Self::Texts(_), _) => return Err(expected("BYTES")),
        })
    }
}

/// `OneHotEncoder.transform` of one column.
pub(crate) fn one_hot(
    columns: &Columns,
    unknown: Unknown,
    value: &Shaped,
) -> Result<Shaped, String> {
    let width = columns.len();
    let found = columns.find(&value.values)?;
    let mut rows = vec![0.0; found.len() * width];
    for (row, column) in rows.chunks_mut(width.max(1)).zip(&found) {
        match (column, unknown) {
            (Ok(column), _) => row[*column] = 1.0,
            (Err(_), Unknown::Zeros) => {}
            (Err(shown), Unknown::Error) => {
                return Err(format!("{shown:?} is none of the {width} categories"));
            }
        }
    }
    Ok(Shaped::new(vec![found.len(), width], Values::FP32(rows)))
}

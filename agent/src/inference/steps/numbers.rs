//! Steps on numbers of any kind: element type, order, ranges, normalisation.

use super::{Shaped, map_values};
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::DType;
use dunlin_protocol::bundle::step::Normalise;
use tract_onnx::prelude::f16;

/// Whole numbers as 128 bits, which hold all of them; `None` if the values are no whole numbers.
fn whole(values: &Values) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
    Some(match values {
        Values::BOOL(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::UINT8(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::UINT16(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::UINT32(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::UINT64(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::INT8(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::INT16(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::INT32(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::INT64(v) => Box::new(v.iter().map(|&x| i128::from(x))),
        Values::FP16(_) | Values::FP32(_) | Values::FP64(_) | Values::BYTES(_) => return None,
    })
}

/// Values of another element type. To whole numbers: towards zero, the nearest one that the type
/// holds, NaN to 0; to `BOOL`: not zero. `BYTES` stay as they are.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
pub(crate) fn cast(values: &Values, to: DType) -> Values {
    macro_rules! integers {
        ($t:ty) => {
            match whole(values) {
                Some(all) => all
                    .map(|x| x.clamp(i128::from(<$t>::MIN), i128::from(<$t>::MAX)) as $t)
                    .collect(),
                None => values.iter_f64().map(|x| x as $t).collect(),
            }
        };
    }
    match to {
        DType::BOOL => Values::BOOL(values.iter_f64().map(|x| x != 0.0).collect()),
        DType::UINT8 => Values::UINT8(integers!(u8)),
        DType::UINT16 => Values::UINT16(integers!(u16)),
        DType::UINT32 => Values::UINT32(integers!(u32)),
        DType::UINT64 => Values::UINT64(integers!(u64)),
        DType::INT8 => Values::INT8(integers!(i8)),
        DType::INT16 => Values::INT16(integers!(i16)),
        DType::INT32 => Values::INT32(integers!(i32)),
        DType::INT64 => Values::INT64(integers!(i64)),
        DType::FP16 => Values::FP16(values.iter_f64().map(f16::from_f64).collect()),
        DType::FP32 => Values::FP32(floats(values)),
        DType::FP64 => Values::FP64(values.iter_f64().collect()),
        DType::BYTES => values.clone(),
    }
}

/// Values as 32-bit floats, each rounded once.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
pub(crate) fn floats(values: &Values) -> Vec<f32> {
    match values {
        Values::FP32(v) => v.clone(),
        Values::UINT8(v) => v.iter().map(|&x| f32::from(x)).collect(),
        Values::INT16(v) => v.iter().map(|&x| f32::from(x)).collect(),
        other => match whole(other) {
            Some(all) => all.map(|x| x as f32).collect(),
            None => other.iter_f64().map(|x| x as f32).collect(),
        },
    }
}

/// `(x · scale − mean) ÷ std` in 32-bit floats.
pub(crate) fn normalise(s: &Normalise, value: Shaped) -> Result<Shaped, String> {
    let row = value.row();
    let mut numbers = match value.values {
        Values::FP32(v) => v,
        other => floats(&other),
    };
    let mean = each(&s.mean, row)?;
    let std = each(&s.std, row)?;
    for row in numbers.chunks_mut(row.max(1)) {
        for ((x, mean), std) in row.iter_mut().zip(&mean).zip(&std) {
            *x = (*x * s.scale - mean) / std;
        }
    }
    Ok(Shaped::new(value.shape, Values::FP32(numbers)))
}

/// One value for each element of a row.
pub(crate) fn each<T: Copy>(list: &[T], row: usize) -> Result<Vec<T>, String> {
    match list {
        [one] => Ok(vec![*one; row]),
        _ if list.len() == row => Ok(list.to_vec()),
        _ => Err(format!("expected 1 value or {row}, got {}", list.len())),
    }
}

/// Dimensions in another order; see the protocol's `Layout`.
pub(crate) fn layout(from: &str, to: &str, value: Shaped) -> Result<Shaped, String> {
    let mut strides = vec![1_usize; value.shape.len()];
    for at in (1..value.shape.len()).rev() {
        strides[at - 1] = strides[at] * value.shape[at];
    }
    let mut dims = Vec::new();
    for letter in to.chars() {
        dims.push(match from.chars().position(|l| l == letter) {
            Some(at) if at < strides.len() => (value.shape[at], strides[at]),
            Some(_) => return Err(format!("expected {from}, got {:?}", value.shape)),
            None => (1, 0),
        });
    }
    let shape: Vec<usize> = dims.iter().map(|(n, _)| *n).collect();
    let order = order(&dims);
    let values = map_values!(value.values, v => {
        order.iter().filter_map(|&at| v.get(at).cloned()).collect()
    });
    let expected: usize = shape.iter().product();
    if values.len() != expected {
        return Err(format!(
            "expected {expected} elements, got {}",
            values.len()
        ));
    }
    Ok(Shaped::new(shape, values))
}

/// For each element of the result, in order, its place in the source. A dimension is its length and
/// its stride in the source.
fn order(dims: &[(usize, usize)]) -> Vec<usize> {
    let mut places = vec![0];
    for &(length, stride) in dims {
        places = places
            .into_iter()
            .flat_map(|base| (0..length).map(move |n| base + n * stride))
            .collect();
    }
    places
}

/// A range of one dimension. The range was checked against the signed shape.
pub(crate) fn slice(
    axis: usize,
    start: usize,
    end: usize,
    value: Shaped,
) -> Result<Shaped, String> {
    let mut shape = value.shape;
    let length = shape.get(axis).copied().unwrap_or_default();
    if start >= end || end > length {
        return Err(format!("expected {start} to {end} within {length}"));
    }
    let inner: usize = shape[axis + 1..].iter().product();
    shape[axis] = end - start;
    let block = length * inner;
    let values = map_values!(value.values, v => {
        v.chunks(block.max(1))
            .filter_map(|b| b.get(start * inner..end * inner))
            .flatten()
            .cloned()
            .collect()
    });
    Ok(Shaped::new(shape, values))
}

/// Side by side along the last dimension.
pub(crate) fn concat(all: Vec<Shaped>) -> Result<Shaped, String> {
    let rows: Vec<usize> = all.iter().map(Shaped::row).collect();
    let mut shape = all.first().map(|v| v.shape.clone()).unwrap_or_default();
    let Some(last) = shape.last_mut() else {
        return Err("there is nothing to join".to_owned());
    };
    *last = rows.iter().sum();
    let outer: usize = shape[..shape.len() - 1].iter().product();
    let first = all.first().map(|v| &v.values);
    let first = first.ok_or("there is nothing to join")?;
    macro_rules! join {
        ($variant:ident) => {{
            let mut joined = Vec::with_capacity(shape.iter().product());
            for at in 0..outer {
                for (value, row) in all.iter().zip(&rows) {
                    let Values::$variant(v) = &value.values else {
                        return Err("expected one element type".to_owned());
                    };
                    joined.extend(v.iter().skip(at * row).take(*row).cloned());
                }
            }
            Values::$variant(joined)
        }};
    }
    let values = match first {
        Values::BOOL(_) => join!(BOOL),
        Values::UINT8(_) => join!(UINT8),
        Values::UINT16(_) => join!(UINT16),
        Values::UINT32(_) => join!(UINT32),
        Values::UINT64(_) => join!(UINT64),
        Values::INT8(_) => join!(INT8),
        Values::INT16(_) => join!(INT16),
        Values::INT32(_) => join!(INT32),
        Values::INT64(_) => join!(INT64),
        Values::FP16(_) => join!(FP16),
        Values::FP32(_) => join!(FP32),
        Values::FP64(_) => join!(FP64),
        Values::BYTES(_) => join!(BYTES),
    };
    Ok(Shaped::new(shape, values))
}

/// Each row backwards.
pub(crate) fn reverse_rows(value: Shaped) -> Shaped {
    let row = value.row().max(1);
    let values = map_values!(value.values, v => {
        let mut v = v;
        v.chunks_mut(row).for_each(<[_]>::reverse);
        v
    });
    Shaped::new(value.shape, values)
}

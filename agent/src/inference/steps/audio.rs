//! Steps on samples.

use super::{Shaped, map_values};
use crate::inference::tensor::Values;

/// Samples to floats: −1 is the least one, 0 is silence.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn pcm_to_float(value: Shaped) -> Result<Shaped, String> {
    let floats = match &value.values {
        Values::INT8(v) => v.iter().map(|&x| f32::from(x) / 128.0).collect(),
        Values::INT16(v) => v.iter().map(|&x| f32::from(x) / 32_768.0).collect(),
        Values::INT32(v) => v
            .iter()
            .map(|&x| (f64::from(x) / 2_147_483_648.0) as f32)
            .collect(),
        Values::UINT8(v) => v.iter().map(|&x| (f32::from(x) - 128.0) / 128.0).collect(),
        other => return Err(format!("expected samples, got {}", other.dtype().as_str())),
    };
    Ok(Shaped::new(value.shape, Values::FP32(floats)))
}

/// Frames of `length` samples, one every `hop`; samples after the last whole frame are dropped.
pub(crate) fn frame(length: usize, hop: usize, value: Shaped) -> Result<Shaped, String> {
    let samples = value.values.len();
    if length == 0 || hop == 0 || samples < length {
        return Err(format!("expected {length} samples or more, got {samples}"));
    }
    let count = 1 + (samples - length) / hop;
    let values = map_values!(value.values, v => {
        v.windows(length).step_by(hop).flatten().cloned().collect()
    });
    Ok(Shaped::new(vec![count, length], values))
}

/// What a sliding window gives and keeps.
pub(crate) struct Window {
    pub(crate) whole: Shaped,
    pub(crate) kept: Values,
}

/// The samples kept from before and those that came now, row by row; the end of both is kept.
pub(crate) fn sliding_window(
    length: usize,
    before: &Values,
    value: Shaped,
) -> Result<Window, String> {
    let came = value.row();
    let Some(kept) = length.checked_sub(came) else {
        return Err(format!("expected at most {length} samples, got {came}"));
    };
    let rows = value.values.len() / came.max(1);
    let mut shape = value.shape;
    if let Some(last) = shape.last_mut() {
        *last = length;
    }
    let earlier = Shaped::new(vec![rows, kept], before.clone());
    let now = Shaped::new(vec![rows, came], value.values);
    let whole = super::numbers::concat(vec![earlier, now])?;
    let end = map_values!(whole.values.clone(), v => {
        v.chunks(length.max(1)).flat_map(|row| &row[row.len() - kept.min(row.len())..]).cloned().collect()
    });
    Ok(Window {
        whole: Shaped::new(shape, whole.values),
        kept: end,
    })
}

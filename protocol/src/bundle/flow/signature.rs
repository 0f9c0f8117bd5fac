//! What each step makes of types and shapes, or why it cannot.

mod image;
mod numbers;
mod scores;

use super::{MAX_ELEMENTS, Side, TensorType};
use crate::bundle::Dim;
use crate::bundle::manifest::{DType, Manifest};
use crate::bundle::step::{Channels, Step};

/// What a signature may depend on besides the values read.
pub(super) struct Context<'a> {
    pub(super) manifest: &'a Manifest,
    /// The side before the graph, if the step stands after it.
    pub(super) before: Option<&'a Side>,
}

/// Types written for types read, in the step's own order.
pub(super) fn of(
    step: &Step,
    takes: &[TensorType],
    context: &Context<'_>,
) -> Result<Vec<TensorType>, String> {
    let first = || takes.first().ok_or_else(|| "reads nothing".to_owned());
    let given = match step {
        Step::Scale { mul, add, .. } => {
            finite("mul and add", [*mul, *add].map(f64::from))?;
            numbers::of_floats(first()?)?
        }
        Step::Softmax { .. } | Step::Sigmoid(_) => numbers::of_floats(first()?)?,
        Step::Constant(s) => numbers::constant(s)?,
        Step::Copy(_) => first()?.clone(),
        Step::Cast(s) => numbers::cast(s, first()?)?,
        Step::Reshape(s) => numbers::reshape(s, first()?)?,
        Step::Layout(s) => numbers::layout(s, first()?)?,
        Step::Slice(s) => numbers::slice(s, first()?)?,
        Step::Concat(_) => numbers::concat(takes)?,
        Step::Normalise(s) => numbers::normalise(s, first()?)?,
        Step::MinMax(s) => numbers::min_max(s, first()?)?,
        Step::Impute(s) => numbers::impute(s, first()?)?,
        Step::OneHot(s) => numbers::one_hot(s, first()?)?,
        Step::DecodeImage(s) => image::decode(s, first()?)?,
        Step::Resize(s) => image::resize(s, first()?)?,
        Step::Crop(s) => image::crop(s, first()?)?,
        Step::CenterCrop(s) => image::center_crop(s, first()?)?,
        Step::Pad(s) => image::pad(s, first()?)?,
        Step::Letterbox(s) => image::letterbox(s, first()?)?,
        Step::Greyscale(_) => image::greyscale(first()?)?,
        Step::ReverseChannels(_) => image::reverse_channels(first()?)?,
        Step::PcmToFloat(_) => numbers::pcm_to_float(first()?)?,
        Step::Frame(s) => numbers::frame(s, first()?)?,
        Step::SlidingWindow(s) => numbers::sliding_window(s, first()?, context)?,
        Step::Carry(s) => numbers::carry(s, context)?,
        Step::ArgMax(_) => scores::arg_max(first()?)?,
        Step::TopK(s) => return scores::top_k(s, first()?),
        Step::Threshold(s) => scores::threshold(s, first()?)?,
        Step::Labels(_) => scores::labels(first()?, context)?,
        Step::NonMaxSuppression(s) => return scores::non_max_suppression(s, takes),
        Step::BoxesToImage(s) => scores::boxes_to_image(s, first()?, context)?,
    };
    Ok(vec![given])
}

/// "expected …, got …".
fn misfit(expected: &str, got: &TensorType) -> String {
    format!("expected {expected}, got {got}")
}

fn finite(what: &str, numbers: impl IntoIterator<Item = f64>) -> Result<(), String> {
    match numbers.into_iter().find(|n| !n.is_finite()) {
        Some(n) => Err(format!("{what} must be finite, got {n}")),
        None => Ok(()),
    }
}

/// Length of the last dimension, which must not vary.
fn features(of: &TensorType) -> Result<usize, String> {
    match of.shape.last() {
        Some(Dim::Fixed(n)) => Ok(*n),
        _ => Err(misfit("a last dimension of fixed length", of)),
    }
}

/// A list must have one value for all, or one for each feature.
fn one_or_each(what: &str, length: usize, of: &TensorType) -> Result<(), String> {
    let features = features(of)?;
    if length == 1 || length == features {
        return Ok(());
    }
    Err(format!(
        "{what}: expected 1 value or {features}, got {length}"
    ))
}

fn needs(dtype: DType, of: &TensorType) -> Result<(), String> {
    if of.dtype == dtype {
        Ok(())
    } else {
        Err(misfit(dtype.as_str(), of))
    }
}

fn needs_number(of: &TensorType) -> Result<(), String> {
    match of.dtype {
        DType::BYTES => Err(misfit("numbers", of)),
        _ => Ok(()),
    }
}

fn is_integer(dtype: DType) -> bool {
    use DType::{INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64};
    let all = [INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64];
    all.contains(&dtype)
}

//! Signatures of the steps on any numbers, on features and on samples.

use super::{
    Context, DType, Dim, TensorType, features, finite, is_integer, misfit, needs, needs_number,
    one_or_each,
};
use crate::bundle::step::{
    Carry, Cast, Categories, Constant, Frame, Impute, Layout, MinMax, Normalise, OneHot, Reshape,
    Slice, SlidingWindow,
};
use std::collections::BTreeSet;

/// Most categories of one feature.
const MAX_CATEGORIES: usize = 100_000;

pub(super) fn of_floats(of: &TensorType) -> Result<TensorType, String> {
    if of.dtype == DType::FP32 {
        return Ok(of.clone());
    }
    Err(format!("works on FP32, got {of}"))
}

pub(super) fn constant(s: &Constant) -> Result<TensorType, String> {
    let elements = s.shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    if elements != Some(s.values.len()) || s.values.is_empty() {
        return Err(format!(
            "values: expected as many as {:?} has, got {}",
            s.shape,
            s.values.len()
        ));
    }
    let (least, greatest) = range(s.dtype).ok_or("dtype: BYTES are no numbers")?;
    let is_whole = is_integer(s.dtype) || s.dtype == DType::BOOL;
    let fits = |x: &f64| (least..=greatest).contains(x) && (!is_whole || x.fract() == 0.0);
    if let Some(odd) = s.values.iter().find(|x| !fits(x)) {
        return Err(format!("values: {odd} does not fit {}", s.dtype.as_str()));
    }
    Ok(TensorType::fixed(s.dtype, &s.shape))
}

/// What an element type holds, as far as 64-bit floats can say it exactly.
fn range(dtype: DType) -> Option<(f64, f64)> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    Some(match dtype {
        DType::BOOL => (0.0, 1.0),
        DType::UINT8 => (0.0, f64::from(u8::MAX)),
        DType::UINT16 => (0.0, f64::from(u16::MAX)),
        DType::UINT32 => (0.0, f64::from(u32::MAX)),
        DType::UINT64 => (0.0, EXACT_MAX),
        DType::INT8 => (f64::from(i8::MIN), f64::from(i8::MAX)),
        DType::INT16 => (f64::from(i16::MIN), f64::from(i16::MAX)),
        DType::INT32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        DType::INT64 => (-EXACT_MAX, EXACT_MAX),
        DType::FP16 => (-65_504.0, 65_504.0),
        DType::FP32 => (f64::from(f32::MIN), f64::from(f32::MAX)),
        DType::FP64 => (f64::MIN, f64::MAX),
        DType::BYTES => return None,
    })
}

pub(super) fn cast(s: &Cast, of: &TensorType) -> Result<TensorType, String> {
    needs_number(of)?;
    if s.to == DType::BYTES {
        return Err("to: numbers cannot become BYTES".to_owned());
    }
    Ok(TensorType {
        dtype: s.to,
        shape: of.shape.clone(),
    })
}

pub(super) fn reshape(s: &Reshape, of: &TensorType) -> Result<TensorType, String> {
    let product = |shape: &[usize]| shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    let elements = of.fixed_shape().as_deref().and_then(product);
    if elements.is_none() || elements != product(&s.shape) {
        return Err(misfit(&format!("as many elements as {:?}", s.shape), of));
    }
    Ok(TensorType::fixed(of.dtype, &s.shape))
}

pub(super) fn layout(s: &Layout, of: &TensorType) -> Result<TensorType, String> {
    let letters = |text: &str| -> Option<Vec<char>> {
        let letters: Vec<char> = text.chars().collect();
        let distinct: BTreeSet<char> = letters.iter().copied().collect();
        let good = distinct.len() == letters.len()
            && letters.len() <= 8
            && letters.iter().all(char::is_ascii_uppercase);
        good.then_some(letters)
    };
    let (Some(from), Some(to)) = (letters(&s.from), letters(&s.to)) else {
        return Err(format!(
            "from and to must be up to 8 different capitals, got {:?} and {:?}",
            s.from, s.to
        ));
    };
    if from.len() != of.shape.len() {
        return Err(misfit(
            &format!("{} dimensions ({:?})", from.len(), s.from),
            of,
        ));
    }
    let gone = from
        .iter()
        .zip(&of.shape)
        .find(|(letter, dim)| !to.contains(letter) && **dim != Dim::Fixed(1));
    if let Some((letter, _)) = gone {
        return Err(misfit(
            &format!("1 for {letter}, which {:?} has not", s.to),
            of,
        ));
    }
    let shape = to.iter().map(|letter| {
        let at = from.iter().position(|l| l == letter);
        at.map_or(Dim::Fixed(1), |at| of.shape[at])
    });
    Ok(TensorType {
        dtype: of.dtype,
        shape: shape.collect(),
    })
}

pub(super) fn slice(s: &Slice, of: &TensorType) -> Result<TensorType, String> {
    match of.shape.get(s.axis) {
        Some(Dim::Fixed(n)) if s.start < s.end && s.end <= *n => {
            let mut given = of.clone();
            given.shape[s.axis] = Dim::Fixed(s.end - s.start);
            Ok(given)
        }
        _ => {
            let expected = format!("{} to {} within dimension {}", s.start, s.end, s.axis);
            Err(misfit(&expected, of))
        }
    }
}

pub(super) fn concat(takes: &[TensorType]) -> Result<TensorType, String> {
    let [first, rest @ ..] = takes else {
        return Err("tensors: expected 2 or more, got none".to_owned());
    };
    if rest.is_empty() {
        return Err("tensors: expected 2 or more, got 1".to_owned());
    }
    let mut length = features(first)?;
    let outer = |t: &TensorType| t.shape[..t.shape.len() - 1].to_vec();
    for other in rest {
        length = length.saturating_add(features(other)?);
        if other.dtype != first.dtype || outer(other) != outer(first) {
            return Err(misfit(
                &format!("like {first} but for the last dimension"),
                other,
            ));
        }
    }
    first
        .fixed_shape()
        .ok_or_else(|| misfit("a fixed shape", first))?;
    let mut given = first.clone();
    given.shape.pop();
    given.shape.push(Dim::Fixed(length));
    Ok(given)
}

pub(super) fn normalise(s: &Normalise, of: &TensorType) -> Result<TensorType, String> {
    needs_number(of)?;
    one_or_each("mean", s.mean.len(), of)?;
    one_or_each("std", s.std.len(), of)?;
    let wide = |list: &[f32]| list.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    finite("scale", [f64::from(s.scale)])?;
    finite("mean", wide(&s.mean))?;
    finite("std", wide(&s.std))?;
    if s.std.contains(&0.0) {
        return Err("std must not be 0".to_owned());
    }
    Ok(TensorType {
        dtype: DType::FP32,
        shape: of.shape.clone(),
    })
}

pub(super) fn min_max(s: &MinMax, of: &TensorType) -> Result<TensorType, String> {
    needs_float(of)?;
    let features = features(of)?;
    if s.min.len() != features || s.max.len() != features {
        return Err(format!(
            "min and max: expected {features} values each, got {} and {}",
            s.min.len(),
            s.max.len()
        ));
    }
    finite("min", s.min.iter().copied())?;
    finite("max", s.max.iter().copied())?;
    finite("low and high", [s.low, s.high])?;
    if s.low >= s.high {
        return Err(format!("low {} must be below high {}", s.low, s.high));
    }
    Ok(of.clone())
}

fn needs_float(of: &TensorType) -> Result<(), String> {
    match of.dtype {
        DType::FP32 | DType::FP64 => Ok(()),
        _ => Err(misfit("FP32 or FP64", of)),
    }
}

pub(super) fn impute(s: &Impute, of: &TensorType) -> Result<TensorType, String> {
    needs_float(of)?;
    one_or_each("values", s.values.len(), of)?;
    finite("values", s.values.iter().copied())?;
    Ok(of.clone())
}

pub(super) fn one_hot(s: &OneHot, of: &TensorType) -> Result<TensorType, String> {
    let distinct = match &s.categories {
        Categories::Numbers(list) => list.iter().collect::<BTreeSet<_>>().len() == list.len(),
        Categories::Texts(list) => list.iter().collect::<BTreeSet<_>>().len() == list.len(),
    };
    let (count, fits, expected) = match &s.categories {
        Categories::Numbers(list) => (list.len(), is_integer(of.dtype), "integers"),
        Categories::Texts(list) => (list.len(), of.dtype == DType::BYTES, "BYTES"),
    };
    if count == 0 || count > MAX_CATEGORIES || !distinct {
        return Err(format!(
            "categories: expected 1 to {MAX_CATEGORIES}, all different, got {count}"
        ));
    }
    match of.shape.as_slice() {
        [rows @ Dim::Fixed(_)] | [rows @ Dim::Fixed(_), Dim::Fixed(1)] if fits => Ok(TensorType {
            dtype: DType::FP32,
            shape: vec![*rows, Dim::Fixed(count)],
        }),
        _ => Err(misfit(&format!("{expected} [n] or [n, 1]"), of)),
    }
}

pub(super) fn pcm_to_float(of: &TensorType) -> Result<TensorType, String> {
    match of.dtype {
        DType::INT8 | DType::INT16 | DType::INT32 | DType::UINT8 => Ok(TensorType {
            dtype: DType::FP32,
            shape: of.shape.clone(),
        }),
        _ => Err(misfit("INT8, INT16, INT32 or UINT8", of)),
    }
}

pub(super) fn frame(s: &Frame, of: &TensorType) -> Result<TensorType, String> {
    needs_number(of)?;
    if s.length == 0 || s.hop == 0 {
        return Err(format!(
            "length and hop must be 1 or more, got {} and {}",
            s.length, s.hop
        ));
    }
    match of.shape.as_slice() {
        [Dim::Fixed(n)] if *n >= s.length => {
            let frames = 1 + (n - s.length) / s.hop;
            Ok(TensorType::fixed(of.dtype, &[frames, s.length]))
        }
        _ => Err(misfit(&format!("[n] with n of {} or more", s.length), of)),
    }
}

pub(super) fn sliding_window(
    s: &SlidingWindow,
    of: &TensorType,
    context: &Context<'_>,
) -> Result<TensorType, String> {
    if context.before.is_some() {
        return Err("stands before the graph only".to_owned());
    }
    needs_number(of)?;
    let Some(mut shape) = of.fixed_shape() else {
        return Err(misfit("a fixed shape", of));
    };
    match shape.last_mut() {
        Some(last) if *last <= s.length => *last = s.length,
        _ => {
            let expected = format!("a last dimension of at most {}", s.length);
            return Err(misfit(&expected, of));
        }
    }
    Ok(TensorType::fixed(of.dtype, &shape))
}

pub(super) fn carry(s: &Carry, context: &Context<'_>) -> Result<TensorType, String> {
    if context.before.is_some() {
        return Err("stands before the graph only".to_owned());
    }
    let manifest = context.manifest;
    let of = |specs: &[crate::bundle::TensorSpec], name: &str, what| {
        let spec = specs.iter().find(|t| t.name == name);
        let of = spec.map(|t| TensorType::fixed(t.dtype, &t.shape));
        of.ok_or_else(|| format!("the graph has no {what} {name:?}"))
    };
    let input = of(&manifest.inputs, &s.tensor, "input")?;
    let output = of(&manifest.outputs, &s.from, "output")?;
    if input != output {
        return Err(misfit(
            &format!("{input} as the input {:?}", s.tensor),
            &output,
        ));
    }
    needs_number(&input)?;
    Ok(input)
}

/// For lists that belong to scores.
pub(super) fn bounds(at: &[f32], of: &TensorType) -> Result<(), String> {
    needs(DType::FP32, of)?;
    one_or_each("at", at.len(), of)?;
    finite("at", at.iter().map(|&x| f64::from(x)))
}

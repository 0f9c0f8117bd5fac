//! `QuantizeLinear` and `DequantizeLinear` as the specification has them.
//!
//! tract's own rewrite whatever stands between the two and give other numbers than ONNX Runtime:
//! classes of models quantised statically were swapped. These compute what the file says, and weights
//! become floats when the graph is loaded.

use crate::inference::ml::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// `round_half_to_even(x / scale) + zero point`, within the range of the integers.
pub(super) fn quantize(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let dtype = output_type(node)?;
    Ok(plugged(Quantize(Scaling::read(node)?, dtype)))
}

/// `(x - zero point) * scale`.
pub(super) fn dequantize(_: &ParsingContext, node: &NodeProto) -> Parsed {
    Ok(plugged(Dequantize(Scaling::read(node)?)))
}

fn output_type(node: &NodeProto) -> TractResult<Option<DatumType>> {
    let number: i64 = node.get_attr_opt("output_dtype")?.unwrap_or(0);
    if number == 0 {
        return Ok(None);
    }
    let listed = i32::try_from(number)
        .ok()
        .and_then(|n| DataType::try_from(n).ok());
    let listed = listed.with_context(|| format!("output_dtype {number} is not known"))?;
    Ok(Some(listed.try_into()?))
}

/// Which scale is for which element: one for all, one for each place along an axis, or one for each
/// block of places along it.
#[derive(Debug, Clone)]
struct Scaling {
    axis: i64,
    /// Zero: no blocks.
    block: usize,
}

impl Scaling {
    fn read(node: &NodeProto) -> TractResult<Self> {
        let block: i64 = node.get_attr_opt("block_size")?.unwrap_or(0);
        Ok(Self {
            axis: node.get_attr_opt("axis")?.unwrap_or(1),
            block: usize::try_from(block)
                .with_context(|| format!("block_size {block} is negative"))?,
        })
    }

    /// The places for tensors of these shapes.
    fn over(&self, shape: &[usize], scales: &[usize]) -> TractResult<Places> {
        let count: usize = scales.iter().product();
        let all = shape.iter().product();
        if count == 1 && self.block == 0 {
            return Ok(Places {
                along: 1,
                inner: all,
                block: None,
            });
        }
        let rank = i64::try_from(shape.len())?;
        let axis = if self.axis < 0 {
            self.axis + rank
        } else {
            self.axis
        };
        ensure!(
            (0..rank).contains(&axis),
            "axis {} of a tensor of shape {shape:?}",
            self.axis
        );
        let axis = usize::try_from(axis)?;
        let along = shape[axis];
        let block = (self.block > 0).then_some(self.block);
        let expected: Vec<usize> = match block {
            None => vec![along],
            Some(block) => {
                let mut blocks = shape.to_vec();
                blocks[axis] = along.div_ceil(block);
                blocks
            }
        };
        ensure!(
            scales == expected,
            "scales of shape {scales:?} for a tensor of shape {shape:?}, expected {expected:?}"
        );
        let inner = shape[axis + 1..].iter().product();
        Ok(Places {
            along,
            inner,
            block,
        })
    }
}

/// A tensor as rows of `inner` elements, `along` of which lie along the axis.
struct Places {
    along: usize,
    inner: usize,
    block: Option<usize>,
}

impl Places {
    /// Calls for each run of elements with its range and the index of its scale.
    fn each(&self, length: usize, mut run: impl FnMut(std::ops::Range<usize>, usize)) {
        if length == 0 {
            return;
        }
        for row in 0..length / self.inner {
            let (start, place) = (row * self.inner, row % self.along);
            match self.block {
                None => run(start..start + self.inner, place),
                Some(block) => {
                    let blocks = self.along.div_ceil(block);
                    let first = (row / self.along * blocks + place / block) * self.inner;
                    for at in 0..self.inner {
                        run(start + at..start + at + 1, first + at);
                    }
                }
            }
        }
    }
}

fn check(inputs: &[Fact]) -> TractResult<()> {
    ensure!(
        matches!(inputs.len(), 2 | 3),
        "expected a tensor, scales and zero points, got {} inputs",
        inputs.len()
    );
    let scale = inputs[1].0;
    ensure!(scale.is_float(), "expected floats as scales, got {scale:?}");
    Ok(())
}

/// The zero points as 32-bit integers, one for each scale.
fn zero_points(inputs: &[TValue], scales: usize) -> TractResult<Vec<i32>> {
    let Some(zero) = inputs.get(2) else {
        return Ok(vec![0; scales]);
    };
    let zero = zero.cast_to::<i32>()?;
    let zero = zero.try_as_plain_ram()?.as_slice::<i32>()?.to_vec();
    ensure!(
        zero.len() == scales,
        "{} zero points for {scales} scales",
        zero.len()
    );
    Ok(zero)
}

fn floats(tensor: &Tensor) -> TractResult<Vec<f32>> {
    let cast = tensor.cast_to::<f32>()?;
    Ok(cast.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
}

#[derive(Debug, Clone)]
struct Quantize(Scaling, Option<DatumType>);

impl Operator for Quantize {
    fn name(&self) -> &'static str {
        "QuantizeLinear"
    }

    fn inputs(&self) -> Option<usize> {
        None
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check(inputs)?;
        let zero = inputs.get(2).map(|zero| zero.0);
        let dtype = zero.or(self.1).unwrap_or(DatumType::U8);
        ensure!(
            limits(dtype).is_some(),
            "expected 8- or 16-bit integers, got {dtype:?}"
        );
        Ok(tvec![(dtype, inputs[0].1.clone())])
    }

    fn prepare(&self, inputs: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        let dtype = self.facts(inputs)?[0].0;
        Ok(Box::new(Quantizer {
            scaling: self.0.clone(),
            dtype,
        }))
    }
}

/// The smallest and the largest number of an integer type.
fn limits(dtype: DatumType) -> Option<(f32, f32)> {
    Some(match dtype {
        DatumType::U8 => (0.0, 255.0),
        DatumType::I8 => (-128.0, 127.0),
        DatumType::U16 => (0.0, 65_535.0),
        DatumType::I16 => (-32_768.0, 32_767.0),
        _ => return None,
    })
}

#[derive(Debug)]
struct Quantizer {
    scaling: Scaling,
    dtype: DatumType,
}

impl Kernel for Quantizer {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let scales = floats(&inputs[1])?;
        let zeros = zero_points(inputs, scales.len())?;
        let places = self.scaling.over(inputs[0].shape(), inputs[1].shape())?;
        let x = inputs[0].cast_to::<f32>()?;
        let x = x.try_as_plain_ram()?;
        let x = x.as_slice::<f32>()?;
        let given = Given {
            x,
            scales: &scales,
            zeros: &zeros,
            places: &places,
        };
        let shape = inputs[0].shape();
        let tensor = match self.dtype {
            DatumType::U8 => given.quantized::<u8>(shape, self.dtype),
            DatumType::I8 => given.quantized::<i8>(shape, self.dtype),
            DatumType::U16 => given.quantized::<u16>(shape, self.dtype),
            DatumType::I16 => given.quantized::<i16>(shape, self.dtype),
            other => bail!("expected 8- or 16-bit integers, got {other:?}"),
        };
        Ok(tvec![tensor?.into_tvalue()])
    }
}

struct Given<'a> {
    x: &'a [f32],
    scales: &'a [f32],
    zeros: &'a [i32],
    places: &'a Places,
}

impl Given<'_> {
    fn quantized<T: Datum + Copy + Default + Whole>(
        &self,
        shape: &[usize],
        dtype: DatumType,
    ) -> TractResult<Tensor> {
        // Added and taken away again, it leaves a float of less than 2^22 rounded to the even whole.
        const ROUNDING: f32 = 12_582_912.0;
        let (low, high) = limits(dtype).context("no integers of 8 or 16 bits")?;
        let mut whole = vec![T::default(); self.x.len()];
        self.places.each(self.x.len(), |range, at| {
            // Exact: zero points have at most 16 bits.
            #[allow(clippy::cast_precision_loss)]
            let (scale, zero) = (self.scales[at], self.zeros[at] as f32);
            let (low, high) = (low - zero, high - zero);
            for (x, whole) in self.x[range.clone()].iter().zip(&mut whole[range]) {
                let bounded = (x / scale).clamp(low, high);
                *whole = T::of((bounded + ROUNDING) - ROUNDING + zero);
            }
        });
        Tensor::from_shape(shape, &whole)
    }
}

/// An integer of a float that is whole and in its range.
trait Whole {
    fn of(float: f32) -> Self;
}

macro_rules! whole {
    ($($integer:ty),*) => {$(
        impl Whole for $integer {
            // In range, since it was clamped; NaN gives zero.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            fn of(float: f32) -> Self {
                float as Self
            }
        }
    )*};
}

whole!(u8, i8, u16, i16);

#[derive(Debug, Clone)]
struct Dequantize(Scaling);

impl Operator for Dequantize {
    fn name(&self) -> &'static str {
        "DequantizeLinear"
    }

    fn inputs(&self) -> Option<usize> {
        None
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check(inputs)?;
        ensure!(
            inputs[0].0.is_integer(),
            "expected integers, got {:?}",
            inputs[0].0
        );
        Ok(tvec![(inputs[1].0, inputs[0].1.clone())])
    }

    fn prepare(&self, inputs: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        self.facts(inputs)?;
        Ok(Box::new(Dequantizer(self.0.clone())))
    }
}

#[derive(Debug)]
struct Dequantizer(Scaling);

impl Kernel for Dequantizer {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let scales = floats(&inputs[1])?;
        let zeros = zero_points(inputs, scales.len())?;
        let places = self.0.over(inputs[0].shape(), inputs[1].shape())?;
        let mut y = vec![0.0_f32; inputs[0].len()];
        let tensor = inputs[0].try_as_plain_ram()?;
        let mut given = Taken {
            y: &mut y,
            scales: &scales,
            zeros: &zeros,
            places: &places,
        };
        match inputs[0].datum_type() {
            DatumType::U8 => given.dequantized(tensor.as_slice::<u8>()?),
            DatumType::I8 => given.dequantized(tensor.as_slice::<i8>()?),
            DatumType::U16 => given.dequantized(tensor.as_slice::<u16>()?),
            DatumType::I16 => given.dequantized(tensor.as_slice::<i16>()?),
            DatumType::I32 => given.dequantized(tensor.as_slice::<i32>()?),
            other => bail!("expected integers of at most 32 bits, got {other:?}"),
        }
        let y = Tensor::from_shape(inputs[0].shape(), &y)?;
        let y = y.cast_to_dt(inputs[1].datum_type())?.into_owned();
        Ok(tvec![y.into_tvalue()])
    }
}

struct Taken<'a> {
    y: &'a mut [f32],
    scales: &'a [f32],
    zeros: &'a [i32],
    places: &'a Places,
}

impl Taken<'_> {
    fn dequantized<T: Copy + Into<i32>>(&mut self, x: &[T]) {
        let (scales, zeros, y) = (self.scales, self.zeros, &mut *self.y);
        self.places.each(x.len(), |range, at| {
            for (x, y) in x[range.clone()].iter().zip(&mut y[range]) {
                let whole: i32 = (*x).into();
                // Rounded once, as in ONNX Runtime.
                #[allow(clippy::cast_precision_loss)]
                let float = whole.wrapping_sub(zeros[at]) as f32;
                *y = float * scales[at];
            }
        });
    }
}

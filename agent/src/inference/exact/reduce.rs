//! Reductions of integers, with every digit.

use tract_onnx::tract_hir::internal::tract_ndarray::Axis;
use tract_onnx::tract_hir::internal::*;

/// What is made of the numbers along some axes, which stay as axes of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct IntegerReduce {
    pub axes: TVec<usize>,
    pub by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum By {
    Sum,
    /// The sum by the count, rounded towards zero.
    Mean,
    Product,
    SumOfSquares,
    /// The root of the sum of squares, rounded towards zero.
    Norm,
}

impl By {
    fn each(self, number: i128) -> i128 {
        match self {
            Self::SumOfSquares | Self::Norm => number.saturating_mul(number),
            Self::Sum | Self::Mean | Self::Product => number,
        }
    }

    fn fold(self, so_far: i128, number: i128) -> i128 {
        match self {
            Self::Product => so_far.saturating_mul(number),
            _ => so_far.saturating_add(number),
        }
    }

    fn first(self) -> i128 {
        i128::from(self == Self::Product)
    }

    fn last(self, folded: i128, count: usize) -> i128 {
        match self {
            Self::Mean => i128::try_from(count).map_or(0, |n| folded.checked_div(n).unwrap_or(0)),
            Self::Norm => i128::try_from(folded.unsigned_abs().isqrt()).unwrap_or(i128::MAX),
            Self::Sum | Self::Product | Self::SumOfSquares => folded,
        }
    }
}

/// A type of integers; what does not fit in is the nearest that does, as ONNX Runtime has it.
trait Integer: Datum + Copy {
    fn wide(self) -> i128;
    fn nearest(wide: i128) -> Self;
}

macro_rules! integers {
    ($($type:ty),*) => { $(
        impl Integer for $type {
            fn wide(self) -> i128 {
                self.into()
            }

            fn nearest(wide: i128) -> Self {
                let end = if wide < 0 { Self::MIN } else { Self::MAX };
                Self::try_from(wide).unwrap_or(end)
            }
        }
    )* };
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

impl IntegerReduce {
    fn reduce<T: Integer>(&self, input: &Tensor) -> TractResult<Tensor> {
        let view = input.to_plain_array_view::<T>()?;
        let shape = input.shape();
        let mut count = 1;
        for &axis in &self.axes {
            ensure!(
                axis < shape.len(),
                "axis {axis} of a tensor of shape {shape:?}"
            );
            count *= shape[axis];
        }
        let mut folded = view.mapv(|number| self.by.each(number.wide()));
        for &axis in &self.axes {
            folded = folded
                .fold_axis(Axis(axis), self.by.first(), |a, b| self.by.fold(*a, *b))
                .insert_axis(Axis(axis));
        }
        let last = |folded| T::nearest(self.by.last(folded, count));
        Ok(folded.mapv(last).into_tensor())
    }
}

impl Op for IntegerReduce {
    fn name(&self) -> StaticName {
        format!("dunlin.Integer{:?}", self.by).into()
    }

    op_as_typed_op!();
}

impl EvalOp for IntegerReduce {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = &inputs[0];
        let reduced = match input.datum_type() {
            DatumType::I8 => self.reduce::<i8>(input),
            DatumType::I16 => self.reduce::<i16>(input),
            DatumType::I32 => self.reduce::<i32>(input),
            DatumType::I64 => self.reduce::<i64>(input),
            DatumType::U8 => self.reduce::<u8>(input),
            DatumType::U16 => self.reduce::<u16>(input),
            DatumType::U32 => self.reduce::<u32>(input),
            DatumType::U64 => self.reduce::<u64>(input),
            other => bail!("{}: expected integers, got {other:?}", self.name()),
        };
        Ok(tvec![reduced?.into_tvalue()])
    }
}

impl TypedOp for IntegerReduce {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shape = inputs[0].shape.to_tvec();
        for &axis in &self.axes {
            ensure!(
                axis < shape.len(),
                "axis {axis} of a tensor of shape {shape:?}"
            );
            shape[axis] = 1.to_dim();
        }
        Ok(tvec![inputs[0].datum_type.fact(shape)])
    }

    as_op!();
}

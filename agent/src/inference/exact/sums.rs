//! Running sums of integers, modulo the size of the type.

use tract_onnx::tract_core::ops::array::CumSum;
use tract_onnx::tract_hir::internal::tract_ndarray::{Axis, Zip};
use tract_onnx::tract_hir::internal::*;

/// Of each number and those before it along an axis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RunningSum {
    axis: usize,
    /// Without the number itself.
    exclusive: bool,
    /// Those behind it.
    reverse: bool,
}

impl RunningSum {
    pub(super) fn of(cum_sum: &CumSum) -> Self {
        Self {
            axis: cum_sum.axis,
            exclusive: cum_sum.exclusive,
            reverse: cum_sum.reverse,
        }
    }

    fn sum<T: Datum + Copy + Default>(
        &self,
        mut tensor: Tensor,
        add: fn(T, T) -> T,
    ) -> TractResult<Tensor> {
        ensure!(
            self.axis < tensor.rank(),
            "axis {} of a tensor of shape {:?}",
            self.axis,
            tensor.shape()
        );
        let mut plain = tensor.try_as_plain_ram_mut()?;
        let mut view = plain.to_array_view_mut::<T>()?;
        if self.reverse {
            view.invert_axis(Axis(self.axis));
        }
        for mut lane in view.lanes_mut(Axis(self.axis)) {
            let mut sum = T::default();
            Zip::from(&mut lane).for_each(|number| {
                let before = sum;
                sum = add(sum, *number);
                *number = if self.exclusive { before } else { sum };
            });
        }
        Ok(tensor)
    }
}

impl Op for RunningSum {
    fn name(&self) -> StaticName {
        "dunlin.RunningSum".into()
    }

    op_as_typed_op!();
}

impl EvalOp for RunningSum {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = inputs.remove(0).into_tensor();
        let summed = match input.datum_type() {
            DatumType::I32 => self.sum(input, i32::wrapping_add),
            DatumType::I64 => self.sum(input, i64::wrapping_add),
            DatumType::U32 => self.sum(input, u32::wrapping_add),
            DatumType::U64 => self.sum(input, u64::wrapping_add),
            other => bail!("{}: expected integers, got {other:?}", self.name()),
        };
        Ok(tvec![summed?.into_tvalue()])
    }
}

impl TypedOp for RunningSum {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}

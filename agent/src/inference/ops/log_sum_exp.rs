//! `ReduceLogSumExp`; tract sums the powers as they are, which leave the range of floats soon.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::math::{add, exp, ln, max, min, sub};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

pub(super) fn reduce_log_sum_exp(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    // Before version 18 axes are an attribute.
    let may_be_input = ctx.onnx_operator_set_version >= 18;
    let axes: Option<Vec<i64>> = match may_be_input {
        true => None,
        false => node.get_attr_opt_vec("axes")?,
    };
    let keep: i64 = node.get_attr_opt("keepdims")?.unwrap_or(1);
    let none_for_none: i64 = node.get_attr_opt("noop_with_empty_axes")?.unwrap_or(0);
    let operator = LogSumExp {
        axes_are_input: may_be_input && node.input.get(1).is_some_and(|name| !name.is_empty()),
        axes: axes.unwrap_or_default(),
        keep: keep != 0,
        none_for_none: may_be_input && none_for_none != 0,
    };
    Ok((expand(operator), vec![]))
}

#[derive(Debug, Clone)]
struct LogSumExp {
    axes_are_input: bool,
    axes: Vec<i64>,
    keep: bool,
    /// Whether no axes are no axes, instead of all of them.
    none_for_none: bool,
}

impl LogSumExp {
    /// The axes that are reduced, in order.
    fn reduced(&self, axes: &[i64], rank: usize) -> TractResult<TVec<usize>> {
        if axes.is_empty() && !self.none_for_none {
            return Ok((0..rank).collect());
        }
        let signed = i64::try_from(rank)?;
        let mut reduced = TVec::new();
        for &axis in axes {
            let counted = if axis < 0 { axis + signed } else { axis };
            let counted = usize::try_from(counted).ok().filter(|a| *a < rank);
            reduced
                .push(counted.with_context(|| format!("axis {axis} of a tensor of rank {rank}"))?);
        }
        reduced.sort_unstable();
        reduced.dedup();
        Ok(reduced)
    }

    fn shape_rules<'r, 'p: 'r>(
        &self,
        s: &mut Solver<'r>,
        (input, output): (&'p TensorProxy, &'p TensorProxy),
        rank: i64,
        axes: &[i64],
    ) -> InferenceResult {
        let rank = usize::try_from(rank)?;
        let reduced = self.reduced(axes, rank)?;
        let left = (0..rank).filter(|axis| self.keep || !reduced.contains(axis));
        s.equals(&output.rank, i64::try_from(left.clone().count())?)?;
        for (to, from) in left.enumerate() {
            if reduced.contains(&from) {
                s.equals(&output.shape[to], 1.to_dim())?;
            } else {
                s.equals(&output.shape[to], &input.shape[from])?;
            }
        }
        Ok(())
    }
}

fn whole_numbers(tensor: &Tensor) -> TractResult<Vec<i64>> {
    let cast = tensor.cast_to::<i64>()?;
    Ok(cast.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
}

/// The largest finite number and its opposite.
fn limits(of: DatumType) -> TractResult<(Tensor, Tensor)> {
    Ok(match of {
        DatumType::F16 => (tensor0(f16::MIN), tensor0(f16::MAX)),
        DatumType::F32 => (tensor0(f32::MIN), tensor0(f32::MAX)),
        DatumType::F64 => (tensor0(f64::MIN), tensor0(f64::MAX)),
        other => bail!("ReduceLogSumExp: expected floats, got {other:?}"),
    })
}

impl Expansion for LogSumExp {
    fn name(&self) -> StaticName {
        "ReduceLogSumExp".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1 + usize::from(self.axes_are_input))?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        let pair = (&inputs[0], &outputs[0]);
        if self.axes_are_input {
            s.given_2(&inputs[0].rank, &inputs[1].value, move |s, rank, axes| {
                self.shape_rules(s, pair, rank, &whole_numbers(&axes)?)
            })
        } else {
            s.given(&inputs[0].rank, move |s, rank| {
                self.shape_rules(s, pair, rank, &self.axes)
            })
        }
    }

    /// m + ln Σ exp(x − m), where m is the maximum, or the finite number next to it.
    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let fact = model.outlet_fact(inputs[0])?;
        let (rank, (low, high)) = (fact.rank(), limits(fact.datum_type)?);
        let axes = if self.axes_are_input {
            let axes = model.outlet_fact(inputs[1])?.konst.clone();
            let axes = axes.context("ReduceLogSumExp: expected axes that are constant")?;
            whole_numbers(&axes)?
        } else {
            self.axes.clone()
        };
        let axes = self.reduced(&axes, rank)?;
        if axes.is_empty() {
            return model.wire_node(prefix, Identity, &inputs[..1]);
        }
        let reduce = |by| Reduce {
            axes: axes.clone(),
            reducer: by,
        };
        let name = |part: &str| format!("{prefix}.{part}");
        let low = model.add_const(name("low"), low.broadcast_into_rank(rank)?)?;
        let high = model.add_const(name("high"), high.broadcast_into_rank(rank)?)?;
        let most = model.wire_node(name("max"), reduce(Reducer::Max), &inputs[..1])?;
        let most = model.wire_node(name("above"), max(), &[most[0], low])?;
        let most = model.wire_node(name("finite"), min(), &[most[0], high])?;
        let below = model.wire_node(name("below"), sub(), &[inputs[0], most[0]])?;
        let powers = model.wire_node(name("exp"), exp(), &below)?;
        let sum = model.wire_node(name("sum"), reduce(Reducer::Sum), &powers)?;
        let logarithm = model.wire_node(name("ln"), ln(), &sum)?;
        let mut result = model.wire_node(prefix, add(), &[logarithm[0], most[0]])?;
        if !self.keep {
            for axis in axes.iter().rev() {
                let without = AxisOp::Rm(*axis);
                result = model.wire_node(name(&format!("without_{axis}")), without, &result)?;
            }
        }
        Ok(result)
    }
}

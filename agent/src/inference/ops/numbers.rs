//! Operators on single numbers that tract computes with fewer digits than the specification asks.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast as to_type;
use tract_onnx::tract_core::ops::math::{exp, ln, sub};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// Casts to 64-bit integers; tract goes from floats by way of 32 bits.
pub(super) fn cast_to_i64() -> Parsed {
    Ok((expand(CastToI64), vec![]))
}

#[derive(Debug, Clone)]
struct CastToI64;

/// tract's type for 64-bit integers that shapes may be made of. What 32 bits do not hold has to leave it:
/// tract casts to it by way of them.
fn type_of_cast(from: DatumType) -> DatumType {
    match from {
        DatumType::U32 | DatumType::U64 | DatumType::I64 => DatumType::I64,
        other if other.is_float() => DatumType::I64,
        _ => DatumType::TDim,
    }
}

impl Expansion for CastToI64 {
    fn name(&self) -> StaticName {
        "Cast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].rank, &inputs[0].rank)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)?;
        s.given(&inputs[0].datum_type, move |s, from| {
            s.equals(&outputs[0].datum_type, type_of_cast(from))
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let from = model.outlet_fact(inputs[0])?.datum_type;
        model.wire_node(prefix, to_type(type_of_cast(from)), inputs)
    }
}

/// tract takes the logarithm of the softmax, which is no number where the softmax is too small for
/// one.
pub(super) fn log_softmax(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let axis: Option<i64> = node.get_attr_opt("axis")?;
    // Before version 13 everything from the axis on counts as one.
    let whole_tail = ctx.onnx_operator_set_version < 13;
    let axis = axis.unwrap_or(if whole_tail { 1 } else { -1 });
    Ok((expand(LogSoftmax { axis, whole_tail }), vec![]))
}

#[derive(Debug, Clone)]
struct LogSoftmax {
    axis: i64,
    whole_tail: bool,
}

impl Expansion for LogSoftmax {
    fn name(&self) -> StaticName {
        "LogSoftmax".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        s.equals(&outputs[0].rank, &inputs[0].rank)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)
    }

    /// (x − max) − ln Σ exp(x − max)
    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let rank = model.outlet_fact(inputs[0])?.rank();
        let signed = i64::try_from(rank)?;
        let axis = usize::try_from(self.axis + if self.axis < 0 { signed } else { 0 });
        let axis = axis.ok().filter(|axis| *axis < rank.max(1));
        let axis =
            axis.with_context(|| format!("axis {} of a tensor of {rank} dimensions", self.axis))?;
        let axes: TVec<usize> = match self.whole_tail {
            true => (axis..rank).collect(),
            false => tvec![axis],
        };
        let reduce = |by| Reduce {
            axes: axes.clone(),
            reducer: by,
        };
        let name = |part: &str| format!("{prefix}.{part}");
        let most = model.wire_node(name("max"), reduce(Reducer::Max), inputs)?;
        let below = model.wire_node(name("below"), sub(), &[inputs[0], most[0]])?;
        let powers = model.wire_node(name("exp"), exp(), &below)?;
        let sum = model.wire_node(name("sum"), reduce(Reducer::Sum), &powers)?;
        let logarithm = model.wire_node(name("ln"), ln(), &sum)?;
        model.wire_node(prefix, sub(), &[below[0], logarithm[0]])
    }
}

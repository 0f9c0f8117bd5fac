//! Keeps strides and broadcasts where they are.
//!
//! Where only every n-th element is wanted, tract computes only those, far up in the graph. On the way
//! it loses the offset at which the choice begins (a slice before a convolution), how much padding is
//! on which side if that was left to be worked out (`SAME_UPPER`: it depends on the stride), and that
//! an operator needs all elements of the axis (`Softmax`); behind a reshape it gives up altogether. So
//! paddings are worked out before, and a fence stands in front of what chooses. In front of a
//! convolution it stands only if the choice could get beyond convolutions and what works number by
//! number. [`super::broadcast`] sets fences behind broadcasts. A fence passes tensors on and costs
//! nothing.

use super::broadcast;
use tract_onnx::tract_core::ops::array::StridedSlice;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::cnn::{Conv, MaxPool, PaddingSpec, SumPool};
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_core::ops::source::TypedSource;
use tract_onnx::tract_hir::internal::*;

/// Prepares a graph that tract has not simplified yet, the bodies of its loops and the sides of its
/// choices.
///
/// # Errors
/// The graph is not consistent.
pub(super) fn fence(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        if let Some(scan) = model.node_mut(id).op_as_mut::<Scan>() {
            fence(&mut scan.body)?;
        } else if let Some(choice) = model.node_mut(id).op_as_mut::<IfThenElse>() {
            fence(&mut choice.then_body)?;
            fence(&mut choice.else_body)?;
        }
    }
    strides(model)?;
    for inlet in broadcast::swallowed(model)? {
        before(model, inlet)?;
    }
    Ok(())
}

fn strides(model: &mut TypedModel) -> TractResult<()> {
    let mut skips = false;
    for node in model.nodes() {
        skips |= skips_some(model, node)?;
    }
    if !skips {
        return Ok(());
    }
    work_out_paddings(model)?;
    for id in model.eval_order()? {
        let node = model.node(id);
        let fenced = match node.op_as::<Conv>() {
            Some(conv) => chooses(conv) && !stays_right(model, node.inputs[0]),
            None => {
                let chooses = node.op_is::<StridedSlice>() || node.op_is::<Downsample>();
                chooses && skips_some(model, node)?
            }
        };
        if fenced {
            before(model, InletId::new(id, 0))?;
        }
    }
    Ok(())
}

/// Sets a fence in front of an input that has none yet. Shapes are computed with slices and broadcasts, too, and have to
/// stay known.
fn before(model: &mut TypedModel, inlet: InletId) -> TractResult<()> {
    let node = model.node(inlet.node);
    let outlet = node.inputs[inlet.slot];
    let fact = model.outlet_fact(outlet)?;
    let fenced = model.node(outlet.node).op_is::<Fence>();
    if fenced || fact.konst.is_some() || fact.datum_type == DatumType::TDim {
        return Ok(());
    }
    let name = format!("{}.fence.{}", node.name, inlet.slot);
    let fenced = model.wire_node(name, Fence, &[outlet])?[0];
    model.add_edge(fenced, inlet)
}

/// Whether tract makes of it a choice of elements in front of a convolution without strides.
fn chooses(conv: &Conv) -> bool {
    let pool = &conv.pool_spec;
    (0..pool.rank()).any(|axis| {
        let stride = pool.stride(axis);
        let single = pool.kernel_shape[axis] == 1 || pool.dilation(axis).is_multiple_of(stride);
        stride > 1 && single
    })
}

/// Whether a choice of elements of a tensor, moved up as far as it goes, chooses the same numbers.
fn stays_right(model: &TypedModel, outlet: OutletId) -> bool {
    let mut seen = vec![false; model.nodes.len()];
    let mut open = vec![outlet.node];
    while let Some(id) = open.pop() {
        if std::mem::replace(&mut seen[id], true) {
            continue;
        }
        let node = model.node(id);
        let ends = node.op_is::<TypedSource>()
            || node.op_is::<Const>()
            || node.op_is::<Fence>()
            || node.op_is::<MaxPool>()
            || node.op_is::<SumPool>();
        if ends {
            continue;
        }
        if node.op_is::<Conv>() {
            open.push(node.inputs[0].node);
            continue;
        }
        let by_number = node.op_is::<ElementWiseOp>()
            || node.op_is::<TypedBinOp>()
            || node.op_is::<Cast>()
            || matches!(node.op_as::<AxisOp>(), Some(AxisOp::Move(..)));
        if !by_number {
            return false;
        }
        open.extend(node.inputs.iter().map(|input| input.node));
    }
    true
}

/// Gives convolutions whose inputs have known sizes the numbers that their kind of padding means.
fn work_out_paddings(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let node = model.node(id);
        let Some(conv) = node.op_as::<Conv>() else {
            continue;
        };
        let pool = &conv.pool_spec;
        if !matches!(
            pool.padding,
            PaddingSpec::SameUpper | PaddingSpec::SameLower
        ) {
            continue;
        }
        let input = model.outlet_fact(node.inputs[0])?;
        let Some(sizes) = input.shape.as_concrete() else {
            continue;
        };
        let shape = pool.data_format.shape(sizes)?;
        let sides = pool.computed_padding(shape.hw_dims());
        let before = sides.iter().map(|side| side.pad_before).collect();
        let after = sides.iter().map(|side| side.pad_after).collect();
        if let Some(conv) = model.node_mut(id).op_as_mut::<Conv>() {
            conv.pool_spec.padding = PaddingSpec::Explicit(before, after);
        }
    }
    Ok(())
}

/// Whether it takes every n-th element, or tract makes something of it that does.
fn skips_some(model: &TypedModel, node: &TypedNode) -> TractResult<bool> {
    if let Some(conv) = node.op_as::<Conv>() {
        let strides = conv.pool_spec.strides.as_ref();
        return Ok(strides.is_some_and(|strides| strides.iter().any(|s| *s > 1)));
    }
    if let Some(every) = node.op_as::<Downsample>() {
        return Ok(every.stride != 1);
    }
    let slice = node.op_as::<StridedSlice>();
    let Some(at) = slice.and_then(|slice| slice.optional_steps_input) else {
        return Ok(false);
    };
    let Some(steps) = &model.outlet_fact(node.inputs[at])?.konst else {
        return Ok(true);
    };
    let steps = steps.cast_to::<i64>()?;
    let steps = steps.try_as_plain_ram()?;
    Ok(steps.as_slice::<i64>()?.iter().any(|step| *step != 1))
}

/// Passes a tensor on. tract knows nothing of it, so it moves nothing over it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fence;

impl Op for Fence {
    fn name(&self) -> StaticName {
        "dunlin.Fence".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Fence {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs)
    }
}

impl TypedOp for Fence {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}

//! Keeps strides behind convolutions right.
//!
//! Where only every n-th result of a convolution is wanted, tract lets the convolution take over the
//! stride. Two things are lost on the way: the offset at which the choice begins, if a slice is in
//! between, and how much padding is on which side, if that was left to be worked out (`SAME_UPPER`:
//! it depends on the stride). So paddings are worked out before, and a fence in front of slices keeps
//! the choice behind it; it passes tensors on and costs nothing.

use tract_onnx::tract_core::ops::array::{Slice, StridedSlice};
use tract_onnx::tract_core::ops::cnn::{Conv, PaddingSpec};
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_hir::internal::*;

/// Prepares a graph that tract has not simplified yet, and the bodies of its loops.
///
/// # Errors
/// The graph is not consistent.
pub(super) fn fence(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        if let Some(scan) = model.node_mut(id).op_as_mut::<Scan>() {
            fence(&mut scan.body)?;
        }
    }
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
        if !node.op_is::<Slice>() && !node.op_is::<StridedSlice>() {
            continue;
        }
        // What a convolution gives; shapes are computed with slices, too, and have to stay known.
        let input = model.outlet_fact(node.inputs[0])?;
        if !input.datum_type.is_float() || input.rank() < 3 || input.konst.is_some() {
            continue;
        }
        let mut patch = TypedModelPatch::new("fenced");
        let mut inputs = patch.taps(model, &node.inputs)?;
        let name = format!("{}.fence", node.name);
        inputs[0] = patch.wire_node(name, Fence, &[inputs[0]])?[0];
        let sliced = patch.wire_node(&node.name, node.op.clone(), &inputs)?[0];
        patch.shunt_outside(model, id.into(), sliced)?;
        patch.apply(model)?;
    }
    Ok(())
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
struct Fence;

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

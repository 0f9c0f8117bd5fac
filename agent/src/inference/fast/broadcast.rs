//! Where a broadcast must not be taken out of a graph.
//!
//! tract leaves a broadcast (`Expand`, a `Tile` of an axis of one) in front of a product out and lets
//! the product repeat its input. That is right only for an axis that another input has in full length
//! and the result keeps: summed over, only the first of the other input's elements would count; had by
//! no other input, the result would be too short. It first moves broadcasts and products together over
//! what is between them, and makes products of convolutions with a single tap. Of a choice (`Where`) by
//! a condition that turns out to be known, it makes a broadcast of what is chosen.

use tract_onnx::tract_core::ops::array::{MultiBroadcastTo, Tile};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, Deconv, MaxPool, SumPool};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::logic::{IfThenElse, Iff};
use tract_onnx::tract_core::ops::nn::{Reduce, Softmax};
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_hir::internal::*;

use super::fence::Fence;

/// The inputs that read a broadcast and from which tract could bring it to a product.
///
/// # Errors
/// The graph is not consistent.
pub(super) fn swallowed(model: &TypedModel) -> TractResult<Vec<InletId>> {
    let order = model.eval_order()?;
    let mut broadcasts = Vec::new();
    for &id in &order {
        if is_broadcast(model, model.node(id))? {
            broadcasts.push(id);
        }
    }
    if broadcasts.is_empty() {
        return Ok(Vec::new());
    }
    // For each node, whether a broadcast in its place could get into a product.
    let mut reaches = vec![false; model.nodes.len()];
    for &id in order.iter().rev() {
        reaches[id] = readers(model, id).any(|inlet| takes(model, &reaches, inlet));
    }
    let mut found = Vec::new();
    for id in broadcasts {
        found.extend(readers(model, id).filter(|inlet| takes(model, &reaches, *inlet)));
    }
    Ok(found)
}

/// Whether it is one, or tract may make one of it.
fn is_broadcast(model: &TypedModel, node: &TypedNode) -> TractResult<bool> {
    if node.op_is::<Iff>() {
        let made = &node.outputs[0].fact.shape;
        for input in &node.inputs[1..] {
            if model.outlet_fact(*input)?.shape != *made {
                return Ok(true);
            }
        }
    }
    Ok(node.op_is::<MultiBroadcastTo>() || node.op_is::<Tile>())
}

fn readers(model: &TypedModel, id: usize) -> impl Iterator<Item = InletId> {
    let outputs = model.node(id).outputs.iter();
    outputs.flat_map(|output| output.successors.iter().copied())
}

/// Whether a broadcast at an input could get into a product.
fn takes(model: &TypedModel, reaches: &[bool], inlet: InletId) -> bool {
    let node = model.node(inlet.node);
    let product = node.op_is::<EinSum>()
        || node.op_is::<Conv>()
        || node.op_is::<Deconv>()
        || node.op_is::<Scan>()
        || node.op_is::<IfThenElse>();
    product || reaches[inlet.node] && moves_over(model, inlet)
}

/// Whether tract could move a broadcast over what reads it there; no for what needs all numbers.
fn moves_over(model: &TypedModel, inlet: InletId) -> bool {
    let node = model.node(inlet.node);
    if node.op_is::<TypedBinOp>() {
        // With a single number, it may become an operator on one tensor.
        let other = model.outlet_fact(node.inputs[1 - inlet.slot]);
        return other.is_ok_and(|fact| fact.uniform.is_some() || fact.shape.volume().is_one());
    }
    !(node.op_is::<Reduce>()
        || node.op_is::<Softmax>()
        || node.op_is::<MaxPool>()
        || node.op_is::<SumPool>()
        || node.op_is::<Fence>())
}

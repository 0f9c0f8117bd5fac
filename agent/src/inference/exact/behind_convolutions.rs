//! Keeps differences and quotients with a convolution on the right as they are.
//!
//! tract takes what follows a convolution channel by channel into its weights and bias, and of
//! `c − convolution` and `c ÷ convolution` it makes `c + convolution` and `convolution ÷ 0`.

use super::ordered::{Difference, Quotient};
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::math::{Div, Sub};
use tract_onnx::tract_hir::internal::*;

/// Puts operators in place that tract does not know.
///
/// # Errors
/// The graph is not consistent.
pub(super) fn keep_order(model: &mut TypedModel) -> TractResult<()> {
    let mut convolved = vec![false; model.nodes.len()];
    let mut ours: Vec<(usize, TypedBinOp)> = Vec::new();
    for id in model.eval_order()? {
        let node = model.node(id);
        convolved[id] = node.op_is::<Conv>() || node.inputs.iter().any(|i| convolved[i.node]);
        if let Some(operation) = kept(model, node, &convolved)? {
            ours.push((id, operation));
        }
    }
    for (id, operation) in ours {
        model.node_mut(id).op = Box::new(operation);
    }
    Ok(())
}

/// What takes the place of a node, if simplifying may bring it behind a convolution.
fn kept(
    model: &TypedModel,
    node: &TypedNode,
    convolved: &[bool],
) -> TractResult<Option<TypedBinOp>> {
    let Some(TypedBinOp(operation, to)) = node.op_as::<TypedBinOp>() else {
        return Ok(None);
    };
    let &[left, right] = node.inputs.as_slice() else {
        return Ok(None);
    };
    let float = node.outputs[0].fact.datum_type.is_float();
    if !float || !convolved[right.node] || !fits(model, left, right)? {
        return Ok(None);
    }
    let ours: Box<dyn BinMiniOp> = if operation.is::<Sub>() {
        Box::new(Difference)
    } else if operation.is::<Div>() {
        Box::new(Quotient)
    } else {
        return Ok(None);
    };
    Ok(Some(TypedBinOp(ours, *to)))
}

/// Whether the left operand may be one of a number a channel: it lies along one axis, or is spread.
fn fits(model: &TypedModel, left: OutletId, right: OutletId) -> TractResult<bool> {
    let (left, right) = (model.outlet_fact(left)?, model.outlet_fact(right)?);
    let (Some(left), Some(right)) = (left.shape.as_concrete(), right.shape.as_concrete()) else {
        return Ok(true);
    };
    let along_one = left.iter().filter(|size| **size > 1).count() <= 1;
    Ok(along_one || left.iter().product::<usize>() < right.iter().product::<usize>())
}

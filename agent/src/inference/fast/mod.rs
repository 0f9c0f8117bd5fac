//! Kernels of our own where tract's are slow, and what puts them into a graph.
//!
//! tract multiplies matrices well, but it gathers, pads, adds biases and applies activations in
//! passes of their own over memory, and convolves channel by channel with short vectors. Here a
//! convolution or a product with known weights, and what follows it number by number, is one
//! operator. [`shape`] says what can be computed so, [`follow`] what goes with it; [`convolution`] (by
//! [`wide`] or [`product`]), [`depthwise`] and [`dense`] (by [`product`]) compute; [`simd`] chooses the
//! instruction set when the program runs. What does not fit stays with tract. [`branch`] plans the two
//! sides of an `If` once instead of on every run.

mod branch;
mod broadcast;
mod chain;
mod convolution;
mod dense;
mod depthwise;
mod fence;
mod follow;
mod operator;
mod panels;
mod product;
mod shape;
mod simd;
mod spread;
mod tile;
mod wide;

#[cfg(test)]
mod fence_tests;
#[cfg(test)]
mod tests;

use super::exact;
use branch::Branch;
use operator::{Fused, Parts};
use std::sync::Arc;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_hir::internal::*;

/// A graph made ready to run: simplified, with our kernels where they fit, tract's elsewhere.
///
/// # Errors
/// tract cannot simplify or finish it.
pub(super) fn optimised(mut model: TypedModel) -> TractResult<TypedModel> {
    exact::exact(&mut model)?;
    fence::fence(&mut model)?;
    let mut model = model.into_decluttered()?;
    // What a fused operator replaces is gone before the next one is looked for.
    while let Some(patch) = next(&model)? {
        patch.apply(&mut model)?;
        model.compact()?;
    }
    model.into_optimized()
}

/// The next node, in the order of running, that a kernel can stand for.
fn next(model: &TypedModel) -> TractResult<Option<TypedModelPatch>> {
    for id in model.eval_order()? {
        let node = model.node(id);
        if let Some(choice) = node.op_as::<IfThenElse>() {
            let facts = node.outputs.iter().map(|o| o.fact.without_value());
            let branch = Branch::new(choice, facts.collect())?;
            let patch = TypedModelPatch::replace_single_op(model, node, &node.inputs, branch)?;
            return Ok(Some(patch));
        }
        if !simd::AVAILABLE {
            continue;
        }
        let Some(mut found) = shape::find(model, node)? else {
            continue;
        };
        let followed = follow::follow(model, &found, id.into());
        let mut patch = TypedModelPatch::new("fused");
        let mut inputs = tvec![patch.tap_model(model, found.input)?];
        for outlet in &followed.tensors {
            inputs.push(patch.tap_model(model, *outlet)?);
        }
        let chain = found.absorb(followed.steps);
        let shape = found.shape.clone();
        let kernel = found.into_kernel();
        let fused = Fused(Arc::new(Parts {
            kernel,
            chain,
            shape,
        }));
        let name = &model.node(followed.end.node).name;
        let outlets = patch.wire_node(name, fused, &inputs)?;
        patch.shunt_outside(model, followed.end, outlets[0])?;
        return Ok(Some(patch));
    }
    Ok(None)
}

//! Which nodes compute with integers, and what they become.
//!
//! tract squares integers as 32-bit floats, sums them in 32 bits, and adds and subtracts by
//! operations that stop where a number does not fit.

use super::reduce::{By, IntegerReduce};
use super::sums::RunningSum;
use super::wrapping::{
    WrappingAdd, WrappingMul, WrappingPow, WrappingSub, wrapping_abs, wrapping_neg,
};
use tract_onnx::tract_core::ops::array::CumSum;
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::{Abs, Add, Div, Mul, Neg, Pow, Sqrt, Square, Sub};
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_hir::internal::*;

/// Puts operators in place that lose no digit.
///
/// # Errors
/// The graph is not consistent.
pub(super) fn keep_digits(model: &mut TypedModel) -> TractResult<()> {
    for id in model.eval_order()? {
        if let Some(patch) = reduced(model, model.node(id))? {
            patch.apply(model)?;
        }
    }
    for node in &mut model.nodes {
        if let Some(ours) = ours(node) {
            node.op = ours;
        }
    }
    Ok(())
}

/// Plain integers: what shapes are made of, and quantised numbers, have types of their own.
fn is_integer(kind: DatumType) -> bool {
    use DatumType::{I8, I16, I32, I64, U8, U16, U32, U64};
    [I8, I16, I32, I64, U8, U16, U32, U64].contains(&kind)
}

/// What stands for a node on its inputs as they are.
fn ours(node: &TypedNode) -> Option<Box<dyn TypedOp>> {
    let kind = node.outputs.first()?.fact.datum_type;
    if !is_integer(kind) {
        return None;
    }
    if let Some(TypedBinOp(operation, to)) = node.op_as::<TypedBinOp>() {
        let ours: Box<dyn BinMiniOp> = if operation.is::<Add>() {
            Box::new(WrappingAdd)
        } else if operation.is::<Sub>() {
            Box::new(WrappingSub)
        } else if operation.is::<Mul>() {
            Box::new(WrappingMul)
        } else if operation.is::<Pow>() {
            Box::new(WrappingPow)
        } else {
            return None;
        };
        return Some(Box::new(TypedBinOp(ours, *to)));
    }
    if let Some(ElementWiseOp(operation, _)) = node.op_as::<ElementWiseOp>() {
        if kind.is_unsigned() {
            return None;
        }
        if operation.is::<Neg>() {
            return Some(Box::new(wrapping_neg()));
        }
        return operation
            .is::<Abs>()
            .then(|| Box::new(wrapping_abs()) as Box<dyn TypedOp>);
    }
    let sum = node.op_as::<CumSum>()?;
    Some(Box::new(RunningSum::of(sum)))
}

/// A reduction with what tract's reader wired before and behind it: squares, the count, a root.
fn reduced(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(Reduce { axes, reducer }) = node.op_as::<Reduce>() else {
        return Ok(None);
    };
    let fact = model.outlet_fact(node.inputs[0])?;
    if !is_integer(fact.datum_type) {
        return Ok(None);
    }
    let before = model.node(node.inputs[0].node);
    let (by, input, end) = match reducer {
        Reducer::Prod => (By::Product, node.inputs[0], node),
        Reducer::Sum if is::<Square>(before) => {
            let root = behind(model, node)?.filter(|next| is::<Sqrt>(next));
            let by = root.map_or(By::SumOfSquares, |_| By::Norm);
            (by, before.inputs[0], root.unwrap_or(node))
        }
        Reducer::Sum => {
            let count = axes.iter().map(|axis| &fact.shape[*axis]).product::<TDim>();
            match behind(model, node)? {
                Some(next) if divides(model, next, node.id, &count)? => {
                    (By::Mean, node.inputs[0], next)
                }
                _ => (By::Sum, node.inputs[0], node),
            }
        }
        _ => return Ok(None),
    };
    let mut patch = TypedModelPatch::new("exact");
    let input = patch.tap_model(model, input)?;
    let axes = axes.clone();
    let wire = patch.wire_node(&end.name, IntegerReduce { axes, by }, &[input])?;
    patch.shunt_outside(model, end.id.into(), wire[0])?;
    Ok(Some(patch))
}

fn is<Operation: tract_onnx::tract_core::ops::element_wise::ElementWiseMiniOp>(
    node: &TypedNode,
) -> bool {
    node.op_as::<ElementWiseOp>()
        .is_some_and(|ElementWiseOp(operation, _)| operation.is::<Operation>())
}

/// The only node that reads what a node gives, unless the graph gives it, too.
fn behind<'m>(model: &'m TypedModel, node: &TypedNode) -> TractResult<Option<&'m TypedNode>> {
    let [reader] = node.outputs[0].successors.as_slice() else {
        return Ok(None);
    };
    let given = model.output_outlets()?.contains(&node.id.into());
    Ok((!given).then(|| model.node(reader.node)))
}

/// Whether a node divides what another gives by a count.
fn divides(model: &TypedModel, node: &TypedNode, what: usize, count: &TDim) -> TractResult<bool> {
    let Some(TypedBinOp(operation, None)) = node.op_as::<TypedBinOp>() else {
        return Ok(false);
    };
    let [dividend, divisor] = node.inputs.as_slice() else {
        return Ok(false);
    };
    let divisor = model.outlet_fact(*divisor)?;
    let Some(divisor) = divisor.konst.as_ref().filter(|d| d.len() == 1) else {
        return Ok(false);
    };
    Ok(operation.is::<Div>()
        && dividend.node == what
        && count.to_i64().is_ok_and(|count| {
            divisor
                .cast_to_scalar::<i64>()
                .is_ok_and(|divisor| divisor == count)
        }))
}

//! Operators of tract's that ours stand in front of.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::downcast_rs::Downcast;
use tract_onnx::tract_hir::internal::*;

pub(super) type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;
pub(super) type Reader = fn(&ParsingContext, &NodeProto) -> Parsed;

/// What tract's own reader of an operator is called beside ours; no operator of ONNX has a dot in its
/// name.
pub(super) fn kept_as(operator: &str) -> String {
    format!("tract.{operator}")
}

/// The operator as tract reads it, to be changed or handed on.
pub(super) fn read(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Box<dyn Expansion>> {
    let name = kept_as(&node.op_type);
    let tracts = ctx.framework.op_register.0.get(name.as_str());
    let (operator, _) = tracts.with_context(|| format!("no {name}"))?(ctx, node)?;
    written_out(&*operator)
}

/// The operator before it is put into a graph.
pub(super) fn written_out(operator: &dyn InferenceOp) -> TractResult<Box<dyn Expansion>> {
    let expansion = Downcast::as_any(operator).downcast_ref::<Box<dyn Expansion>>();
    expansion
        .cloned()
        .with_context(|| format!("{} is no expansion", operator.name()))
}

pub(super) fn boxed(expansion: Box<dyn Expansion>) -> Box<dyn InferenceOp> {
    Box::new(expansion)
}

//! Passes a tensor on if a condition is as it was assumed when the graph was written otherwise.

use crate::inference::ml::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// Its name; no operator of ONNX has a dot in it.
pub(in crate::inference) const ONLY_IF: &str = "dunlin.OnlyIf";

/// Inputs: the tensor and the condition.
pub(super) fn only_if(
    _: &ParsingContext,
    node: &NodeProto,
) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let expected: i64 = node.get_attr("expected")?;
    Ok(plugged(OnlyIf {
        expected: expected != 0,
    }))
}

#[derive(Debug, Clone)]
struct OnlyIf {
    expected: bool,
}

impl Operator for OnlyIf {
    fn name(&self) -> &'static str {
        ONLY_IF
    }

    fn inputs(&self) -> Option<usize> {
        Some(2)
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec![inputs[0].clone()])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for OnlyIf {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let got = inputs[1].cast_to_scalar::<bool>()?;
        ensure!(
            got == self.expected,
            "these inputs choose a branch that cannot be computed for their shapes: its condition is \
             {got}, expected {}",
            self.expected
        );
        Ok(tvec![inputs[0].clone()])
    }
}

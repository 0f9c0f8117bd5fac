//! A choice between two graphs by a condition that is known only when they run.
//!
//! tract's own operator copies and plans the chosen graph on every run, and never simplifies it.

use super::optimised;
use std::sync::Arc;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_hir::internal::*;

/// Both graphs ready to run.
#[derive(Debug, Clone)]
pub(super) struct Branch(Arc<Sides>);

#[derive(Debug)]
struct Sides {
    then: Side,
    or_else: Side,
    facts: TVec<TypedFact>,
}

#[derive(Debug)]
struct Side {
    plan: Arc<TypedRunnableModel>,
    /// For each input of the graph, which of the operator's it is.
    inputs: Vec<usize>,
}

impl Side {
    fn new(graph: &TypedModel, inputs: &[usize]) -> TractResult<Self> {
        let plan = optimised(graph.clone())?.into_runnable()?;
        Ok(Self {
            plan,
            inputs: inputs.to_vec(),
        })
    }
}

impl Branch {
    /// Makes both graphs ready.
    ///
    /// # Errors
    /// tract cannot.
    pub(super) fn new(choice: &IfThenElse, facts: TVec<TypedFact>) -> TractResult<Self> {
        Ok(Self(Arc::new(Sides {
            then: Side::new(&choice.then_body, &choice.then_input_mapping)?,
            or_else: Side::new(&choice.else_body, &choice.else_input_mapping)?,
            facts,
        })))
    }
}

/// The same operator, not merely an equal one: comparing graphs would be dear.
impl PartialEq for Branch {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Branch {}

impl Op for Branch {
    fn name(&self) -> StaticName {
        "Branch".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Branch {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let Some(condition) = inputs.first() else {
            bail!("expected a condition, got no inputs");
        };
        let side = if condition.cast_to_scalar::<bool>()? {
            &self.0.then
        } else {
            &self.0.or_else
        };
        let given = side.inputs.iter().map(|&at| match inputs.get(at) {
            Some(value) => Ok(value.clone()),
            None => bail!("expected more than {at} inputs, got {}", inputs.len()),
        });
        side.plan.run(given.collect::<TractResult<_>>()?)
    }
}

impl TypedOp for Branch {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.0.facts.clone())
    }

    as_op!();
}

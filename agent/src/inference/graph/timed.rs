//! What each node of a prepared graph takes: for whoever wants to know where the time goes.

use super::{Graph, GraphError, guarded, text};
use crate::inference::tensor::Values;
use std::time::{Duration, Instant};
use tract_onnx::tract_core::plan::eval;
use tract_onnx::tract_hir::internal::{TValue, TVec, TractResult};

/// One node of one run.
#[derive(Debug, Clone)]
pub struct NodeTime {
    /// What it computes.
    pub operator: String,
    /// Its name, from the ONNX file where it comes from there.
    pub name: String,
    /// Element type and shape of its first output.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

impl Graph {
    /// Runs the graph as [`run`](Self::run) does, and gives what each node took, in the order of
    /// their running, instead of the outputs.
    ///
    /// # Errors
    /// As there.
    pub fn run_timed(&self, inputs: &[Values]) -> Result<Vec<NodeTime>, GraphError> {
        self.check(inputs)?;
        guarded("running the model", || {
            let tensors = self.tensors(inputs)?;
            let mut times = Vec::new();
            let mut state = self.plan.spawn().map_err(|e| GraphError::Run(text(&e)))?;
            let ran = state.run_plan_with_eval(tensors, |context, state, node, inputs| {
                let start = Instant::now();
                let outputs: TractResult<TVec<TValue>> = eval(context, state, node, inputs);
                let took = start.elapsed();
                let output = node.outputs.first().map(|o| format!("{:?}", o.fact));
                times.push(NodeTime {
                    operator: node.op().name().into_owned(),
                    name: node.name.clone(),
                    output: output.unwrap_or_default(),
                    took,
                });
                outputs
            });
            ran.map_err(|e| GraphError::Run(text(&e)))?;
            Ok(times)
        })
    }
}

//! An ONNX graph made ready to run by tract, with the manifest's concrete shapes.

mod timed;

pub use timed::NodeTime;

use super::tensor::{Values, datum_type, describe};
use super::{fast, ml};
use dunlin_protocol::bundle::TensorSpec;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::Onnx;
use tract_onnx::pb::ModelProto;
use tract_onnx::tract_hir::internal::{
    Factoid, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue,
    TValue, TVec, ToDim, TractError, TypedRunnableModel,
};

/// Longest message taken over from tract, in characters; its chains can quote whole nodes.
const MESSAGE_MAX_CHARS: usize = 1500;

/// Why a graph cannot be made ready, or did not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Not an ONNX file, or one that refers to what is not in it.
    #[error("not a readable ONNX model: {0}")]
    Parse(String),
    /// Operators that the engine has not.
    #[error("operators that this engine has not: {}", .0.join(", "))]
    Operators(Vec<String>),
    /// The graph's inputs are not the manifest's.
    #[error("inputs: {0}")]
    Inputs(String),
    /// The graph's outputs are not the manifest's.
    #[error("outputs: {0}")]
    Outputs(String),
    /// Types and shapes do not work out with the manifest's inputs.
    #[error("the graph cannot be prepared for the manifest's inputs: {0}")]
    Prepare(String),
    /// Failed while computing.
    #[error("the graph failed: {0}")]
    Run(String),
    /// The engine panicked; caught.
    #[error("the engine panicked while {during}: {message}")]
    Panic {
        /// What it was doing.
        during: &'static str,
        /// What it said.
        message: String,
    },
}

/// A graph ready to run; any number of threads may run it at once.
#[derive(Debug)]
pub struct Graph {
    plan: Arc<TypedRunnableModel>,
    /// For each input of the plan, the index of the manifest's input.
    input_order: Vec<usize>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

impl Graph {
    /// Parses an ONNX file and prepares it for inputs and outputs of these names, element types and
    /// shapes. Outputs that the manifest does not name are not computed.
    ///
    /// # Errors
    /// [`GraphError`] says what does not fit.
    pub fn load(
        onnx: &[u8],
        inputs: &[TensorSpec],
        outputs: &[TensorSpec],
    ) -> Result<Self, GraphError> {
        guarded("loading the model", || {
            // Shapes stored in the file are often symbolic or stale; the manifest's are signed.
            let mut engine = tract_onnx::onnx()
                .with_ignore_value_info(true)
                .with_ignore_output_shapes(true);
            ml::register(&mut engine);
            let mut reader = onnx;
            let proto = engine
                .proto_model_for_read(&mut reader)
                .map_err(|e| GraphError::Parse(text(&e)))?;
            check_operators(&engine, &proto)?;
            check_computed(&proto)?;
            // Without a folder, a model cannot make the engine read other files.
            let parsed = engine
                .parse(&proto, None)
                .map_err(|e| GraphError::Parse(text(&e)))?;
            if !parsed.unresolved_inputs.is_empty() {
                return Err(GraphError::Parse(format!(
                    "tensors that nothing computes: {:?}",
                    parsed.unresolved_inputs
                )));
            }
            let mut model = parsed.model;
            let input_order = bind_inputs(&mut model, inputs)?;
            bind_outputs(&mut model, &proto, outputs)?;
            let model = model
                .into_typed()
                .and_then(fast::optimised)
                .map_err(|e| GraphError::Prepare(text(&e)))?;
            for (at, spec) in outputs.iter().enumerate() {
                let fact = model
                    .output_fact(at)
                    .map_err(|e| GraphError::Prepare(text(&e)))?;
                check_output(spec, fact)?;
            }
            let plan = model
                .into_runnable()
                .map_err(|e| GraphError::Prepare(text(&e)))?;
            Ok(Self {
                plan,
                input_order,
                inputs: inputs.to_vec(),
                outputs: outputs.to_vec(),
            })
        })
    }

    /// Runs the graph on one value list an input, in the manifest's order, and gives one an output,
    /// in the manifest's order.
    ///
    /// # Errors
    /// Another number, element type or length than the manifest's; or the engine failed.
    pub fn run(&self, inputs: &[Values]) -> Result<Vec<Values>, GraphError> {
        self.check(inputs)?;
        guarded("running the model", || {
            let results = self
                .plan
                .run(self.tensors(inputs)?)
                .map_err(|e| GraphError::Run(text(&e)))?;
            self.outputs
                .iter()
                .zip(&results)
                .map(|(spec, tensor)| {
                    Values::from_tensor(spec, tensor).map_err(GraphError::Outputs)
                })
                .collect()
        })
    }

    fn check(&self, inputs: &[Values]) -> Result<(), GraphError> {
        if inputs.len() != self.inputs.len() {
            return Err(GraphError::Inputs(format!(
                "expected {} tensors, got {}",
                self.inputs.len(),
                inputs.len()
            )));
        }
        for (spec, values) in self.inputs.iter().zip(inputs) {
            if values.dtype() != spec.dtype || values.len() != spec.elements() {
                return Err(GraphError::Inputs(format!(
                    "expected {}, got {} values of {}",
                    describe(spec),
                    values.len(),
                    values.dtype().as_str()
                )));
            }
        }
        Ok(())
    }

    /// What the plan wants, in its order.
    fn tensors(&self, inputs: &[Values]) -> Result<TVec<TValue>, GraphError> {
        let tensors = self.input_order.iter().map(|&at| {
            let tensor = inputs[at].to_tensor(&self.inputs[at].shape)?;
            Ok(tensor.into_tvalue())
        });
        let tensors: Result<_, TractError> = tensors.collect();
        tensors.map_err(|e| GraphError::Run(text(&e)))
    }
}

/// Where the build unwinds, a panic of the engine is an error like any other. Builds that abort
/// lose the worker, which the supervisor notices.
fn guarded<T>(
    during: &'static str,
    work: impl FnOnce() -> Result<T, GraphError>,
) -> Result<T, GraphError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(GraphError::Panic {
            during,
            message: cut(message),
        })
    })
}

fn text(error: &TractError) -> String {
    cut(&format!("{error:#}"))
}

fn cut(message: &str) -> String {
    let one_line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match one_line.char_indices().nth(MESSAGE_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &one_line[..end]),
        None => one_line,
    }
}

fn check_operators(engine: &Onnx, proto: &ModelProto) -> Result<(), GraphError> {
    let nodes = proto.graph.iter().flat_map(|g| &g.node);
    let mut unknown: Vec<String> = nodes
        .filter(|n| !engine.op_register.0.contains_key(&n.op_type))
        .map(|n| match ml::way_out(&n.op_type) {
            Some(way_out) => format!("{} (node {:?}; {way_out})", n.op_type, n.name),
            None => format!("{} (node {:?})", n.op_type, n.name),
        })
        .collect();
    unknown.truncate(20);
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(GraphError::Operators(unknown))
    }
}

/// Whether something computes every output.
fn check_computed(proto: &ModelProto) -> Result<(), GraphError> {
    let Some(graph) = &proto.graph else {
        return Err(GraphError::Parse("no graph in it".to_owned()));
    };
    let known: HashSet<&String> = (graph.node.iter().flat_map(|n| &n.output))
        .chain(graph.input.iter().map(|i| &i.name))
        .chain(graph.initializer.iter().map(|i| &i.name))
        .collect();
    match graph.output.iter().find(|o| !known.contains(&o.name)) {
        None => Ok(()),
        Some(output) => Err(GraphError::Parse(format!(
            "an output that nothing computes: {:?}",
            output.name
        ))),
    }
}

fn bind_inputs(
    model: &mut InferenceModel,
    inputs: &[TensorSpec],
) -> Result<Vec<usize>, GraphError> {
    let names: Vec<String> = model
        .inputs
        .iter()
        .map(|o| model.node(o.node).name.clone())
        .collect();
    if let Some(spec) = inputs.iter().find(|s| !names.contains(&s.name)) {
        return Err(GraphError::Inputs(format!(
            "the manifest names {}, the graph has {names:?}",
            describe(spec)
        )));
    }
    let mut order = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let Some(index) = inputs.iter().position(|s| s.name == *name) else {
            let known: Vec<_> = inputs.iter().map(|s| &s.name).collect();
            return Err(GraphError::Inputs(format!(
                "the graph needs {name:?}, the manifest names {known:?}"
            )));
        };
        let spec = &inputs[index];
        let declared = model
            .input_fact(at)
            .map_err(|e| GraphError::Prepare(text(&e)))?;
        if !allows(declared, spec) {
            return Err(GraphError::Inputs(format!(
                "the manifest says {}, the graph {}",
                describe(spec),
                declared.format_dt_shape()
            )));
        }
        model
            .set_input_fact(
                at,
                InferenceFact::dt_shape(datum_type(spec.dtype), &spec.shape),
            )
            .map_err(|e| GraphError::Prepare(text(&e)))?;
        order.push(index);
    }
    Ok(order)
}

/// Whether the graph's own declaration, as far as it is concrete, is the manifest's.
fn allows(declared: &InferenceFact, spec: &TensorSpec) -> bool {
    let dtype = declared
        .datum_type
        .concretize()
        .is_none_or(|t| t == datum_type(spec.dtype));
    let rank = declared.shape.is_open() || declared.shape.dims().count() == spec.shape.len();
    let dims = declared.shape.dims().zip(&spec.shape).all(|(dim, &want)| {
        let known = dim.concretize().and_then(|d| d.as_i64());
        known.is_none_or(|d| d.to_dim() == want.to_dim())
    });
    dtype && rank && dims
}

fn bind_outputs(
    model: &mut InferenceModel,
    proto: &ModelProto,
    outputs: &[TensorSpec],
) -> Result<(), GraphError> {
    let names: Vec<&str> = proto
        .graph
        .iter()
        .flat_map(|g| &g.output)
        .map(|o| o.name.as_str())
        .collect();
    let outlets = outputs
        .iter()
        .map(|spec| {
            let at = names.iter().position(|n| *n == spec.name);
            at.and_then(|at| model.outputs.get(at).copied())
                .ok_or_else(|| {
                    GraphError::Outputs(format!(
                        "the manifest names {}, the graph has {names:?}",
                        describe(spec)
                    ))
                })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let prepare = |e: TractError| GraphError::Prepare(text(&e));
    model.select_output_outlets(&outlets).map_err(prepare)?;
    for at in 0..outlets.len() {
        model
            .set_output_fact(at, InferenceFact::default())
            .map_err(prepare)?;
    }
    Ok(())
}

fn check_output(
    spec: &TensorSpec,
    fact: &tract_onnx::tract_hir::internal::TypedFact,
) -> Result<(), GraphError> {
    use tract_onnx::prelude::DatumType;
    let computed = fact.datum_type.unquantized();
    let symbolic = computed == DatumType::TDim && datum_type(spec.dtype) == DatumType::I64;
    // A shape that depends on the data is checked on every run instead.
    let shape = fact
        .shape
        .as_concrete()
        .is_none_or(|s| s == spec.shape.as_slice());
    if (computed == datum_type(spec.dtype) || symbolic) && shape {
        return Ok(());
    }
    if computed == DatumType::String {
        return Err(GraphError::Outputs(format!(
            "the manifest says {}, the graph computes text: leave this output out and list the \
             classes as the manifest's labels, or export the model with numbered classes",
            describe(spec)
        )));
    }
    Err(GraphError::Outputs(format!(
        "the manifest says {}, the graph computes {:?} {:?}",
        describe(spec),
        fact.datum_type,
        fact.shape
    )))
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;

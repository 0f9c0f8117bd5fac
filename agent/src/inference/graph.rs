//! An ONNX graph made ready to run by tract, with the manifest's concrete shapes.

mod error;
mod timed;

pub use error::GraphError;
pub use timed::NodeTime;

use super::mend::{self, Mend};
use super::tensor::{Values, datum_type, describe};
use super::{fast, ml, ops};
use dunlin_protocol::bundle::TensorSpec;
use error::{all_nodes, cut, text};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::Onnx;
use tract_onnx::pb::ModelProto;
use tract_onnx::tract_hir::internal::{
    Factoid, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, IntoTValue,
    TValue, TVec, ToDim, TractError, TypedRunnableModel,
};

/// A graph ready to run; any number of threads may run it at once.
#[derive(Debug)]
pub struct Graph {
    plan: Arc<TypedRunnableModel>,
    /// For each input of the plan, the index of the manifest's input.
    input_order: Vec<usize>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    mends: Vec<Mend>,
}

impl Graph {
    /// Parses an ONNX file and prepares it for inputs and outputs of these names, element types and
    /// shapes. Outputs that the manifest does not name are not computed. What the engine does not take
    /// as it is, is [mended](mend) if it can be.
    ///
    /// # Errors
    /// [`GraphError`] says what does not fit, and which mends were tried.
    pub fn load(
        onnx: &[u8],
        inputs: &[TensorSpec],
        outputs: &[TensorSpec],
    ) -> Result<Self, GraphError> {
        let (engine, proto) = guarded("reading the model", || read(onnx))?;
        Self::from_proto(&engine, proto, inputs, outputs)
    }

    pub(super) fn from_proto(
        engine: &Onnx,
        mut proto: ModelProto,
        inputs: &[TensorSpec],
        outputs: &[TensorSpec],
    ) -> Result<Self, GraphError> {
        mend::correct(&mut proto);
        let load = |proto: &ModelProto| {
            guarded("loading the model", || {
                Self::prepare(engine, proto, inputs, outputs)
            })
            .map_err(|error| error.located(proto))
        };
        let refused = match load(&proto) {
            Err(refused) if refused.may_be_mended() => refused,
            done => return done,
        };
        let Some((mended, mends)) = mend::mend(engine, proto, inputs) else {
            return Err(refused.after(&[], None));
        };
        match load(&mended) {
            Ok(graph) => Ok(Self { mends, ..graph }),
            Err(again) => Err(refused.after(&mends, Some(again))),
        }
    }

    fn prepare(
        engine: &Onnx,
        proto: &ModelProto,
        inputs: &[TensorSpec],
        outputs: &[TensorSpec],
    ) -> Result<Self, GraphError> {
        check_operators(engine, proto)?;
        check_computed(proto)?;
        // Without a folder, a model cannot make the engine read other files.
        let parsed = engine
            .parse(proto, None)
            .map_err(|e| GraphError::Parse(text(&e)))?;
        if !parsed.unresolved_inputs.is_empty() {
            return Err(GraphError::Parse(format!(
                "tensors that nothing computes: {:?}",
                parsed.unresolved_inputs
            )));
        }
        let mut model = parsed.model;
        let input_order = bind_inputs(&mut model, inputs)?;
        bind_outputs(&mut model, proto, outputs)?;
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
            mends: Vec::new(),
        })
    }

    /// What the file was mended by to be loaded; empty if it was taken as it is.
    #[must_use]
    pub fn mends(&self) -> &[Mend] {
        &self.mends
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

/// tract's reader of ONNX files, with our operators.
pub(super) fn engine() -> Onnx {
    // Shapes stored in the file are often symbolic or stale; the manifest's are signed.
    let mut engine = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true);
    ml::register(&mut engine);
    ops::register(&mut engine);
    engine
}

fn read(onnx: &[u8]) -> Result<(Onnx, ModelProto), GraphError> {
    let engine = engine();
    let mut reader = onnx;
    let proto = engine
        .proto_model_for_read(&mut reader)
        .map_err(|e| GraphError::Parse(text(&e)))?;
    Ok((engine, proto))
}

/// Where the build unwinds, a panic of the engine is an error like any other. Builds that abort
/// lose the worker, which the supervisor notices.
pub(super) fn guarded<T>(
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

/// Refuses what the engine has not, each operator once with the first node that it is at.
fn check_operators(engine: &Onnx, proto: &ModelProto) -> Result<(), GraphError> {
    let mut unknown: Vec<(&str, &str, usize)> = Vec::new();
    let nodes = proto.graph.iter().flat_map(all_nodes);
    for (operator, node) in nodes.filter(|(o, _)| !engine.op_register.0.contains_key(*o)) {
        match unknown.iter_mut().find(|(known, ..)| *known == operator) {
            Some((.., others)) => *others += 1,
            None => unknown.push((operator, node, 0)),
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let told = unknown.iter().take(20).map(|(operator, node, others)| {
        let more = match others {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        match ml::way_out(operator) {
            Some(way_out) => format!("{operator} (node {node:?}{more}; {way_out})"),
            None => format!("{operator} (node {node:?}{more})"),
        }
    });
    Err(GraphError::Operators(told.collect()))
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

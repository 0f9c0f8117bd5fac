//! The part of a graph that some tensors are computed from, prepared by itself.

use super::names::captured;
use crate::inference::graph::guarded;
use crate::inference::tensor::datum_type;
use dunlin_protocol::bundle::TensorSpec;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tract_onnx::Onnx;
use tract_onnx::pb::{GraphProto, ModelProto, ValueInfoProto};
use tract_onnx::tract_hir::internal::*;

/// Most parts prepared for one model: each costs as much as loading what it depends on.
const PARTS_MAX: usize = 256;

/// Prepares parts of a model for inputs of these shapes.
pub(super) struct Parts<'a> {
    engine: &'a Onnx,
    /// Without its graph: operator versions.
    model: &'a ModelProto,
    inputs: &'a [TensorSpec],
    prepared: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn of(engine: &'a Onnx, model: &'a ModelProto, inputs: &'a [TensorSpec]) -> Self {
        Self {
            engine,
            model,
            inputs,
            prepared: 0,
        }
    }

    /// The value of a tensor, if it is the same for all inputs of these shapes. `layers`: the graph
    /// that it is in and those around that, outermost first.
    pub(super) fn condition(&mut self, layers: &[&GraphProto], tensor: &str) -> Option<bool> {
        self.value(layers, tensor)?.cast_to_scalar::<bool>().ok()
    }

    /// As [`condition`](Self::condition), for a whole number.
    pub(super) fn whole_number(&mut self, layers: &[&GraphProto], tensor: &str) -> Option<i64> {
        self.value(layers, tensor)?.cast_to_scalar::<i64>().ok()
    }

    fn value(&mut self, layers: &[&GraphProto], tensor: &str) -> Option<Arc<Tensor>> {
        let model = self.prepare(layers, &[tensor])?.ok()?;
        model.output_fact(0).ok()?.konst.clone()
    }

    /// Whether these tensors can be computed; nothing if that cannot be told.
    pub(super) fn can_be_computed(
        &mut self,
        layers: &[&GraphProto],
        tensors: &[&str],
    ) -> Option<bool> {
        Some(self.prepare(layers, tensors)?.is_ok())
    }

    fn prepare(
        &mut self,
        layers: &[&GraphProto],
        tensors: &[&str],
    ) -> Option<TractResult<TypedModel>> {
        if self.prepared == PARTS_MAX {
            return None;
        }
        self.prepared += 1;
        let model = ModelProto {
            ir_version: self.model.ir_version,
            opset_import: self.model.opset_import.clone(),
            graph: Some(cone(layers, tensors)?),
            ..ModelProto::default()
        };
        let prepared = guarded("preparing a part of the model", || Ok(self.typed(&model)));
        // A panic of the engine is a failure to prepare.
        Some(prepared.unwrap_or_else(|panic| Err(format_err!("{panic}"))))
    }

    fn typed(&self, model: &ModelProto) -> TractResult<TypedModel> {
        let mut model = self.engine.parse(model, None)?.model;
        for at in 0..model.inputs.len() {
            let name = &model.node(model.inputs[at].node).name;
            let spec = self.inputs.iter().find(|s| s.name == *name);
            let spec = spec.with_context(|| format!("the manifest has no input {name:?}"))?;
            let fact = InferenceFact::dt_shape(datum_type(spec.dtype), &spec.shape);
            model.set_input_fact(at, fact)?;
        }
        model.into_typed()?.into_decluttered()
    }
}

/// The part of the graphs that tensors are computed from, as a graph of its own; none if it depends on
/// what only a loop knows.
fn cone(layers: &[&GraphProto], tensors: &[&str]) -> Option<GraphProto> {
    let mut computed: HashMap<&str, (usize, usize)> = HashMap::new();
    for (layer, graph) in layers.iter().enumerate() {
        for (at, node) in graph.node.iter().enumerate() {
            for output in &node.output {
                computed.insert(output, (layer, at));
            }
        }
    }
    let mut cone = GraphProto {
        name: "part".to_owned(),
        ..GraphProto::default()
    };
    let (mut nodes, mut seen, mut open) = (HashSet::new(), HashSet::new(), tensors.to_vec());
    while let Some(name) = open.pop() {
        if name.is_empty() || !seen.insert(name) {
            continue;
        }
        let weight = || {
            layers
                .iter()
                .flat_map(|g| &g.initializer)
                .find(|i| i.name == name)
        };
        if let Some(&(layer, at)) = computed.get(name) {
            let node = &layers[layer].node[at];
            nodes.insert((layer, at));
            open.extend(node.input.iter().map(String::as_str));
            open.extend(captured(node));
        } else if let Some(weight) = weight() {
            cone.initializer.push(weight.clone());
        } else {
            // Inputs of inner graphs are a loop's.
            let input = layers.first()?.input.iter().find(|i| i.name == name)?;
            cone.input.push(input.clone());
        }
    }
    let mut nodes: Vec<_> = nodes.into_iter().collect();
    nodes.sort_unstable();
    let nodes = nodes
        .into_iter()
        .map(|(layer, at)| layers[layer].node[at].clone());
    cone.node = nodes.collect();
    let outputs = tensors.iter().map(|&name| ValueInfoProto {
        name: name.to_owned(),
        ..ValueInfoProto::default()
    });
    cone.output = outputs.collect();
    Some(cone)
}

//! `If` nodes of which one branch is taken for all inputs of the manifest's shapes, written out.
//!
//! Exporters write an `If` where a program asks for a tensor's rank or length: its condition is known
//! once the shapes are. The branches' shapes often differ, which the engine refuses. Others choose by a
//! value, say a sample rate, between branches of which one makes no sense for inputs of these shapes:
//! there the other is kept, and a run whose condition chooses the first is an error.

use super::loops;
use super::names::{Fresh, Renamed, graphs_of_mut, rename_in};
use super::part::Parts;
use crate::inference::ops;
use dunlin_protocol::bundle::TensorSpec;
use tract_onnx::Onnx;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

/// How many nodes were written out.
#[derive(Debug, Default)]
pub(super) struct Folded {
    /// Their condition follows from the inputs' shapes.
    pub known: usize,
    /// Their other branch cannot be computed for inputs of these shapes.
    pub only: usize,
    /// Loops whose number of rounds follows from the inputs' shapes.
    pub loops: usize,
}

/// Folds the branches of a model.
pub(super) fn fold(engine: &Onnx, model: &mut ModelProto, inputs: &[TensorSpec]) -> Folded {
    let Some(mut graph) = model.graph.take() else {
        return Folded::default();
    };
    let imports = &mut model.opset_import.iter();
    let version = imports.find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    let mut folding = Folding {
        version: version.map_or(1, |o| o.version),
        parts: Parts::of(engine, model, inputs),
        folded: Folded::default(),
        nodes: 0,
    };
    folding.known_in(&mut graph, &[]);
    folding.only_in(&mut graph);
    let folded = folding.folded;
    model.graph = Some(graph);
    folded
}

struct Folding<'a> {
    /// Of the standard operators.
    version: i64,
    parts: Parts<'a>,
    folded: Folded,
    /// That loops became.
    nodes: usize,
}

impl Folding<'_> {
    /// Where the condition is known, in this graph and those inside it. `outer`: the graphs around it,
    /// outermost first.
    fn known_in(&mut self, graph: &mut GraphProto, outer: &[&GraphProto]) {
        let mut at = 0;
        while at < graph.node.len() {
            if graph.node[at].op_type == "If"
                && let Some(is_true) = self.condition(graph, outer, at)
                && write_in_place(graph, outer, at, is_true, Checked::No)
            {
                self.folded.known += 1;
                // What was written there is looked at next.
                continue;
            }
            if graph.node[at].op_type == "Loop" && self.write_loop(graph, outer, at) {
                self.folded.loops += 1;
                continue;
            }
            let mut node = std::mem::take(&mut graph.node[at]);
            let mut around = outer.to_vec();
            around.push(graph);
            for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
                self.known_in(inner, &around);
            }
            graph.node[at] = node;
            at += 1;
        }
    }

    fn write_loop(&mut self, graph: &mut GraphProto, outer: &[&GraphProto], at: usize) -> bool {
        let mut layers = outer.to_vec();
        layers.push(graph);
        let Some(rounds) = loops::rounds(&mut self.parts, &layers, at) else {
            return false;
        };
        let most = loops::NODES_MAX - self.nodes;
        let written = loops::write_in_place(graph, outer, at, rounds, self.version, most);
        // Beside the rounds' nodes there is one for each output.
        self.nodes = (self.nodes + written.unwrap_or(0)).min(loops::NODES_MAX);
        written.is_some()
    }

    fn condition(&mut self, graph: &GraphProto, outer: &[&GraphProto], at: usize) -> Option<bool> {
        let mut layers = outer.to_vec();
        layers.push(graph);
        self.parts.condition(&layers, graph.node[at].input.first()?)
    }

    /// Where only one branch can be computed; in the model's graph itself, where it matters.
    fn only_in(&mut self, graph: &mut GraphProto) {
        let mut at = 0;
        while at < graph.node.len() {
            if graph.node[at].op_type == "If"
                && let Some(is_true) = self.only_branch(graph, at)
                && write_in_place(graph, &[], at, is_true, Checked::Yes)
            {
                self.folded.only += 1;
                continue;
            }
            at += 1;
        }
    }

    /// Which branch can be computed, if the other cannot.
    fn only_branch(&mut self, graph: &GraphProto, at: usize) -> Option<bool> {
        let mut can = |name: &str| {
            let branch = branch_of(&graph.node[at], name)?;
            let outputs: Vec<&str> = branch.output.iter().map(|o| o.name.as_str()).collect();
            self.parts.can_be_computed(&[graph, branch], &outputs)
        };
        match (can("then_branch")?, can("else_branch")?) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    }
}

fn branch_of<'a>(node: &'a NodeProto, name: &str) -> Option<&'a GraphProto> {
    node.attribute.iter().find(|a| a.name == name)?.g.as_ref()
}

/// Whether each run checks that the condition is the one that was assumed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checked {
    Yes,
    No,
}

/// Writes the branch that is taken in the place of the `If`. Leaves the graph alone if the node is not
/// as the specification has it.
fn write_in_place(
    graph: &mut GraphProto,
    outer: &[&GraphProto],
    at: usize,
    is_true: bool,
    checked: Checked,
) -> bool {
    let wanted = if is_true {
        "then_branch"
    } else {
        "else_branch"
    };
    let node = &graph.node[at];
    let Some(branch) = branch_of(node, wanted) else {
        return false;
    };
    if branch.output.len() < node.output.len() || !branch.sparse_initializer.is_empty() {
        return false;
    }
    let mut branch = branch.clone();
    let node = graph.node.remove(at);
    let mut fresh = Fresh::beside(outer.iter().copied().chain([&*graph]));
    node.output.iter().for_each(|name| {
        fresh.name(name);
    });
    let mut renamed = Renamed::new();
    let outputs = branch.node.iter().flat_map(|n| &n.output);
    let weights = branch.initializer.iter().map(|i| &i.name);
    for name in outputs.chain(weights).filter(|name| !name.is_empty()) {
        let new = fresh.name(name);
        if new != *name {
            renamed.insert(name.clone(), new);
        }
    }
    for inner in &mut branch.node {
        rename_in(inner, &renamed);
        if !inner.name.is_empty() {
            inner.name = fresh.name(&inner.name);
        }
    }
    for weight in &mut branch.initializer {
        if let Some(new) = renamed.get(&weight.name) {
            weight.name.clone_from(new);
        }
    }
    let given = branch.output.iter().zip(&node.output);
    let passed = given
        .filter(|(_, name)| !name.is_empty())
        .map(|(from, to)| {
            let from = renamed.get(&from.name).unwrap_or(&from.name);
            pass(&node, from, to, checked, is_true)
        });
    let written: Vec<NodeProto> = branch.node.into_iter().chain(passed).collect();
    graph.node.splice(at..at, written);
    graph.initializer.append(&mut branch.initializer);
    true
}

/// The node that gives a branch's output the name of the `If`'s.
fn pass(node: &NodeProto, from: &str, to: &str, checked: Checked, is_true: bool) -> NodeProto {
    let mut passing = NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        name: to.to_owned(),
        op_type: "Identity".to_owned(),
        ..NodeProto::default()
    };
    if checked == Checked::Yes {
        passing.op_type = ops::ONLY_IF.to_owned();
        passing.input.extend(node.input.first().cloned());
        passing.attribute.push(AttributeProto {
            name: "expected".to_owned(),
            r#type: AttributeType::Int.into(),
            i: i64::from(is_true),
            ..AttributeProto::default()
        });
    }
    passing
}

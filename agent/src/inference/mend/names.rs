//! Names of tensors and nodes while graphs are written into others.

use std::collections::{HashMap, HashSet};
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

/// Old names and the new ones in their place.
pub(super) type Renamed = HashMap<String, String>;

/// The graphs inside a node: branches and loop bodies.
pub(super) fn graphs_of(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute
        .iter()
        .flat_map(|a| a.g.iter().chain(&a.graphs))
}

pub(super) fn graphs_of_mut(
    attribute: &mut AttributeProto,
) -> impl Iterator<Item = &mut GraphProto> {
    attribute.g.iter_mut().chain(&mut attribute.graphs)
}

/// What a graph itself defines: inputs, weights and what its nodes compute.
pub(super) fn defined_in(graph: &GraphProto) -> impl Iterator<Item = &String> {
    let outputs = graph.node.iter().flat_map(|n| &n.output);
    let inputs = graph.input.iter().map(|i| &i.name);
    outputs
        .chain(inputs)
        .chain(graph.initializer.iter().map(|i| &i.name))
        .filter(|name| !name.is_empty())
}

/// Every name that a graph defines or mentions, inside its nodes' graphs too.
pub(super) fn all_names(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(defined_in(graph).cloned());
    names.extend(graph.output.iter().map(|o| o.name.clone()));
    for node in &graph.node {
        names.extend(node.input.iter().cloned());
        names.insert(node.name.clone());
        graphs_of(node).for_each(|inner| all_names(inner, names));
    }
}

/// What a node's graphs take from outside.
pub(super) fn captured(node: &NodeProto) -> HashSet<&str> {
    let mut taken = HashSet::new();
    for graph in graphs_of(node) {
        let own: HashSet<&str> = defined_in(graph).map(String::as_str).collect();
        let outputs = graph.output.iter().map(|o| o.name.as_str());
        let mentioned = graph.node.iter().flat_map(|inner| {
            let inputs = inner.input.iter().map(String::as_str);
            inputs.chain(captured(inner))
        });
        taken.extend(
            mentioned
                .chain(outputs)
                .filter(|name| !name.is_empty() && !own.contains(name)),
        );
    }
    taken
}

fn rename(name: &mut String, renamed: &Renamed) {
    if let Some(new) = renamed.get(name) {
        name.clone_from(new);
    }
}

/// Renames in what a node takes, gives and holds.
pub(super) fn rename_in(node: &mut NodeProto, renamed: &Renamed) {
    if renamed.is_empty() {
        return;
    }
    let tensors = node.input.iter_mut().chain(&mut node.output);
    tensors.for_each(|name| rename(name, renamed));
    for attribute in &mut node.attribute {
        for graph in graphs_of_mut(attribute) {
            rename_captured(graph, renamed);
        }
    }
}

/// Renames what a graph takes from outside; what it defines itself stays.
fn rename_captured(graph: &mut GraphProto, renamed: &Renamed) {
    let mut renamed = renamed.clone();
    for own in defined_in(graph) {
        renamed.remove(own);
    }
    for node in &mut graph.node {
        rename_in(node, &renamed);
    }
    graph
        .output
        .iter_mut()
        .for_each(|o| rename(&mut o.name, &renamed));
}

/// Makes names that are not taken.
pub(super) struct Fresh {
    taken: HashSet<String>,
}

impl Fresh {
    /// Beside the names of these graphs.
    pub(super) fn beside<'a>(graphs: impl IntoIterator<Item = &'a GraphProto>) -> Self {
        let mut taken = HashSet::new();
        graphs.into_iter().for_each(|g| all_names(g, &mut taken));
        Self { taken }
    }

    /// This name, or one like it if it is taken; taken afterwards.
    pub(super) fn name(&mut self, like: &str) -> String {
        if self.taken.insert(like.to_owned()) {
            return like.to_owned();
        }
        let mut number = 1_usize;
        loop {
            let name = format!("{like}.{number}");
            if self.taken.insert(name.clone()) {
                return name;
            }
            number += 1;
        }
    }
}

//! Functions that a model file defines for itself, written out where they are called. Exporters of
//! recent frameworks define one for each module of the program; the engine knows operators only.

use super::names::{Fresh, Renamed, graphs_of, graphs_of_mut, rename_in};
use std::collections::HashMap;
use tract_onnx::pb::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto};

/// Most nodes that writing out may lead to, and how deep calls may go.
const NODES_MAX: usize = 50_000;
const DEPTH_MAX: usize = 64;

type Functions = HashMap<(String, String), FunctionProto>;

/// Writes out the calls of a model's own functions; gives how many.
pub(super) fn write_out(model: &mut ModelProto) -> usize {
    let versions: HashMap<&str, i64> = (model.opset_import.iter())
        .map(|o| (domain_of(&o.domain), o.version))
        .collect();
    // A body of other operator versions means something else here.
    let fits = |f: &FunctionProto| {
        let mut imports = f.opset_import.iter();
        imports.all(|o| {
            versions
                .get(domain_of(&o.domain))
                .is_none_or(|v| *v == o.version)
        })
    };
    let functions: Functions = (model.functions.iter())
        .filter(|f| fits(f))
        .map(|f| {
            let domain = domain_of(f.domain.as_deref().unwrap_or_default());
            (
                (domain.to_owned(), f.name.clone().unwrap_or_default()),
                f.clone(),
            )
        })
        .collect();
    let Some(graph) = model.graph.as_mut().filter(|_| !functions.is_empty()) else {
        return 0;
    };
    let fresh = Fresh::beside([&*graph]);
    let mut writing = Writing {
        functions: &functions,
        fresh,
        written: 0,
        nodes: 0,
    };
    writing.in_graph(graph, 0);
    writing.written
}

/// The standard operators' domain has two names.
fn domain_of(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

struct Writing<'a> {
    functions: &'a Functions,
    fresh: Fresh,
    written: usize,
    nodes: usize,
}

impl Writing<'_> {
    fn in_graph(&mut self, graph: &mut GraphProto, depth: usize) {
        let nodes = std::mem::take(&mut graph.node);
        graph.node = self.in_nodes(nodes, depth);
    }

    fn in_nodes(&mut self, nodes: Vec<NodeProto>, depth: usize) -> Vec<NodeProto> {
        let mut done = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            self.nodes += 1;
            let key = (domain_of(&node.domain).to_owned(), node.op_type.clone());
            match self
                .functions
                .get(&key)
                .filter(|f| knows_attributes(f, &node))
            {
                Some(function) if depth < DEPTH_MAX && self.nodes < NODES_MAX => {
                    self.written += 1;
                    let body = self.body(function, &node);
                    done.extend(self.in_nodes(body, depth + 1));
                }
                _ => {
                    for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
                        self.in_graph(inner, depth);
                    }
                    done.push(node);
                }
            }
        }
        done
    }

    /// The function's nodes with the call's tensors and attributes.
    fn body(&mut self, function: &FunctionProto, call: &NodeProto) -> Vec<NodeProto> {
        let mut renamed = Renamed::new();
        for (at, formal) in function.input.iter().enumerate() {
            renamed.insert(
                formal.clone(),
                call.input.get(at).cloned().unwrap_or_default(),
            );
        }
        for (formal, actual) in function.output.iter().zip(&call.output) {
            if !actual.is_empty() {
                renamed.insert(formal.clone(), actual.clone());
            }
        }
        let prefix = call
            .output
            .iter()
            .find(|o| !o.is_empty())
            .cloned()
            .unwrap_or_default();
        let local = function.node.iter().flat_map(|n| &n.output);
        for name in local.filter(|name| !name.is_empty()) {
            if !renamed.contains_key(name) {
                renamed.insert(name.clone(), self.fresh.name(&format!("{prefix}/{name}")));
            }
        }
        // An output that is an input as it came.
        let passed = function
            .output
            .iter()
            .zip(&call.output)
            .filter(|(formal, actual)| !actual.is_empty() && function.input.contains(formal));
        let identities = passed.map(|(formal, actual)| {
            let at = function.input.iter().position(|input| input == formal);
            let input = at
                .and_then(|at| call.input.get(at))
                .cloned()
                .unwrap_or_default();
            NodeProto {
                input: vec![input],
                output: vec![actual.clone()],
                op_type: "Identity".to_owned(),
                ..NodeProto::default()
            }
        });
        let mut nodes: Vec<NodeProto> = identities.collect();
        for node in &function.node {
            let mut node = node.clone();
            with_attributes_of(&mut node, call);
            rename_in(&mut node, &renamed);
            node.name = self.fresh.name(&format!("{}/{}", call.name, node.name));
            nodes.push(node);
        }
        nodes
    }
}

/// Whether what the body refers to is given, or may be left out. Defaults that the function itself
/// declares (`attribute_proto`) are not among what the engine reads of a file.
fn knows_attributes(function: &FunctionProto, call: &NodeProto) -> bool {
    let listed = |name: &String| function.attribute.contains(name);
    let given = |name: &String| call.attribute.iter().any(|a| a.name == *name);
    references(&function.node)
        .iter()
        .all(|name| listed(name) || given(name))
}

fn references(nodes: &[NodeProto]) -> Vec<String> {
    let mut found = Vec::new();
    for node in nodes {
        let named = node.attribute.iter().map(|a| &a.ref_attr_name);
        found.extend(named.filter(|name| !name.is_empty()).cloned());
        graphs_of(node).for_each(|inner| found.extend(references(&inner.node)));
    }
    found
}

/// Puts the call's attributes where the body refers to them; what the call does not say has the
/// operator's default.
fn with_attributes_of(node: &mut NodeProto, call: &NodeProto) {
    node.attribute.retain_mut(|attribute| {
        if attribute.ref_attr_name.is_empty() {
            for inner in graphs_of_mut(attribute).flat_map(|g| &mut g.node) {
                with_attributes_of(inner, call);
            }
            return true;
        }
        let given = call
            .attribute
            .iter()
            .find(|a| a.name == attribute.ref_attr_name);
        if let Some(given) = given {
            let name = std::mem::take(&mut attribute.name);
            *attribute = AttributeProto {
                name,
                ..given.clone()
            };
        }
        given.is_some()
    });
}

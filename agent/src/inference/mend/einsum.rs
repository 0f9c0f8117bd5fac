//! `Einsum` with nothing to the right of its arrow, which sums over everything. The engine takes that for
//! an equation without an arrow; so it is asked for the letters of one operand, and they are summed.

use super::names::{Fresh, graphs_of, graphs_of_mut};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

/// Writes out such sums.
pub(super) fn write_out(model: &mut ModelProto) {
    if let Some(graph) = &mut model.graph
        && has(graph)
    {
        let mut fresh = Fresh::beside([&*graph]);
        in_graph(graph, &mut fresh);
    }
}

fn has(graph: &GraphProto) -> bool {
    let mut nodes = graph.node.iter();
    nodes.any(|node| with_letters(node).is_some() || graphs_of(node).any(has))
}

fn in_graph(graph: &mut GraphProto, fresh: &mut Fresh) {
    for mut node in std::mem::take(&mut graph.node) {
        for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
            in_graph(inner, fresh);
        }
        match with_letters(&node) {
            Some(equation) => graph.node.extend(summed(node, equation, fresh)),
            None => graph.node.push(node),
        }
    }
}

/// The equation with letters on the right, if it has an arrow and none. Ellipses may not be left out
/// there, and of scalars there is nothing to sum.
fn with_letters(node: &NodeProto) -> Option<Vec<u8>> {
    if node.op_type != "Einsum" || !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return None;
    }
    let given = node.attribute.iter().find(|a| a.name == "equation")?;
    let given = std::str::from_utf8(&given.s).ok()?.replace(' ', "");
    let operands = given.strip_suffix("->")?;
    if operands.contains('.') {
        return None;
    }
    // The fewest, of those that have any: the others are summed at once.
    let letters = operands.split(',').map(distinct).filter(|l| !l.is_empty());
    let letters = letters.min_by_key(String::len)?;
    Some(format!("{given}{letters}").into_bytes())
}

fn distinct(operand: &str) -> String {
    let mut letters = String::new();
    for letter in operand.chars() {
        if !letters.contains(letter) {
            letters.push(letter);
        }
    }
    letters
}

fn summed(mut node: NodeProto, equation: Vec<u8>, fresh: &mut Fresh) -> Vec<NodeProto> {
    for attribute in &mut node.attribute {
        if attribute.name == "equation" {
            attribute.s.clone_from(&equation);
        }
    }
    let Some(output) = node.output.first_mut() else {
        return vec![node];
    };
    let parts = fresh.name(&format!("{output}/parts"));
    let whole = std::mem::replace(output, parts.clone());
    let sum = NodeProto {
        input: vec![parts],
        name: fresh.name(&format!("{whole}/sum")),
        output: vec![whole],
        op_type: "ReduceSum".to_owned(),
        attribute: vec![AttributeProto {
            name: "keepdims".to_owned(),
            r#type: AttributeType::Int.into(),
            i: 0,
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    };
    vec![node, sum]
}

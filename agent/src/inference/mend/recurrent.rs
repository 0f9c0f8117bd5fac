//! Recurrent operators that run backwards only. The engine runs them forwards; so their input is turned
//! around, and their output back.

use super::names::{Fresh, graphs_of, graphs_of_mut};
use crate::inference::ops::REVERSE;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

/// Writes out what runs backwards.
pub(super) fn write_out(model: &mut ModelProto) {
    if let Some(graph) = &mut model.graph
        && has(graph)
    {
        let mut fresh = Fresh::beside([&*graph]);
        in_graph(graph, &mut fresh);
    }
}

fn runs_backwards(node: &NodeProto) -> bool {
    matches!(node.op_type.as_str(), "LSTM" | "GRU" | "RNN")
        && matches!(node.domain.as_str(), "" | "ai.onnx")
        && direction(node).is_some_and(|a| a.s == b"reverse")
}

fn direction(node: &NodeProto) -> Option<&AttributeProto> {
    node.attribute.iter().find(|a| a.name == "direction")
}

fn has(graph: &GraphProto) -> bool {
    let mut nodes = graph.node.iter();
    nodes.any(|node| runs_backwards(node) || graphs_of(node).any(has))
}

fn in_graph(graph: &mut GraphProto, fresh: &mut Fresh) {
    for mut node in std::mem::take(&mut graph.node) {
        for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
            in_graph(inner, fresh);
        }
        if runs_backwards(&node) {
            graph.node.extend(forwards(node, fresh));
        } else {
            graph.node.push(node);
        }
    }
}

fn forwards(mut node: NodeProto, fresh: &mut Fresh) -> Vec<NodeProto> {
    node.attribute.retain(|a| a.name != "direction");
    // With layout 1, sequences come before steps.
    let layout = node.attribute.iter().find(|a| a.name == "layout");
    let time = layout.map_or(0, |a| a.i);
    let mut nodes = Vec::new();
    if let Some(x) = node.input.first_mut() {
        let around = fresh.name(&format!("{x}/reversed"));
        nodes.push(reverse(x, &around, time));
        *x = around;
    }
    let y = node.output.first().filter(|y| !y.is_empty()).cloned();
    if let Some(y) = y {
        let around = fresh.name(&format!("{y}/reversed"));
        node.output[0].clone_from(&around);
        nodes.push(node);
        nodes.push(reverse(&around, &y, time));
    } else {
        nodes.push(node);
    }
    nodes
}

fn reverse(from: &str, to: &str, axis: i64) -> NodeProto {
    NodeProto {
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        name: to.to_owned(),
        op_type: REVERSE.to_owned(),
        attribute: vec![AttributeProto {
            name: "axis".to_owned(),
            r#type: AttributeType::Int.into(),
            i: axis,
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    }
}

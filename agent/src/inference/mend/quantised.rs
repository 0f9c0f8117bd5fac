//! Operators on integers that ONNX Runtime's quantiser writes (format `QOperator`), as the operators on
//! floats between `DequantizeLinear` and `QuantizeLinear` that they stand for.

use super::names::{Fresh, graphs_of, graphs_of_mut};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

const CONTRIBUTED: &str = "com.microsoft";

/// Writes out operators of `com.microsoft`, which the engine has not; gives how many.
pub(super) fn write_out_contributed(model: &mut ModelProto) -> usize {
    write_out(model, OnFloats::of_contributed)
}

/// Writes out standard operators. The engine has them, but rounds otherwise than the specification.
pub(super) fn write_out_standard(model: &mut ModelProto) -> usize {
    write_out(model, OnFloats::of_standard)
}

type Known = fn(&NodeProto) -> Option<OnFloats>;

fn write_out(model: &mut ModelProto, known: Known) -> usize {
    match &mut model.graph {
        Some(graph) if has(graph, known) => {
            let mut fresh = Fresh::beside([&*graph]);
            in_graph(graph, known, &mut fresh)
        }
        _ => 0,
    }
}

fn has(graph: &GraphProto, known: Known) -> bool {
    let mut nodes = graph.node.iter();
    nodes.any(|node| known(node).is_some() || graphs_of(node).any(|inner| has(inner, known)))
}

fn in_graph(graph: &mut GraphProto, known: Known, fresh: &mut Fresh) -> usize {
    let mut written = 0;
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        match known(&node).and_then(|on_floats| on_floats.nodes(&node, fresh)) {
            Some(on_floats) => {
                nodes.extend(on_floats);
                written += 1;
            }
            None => {
                for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
                    written += in_graph(inner, known, fresh);
                }
                nodes.push(node);
            }
        }
    }
    graph.node = nodes;
    written
}

/// Where a quantised tensor, its scale and its zero point are among a node's inputs, and the axis along
/// which there may be several scales.
#[derive(Clone, Copy)]
struct Triple {
    at: usize,
    axis: i64,
}

/// The operator on floats inside one on integers.
struct OnFloats {
    operator: &'static str,
    inputs: Vec<Triple>,
    /// Where the output's scale and zero point are.
    output: usize,
    /// Where the bias is, in integers whose scale is the product of the inputs' scales.
    bias: Option<usize>,
    /// Attributes that both have.
    attributes: &'static [&'static str],
}

const WINDOW: &[&str] = &[
    "auto_pad",
    "ceil_mode",
    "count_include_pad",
    "dilations",
    "group",
    "kernel_shape",
    "pads",
    "strides",
];

impl OnFloats {
    fn of_standard(node: &NodeProto) -> Option<Self> {
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            return None;
        }
        let (operator, axes, bias, attributes) = match node.op_type.as_str() {
            "QLinearConv" => ("Conv", [1, 0], Some(8), WINDOW),
            "QLinearMatMul" => ("MatMul", [-2, -1], None, &[][..]),
            _ => return None,
        };
        let inputs = [0, 3].into_iter().zip(axes);
        Some(Self {
            operator,
            inputs: inputs.map(|(at, axis)| Triple { at, axis }).collect(),
            output: 6,
            bias,
            attributes,
        })
    }

    fn of_contributed(node: &NodeProto) -> Option<Self> {
        if node.domain != CONTRIBUTED || number(node, "channels_last") != 0 {
            return None;
        }
        let one = vec![0];
        let (operator, inputs, output, attributes): (_, _, _, &[&str]) = match node.op_type.as_str()
        {
            "QLinearAdd" => ("Add", vec![0, 3], 6, &[]),
            "QLinearMul" => ("Mul", vec![0, 3], 6, &[]),
            "QLinearSigmoid" => ("Sigmoid", one, 3, &[]),
            "QLinearLeakyRelu" => ("LeakyRelu", one, 3, &["alpha"]),
            "QLinearSoftmax" => ("Softmax", one, 3, &["axis"]),
            "QLinearGlobalAveragePool" => ("GlobalAveragePool", one, 3, &[]),
            "QLinearAveragePool" => ("AveragePool", one, 3, WINDOW),
            "QLinearConcat" => {
                let tensors = (2..node.input.len()).step_by(3).collect();
                ("Concat", tensors, 0, &["axis"])
            }
            "QGemm" => ("Gemm", vec![0, 3], 7, &["alpha", "transA", "transB"]),
            _ => return None,
        };
        let columns = if number(node, "transB") == 0 { 1 } else { 0 };
        let triple = |at| Triple { at, axis: columns };
        Some(Self {
            operator,
            inputs: inputs.into_iter().map(triple).collect(),
            output,
            bias: (operator == "Gemm").then_some(6),
            attributes,
        })
    }

    fn nodes(&self, node: &NodeProto, fresh: &mut Fresh) -> Option<Vec<NodeProto>> {
        let output = node.output.first().filter(|o| !o.is_empty())?;
        let mut writing = Writing {
            nodes: Vec::new(),
            fresh,
            output,
        };
        let mut inputs = Vec::new();
        for Triple { at, axis } in &self.inputs {
            let given: Vec<&str> = (*at..at + 3).map(|i| input(node, i)).collect();
            if given[0].is_empty() || given[1].is_empty() {
                return None;
            }
            inputs.push(writing.add("DequantizeLinear", &given, vec![int("axis", *axis)]));
        }
        if let Some(bias) = self.bias.filter(|at| !input(node, *at).is_empty()) {
            // It would have to be scaled too; the quantiser writes no other.
            let alpha = node.attribute.iter().find(|a| a.name == "alpha");
            #[allow(clippy::float_cmp)]
            if alpha.is_some_and(|a| a.f != 1.0) {
                return None;
            }
            inputs.push(writing.bias(node, bias));
        }
        let shared = |a: &&AttributeProto| self.attributes.contains(&a.name.as_str());
        let attributes = node.attribute.iter().filter(shared).cloned().collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let result = writing.add(self.operator, &inputs, attributes);
        let (scale, zero) = (input(node, self.output), input(node, self.output + 1));
        if scale.is_empty() {
            // QGemm without an output scale gives floats.
            writing.named("Identity", &[&result], output);
        } else {
            writing.named("QuantizeLinear", &[&result, scale, zero], output);
        }
        Some(writing.nodes)
    }
}

fn input(node: &NodeProto, at: usize) -> &str {
    node.input.get(at).map_or("", String::as_str)
}

/// An attribute; zero if it is not given.
fn number(node: &NodeProto, name: &str) -> i64 {
    let given = node.attribute.iter().find(|a| a.name == name);
    given.map_or(0, |a| a.i)
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int.into(),
        i,
        ..AttributeProto::default()
    }
}

struct Writing<'a> {
    nodes: Vec<NodeProto>,
    fresh: &'a mut Fresh,
    output: &'a str,
}

impl Writing<'_> {
    /// A node; gives its output's name.
    fn add(&mut self, operator: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let name = self.fresh.name(&format!("{}/{operator}", self.output));
        self.named(operator, inputs, &name);
        if let Some(node) = self.nodes.last_mut() {
            node.attribute = attribute;
        }
        name
    }

    fn named(&mut self, operator: &str, inputs: &[&str], output: &str) {
        let mut input: Vec<String> = inputs.iter().map(|&i| i.to_owned()).collect();
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        self.nodes.push(NodeProto {
            input,
            output: vec![output.to_owned()],
            name: output.to_owned(),
            op_type: operator.to_owned(),
            ..NodeProto::default()
        });
    }

    fn bias(&mut self, node: &NodeProto, at: usize) -> String {
        let float = int("to", i32::from(DataType::Float).into());
        let bias = self.add("Cast", &[input(node, at)], vec![float]);
        let scale = self.add("Mul", &[input(node, 1), input(node, 4)], vec![]);
        self.add("Mul", &[&bias, &scale], vec![])
    }
}

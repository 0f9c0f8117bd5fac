//! Operators of `com.microsoft` that ONNX Runtime's quantiser writes (format `QOperator`), as the
//! standard operators between `DequantizeLinear` and `QuantizeLinear` that they stand for.

use super::names::{Fresh, graphs_of_mut};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto};

const DOMAIN: &str = "com.microsoft";

/// Writes out what can be; gives how many.
pub(super) fn write_out(model: &mut ModelProto) -> usize {
    let Some(graph) = &mut model.graph else {
        return 0;
    };
    let mut fresh = Fresh::beside([&*graph]);
    in_graph(graph, &mut fresh)
}

fn in_graph(graph: &mut GraphProto, fresh: &mut Fresh) -> usize {
    let mut written = 0;
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        let standard = Standard::of(&node);
        match standard.and_then(|standard| standard.nodes(&node, fresh)) {
            Some(standard) => {
                nodes.extend(standard);
                written += 1;
            }
            None => {
                for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
                    written += in_graph(inner, fresh);
                }
                nodes.push(node);
            }
        }
    }
    graph.node = nodes;
    written
}

/// Where a quantised tensor, its scale and its zero point are among a node's inputs.
#[derive(Clone, Copy)]
struct Triple(usize);

/// The standard operator inside a quantised one.
struct Standard {
    operator: &'static str,
    inputs: Vec<Triple>,
    /// Where the output's scale and zero point are.
    output: usize,
    /// Attributes that both have.
    attributes: &'static [&'static str],
}

impl Standard {
    fn of(node: &NodeProto) -> Option<Self> {
        if node.domain != DOMAIN || number(node, "channels_last").unwrap_or(0) != 0 {
            return None;
        }
        let of = |operator, inputs: &[usize], output, attributes| {
            let inputs = inputs.iter().map(|at| Triple(*at)).collect();
            Some(Self {
                operator,
                inputs,
                output,
                attributes,
            })
        };
        match node.op_type.as_str() {
            "QLinearAdd" => of("Add", &[0, 3], 6, &[]),
            "QLinearMul" => of("Mul", &[0, 3], 6, &[]),
            "QLinearSigmoid" => of("Sigmoid", &[0], 3, &[]),
            "QLinearLeakyRelu" => of("LeakyRelu", &[0], 3, &["alpha"]),
            "QLinearSoftmax" => of("Softmax", &[0], 3, &["axis"]),
            "QLinearGlobalAveragePool" => of("GlobalAveragePool", &[0], 3, &[]),
            "QLinearAveragePool" => of(
                "AveragePool",
                &[0],
                3,
                &[
                    "auto_pad",
                    "ceil_mode",
                    "count_include_pad",
                    "kernel_shape",
                    "pads",
                    "strides",
                ],
            ),
            "QLinearConcat" => {
                let tensors: Vec<usize> = (2..node.input.len()).step_by(3).collect();
                of("Concat", &tensors, 0, &["axis"])
            }
            "QGemm" => of("Gemm", &[0, 3], 7, &["alpha", "transA", "transB"]),
            _ => None,
        }
    }

    fn nodes(&self, node: &NodeProto, fresh: &mut Fresh) -> Option<Vec<NodeProto>> {
        let output = node.output.first().filter(|o| !o.is_empty())?;
        let mut writing = Writing {
            nodes: Vec::new(),
            fresh,
            output,
        };
        let mut inputs = Vec::new();
        for Triple(at) in &self.inputs {
            let given: Vec<&str> = (*at..at + 3).map(|i| input(node, i)).collect();
            if given[0].is_empty() || given[1].is_empty() {
                return None;
            }
            inputs.push(writing.add("DequantizeLinear", &given, vec![]));
        }
        if node.op_type == "QGemm" && !input(node, 6).is_empty() {
            // The bias would have to be scaled too; the quantiser writes no other.
            let alpha = node.attribute.iter().find(|a| a.name == "alpha");
            #[allow(clippy::float_cmp)]
            if alpha.is_some_and(|a| a.f != 1.0) {
                return None;
            }
            inputs.push(writing.bias(node));
        }
        let shared = node
            .attribute
            .iter()
            .filter(|a| self.attributes.contains(&a.name.as_str()));
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let result = writing.add(self.operator, &inputs, shared.cloned().collect());
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

fn number(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.i)
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

    /// The bias of `QGemm`: integers whose scale is the product of the factors' scales.
    fn bias(&mut self, node: &NodeProto) -> String {
        let float = AttributeProto {
            name: "to".to_owned(),
            r#type: AttributeType::Int.into(),
            i: i32::from(DataType::Float).into(),
            ..AttributeProto::default()
        };
        let bias = self.add("Cast", &[input(node, 6)], vec![float]);
        let scale = self.add("Mul", &[input(node, 1), input(node, 4)], vec![]);
        self.add("Mul", &[&bias, &scale], vec![])
    }
}

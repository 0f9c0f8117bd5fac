//! `Loop` nodes whose number of rounds is known once the inputs' shapes are, written out round by round.
//! Exporters write them where a program goes over the steps of a sequence; the engine has no loops.

use super::names::{Fresh, Renamed, rename_in};
use super::part::Parts;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Most rounds of one loop, and most nodes that all loops of a model may become.
const ROUNDS_MAX: usize = 1024;
pub(super) const NODES_MAX: usize = 50_000;

/// How often the loop at this place goes round, if nothing but shapes decides it. `layers`: its graph
/// and those around it, outermost first.
pub(super) fn rounds(parts: &mut Parts<'_>, layers: &[&GraphProto], at: usize) -> Option<usize> {
    let graph = layers.last()?;
    let node = &graph.node[at];
    let body = body_of(node)?;
    let goes_on = node.input.get(1).map_or("", String::as_str);
    if !goes_on.is_empty() && parts.condition(layers, goes_on) != Some(true) {
        return None;
    }
    let mut inside = layers.to_vec();
    inside.push(body);
    if !always_goes_on(parts, &inside, body) {
        return None;
    }
    let most = node.input.first().filter(|name| !name.is_empty())?;
    let most = usize::try_from(parts.whole_number(layers, most)?).ok()?;
    (most <= ROUNDS_MAX).then_some(most)
}

fn body_of(node: &NodeProto) -> Option<&GraphProto> {
    let body = node.attribute.iter().find(|a| a.name == "body")?;
    body.g.as_ref().filter(|g| g.sparse_initializer.is_empty())
}

/// Whether the condition that a round gives is the one that it got, or a constant true.
fn always_goes_on(parts: &mut Parts<'_>, layers: &[&GraphProto], body: &GraphProto) -> bool {
    let (Some(given), Some(got)) = (body.output.first(), body.input.get(1)) else {
        return false;
    };
    let mut name = given.name.as_str();
    while let Some(node) = body
        .node
        .iter()
        .find(|n| n.output.iter().any(|o| o == name))
    {
        match (node.op_type.as_str(), node.input.first()) {
            ("Identity", Some(input)) => name = input,
            _ => break,
        }
    }
    name == got.name || parts.condition(layers, name) == Some(true)
}

/// Writes a loop of so many rounds in the place of its node; `version` is that of the standard
/// operators. Leaves the graph alone if the node is not as the specification has it, or would become
/// more nodes than these.
pub(super) fn write_in_place(
    graph: &mut GraphProto,
    outer: &[&GraphProto],
    at: usize,
    rounds: usize,
    version: i64,
    nodes_max: usize,
) -> Option<usize> {
    let node = &graph.node[at];
    let body = body_of(node)?.clone();
    let carried = body.input.len().checked_sub(2)?;
    let scanned = body.output.len().checked_sub(1 + carried)?;
    let fits = node.input.len() == 2 + carried && node.output.len() <= carried + scanned;
    // Of no rounds, what they would have given together has a shape that nothing tells.
    let is_told = rounds > 0 || scanned == 0;
    let nodes = (body.node.len() + scanned).checked_mul(rounds)?;
    if !fits || !is_told || nodes > nodes_max {
        return None;
    }
    let fresh = Fresh::beside(outer.iter().copied().chain([&*graph]));
    let node = graph.node.remove(at);
    let mut writing = Writing {
        nodes: Vec::new(),
        weights: Vec::new(),
        fresh,
    };
    writing.rounds(&node, &body, carried, rounds, version);
    let written = writing.nodes.len();
    graph.node.splice(at..at, writing.nodes);
    graph.initializer.append(&mut writing.weights);
    Some(written)
}

struct Writing {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    fresh: Fresh,
}

impl Writing {
    fn rounds(
        &mut self,
        node: &NodeProto,
        body: &GraphProto,
        carried: usize,
        rounds: usize,
        version: i64,
    ) {
        let mut shared = Renamed::new();
        for weight in &body.initializer {
            let name = self.fresh.name(&weight.name);
            shared.insert(weight.name.clone(), name.clone());
            self.weights.push(TensorProto {
                name,
                ..weight.clone()
            });
        }
        let truth = self.weight("goes_on", DataType::Bool, &[], vec![1]);
        shared.insert(body.input[1].name.clone(), truth);
        let mut state: Vec<String> = node.input[2..].to_vec();
        let mut scanned = vec![Vec::new(); body.output.len() - 1 - carried];
        for round in 0..rounds {
            let mut renamed = shared.clone();
            let number = i64::try_from(round).unwrap_or(i64::MAX).to_le_bytes();
            let number = self.weight("round", DataType::Int64, &[], number.to_vec());
            renamed.insert(body.input[0].name.clone(), number);
            for (input, value) in body.input[2..].iter().zip(&state) {
                renamed.insert(input.name.clone(), value.clone());
            }
            self.round(body, &mut renamed);
            let given = |name: &String| renamed.get(name).unwrap_or(name).clone();
            let mut outputs = body.output[1..].iter().map(|o| given(&o.name));
            state = outputs.by_ref().take(carried).collect();
            for (all, one) in scanned.iter_mut().zip(outputs) {
                all.push(one);
            }
        }
        for (at, to) in node
            .output
            .iter()
            .enumerate()
            .filter(|(_, to)| !to.is_empty())
        {
            match at.checked_sub(carried) {
                None => self.add("Identity", &[&state[at]], to, vec![]),
                Some(at) => self.together(&scanned[at], to, version),
            }
        }
    }

    /// The body's nodes once, with names of their own.
    fn round(&mut self, body: &GraphProto, renamed: &mut Renamed) {
        for name in body.node.iter().flat_map(|n| &n.output) {
            if !name.is_empty() {
                renamed.insert(name.clone(), self.fresh.name(name));
            }
        }
        for node in &body.node {
            let mut node = node.clone();
            rename_in(&mut node, renamed);
            if !node.name.is_empty() {
                node.name = self.fresh.name(&node.name);
            }
            self.nodes.push(node);
        }
    }

    /// What each round gave, one behind the other along a first dimension.
    fn together(&mut self, rounds: &[String], to: &str, version: i64) {
        let zero = if version < 13 {
            None
        } else {
            Some(self.weight("axes", DataType::Int64, &[1], vec![0; 8]))
        };
        let mut parts = Vec::new();
        for name in rounds {
            let part = self.fresh.name(&format!("{name}/part"));
            match &zero {
                Some(zero) => self.add("Unsqueeze", &[name, zero], &part, vec![]),
                None => {
                    let axes = AttributeProto {
                        name: "axes".to_owned(),
                        r#type: AttributeType::Ints.into(),
                        ints: vec![0],
                        ..AttributeProto::default()
                    };
                    self.add("Unsqueeze", &[name], &part, vec![axes]);
                }
            }
            parts.push(part);
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let axis = AttributeProto {
            name: "axis".to_owned(),
            r#type: AttributeType::Int.into(),
            i: 0,
            ..AttributeProto::default()
        };
        self.add("Concat", &parts, to, vec![axis]);
    }

    fn add(&mut self, operator: &str, inputs: &[&str], to: &str, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![to.to_owned()],
            name: self.fresh.name(to),
            op_type: operator.to_owned(),
            attribute,
            ..NodeProto::default()
        });
    }

    fn weight(&mut self, like: &str, kind: DataType, dims: &[i64], raw_data: Vec<u8>) -> String {
        let name = self.fresh.name(like);
        self.weights.push(TensorProto {
            name: name.clone(),
            dims: dims.to_vec(),
            data_type: kind.into(),
            raw_data,
            ..TensorProto::default()
        });
        name
    }
}

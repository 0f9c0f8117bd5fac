//! Small ONNX graphs, written down in tests.
#![allow(clippy::unwrap_used)]

use super::graph::{Graph, GraphError, engine};
use super::tensor::Values;
use dunlin_protocol::bundle::{DType, TensorSpec};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// A node named after its first output.
pub(super) fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    NodeProto {
        input: owned(inputs),
        output: owned(outputs),
        name: format!("n_{}", outputs[0]),
        op_type: operator.to_owned(),
        ..NodeProto::default()
    }
}

pub(super) trait With {
    fn with(self, attribute: AttributeProto) -> Self;
    fn of(self, domain: &str) -> Self;
}

impl With for NodeProto {
    fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }

    fn of(mut self, domain: &str) -> Self {
        self.domain = domain.to_owned();
        self
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        r#type: kind.into(),
        ..AttributeProto::default()
    }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        i,
        ..attribute(name, AttributeType::Int)
    }
}

pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto {
        f,
        ..attribute(name, AttributeType::Float)
    }
}

pub(super) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto {
        s: s.as_bytes().to_vec(),
        ..attribute(name, AttributeType::String)
    }
}

pub(super) fn strings(name: &str, values: &[&str]) -> AttributeProto {
    AttributeProto {
        strings: values.iter().map(|v| v.as_bytes().to_vec()).collect(),
        ..attribute(name, AttributeType::Strings)
    }
}

pub(super) fn all_ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        ints: values.to_vec(),
        ..attribute(name, AttributeType::Ints)
    }
}

pub(super) fn graph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto {
        g: Some(g),
        ..attribute(name, AttributeType::Graph)
    }
}

/// A reference to an attribute of the function around it.
pub(super) fn reference(name: &str, to: &str) -> AttributeProto {
    AttributeProto {
        ref_attr_name: to.to_owned(),
        ..attribute(name, AttributeType::Float)
    }
}

pub(super) fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![i64::try_from(values.len()).unwrap()],
        data_type: DataType::Int64.into(),
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

pub(super) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float.into(),
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// 8-bit integers, as they are stored.
pub(super) fn bytes(name: &str, dims: &[i64], kind: DataType, raw: &[u8]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: kind.into(),
        raw_data: raw.to_vec(),
        ..TensorProto::default()
    }
}

fn value(spec: &TensorSpec) -> ValueInfoProto {
    let elem_type = match spec.dtype {
        DType::FP16 => DataType::Float16,
        DType::FP32 => DataType::Float,
        DType::FP64 => DataType::Double,
        DType::INT32 => DataType::Int32,
        DType::INT64 => DataType::Int64,
        DType::BOOL => DataType::Bool,
        DType::UINT8 => DataType::Uint8,
        DType::INT8 => DataType::Int8,
        other => panic!("{other:?} is not written in tests"),
    };
    let dim = |d: &usize| Dimension {
        value: Some(dimension::Value::DimValue(i64::try_from(*d).unwrap())),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: elem_type.into(),
        shape: Some(TensorShapeProto {
            dim: spec.shape.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: spec.name.clone(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

/// A graph inside a node.
pub(super) fn body(nodes: Vec<NodeProto>, outputs: &[&str]) -> GraphProto {
    let outputs = outputs.iter().map(|&name| ValueInfoProto {
        name: name.to_owned(),
        ..ValueInfoProto::default()
    });
    GraphProto {
        name: "body".to_owned(),
        node: nodes,
        output: outputs.collect(),
        ..GraphProto::default()
    }
}

pub(super) fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        layout: None,
    }
}

/// A model and what the manifest would say of it.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub model: ModelProto,
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl Written {
    pub(super) fn new(
        version: i64,
        inputs: Vec<TensorSpec>,
        nodes: Vec<NodeProto>,
        weights: Vec<TensorProto>,
        outputs: Vec<TensorSpec>,
    ) -> Self {
        let graph = GraphProto {
            name: "written".to_owned(),
            node: nodes,
            initializer: weights,
            input: inputs.iter().map(value).collect(),
            output: outputs.iter().map(value).collect(),
            ..GraphProto::default()
        };
        let standard = OperatorSetIdProto {
            domain: String::new(),
            version,
        };
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![standard],
            graph: Some(graph),
            ..ModelProto::default()
        };
        Self {
            model,
            inputs,
            outputs,
        }
    }

    pub(super) fn load(&self) -> Result<Graph, GraphError> {
        Graph::from_proto(&engine(), self.model.clone(), &self.inputs, &self.outputs)
    }

    /// The only output for these inputs.
    pub(super) fn answer(&self, inputs: &[Values]) -> Values {
        let graph = self.load().unwrap_or_else(|e| panic!("{e}"));
        graph
            .run(inputs)
            .unwrap_or_else(|e| panic!("{e}"))
            .remove(0)
    }
}

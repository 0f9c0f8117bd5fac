#![allow(clippy::unwrap_used)]

use super::*;
use dunlin_protocol::bundle::DType;

/// Enough of the protocol buffers encoding to write a small ONNX file (onnx.proto3).
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    assert!(bytes.len() < 128);
    out.extend(bytes);
    out
}

fn varint(number: u8, value: u8) -> Vec<u8> {
    assert!(value < 128);
    vec![number << 3, value]
}

fn long_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    let mut out = vec![number << 3 | 2];
    out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
    out.push(u8::try_from(length >> 7).unwrap());
    out.extend(bytes);
    out
}

/// A dimension: a number, or a symbol for 0.
fn value_info(name: &str, elem: u8, dims: &[u8]) -> Vec<u8> {
    let dims: Vec<u8> = dims
        .iter()
        .flat_map(|&d| match d {
            0 => field(1, &field(2, b"batch")),
            d => field(1, &varint(1, d)),
        })
        .collect();
    let tensor = [varint(1, elem), field(2, &dims)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// One node `y = op(inputs…)`, all tensors of one element type and shape.
fn onnx(op: &str, inputs: &[&str], elem: u8, dims: &[u8]) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|i| field(1, i.as_bytes())).collect();
    node.extend(field(2, b"y"));
    node.extend(field(4, op.as_bytes()));
    let mut graph = [field(1, &node), field(2, b"g")].concat();
    for input in inputs {
        graph.extend(field(11, &value_info(input, elem, dims)));
    }
    graph.extend(field(12, &value_info("y", elem, dims)));
    let opset = field(8, &varint(2, 13));
    [varint(1, 7), long_field(7, &graph), opset].concat()
}

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        layout: None,
    }
}

#[test]
fn every_element_type_runs() {
    let kinds = [
        (DType::FP32, 1),
        (DType::UINT8, 2),
        (DType::INT8, 3),
        (DType::UINT16, 4),
        (DType::INT16, 5),
        (DType::INT32, 6),
        (DType::INT64, 7),
        (DType::BOOL, 9),
        (DType::FP16, 10),
        (DType::FP64, 11),
        (DType::UINT32, 12),
        (DType::UINT64, 13),
    ];
    for (dtype, elem) in kinds {
        let (x, y) = (spec("x", dtype, &[2]), spec("y", dtype, &[2]));
        let graph = Graph::load(&onnx("Identity", &["x"], elem, &[2]), &[x], &[y])
            .unwrap_or_else(|e| panic!("{dtype:?}: {e}"));
        let values = Values::from_f64(dtype, &[1.0, 0.0]).unwrap();
        assert_eq!(graph.run(std::slice::from_ref(&values)).unwrap(), [values]);
    }
}

#[test]
fn tensors_are_bound_by_name_and_not_by_place() {
    let model = onnx("Sub", &["a", "b"], 1, &[2]);
    let f = |name| spec(name, DType::FP32, &[2]);
    let graph = Graph::load(&model, &[f("b"), f("a")], &[f("y")]).unwrap();
    let (b, a) = (Values::FP32(vec![1.0, 2.0]), Values::FP32(vec![10.0, 10.0]));
    assert_eq!(graph.run(&[b, a]).unwrap(), [Values::FP32(vec![9.0, 8.0])]);
    let missing = Graph::load(&model, &[f("a")], &[f("y")]).unwrap_err();
    assert!(missing.to_string().contains("needs \"b\""), "{missing}");
}

#[test]
fn a_symbolic_dimension_takes_the_manifests_size() {
    let model = onnx("Neg", &["x"], 1, &[0, 3]);
    let f = |name, shape: &[usize]| spec(name, DType::FP32, shape);
    let graph = Graph::load(&model, &[f("x", &[2, 3])], &[f("y", &[2, 3])]).unwrap();
    let out = graph.run(&[Values::FP32(vec![1.0; 6])]).unwrap();
    assert_eq!(out, [Values::FP32(vec![-1.0; 6])]);
    let wrong = Graph::load(&model, &[f("x", &[2, 4])], &[f("y", &[2, 4])]).unwrap_err();
    assert!(matches!(wrong, GraphError::Inputs(_)), "{wrong}");
}

#[test]
fn a_panic_becomes_an_error() {
    let caught = guarded::<()>("testing", || panic!("boom {}", 1)).unwrap_err();
    assert_eq!(
        caught.to_string(),
        "the engine panicked while testing: boom 1"
    );
}

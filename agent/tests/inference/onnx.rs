//! Enough of the protocol buffers encoding to write an ONNX file (onnx.proto3).

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

pub(crate) fn number(field: u64, n: u64) -> Vec<u8> {
    [varint(field << 3), varint(n)].concat()
}

pub(crate) fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    let head = [varint(field << 3 | 2), varint(content.len() as u64)].concat();
    [&head, content].concat()
}

fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|i| bytes(1, i.as_bytes())).collect();
    node.extend(bytes(2, output.as_bytes()));
    node.extend(bytes(4, op.as_bytes()));
    if op == "ConstantOfShape" {
        let zero = [number(1, 1), number(2, 1), bytes(9, &0_f32.to_le_bytes())].concat();
        let value = [bytes(1, b"value"), bytes(5, &zero), number(20, 4)];
        node.extend(bytes(5, &value.concat()));
    }
    bytes(1, &node)
}

const FLOAT: u64 = 1;
const INT32: u64 = 6;
const INT64: u64 = 7;

fn value(name: &str, dtype: u64, dims: &[u64]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|d| bytes(1, &number(1, *d))).collect();
    let tensor = [number(1, dtype), bytes(2, &dims)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

/// `probabilities = pixels[0..10] + sum(zeros of rows x columns)`: a file of a few hundred bytes
/// that needs rows x columns x 4 bytes of memory.
pub(crate) fn hungry(rows: u64, columns: u64) -> Vec<u8> {
    let graph = [
        longs("shape", &[rows, columns]),
        longs("starts", &[0]),
        longs("ends", &[10]),
        longs("axes", &[1]),
        node("ConstantOfShape", &["shape"], "zeros"),
        node("ReduceSum", &["zeros"], "sum"),
        node("Slice", &["pixels", "starts", "ends", "axes"], "ten"),
        node("Add", &["ten", "sum"], "probabilities"),
        bytes(2, b"g"),
        bytes(11, &value("pixels", FLOAT, &[1, 64])),
        bytes(12, &value("probabilities", FLOAT, &[1, 10])),
    ];
    model(&graph)
}

/// `quotient = 100 / by`, of whole numbers: nothing a graph may do by 0.
pub(crate) fn dividing() -> Vec<u8> {
    model(&[
        constant("hundred", INT32, &[1], &100_i32.to_le_bytes()),
        node("Div", &["hundred", "by"], "quotient"),
        bytes(2, b"g"),
        bytes(11, &value("by", INT32, &[1])),
        bytes(12, &value("quotient", INT32, &[1])),
    ])
}

/// `probabilities = pixels x weights` over one row of so many weights more than there are pixels.
pub(crate) fn heavy(weights: u64) -> Vec<u8> {
    let wide = weights / 64;
    let raw: Vec<u8> = (0..wide * 64)
        .flat_map(|n| (n as f32).to_le_bytes())
        .collect();
    model(&[
        constant("weights", FLOAT, &[64, wide], &raw),
        longs("starts", &[0]),
        longs("ends", &[10]),
        longs("axes", &[1]),
        node("MatMul", &["pixels", "weights"], "many"),
        node(
            "Slice",
            &["many", "starts", "ends", "axes"],
            "probabilities",
        ),
        bytes(2, b"g"),
        bytes(11, &value("pixels", FLOAT, &[1, 64])),
        bytes(12, &value("probabilities", FLOAT, &[1, 10])),
    ])
}

fn longs(name: &str, values: &[u64]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    constant(name, INT64, &[values.len() as u64], &raw)
}

fn constant(name: &str, dtype: u64, dims: &[u64], raw: &[u8]) -> Vec<u8> {
    let mut tensor: Vec<u8> = dims.iter().flat_map(|d| number(1, *d)).collect();
    tensor.extend(number(2, dtype));
    tensor.extend(bytes(8, name.as_bytes()));
    tensor.extend(bytes(9, raw));
    bytes(5, &tensor)
}

fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    let opset = bytes(8, &number(2, 13));
    [number(1, 7), bytes(7, &graph.concat()), opset].concat()
}

//! Entries for fuzzing: what a client may send, read and answered without an engine.

use super::api::json::{self, InferRequest};
use super::api::signature::Signature;
use super::steps::{Shaped, decode};
use super::tensor::Values;
use dunlin_protocol::bundle::flow::{Input, Output};
use dunlin_protocol::bundle::step::{Channels, DecodeImage, ImageFormat};
use dunlin_protocol::bundle::{DType, TensorSpec, TensorType};

/// Longest error that is an answer and no echo.
const ERROR_MAX_BYTES: usize = 8192;

fn specs() -> (Vec<Input>, Vec<Output>) {
    let input = |name: &str, dtype, shape: &[usize]| {
        Input::from(TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            layout: None,
        })
    };
    let output = |name: &str, dtype, shape: &[usize], slot| Output {
        name: name.to_owned(),
        of: TensorType::fixed(dtype, shape),
        slot,
    };
    let inputs = vec![
        input("f", DType::FP32, &[1, 2]),
        input("i", DType::INT64, &[2]),
        input("b", DType::BOOL, &[]),
    ];
    let outputs = vec![
        output("y", DType::FP64, &[2], 0),
        output("h", DType::FP16, &[1], 1),
    ];
    (inputs, outputs)
}

fn outputs() -> Option<[Shaped; 2]> {
    let half = Values::from_f64(DType::FP16, &[0.5]).ok()?;
    let whole = Values::FP64(vec![f64::NAN, -0.0]);
    Some([Shaped::new(vec![2], whole), Shaped::new(vec![1], half)])
}

fn check_inputs(inputs: &[Values], signature: &Signature<'_>) {
    assert_eq!(inputs.len(), signature.inputs.len());
    for (values, Input { spec, .. }) in inputs.iter().zip(signature.inputs) {
        assert_eq!(values.dtype(), spec.dtype);
        assert_eq!(values.len(), spec.elements());
    }
}

/// A picture from an application: the first byte chooses how it is decoded. Panics if the image is not
/// what it says, or larger than allowed.
pub fn image(data: &[u8]) {
    const MAX_PIXELS: usize = 1 << 16;
    let Some((choice, file)) = data.split_first() else {
        return;
    };
    let channels = match choice % 2 {
        0 => Channels::Rgb,
        _ => Channels::Grey,
    };
    let step = DecodeImage {
        tensor: String::new(),
        into: None,
        channels,
        max_pixels: MAX_PIXELS,
        formats: vec![ImageFormat::Jpeg, ImageFormat::Png],
    };
    if let Ok(image) = decode::decode(file, &step) {
        let pixels = image.height * image.width;
        assert!(pixels <= MAX_PIXELS, "bounded");
        assert_eq!(image.channels, channels.count());
        assert_eq!(image.pixels.len(), pixels * image.channels);
    }
}

/// A REST request: what `Inference-Header-Content-Length` says (nothing: no such header), a line's end, the
/// body. Panics if what was read does not fit the model, or an answer is not what it says it is.
pub fn rest_request(data: &[u8]) {
    let (inputs, results) = specs();
    let signature = Signature {
        name: "fuzzed",
        version: 1,
        inputs: &inputs,
        outputs: &results,
    };
    let mut parts = data.splitn(2, |b| *b == b'\n');
    let (Some(header), Some(body)) = (parts.next(), parts.next()) else {
        return;
    };
    let json_bytes = match std::str::from_utf8(header).map(str::parse) {
        Ok(Ok(n)) => Some(n),
        _ if header.is_empty() => None,
        _ => return,
    };
    let request = match InferRequest::parse(body, json_bytes, &signature) {
        Ok(request) => request,
        Err(error) => {
            assert!(error.message.len() <= ERROR_MAX_BYTES, "{error}");
            return;
        }
    };
    check_inputs(&request.inputs, &signature);
    let Some(outputs) = outputs() else { return };
    let answer = json::answer(&signature, &request, &outputs);
    let answer = answer.unwrap_or_else(|e| panic!("what was asked for can be given: {e}"));
    let json = &answer.body[..answer.json_bytes.unwrap_or(answer.body.len())];
    let json: serde_json::Value =
        serde_json::from_slice(json).unwrap_or_else(|e| panic!("an answer is JSON: {e}"));
    let listed = json["outputs"].as_array().map_or(0, Vec::len);
    assert_eq!(listed, request.outputs.len());
}

/// A `ModelInferRequest`. Panics if what was read does not fit the model.
#[cfg(feature = "grpc")]
pub fn grpc_request(data: &[u8]) {
    use super::grpc::message;
    let (inputs, results) = specs();
    let signature = Signature {
        name: "fuzzed",
        version: 1,
        inputs: &inputs,
        outputs: &results,
    };
    let _ = message::Named::read(data, 1, 2);
    match message::InferRequest::parse(data, &signature) {
        Err(error) => assert!(error.message.len() <= ERROR_MAX_BYTES, "{error}"),
        Ok(request) => {
            check_inputs(&request.inputs, &signature);
            let Some(outputs) = outputs() else { return };
            let answer = message::answer(&signature, &request, &outputs).into_bytes();
            let named = message::Named::read(&answer, 1, 2);
            assert!(named.is_ok_and(|n| n.name == "fuzzed"));
        }
    }
}

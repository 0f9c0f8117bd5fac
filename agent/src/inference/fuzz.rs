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
/// Longest element of a string.
const STRING_MAX_BYTES: usize = 32;

/// A model of several element types, and of strings as text and as base64.
fn model() -> (Vec<Input>, Vec<Output>) {
    let input = |name: &str, dtype, shape: &[usize]| {
        Input::from(TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            layout: None,
        })
    };
    let output = |name: &str, dtype, shape: &[usize]| Output {
        name: name.to_owned(),
        of: TensorType::fixed(dtype, shape),
        slot: 0,
    };
    let strings = |name: &str, base64| Input {
        bytes_max: STRING_MAX_BYTES,
        base64,
        ..input(name, DType::BYTES, &[1])
    };
    let inputs = vec![
        input("f", DType::FP32, &[1, 2]),
        input("i", DType::INT64, &[2]),
        input("b", DType::BOOL, &[]),
        strings("s", false),
        strings("p", true),
    ];
    let outputs = vec![
        output("y", DType::FP64, &[2]),
        output("h", DType::FP16, &[1]),
    ];
    (inputs, outputs)
}

fn outputs() -> Option<[Shaped; 2]> {
    let half = Values::from_f64(DType::FP16, &[0.5]).ok()?;
    Some([
        Shaped::new(vec![2], Values::FP64(vec![f64::NAN, -0.0])),
        Shaped::new(vec![1], half),
    ])
}

fn check_inputs(inputs: &[Values], signature: &Signature<'_>) {
    assert_eq!(inputs.len(), signature.inputs.len());
    for (values, input) in inputs.iter().zip(signature.inputs) {
        assert_eq!(values.dtype(), input.spec.dtype);
        assert_eq!(values.len(), input.spec.elements());
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
/// body. Says whether it is one. Panics if what was read does not fit the model, or an answer is not what
/// it says it is.
#[must_use]
pub fn rest_request(data: &[u8]) -> bool {
    let (inputs, results) = model();
    let signature = Signature {
        name: "fuzzed",
        version: 1,
        inputs: &inputs,
        outputs: &results,
    };
    let mut parts = data.splitn(2, |b| *b == b'\n');
    let (Some(header), Some(body)) = (parts.next(), parts.next()) else {
        return false;
    };
    let json_bytes = match std::str::from_utf8(header).map(str::parse) {
        Ok(Ok(n)) => Some(n),
        _ if header.is_empty() => None,
        _ => return false,
    };
    let request = match InferRequest::parse(body, json_bytes, &signature) {
        Ok(request) => request,
        Err(error) => {
            assert!(error.message.len() <= ERROR_MAX_BYTES, "{error}");
            return false;
        }
    };
    check_inputs(&request.inputs, &signature);
    let Some(outputs) = outputs() else {
        return false;
    };
    let answer = json::answer(&signature, &request, &outputs);
    let answer = answer.unwrap_or_else(|e| panic!("what was asked for can be given: {e}"));
    let json = &answer.body[..answer.json_bytes.unwrap_or(answer.body.len())];
    let json: serde_json::Value =
        serde_json::from_slice(json).unwrap_or_else(|e| panic!("an answer is JSON: {e}"));
    let listed = json["outputs"].as_array().map_or(0, Vec::len);
    assert_eq!(listed, request.outputs.len());
    true
}

/// A `ModelInferRequest`. Says whether it is one. Panics if what was read does not fit the model.
#[cfg(feature = "grpc")]
#[must_use]
pub fn grpc_request(data: &[u8]) -> bool {
    use super::grpc::message;
    let (inputs, results) = model();
    let signature = Signature {
        name: "fuzzed",
        version: 1,
        inputs: &inputs,
        outputs: &results,
    };
    let _ = message::Named::read(data, 1, 2);
    match message::InferRequest::parse(data, &signature) {
        Err(error) => {
            assert!(error.message.len() <= ERROR_MAX_BYTES, "{error}");
            false
        }
        Ok(request) => {
            check_inputs(&request.inputs, &signature);
            let Some(outputs) = outputs() else {
                return false;
            };
            let answer = message::answer(&signature, &request, &outputs).into_bytes();
            let named = message::Named::read(&answer, 1, 2);
            assert!(named.is_ok_and(|n| n.name == "fuzzed"));
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! seed {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/fuzz/corpus/", $name))
        };
    }

    #[test]
    fn fuzzing_begins_with_what_is_accepted() {
        assert!(rest_request(seed!("request/seed-00")));
        assert!(rest_request(seed!("request/seed-01")));
        assert!(rest_request(seed!("request/seed-02")));
        assert!(!rest_request(seed!("request/seed-03")), "several inputs");
    }

    #[cfg(feature = "grpc")]
    #[test]
    fn fuzzing_of_grpc_begins_with_what_is_accepted() {
        assert!(grpc_request(seed!("grpc/seed-00")));
        assert!(grpc_request(seed!("grpc/seed-01")));
        assert!(grpc_request(seed!("grpc/seed-02")));
        assert!(grpc_request(seed!("grpc/seed-03")));
        assert!(!grpc_request(seed!("grpc/seed-04")), "cut off");
    }
}

#![allow(clippy::unwrap_used)]

use super::*;
use dunlin_protocol::bundle::flow::{Input, Output};
use dunlin_protocol::bundle::{DType, TensorSpec, TensorType};
use http::StatusCode;
use serde_json::json;

fn tensor(name: &str, dtype: DType, shape: &[usize]) -> Input {
    Input::from(TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        layout: None,
    })
}

fn output(name: &str, dtype: DType, shape: &[usize]) -> Output {
    Output {
        name: name.to_owned(),
        of: TensorType::fixed(dtype, shape),
        slot: 0,
    }
}

/// What the model gives.
fn outputs(y: [f32; 2], z: i64) -> [Shaped; 2] {
    [
        Shaped::new(vec![1, 2], Values::FP32(y.to_vec())),
        Shaped::new(vec![1], Values::INT64(vec![z])),
    ]
}

struct Model {
    inputs: Vec<Input>,
    outputs: Vec<Output>,
}

impl Model {
    fn one() -> Self {
        Self {
            inputs: vec![tensor("x", DType::FP32, &[1, 2])],
            outputs: vec![
                output("y", DType::FP32, &[1, 2]),
                output("z", DType::INT64, &[1]),
            ],
        }
    }

    fn two() -> Self {
        Self {
            inputs: vec![
                tensor("a", DType::UINT8, &[3]),
                tensor("b", DType::FP32, &[1]),
            ],
            ..Self::one()
        }
    }

    fn signature(&self) -> Signature<'_> {
        Signature {
            name: "digits",
            version: 3,
            inputs: &self.inputs,
            outputs: &self.outputs,
        }
    }
}

fn parse(body: &str) -> Result<InferRequest, ApiError> {
    InferRequest::parse(body.as_bytes(), None, &Model::one().signature())
}

fn binary(model: &Model, json: &str, tail: &[u8]) -> Result<InferRequest, ApiError> {
    let body = [json.as_bytes(), tail].concat();
    InferRequest::parse(&body, Some(json.len()), &model.signature())
}

fn wanted(index: usize, binary: bool) -> Wanted {
    Wanted { index, binary }
}

const GOOD: &str = r#""name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]"#;

#[test]
fn a_request_keeps_id_and_parameters_and_chooses_outputs() {
    let request = parse(
        r#"{"id":"7","parameters":{"k":1,"binary_data_output":false},
            "inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]}],
            "outputs":[{"name":"z","parameters":{"binary_data":false,"mine":[1]}}]}"#,
    )
    .unwrap();
    assert_eq!(request.inputs, [Values::FP32(vec![1.0, 2.5])]);
    assert_eq!(request.outputs, [wanted(1, false)]);
    let outputs = outputs([0.0, 0.1], 4);
    let answer = answer(&Model::one().signature(), &request, &outputs).unwrap();
    assert_eq!(answer.json_bytes, None);
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        body,
        json!({"model_name": "digits", "model_version": "3", "id": "7", "parameters": {"k": 1},
            "outputs": [{"name": "z", "datatype": "INT64", "shape": [1], "data": [4]}]})
    );
}

#[test]
fn lists_are_taken_for_no_objects() {
    let good = format!(r#"{{"inputs":[{{{GOOD}}}],"outputs":[{{"name":"z"}}]}}"#);
    assert_eq!(parse(&good).unwrap().outputs, [wanted(1, false)]);
    let lists = [
        format!(r#"["i1",null,[{{{GOOD}}}],[]]"#),
        r#"{"inputs":[["x","FP32",[1,2],null,[1,2]]]}"#.to_owned(),
        format!(r#"{{"inputs":[{{{GOOD}}}],"outputs":[["z",null]]}}"#),
        format!(r#"{{"inputs":[{{{GOOD},"parameters":[null]}}]}}"#),
        format!(r#"{{"inputs":[{{{GOOD}}}],"parameters":[]}}"#),
    ];
    for body in lists {
        let refused = parse(&body).unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(
            refused.message.contains("expected an object"),
            "{refused:?}"
        );
    }
}

#[test]
fn binary_tensors_follow_the_json_in_the_order_of_the_inputs() {
    let json = r#"{"inputs":[
        {"name":"b","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}},
        {"name":"a","datatype":"UINT8","shape":[3],"parameters":{"binary_data_size":3}}]}"#;
    let request = binary(&Model::two(), json, &[0, 0, 0x80, 0x3f, 7, 8, 9]).unwrap();
    let inputs = [Values::UINT8(vec![7, 8, 9]), Values::FP32(vec![1.0])];
    assert_eq!(request.inputs, inputs);
    assert_eq!(request.outputs, [wanted(0, false), wanted(1, false)]);
    // One of each kind.
    let json = r#"{"inputs":[
        {"name":"b","datatype":"FP32","shape":[1],"data":[1]},
        {"name":"a","datatype":"UINT8","shape":[3],"parameters":{"binary_data_size":3}}]}"#;
    let request = binary(&Model::two(), json, &[7, 8, 9]).unwrap();
    assert_eq!(request.inputs, inputs);
}

#[test]
fn outputs_come_in_binary_where_the_client_says_so() {
    let request = parse(&format!(
        r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{{GOOD}}}]}}"#
    ))
    .unwrap();
    assert_eq!(request.outputs, [wanted(0, true), wanted(1, true)]);
    assert_eq!(request.parameters, None);
    let request = parse(&format!(
        r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{{GOOD}}}],
            "outputs":[{{"name":"z"}},{{"name":"y","parameters":{{"binary_data":false}}}}]}}"#
    ))
    .unwrap();
    assert_eq!(request.outputs, [wanted(1, true), wanted(0, false)]);

    let outputs = outputs([0.5, f32::NAN], -2);
    let answer = answer(&Model::one().signature(), &request, &outputs).unwrap();
    let (json, tail) = answer.body.split_at(answer.json_bytes.unwrap());
    let json: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(
        json["outputs"],
        json!([
            {"name": "z", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, null]},
        ])
    );
    assert_eq!(tail, (-2_i64).to_le_bytes());
}

#[test]
fn a_body_without_json_is_the_only_inputs_values() {
    let model = Model::one();
    let body = [1.0_f32.to_le_bytes(), f32::INFINITY.to_le_bytes()].concat();
    let request = InferRequest::parse(&body, Some(0), &model.signature()).unwrap();
    assert_eq!(request.inputs, [Values::FP32(vec![1.0, f32::INFINITY])]);
    assert_eq!(request.outputs, [wanted(0, true), wanted(1, true)]);
    for (model, hint) in [
        (Model::one(), "expected 8 bytes, got 7"),
        (Model::two(), "this one has 2"),
    ] {
        let error = InferRequest::parse(&body[..7], Some(0), &model.signature()).unwrap_err();
        assert!(error.message.contains(hint), "{error}");
    }
}

#[test]
fn lengths_that_lie_are_told() {
    let input = |fields: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{{{fields}}}}}]}}"#
        )
    };
    let size = |size: &str| input(&format!(r#""binary_data_size":{size}"#));
    for (json, tail, hint) in [
        (
            size("8"),
            7,
            "binary_data_size is 8, yet 7 bytes are left of the body",
        ),
        (size("8"), 9, "1 bytes behind the JSON belong to no input"),
        (size("4"), 4, "expected 8 bytes, got 4"),
        (
            size("18446744073709551615"),
            8,
            "yet 8 bytes are left of the body",
        ),
        (size("-8"), 8, "parameters of input \"x\""),
        (size("8.5"), 8, "parameters of input \"x\""),
        (size("1e400"), 8, "parameters of input \"x\""),
        (input(""), 8, "8 bytes behind the JSON belong to no input"),
        (input(""), 0, "there is none"),
        (
            format!(r#"{{"inputs":[{{{GOOD},"parameters":{{"binary_data_size":8}}}}]}}"#),
            8,
            "both data and binary_data_size",
        ),
    ] {
        let error = binary(&Model::one(), &json, &vec![0; tail]).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(error.message.contains(hint), "{json}: {error}");
    }
    let model = Model::one();
    let error = InferRequest::parse(b"{}", Some(3), &model.signature()).unwrap_err();
    assert!(error.message.contains("is 3, yet the body has 2 bytes"));
}

#[test]
fn a_wrong_request_is_told_what_was_expected() {
    let input = |fields: &str| format!(r#"{{"inputs":[{{{fields}}}]}}"#);
    let many = |item: &str, n: usize| vec![item; n].join(",");
    let cases = [
        ("not json".to_owned(), "not an inference request"),
        ("{}".to_owned(), "missing field `inputs`"),
        (r#"{"inputs":[]}"#.to_owned(), r#"expected "x" FP32 [1, 2]"#),
        (
            input(r#""name":"w","datatype":"FP32","shape":[1,2],"data":[1,2]"#),
            r#"input "w" is unknown; expected "x" FP32 [1, 2]"#,
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[2],"data":[1,2]"#),
            r#"expected "x" FP32 [1, 2], got FP32 [2]"#,
        ),
        (
            input(r#""name":"x","datatype":"INT64","shape":[1,2],"data":[1,2]"#),
            "got INT64 [1, 2]",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[18446744073709551615,2],"data":[1,2]"#),
            "got FP32 [18446744073709551615, 2]",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[18446744073709551616],"data":[1]"#),
            "not an inference request",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[-1,2],"data":[1,2]"#),
            "not an inference request",
        ),
        (
            input(&format!(
                r#""name":"x","datatype":"FP32","shape":[{}],"data":[1,2]"#,
                many("1", 17)
            )),
            "a list of more than 16",
        ),
        (
            format!(r#"{{"inputs":[{}]}}"#, many(&format!("{{{GOOD}}}"), 65)),
            "a list of more than 64",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1,2],"data":[1]"#),
            "expected 2 values, got 1",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1,2],"data":[1,NaN]"#),
            "JSON has no NaN and no infinity",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1,2],"data":[-Infinity,1]"#),
            "JSON has no NaN and no infinity",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1,2]"#),
            "there is none",
        ),
        (
            format!(r#"{{"inputs":[{{{GOOD}}},{{{GOOD}}}]}}"#),
            "given twice",
        ),
        (
            format!(r#"{{"inputs":[{{{GOOD}}}],"outputs":[{{"name":"q"}}]}}"#),
            r#"output "q" is unknown"#,
        ),
        (
            format!(r#"{{"inputs":[{{{GOOD}}}],"outputs":[{{"name":"y"}},{{"name":"y"}}]}}"#),
            r#"output "y" is asked for twice"#,
        ),
        (
            format!(
                r#"{{"inputs":[{{{GOOD}}}],"outputs":[{{"name":"y","parameters":{{"classification":3}}}}]}}"#
            ),
            "the classification extension is not supported",
        ),
        (
            input(&format!(
                r#"{GOOD},"parameters":{{"shared_memory_region":"r"}}"#
            )),
            "shared memory extensions are not supported",
        ),
        (
            format!(r#"{{"parameters":{{"binary_data_output":1}},"inputs":[{{{GOOD}}}]}}"#),
            "binary_data_output: expected true or false",
        ),
        (
            format!(r#"{{"id":"{}","inputs":[{{{GOOD}}}]}}"#, "i".repeat(257)),
            "id: at most 256",
        ),
        (
            format!(r#"{{"parameters":[1],"inputs":[{{{GOOD}}}]}}"#),
            "expected an object",
        ),
        (
            format!(
                r#"{{"parameters":{{"k":"{}"}},"inputs":[{{{GOOD}}}]}}"#,
                "v".repeat(4096)
            ),
            "at most 4096 are accepted",
        ),
    ];
    for (body, hint) in cases {
        let error = parse(&body).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(error.message.contains(hint), "{body}: {}", error.message);
        assert!(error.message.len() < 1000, "{}", error.message.len());
    }
}

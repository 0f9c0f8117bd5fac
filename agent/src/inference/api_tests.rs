#![allow(clippy::unwrap_used)]

use super::*;
use dunlin_protocol::bundle::{Blob, Files, Limits, Lineage, Resources, Steps, TensorSpec};
use dunlin_protocol::id::Digest;

fn manifest() -> Manifest {
    let tensor = |name: &str, dtype, shape: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        layout: None,
    };
    let blob = Blob {
        sha256: Digest::of(b""),
        length: 1,
        packed: None,
    };
    Manifest {
        schema: Manifest::SCHEMA.to_owned(),
        kind: "model".to_owned(),
        family: "digits".parse().unwrap(),
        version: 3,
        inputs: vec![tensor("x", DType::FP32, &[1, 2])],
        outputs: vec![
            tensor("y", DType::FP32, &[1, 2]),
            tensor("z", DType::INT64, &[1]),
        ],
        steps: Steps::default(),
        application: None,
        labels: vec![],
        limits: Limits {
            tolerance_abs: 0.0,
            latency_budget_ms: 1,
        },
        resources: Resources {
            ram_bytes: 0,
            disk_bytes: 0,
            arch: vec!["any".to_owned()],
            agent_min: "0.1.0".to_owned(),
        },
        lineage: Lineage::default(),
        files: Files {
            model: blob.clone(),
            golden: blob,
            profile: None,
            card: None,
        },
    }
}

fn parse(body: &str) -> Result<InferRequest, ApiError> {
    InferRequest::parse(body.as_bytes(), &Flow::of(&manifest()).unwrap())
}

#[test]
fn every_path_has_its_route() {
    let get = |path| route(&Method::GET, path);
    assert_eq!(get("/v2").unwrap(), Route::Server);
    assert_eq!(get("/v2/").unwrap(), Route::Server);
    assert_eq!(get("/v2/health/ready").unwrap(), Route::Ready);
    assert_eq!(
        route(&Method::POST, "/v2/models/digits/versions/2/infer").unwrap(),
        Route::Model {
            name: "digits".to_owned(),
            version: Some("2".to_owned()),
            ask: ModelAsk::Infer
        }
    );
    assert!(matches!(
        get("/v2/models/digits").unwrap(),
        Route::Model {
            ask: ModelAsk::Metadata,
            version: None,
            ..
        }
    ));
    for path in [
        "/",
        "/v1",
        "/v2/models/digits/x",
        "/v2/models/a/versions/1/x/y",
    ] {
        assert_eq!(
            get(path).unwrap_err().status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert_eq!(
        get("/v2/models/digits/infer").unwrap_err().status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[test]
fn a_request_keeps_id_and_parameters_and_chooses_outputs() {
    let request = parse(
        r#"{"id":"7","parameters":{"k":1,"binary_data_output":false},
            "inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]}],
            "outputs":[{"name":"z","parameters":{"binary_data":false}}]}"#,
    )
    .unwrap();
    assert_eq!(request.inputs, [Values::FP32(vec![1.0, 2.5])]);
    assert_eq!(request.outputs, [1]);
    let outputs = [
        Shaped::new(vec![1, 2], Values::FP32(vec![0.0, 0.1])),
        Shaped::new(vec![1], Values::INT64(vec![4])),
    ];
    let flow = Flow::of(&manifest()).unwrap();
    let body = answer(&manifest(), &flow, &request, &outputs).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body,
        json!({"model_name": "digits", "model_version": "3", "id": "7",
            "parameters": {"k": 1, "binary_data_output": false},
            "outputs": [{"name": "z", "datatype": "INT64", "shape": [1], "data": [4]}]})
    );
}

#[test]
fn a_wrong_request_is_told_what_was_expected() {
    let input = |fields: &str| format!(r#"{{"inputs":[{{{fields}}}]}}"#);
    let good = r#""name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]"#;
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
            input(r#""name":"x","datatype":"FP32","shape":[1,2],"data":[1]"#),
            "expected 2 values, got 1",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1,2]"#),
            "has no data",
        ),
        (
            input(&format!(r#"{good},"parameters":{{"binary_data_size":8}}"#)),
            "binary tensor data extension",
        ),
        (
            format!(r#"{{"inputs":[{{{good}}},{{{good}}}]}}"#),
            "given twice",
        ),
        (
            format!(r#"{{"inputs":[{{{good}}}],"outputs":[{{"name":"q"}}]}}"#),
            r#"output "q" is unknown"#,
        ),
        (
            format!(r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{{good}}}]}}"#),
            "binary tensor data extension",
        ),
        (
            format!(r#"{{"id":"{}","inputs":[{{{good}}}]}}"#, "i".repeat(257)),
            "id: at most 256",
        ),
        (
            format!(r#"{{"parameters":[1],"inputs":[{{{good}}}]}}"#),
            "expected an object",
        ),
    ];
    for (body, hint) in cases {
        let error = parse(&body).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(error.message.contains(hint), "{body}: {}", error.message);
    }
}

use super::*;
use crate::bundle::manifest::DType;
use crate::bundle::manifest::tests::sample;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A manifest with these graph tensors and steps, or why not.
fn flow(changes: &Value) -> Result<Flow, String> {
    let mut manifest = serde_json::to_value(sample()).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        manifest[field] = value.clone();
    }
    let manifest = Manifest::parse(manifest.to_string().as_bytes()).map_err(|e| e.to_string())?;
    Flow::of(&manifest).map_err(|e| e.to_string())
}

fn tensor(name: &str, dtype: &str, shape: &[usize]) -> Value {
    json!({"name": name, "dtype": dtype, "shape": shape})
}

/// A classifier that is fed with pictures.
fn classifier() -> Value {
    json!({
        "inputs": [tensor("x", "FP32", &[1, 3, 224, 224])],
        "outputs": [tensor("logits", "FP32", &[1, 10])],
        "application": {
            "inputs": [{"name": "image", "dtype": "BYTES", "shape": [1], "bytes_max": 1_000_000}],
            "outputs": ["label", "score"],
            "observed": "logits"
        },
        "steps": {
            "pre": [
                {"decode_image": {"tensor": "image", "channels": "rgb", "max_pixels": 4_000_000}},
                {"resize": {"tensor": "image", "height": 256, "width": 256, "fit": "cover"}},
                {"center_crop": {"tensor": "image", "height": 224, "width": 224}},
                {"normalise": {"tensor": "image", "scale": 0.003_921_569, "mean": [0.5, 0.5, 0.5], "std": [0.2]}},
                {"layout": {"tensor": "image", "from": "HWC", "to": "NCHW", "into": "x"}}
            ],
            "post": [
                {"softmax": {"tensor": "logits"}},
                {"top_k": {"tensor": "logits", "k": 3, "scores": "score", "indices": "class"}},
                {"labels": {"tensor": "class", "into": "label"}}
            ]
        }
    })
}

#[test]
fn a_picture_flows_to_labels() {
    let flow = flow(&classifier()).unwrap();
    let types: Vec<String> = flow
        .before
        .steps
        .iter()
        .map(|w| w.gives[0].to_string())
        .collect();
    assert_eq!(
        types,
        [
            "UINT8 [≤65535, ≤65535, 3]",
            "UINT8 [≤65535, ≤65535, 3]",
            "UINT8 [224, 224, 3]",
            "FP32 [224, 224, 3]",
            "FP32 [1, 3, 224, 224]"
        ]
    );
    assert_eq!(flow.inputs[0].bytes_max, 1_000_000);
    assert_eq!(flow.graph_inputs, [1]);
    let outputs: Vec<String> = flow
        .outputs
        .iter()
        .map(|o| format!("{} {}", o.name, o.of))
        .collect();
    assert_eq!(outputs, ["label BYTES [1, 3]", "score FP32 [1, 3]"]);
    assert_eq!(flow.observed, Some(0));
    assert!(!flow.is_stateful());
}

#[test]
fn without_steps_the_application_meets_the_graph() {
    let flow = Flow::of(&sample()).unwrap();
    assert_eq!(flow.inputs[0].spec, sample().inputs[0]);
    assert_eq!(flow.outputs[0].of, TensorType::fixed(DType::FP32, &[1, 10]));
    assert_eq!((flow.graph_inputs, flow.observed), (vec![0], Some(0)));
}

/// Each change of the classifier, and what must be said about it.
#[test]
fn what_does_not_fit_is_told_by_step() {
    let cases: &[(&str, Value, &str)] = &[
        (
            "/steps/pre/0/decode_image/max_pixels",
            json!(0),
            "steps.pre[0] decode_image: max_pixels must be 1 to",
        ),
        (
            "/steps/pre/0/decode_image/channels",
            json!("grey"),
            "steps.pre[3] normalise: mean: expected 1 value or 1, got 3",
        ),
        (
            "/steps/pre/0/decode_image/tensor",
            json!("photo"),
            r#"unknown tensor "photo"; there is ["image"]"#,
        ),
        (
            "/steps/pre/1/resize/height",
            json!(0),
            "steps.pre[1] resize: height and width must be",
        ),
        (
            "/steps/pre/2/center_crop/height",
            json!(220),
            "FP32 [1, 3, 224, 224], the steps give FP32 [1, 3, 220, 224]",
        ),
        (
            "/steps/pre/3/normalise/std",
            json!([0.0]),
            "std must not be 0",
        ),
        ("/steps/pre/4/layout/to", json!("NCW"), "expected 1 for H"),
        (
            "/steps/pre/4/layout/from",
            json!("HHC"),
            "different capitals",
        ),
        (
            "/steps/pre/4/layout/into",
            json!("y"),
            r#"inputs[0] "x": manifest"#,
        ),
        (
            "/steps/post/1/top_k/k",
            json!(11),
            "steps.post[1] top_k: k must be 1 to 10, got 11",
        ),
        (
            "/steps/post/1/top_k/scores",
            json!("logits"),
            "is empty or taken",
        ),
        ("/labels", json!([]), "the manifest has no labels"),
        (
            "/application/inputs/0/dtype",
            json!("FP32"),
            "bytes_max is for BYTES",
        ),
        (
            "/application/inputs/0/shape",
            json!([2]),
            "expected one element, got BYTES [2]",
        ),
        (
            "/application/outputs/0",
            json!("name"),
            "no such tensor after the steps",
        ),
        ("/application/outputs/0", json!("score"), "named twice"),
        (
            "/application/observed",
            json!("label"),
            "no tensor of numbers of a fixed shape",
        ),
        (
            "/inputs/0/dtype",
            json!("BYTES"),
            "inputs[0]: BYTES is for application.inputs",
        ),
        (
            "/steps/pre/1/resize/hight",
            json!(3),
            "unknown field `hight`",
        ),
        (
            "/steps/streams",
            json!({"max": 4, "idle_ms_max": 1}),
            "no step keeps anything",
        ),
    ];
    for (path, value, hint) in cases {
        let mut changed = classifier();
        let (parent, key) = path.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() {
            Some(&mut changed)
        } else {
            changed.pointer_mut(parent)
        };
        match parent.unwrap() {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
            map => map[key] = value.clone(),
        }
        let error = flow(&changed).unwrap_err();
        let hint = if hint.ends_with(": manifest") {
            "nothing of this name comes from the steps"
        } else {
            hint
        };
        assert!(error.contains(hint), "{path} = {value}: {error}");
    }
}

#[test]
fn state_is_carried_and_hidden() {
    let mut speech = json!({
        "inputs": [tensor("input", "FP32", &[1, 576]), tensor("state", "FP32", &[2, 1, 128])],
        "outputs": [tensor("output", "FP32", &[1, 1]), tensor("stateN", "FP32", &[2, 1, 128])],
        "labels": [],
        "application": {"inputs": [{"name": "pcm", "dtype": "INT16", "shape": [1, 512]}]},
        "steps": {"pre": [
            {"pcm_to_float": {"tensor": "pcm"}},
            {"sliding_window": {"tensor": "pcm", "length": 576, "into": "input"}},
            {"carry": {"tensor": "state", "from": "stateN"}}
        ]}
    });
    let wired = flow(&speech).unwrap();
    assert!(wired.is_stateful());
    let outputs: Vec<&str> = wired.outputs.iter().map(|o| o.name.as_str()).collect();
    assert_eq!(outputs, ["output"]);
    assert_eq!(wired.inputs.len(), 1);
    speech["steps"]["streams"] = json!({"max": 5000, "idle_ms_max": 1});
    assert!(flow(&speech).unwrap_err().contains("max must be 1 to 4096"));
    speech["steps"]["streams"] = json!({"max": 10, "idle_ms_max": 1});
    assert!(flow(&speech).is_ok());
    speech["outputs"][1]["shape"] = json!([2, 1, 64]);
    assert!(
        flow(&speech)
            .unwrap_err()
            .contains("carry: expected FP32 [2, 1, 128]")
    );
    // A window cannot be shorter than what is sent.
    speech["steps"]["pre"][1]["sliding_window"]["length"] = json!(500);
    assert!(
        flow(&speech)
            .unwrap_err()
            .contains("at most 500, got FP32 [1, 512]")
    );
}

/// A detector that is fed with pictures.
fn detector() -> Value {
    json!({
        "inputs": [tensor("x", "FP32", &[1, 3, 320, 320])],
        "outputs": [tensor("raw", "FP32", &[1, 9, 2100])],
        "labels": ["a", "b", "c", "d", "e"],
        "application": {
            "inputs": [{"name": "image", "dtype": "BYTES", "shape": [1]}],
            "outputs": ["boxes", "score", "label"]
        },
        "steps": {
            "pre": [
                {"decode_image": {"tensor": "image", "channels": "rgb", "max_pixels": 1_000_000}},
                {"letterbox": {"tensor": "image", "height": 320, "width": 320, "value": [114]}},
                {"normalise": {"tensor": "image", "mean": [0.0], "std": [255.0]}},
                {"layout": {"tensor": "image", "from": "HWC", "to": "NCHW", "into": "x"}}
            ],
            "post": [
                {"layout": {"tensor": "raw", "from": "NCA", "to": "AC"}},
                {"slice": {"tensor": "raw", "axis": 1, "start": 0, "end": 4, "into": "raw_boxes"}},
                {"slice": {"tensor": "raw", "axis": 1, "start": 4, "end": 9, "into": "raw_scores"}},
                {"non_max_suppression": {"boxes": "raw_boxes", "scores": "raw_scores", "format": "cxcywh",
                    "score_threshold": 0.25, "iou_threshold": 0.45, "max_detections": 100,
                    "kept_boxes": "boxes", "kept_scores": "score", "kept_classes": "class"}},
                {"boxes_to_image": {"tensor": "boxes", "image": "image"}},
                {"labels": {"tensor": "class", "into": "label"}}
            ]
        }
    })
}

#[test]
fn detections_vary_in_number() {
    let detector = detector();
    let wired = flow(&detector).unwrap();
    let outputs: Vec<String> = wired.outputs.iter().map(|o| o.of.to_string()).collect();
    assert_eq!(outputs, ["FP32 [≤100, 4]", "FP32 [≤100]", "BYTES [≤100]"]);
    assert_eq!(wired.outputs[0].of.shape[0].on_the_wire(), -1);
    // Boxes say nothing about classes.
    assert_eq!(wired.observed, None);
    assert!(wired.outputs[0].of.admits(&[0, 4]) && !wired.outputs[0].of.admits(&[101, 4]));
    let mut wrong = detector;
    wrong["steps"]["post"][4]["boxes_to_image"]["image"] = json!("x");
    assert!(
        flow(&wrong)
            .unwrap_err()
            .contains("no step before the graph makes an image \"x\"")
    );
}

#[test]
fn constants_must_fit_their_type() {
    let with = |dtype: &str, values: &[f64]| {
        flow(&json!({
            "inputs": [tensor("pixels", "FP32", &[1, 64]), tensor("rate", dtype, &[])],
            "steps": {"pre": [{"constant": {"tensor": "rate", "dtype": dtype, "shape": [], "values": values}}]},
            "application": {"inputs": [tensor("pixels", "FP32", &[1, 64])]}
        }))
    };
    assert_eq!(with("INT64", &[16000.0]).unwrap().graph_inputs, [0, 1]);
    for (dtype, values, hint) in [
        ("INT64", &[0.5][..], "0.5 does not fit INT64"),
        ("UINT8", &[256.0], "256 does not fit UINT8"),
        ("FP32", &[1e300], "does not fit FP32"),
        ("FP32", &[1.0, 2.0], "expected as many as [] has, got 2"),
    ] {
        let error = with(dtype, values).unwrap_err();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn a_table_of_numbers_and_words_becomes_one_row() {
    let wired = flow(&json!({
        "inputs": [tensor("row", "FP32", &[1, 5])],
        "application": {"inputs": [
            {"name": "measured", "dtype": "FP32", "shape": [1, 2]},
            {"name": "colour", "dtype": "BYTES", "shape": [1], "bytes_max": 20}
        ]},
        "steps": {"pre": [
            {"impute": {"tensor": "measured", "values": [1.0, 2.0]}},
            {"min_max": {"tensor": "measured", "min": [0.0, 0.0], "max": [5.0, 9.0]}},
            {"one_hot": {"tensor": "colour", "categories": ["red", "green", "blue"]}},
            {"concat": {"tensors": ["measured", "colour"], "into": "row"}}
        ]}
    }));
    assert_eq!(wired.unwrap().graph_inputs, [2]);
}

proptest! {
    /// Any JSON whatever is refused or worked out, never a panic.
    #[test]
    fn numbers_out_of_range_are_refused(n in prop::collection::vec(any::<u64>(), 6), f in any::<f64>()) {
        let steps = json!({"pre": [
            {"decode_image": {"tensor": "image", "channels": "rgb", "max_pixels": n[0]}},
            {"pad": {"tensor": "image", "top": n[1], "left": n[2], "bottom": n[3], "value": [0]}},
            {"crop": {"tensor": "image", "top": n[4], "left": n[5], "height": n[1], "width": n[2]}},
            {"reshape": {"tensor": "image", "shape": [n[3], n[4]]}},
            {"slice": {"tensor": "image", "axis": n[5], "start": n[0], "end": n[1]}},
            {"frame": {"tensor": "image", "length": n[2], "hop": n[3]}},
            {"scale": {"tensor": "image", "mul": f, "add": 0.0}}
        ]});
        for skip in 0..7 {
            let mut changed = classifier();
            let list: Vec<Value> = steps["pre"].as_array().unwrap()[skip..].to_vec();
            changed["steps"] = json!({"pre": list});
            let _ = flow(&changed);
        }
    }
}

//! Tabular models as exporters write them: the engine answers as ONNX Runtime did when
//! `tests/peers/trees/run --fixtures` wrote the cases, and says what it cannot run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use dunlin_agent::inference::graph::{Graph, GraphError};
use dunlin_agent::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, TensorSpec};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Scores may differ by this much, relatively above one.
const TOLERANCE: f64 = 2e-6;

#[derive(Deserialize)]
struct Case {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tabular")
}

fn read(folder: &Path) -> (Case, Vec<u8>) {
    let case = std::fs::read(folder.join("case.json")).unwrap();
    let onnx = std::fs::read(folder.join("model.onnx")).unwrap();
    (serde_json::from_slice(&case).unwrap(), onnx)
}

/// The first tensor of these little-endian bytes; they are left without it.
fn take(bytes: &mut &[u8], spec: &TensorSpec) -> Values {
    fn each<const N: usize, T>(bytes: &mut &[u8], count: usize, from: fn([u8; N]) -> T) -> Vec<T> {
        let (mine, rest) = bytes.split_at(count * N);
        *bytes = rest;
        mine.as_chunks().0.iter().map(|c| from(*c)).collect()
    }
    let count = spec.elements();
    match spec.dtype {
        DType::FP32 => Values::FP32(each(bytes, count, f32::from_le_bytes)),
        DType::FP64 => Values::FP64(each(bytes, count, f64::from_le_bytes)),
        DType::INT64 => Values::INT64(each(bytes, count, i64::from_le_bytes)),
        other => panic!("{other:?}"),
    }
}

/// Compares bit by bit, or by the tolerance where values are floats.
fn assert_same(name: &str, got: &Values, expected: &Values) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (at, (got, expected)) in got.iter_f64().zip(expected.iter_f64()).enumerate() {
        let near = (got - expected).abs() <= TOLERANCE * expected.abs().max(1.0);
        let same = got == expected || got.is_nan() && expected.is_nan();
        assert!(same || near, "{name}[{at}]: {got} and not {expected}");
    }
    if !matches!(expected, Values::FP32(_) | Values::FP64(_)) {
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn every_committed_case_is_answered_as_onnx_runtime_answered_it() {
    let mut count = 0;
    for entry in std::fs::read_dir(cases()).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (case, onnx) = read(&folder);
        let graph = Graph::load(&onnx, &case.inputs, &case.outputs)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let input = std::fs::read(folder.join("input.bin")).unwrap();
        let input = take(&mut input.as_slice(), &case.inputs[0]);
        let expected = std::fs::read(folder.join("output.bin")).unwrap();
        let mut expected = expected.as_slice();
        let got = graph.run(&[input]).unwrap();
        for (spec, got) in case.outputs.iter().zip(&got) {
            let expected = take(&mut expected, spec);
            assert_same(&format!("{name}: {}", spec.name), got, &expected);
        }
        assert!(expected.is_empty(), "{name}");
        count += 1;
    }
    assert!(count >= 20, "{count} cases");
}

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
        layout: None,
    }
}

fn refused(case: &str, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> GraphError {
    let (_, onnx) = read(&cases().join(case));
    Graph::load(&onnx, inputs, outputs).unwrap_err()
}

#[test]
fn text_labels_are_refused_with_the_way_out() {
    let error = refused(
        "classifier-float32-texts-none-base-0-softmax-true",
        &[spec("x", DType::FP32, &[1, 4])],
        &[spec("label", DType::INT64, &[1])],
    );
    let message = error.to_string();
    assert!(matches!(error, GraphError::Outputs(_)), "{message}");
    assert!(message.contains("numbered classes"), "{message}");
}

#[test]
fn rows_that_are_too_narrow_for_the_trees_are_refused_when_the_model_is_loaded() {
    // This model does not say how wide a row is.
    let error = refused(
        "version-5-with-sets",
        &[spec("x", DType::FP32, &[1, 2])],
        &[spec("scores", DType::FP32, &[1, 2])],
    );
    let message = error.to_string();
    assert!(message.contains("cannot be prepared"), "{message}");
    assert!(message.contains("a row has 2 features"), "{message}");
    // This one does.
    let error = refused(
        "tree-wine",
        &[spec("x", DType::FP32, &[1, 5])],
        &[spec("output_probability", DType::FP32, &[1, 3])],
    );
    assert!(matches!(error, GraphError::Inputs(_)), "{error}");
}

#[test]
fn any_damaged_file_is_refused_or_answered() {
    for case in [
        "stump",
        "classifier-int64-three-none-base-0-none-true",
        "version-5-with-sets",
    ] {
        let folder = cases().join(case);
        let (specs, onnx) = read(&folder);
        let input = std::fs::read(folder.join("input.bin")).unwrap();
        let input = take(&mut input.as_slice(), &specs.inputs[0]);
        for at in 0..onnx.len() {
            for value in [0x00, 0x7f, 0xff, onnx[at] ^ 0x01] {
                let mut damaged = onnx.clone();
                damaged[at] = value;
                let answer = Graph::load(&damaged, &specs.inputs, &specs.outputs)
                    .and_then(|graph| graph.run(std::slice::from_ref(&input)));
                assert!(
                    !matches!(answer, Err(GraphError::Panic { .. })),
                    "{case}: byte {at} is {value}: {answer:?}"
                );
            }
        }
    }
}

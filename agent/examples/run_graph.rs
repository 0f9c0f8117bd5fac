//! Runs ONNX graphs with the device's engine, so that other runtimes' answers can be held against its.
//!
//! ```text
//! run_graph CASE…
//! ```
//!
//! A case is a folder with `model.onnx`, `case.json` (`{"inputs": […], "outputs": […]}`, tensors as
//! in a manifest) and `input.bin`: the inputs' little-endian values one after the other, for as many
//! calls as the file is long. A case that does not load or run leaves `error.txt` in place of
//! `output.bin`; exit status 1 only if a case cannot be read.

use anyhow::{Context as _, ensure};
use dunlin_agent::inference::graph::Graph;
use dunlin_agent::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, TensorSpec};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Case {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

fn main() -> anyhow::Result<()> {
    for folder in std::env::args().skip(1).map(PathBuf::from) {
        answer(&folder).with_context(|| folder.display().to_string())?;
    }
    Ok(())
}

/// One call's inputs.
type Call = Vec<Values>;

fn read(folder: &Path) -> anyhow::Result<(Case, Vec<u8>, Vec<Call>)> {
    let case: Case = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let onnx = std::fs::read(folder.join("model.onnx"))?;
    let bytes = std::fs::read(folder.join("input.bin"))?;
    let per_call: usize = case.inputs.iter().map(byte_length).sum();
    ensure!(
        per_call > 0 && bytes.len().is_multiple_of(per_call),
        "input.bin: {} bytes are no multiple of a call's {per_call}",
        bytes.len()
    );
    let calls = bytes.chunks(per_call).map(|mut rest| {
        let values = case.inputs.iter().map(|spec| {
            let (of_input, behind) = rest.split_at(byte_length(spec));
            rest = behind;
            decode(spec, of_input)
        });
        values.collect::<anyhow::Result<Call>>()
    });
    let calls = calls.collect::<anyhow::Result<_>>()?;
    Ok((case, onnx, calls))
}

fn answer(folder: &Path) -> anyhow::Result<()> {
    let (case, onnx, calls) = read(folder)?;
    let answers = Graph::load(&onnx, &case.inputs, &case.outputs).and_then(|graph| {
        let answers = calls.iter().map(|call| graph.run(call));
        answers.collect::<Result<Vec<_>, _>>()
    });
    match answers {
        Ok(answers) => {
            let mut bytes = Vec::new();
            for values in answers.iter().flatten() {
                encode(values, &mut bytes)?;
            }
            std::fs::write(folder.join("output.bin"), bytes)?;
        }
        Err(error) => std::fs::write(folder.join("error.txt"), error.to_string())?,
    }
    Ok(())
}

fn byte_length(spec: &TensorSpec) -> usize {
    let width = match spec.dtype {
        DType::BOOL | DType::UINT8 | DType::INT8 => 1,
        DType::UINT16 | DType::INT16 | DType::FP16 => 2,
        DType::UINT32 | DType::INT32 | DType::FP32 => 4,
        DType::UINT64 | DType::INT64 | DType::FP64 => 8,
        // Never in a graph.
        DType::BYTES => 0,
    };
    spec.elements() * width
}

fn decode(spec: &TensorSpec, bytes: &[u8]) -> anyhow::Result<Values> {
    fn each<const N: usize, T>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks().0.iter().map(|c| from(*c)).collect()
    }
    Ok(match spec.dtype {
        DType::BOOL => Values::BOOL(bytes.iter().map(|&b| b != 0).collect()),
        DType::UINT8 => Values::UINT8(bytes.to_vec()),
        DType::INT8 => Values::INT8(each(bytes, i8::from_le_bytes)),
        DType::UINT16 => Values::UINT16(each(bytes, u16::from_le_bytes)),
        DType::INT16 => Values::INT16(each(bytes, i16::from_le_bytes)),
        DType::UINT32 => Values::UINT32(each(bytes, u32::from_le_bytes)),
        DType::INT32 => Values::INT32(each(bytes, i32::from_le_bytes)),
        DType::UINT64 => Values::UINT64(each(bytes, u64::from_le_bytes)),
        DType::INT64 => Values::INT64(each(bytes, i64::from_le_bytes)),
        DType::FP32 => Values::FP32(each(bytes, f32::from_le_bytes)),
        DType::FP64 => Values::FP64(each(bytes, f64::from_le_bytes)),
        other => anyhow::bail!("inputs of {} are not read", other.as_str()),
    })
}

fn encode(values: &Values, out: &mut Vec<u8>) -> anyhow::Result<()> {
    match values {
        Values::BOOL(v) => out.extend(v.iter().map(|&x| u8::from(x))),
        Values::UINT8(v) => out.extend(v),
        Values::INT8(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::UINT16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::INT16(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::UINT32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::INT32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::UINT64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::INT64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::FP32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Values::FP64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        other => anyhow::bail!("outputs of {} are not written", other.dtype().as_str()),
    }
    Ok(())
}

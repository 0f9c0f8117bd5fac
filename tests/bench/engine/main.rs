//! Times Dunlin's engine on one thread, as often as it is asked to.
//!
//! ```text
//! bench-engine FOLDER
//! bench-engine --nodes CALLS FOLDER
//! ```
//!
//! A folder holds `model.onnx`, `case.json` (`inputs` and `outputs`, tensors as in a manifest) and
//! `input-0.bin`, `input-1.bin` … (values, little-endian). Writes what the model computes to
//! `dunlin-0.bin` … and a line `ready`; then reads numbers of calls, a line each, and answers each
//! with a line of JSON: the median and the quickest, nanoseconds. With `--nodes`, prints what each
//! node of the prepared graph takes instead.

use anyhow::{Context as _, ensure};
use dunlin_agent::inference::graph::Graph;
use dunlin_agent::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, TensorSpec};
use serde::Deserialize;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [folder] => serve(&Case::read(folder)?),
        [flag, calls, folder] if flag == "--nodes" => nodes(&Case::read(folder)?, calls.parse()?),
        _ => anyhow::bail!("expected FOLDER, or --nodes CALLS FOLDER"),
    }
}

#[derive(Deserialize)]
struct Tensors {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
}

struct Case {
    folder: PathBuf,
    graph: Graph,
    inputs: Vec<Values>,
}

impl Case {
    fn read(folder: &str) -> anyhow::Result<Self> {
        let folder = Path::new(folder);
        let file = |name: &str| std::fs::read(folder.join(name)).context(name.to_owned());
        let tensors: Tensors = serde_json::from_slice(&file("case.json")?)?;
        let mut inputs = Vec::new();
        for (at, spec) in tensors.inputs.iter().enumerate() {
            inputs.push(values(spec, &file(&format!("input-{at}.bin"))?)?);
        }
        let graph = Graph::load(&file("model.onnx")?, &tensors.inputs, &tensors.outputs)?;
        Ok(Self {
            folder: folder.to_owned(),
            graph,
            inputs,
        })
    }
}

fn values(spec: &TensorSpec, bytes: &[u8]) -> anyhow::Result<Values> {
    let values = match spec.dtype {
        DType::FP32 => Values::FP32(numbers(bytes, f32::from_le_bytes)?),
        DType::INT32 => Values::INT32(numbers(bytes, i32::from_le_bytes)?),
        DType::INT64 => Values::INT64(numbers(bytes, i64::from_le_bytes)?),
        other => anyhow::bail!("{}: no such inputs here", other.as_str()),
    };
    let (got, wanted) = (values.len(), spec.elements());
    ensure!(got == wanted, "{}: expected {wanted}, got {got}", spec.name);
    Ok(values)
}

fn numbers<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> anyhow::Result<Vec<T>> {
    let (whole, rest) = bytes.as_chunks();
    ensure!(rest.is_empty(), "{} bytes left over", rest.len());
    Ok(whole.iter().map(|chunk| read(*chunk)).collect())
}

fn serve(case: &Case) -> anyhow::Result<()> {
    for (at, output) in case.graph.run(&case.inputs)?.iter().enumerate() {
        let Values::FP32(values) = output else {
            anyhow::bail!("output {at}: {}", output.dtype().as_str());
        };
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(case.folder.join(format!("dunlin-{at}.bin")), bytes)?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let calls: usize = line?.parse()?;
        let mut times_ns = Vec::with_capacity(calls);
        for _ in 0..calls {
            let start = Instant::now();
            let outputs = case.graph.run(&case.inputs)?;
            times_ns.push(u64::try_from(start.elapsed().as_nanos())?);
            drop(outputs);
        }
        times_ns.sort_unstable();
        let quickest = times_ns.first().context("no call asked for")?;
        let answer = serde_json::json!({"median_ns": times_ns[calls / 2], "least_ns": quickest});
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn nodes(case: &Case, calls: usize) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..calls {
        rounds.push(case.graph.run_timed(&case.inputs)?);
    }
    let first = rounds.first().context("no call asked for")?;
    for (at, node) in first.iter().enumerate() {
        let mut times: Vec<u128> = rounds.iter().map(|r| r[at].took.as_nanos()).collect();
        times.sort_unstable();
        let took_us = times[calls / 2] / 1000;
        println!(
            "{took_us}\t{}\t{}\t{}",
            node.operator, node.output, node.name
        );
    }
    Ok(())
}

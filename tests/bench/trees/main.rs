//! Times Dunlin's engine, and tract with its own tree operator, on one thread.
//!
//! ```text
//! bench-trees (dunlin|tract) CALLS FOLDER…
//! ```
//!
//! A folder holds `model.onnx`, `rows.bin` (32-bit floats, little-endian), `shape.json` (rows a call
//! and features a row) and `outputs.json` (tensors as in a manifest). One JSON line a folder: the
//! median and the hundredth, nanoseconds.

use anyhow::{Context as _, ensure};
use dunlin_agent::inference::graph::Graph;
use dunlin_agent::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, TensorSpec};
use std::path::Path;
use std::time::Instant;
use tract_onnx::prelude::*;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let engine = arguments.next().context("dunlin or tract")?;
    let calls: usize = arguments.next().context("no number of calls")?.parse()?;
    for folder in arguments {
        let case = Case::read(Path::new(&folder))?;
        let mut times_ns = match engine.as_str() {
            "dunlin" => case.dunlin(calls),
            "tract" => case.tract(calls),
            other => anyhow::bail!("expected dunlin or tract, got {other:?}"),
        }
        .context(folder.clone())?;
        times_ns.sort_unstable();
        let line = serde_json::json!({
            "folder": folder,
            "median_ns": u64::try_from(times_ns[calls / 2])?,
            "p01_ns": u64::try_from(times_ns[calls / 100])?,
        });
        println!("{line}");
    }
    Ok(())
}

struct Case {
    onnx: Vec<u8>,
    input: String,
    shape: [usize; 2],
    tables: Vec<Vec<f32>>,
    outputs: Vec<TensorSpec>,
}

impl Case {
    fn read(folder: &Path) -> anyhow::Result<Self> {
        let file = |name: &str| std::fs::read(folder.join(name)).context(name.to_owned());
        let shape: [usize; 2] = serde_json::from_slice(&file("shape.json")?)?;
        let bytes = file("rows.bin")?;
        let values = bytes.as_chunks().0.iter().map(|c| f32::from_le_bytes(*c));
        let values: Vec<f32> = values.collect();
        let tables = values.chunks_exact(shape[0] * shape[1]);
        let tables: Vec<Vec<f32>> = tables.map(<[f32]>::to_vec).collect();
        ensure!(!tables.is_empty(), "rows.bin holds no call");
        Ok(Self {
            onnx: file("model.onnx")?,
            input: "x".to_owned(),
            shape,
            tables,
            outputs: serde_json::from_slice(&file("outputs.json")?)?,
        })
    }

    /// As the worker runs it: values in, values out, checks and conversions included.
    fn dunlin(&self, calls: usize) -> anyhow::Result<Vec<u128>> {
        let input = TensorSpec {
            name: self.input.clone(),
            dtype: DType::FP32,
            shape: self.shape.to_vec(),
            layout: None,
        };
        let graph = Graph::load(&self.onnx, &[input], &self.outputs)?;
        let tables = self.tables.iter().map(|t| [Values::FP32(t.clone())]);
        let tables: Vec<[Values; 1]> = tables.collect();
        timed(calls, &tables, |values| Ok(graph.run(values).map(drop)?))
    }

    /// tract as it comes.
    fn tract(&self, calls: usize) -> anyhow::Result<Vec<u128>> {
        let mut reader = self.onnx.as_slice();
        let engine = tract_onnx::onnx()
            .with_ignore_value_info(true)
            .with_ignore_output_shapes(true);
        let fact = InferenceFact::dt_shape(f32::datum_type(), self.shape);
        let plan = engine
            .model_for_read(&mut reader)?
            .with_input_fact(0, fact)?
            .into_optimized()?
            .into_runnable()?;
        timed(calls, &self.tables, |table| {
            let tensor = Tensor::from_shape(&self.shape, table)?;
            plan.run(tvec![tensor.into_tvalue()]).map(drop)
        })
    }
}

fn timed<T>(
    calls: usize,
    tables: &[T],
    mut call: impl FnMut(&T) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u128>> {
    let warm = calls.min(500);
    let mut times_ns = Vec::with_capacity(calls + warm);
    for table in tables.iter().cycle().take(calls + warm) {
        let start = Instant::now();
        call(table)?;
        times_ns.push(start.elapsed().as_nanos());
    }
    times_ns.drain(..warm);
    Ok(times_ns)
}

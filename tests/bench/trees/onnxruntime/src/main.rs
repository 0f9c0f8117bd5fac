//! Times ONNX Runtime's C API on one thread.
//!
//! ```text
//! bench-trees-onnxruntime LIBRARY CALLS FOLDER…
//! ```
//!
//! A folder holds `model.onnx`, `rows.bin` (32-bit floats, little-endian) and `shape.json` (rows a
//! call and features a row). One JSON line a folder: the median and the hundredth, nanoseconds.

use anyhow::{Context as _, anyhow};
use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;
use std::path::Path;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let library = arguments.next().context("no library")?;
    let calls: usize = arguments.next().context("no number of calls")?.parse()?;
    let environment = ort::init_from(&library)?.build()?;
    for folder in arguments {
        println!("{}", time(&environment, Path::new(&folder), calls)?);
    }
    Ok(())
}

fn time(
    environment: &Environment,
    folder: &Path,
    calls: usize,
) -> anyhow::Result<serde_json::Value> {
    let mut session = Session::builder(environment)?
        .with_intra_threads(1)
        .map_err(|e| anyhow!("{e}"))?
        .with_inter_threads(1)
        .map_err(|e| anyhow!("{e}"))?
        .commit_from_file(folder.join("model.onnx"))?;
    let shape: [usize; 2] = serde_json::from_slice(&std::fs::read(folder.join("shape.json"))?)?;
    let bytes = std::fs::read(folder.join("rows.bin"))?;
    let rows: Vec<f32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|c| f32::from_le_bytes(*c))
        .collect();
    let per_call = shape[0] * shape[1];
    let tables: Vec<&[f32]> = rows.chunks_exact(per_call).collect();
    let dims = [i64::try_from(shape[0])?, i64::try_from(shape[1])?];
    let mut times_ns = Vec::with_capacity(calls);
    let warm = calls.min(500);
    for table in tables.iter().cycle().take(calls + warm) {
        let start = Instant::now();
        let input = TensorRef::from_array_view((dims, *table))?;
        let outputs = session.run(ort::inputs![input])?;
        let took = start.elapsed().as_nanos();
        drop(outputs);
        times_ns.push(took);
    }
    times_ns.drain(..warm);
    times_ns.sort_unstable();
    Ok(serde_json::json!({
        "folder": folder.display().to_string(),
        "median_ns": u64::try_from(times_ns[calls / 2])?,
        "p01_ns": u64::try_from(times_ns[calls / 100])?,
    }))
}

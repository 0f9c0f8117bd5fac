//! Times ONNX Runtime's C API on one thread, as often as it is asked to.
//!
//! ```text
//! bench-engine-onnxruntime LIBRARY FOLDER
//! ```
//!
//! Folder, questions and answers are those of Dunlin's side, `../main.rs`; what the model computes
//! goes to `onnxruntime-0.bin` ….

use anyhow::{Context as _, anyhow};
use ort::session::{Session, SessionInputValue};
use ort::value::{TensorRef, Value};
use serde_json::Value as Json;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::Instant;

enum Numbers {
    F32(Vec<f32>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

struct Input {
    name: String,
    shape: Vec<i64>,
    numbers: Numbers,
}

impl Input {
    fn read(folder: &Path, at: usize, spec: &Json) -> anyhow::Result<Self> {
        let bytes = std::fs::read(folder.join(format!("input-{at}.bin")))?;
        let numbers = match spec["dtype"].as_str() {
            Some("FP32") => Numbers::F32(read(&bytes, f32::from_le_bytes)),
            Some("INT32") => Numbers::I32(read(&bytes, i32::from_le_bytes)),
            Some("INT64") => Numbers::I64(read(&bytes, i64::from_le_bytes)),
            other => anyhow::bail!("{other:?}: no such inputs here"),
        };
        let shape = spec["shape"].as_array().context("no shape")?;
        Ok(Self {
            name: spec["name"].as_str().context("no name")?.to_owned(),
            shape: shape.iter().filter_map(Json::as_i64).collect(),
            numbers,
        })
    }

    fn view(&self) -> anyhow::Result<SessionInputValue<'_>> {
        let shape = self.shape.clone();
        Ok(match &self.numbers {
            Numbers::F32(n) => TensorRef::from_array_view((shape, n.as_slice()))?.into(),
            Numbers::I32(n) => TensorRef::from_array_view((shape, n.as_slice()))?.into(),
            Numbers::I64(n) => TensorRef::from_array_view((shape, n.as_slice()))?.into(),
        })
    }
}

fn read<const N: usize, T>(bytes: &[u8], number: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|c| number(*c)).collect()
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let library = arguments.next().context("no library")?;
    let folder = arguments.next().context("no folder")?;
    let folder = Path::new(&folder);
    let case: Json = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let specs = case["inputs"].as_array().context("no inputs")?;
    let inputs = specs.iter().enumerate();
    let inputs = inputs.map(|(at, spec)| Input::read(folder, at, spec));
    let inputs: Vec<Input> = inputs.collect::<Result<_, _>>()?;
    let environment = ort::init_from(&library)?.build()?;
    let mut session = Session::builder(&environment)?
        .with_intra_threads(1)
        .map_err(|e| anyhow!("{e}"))?
        .with_inter_threads(1)
        .map_err(|e| anyhow!("{e}"))?
        .commit_from_file(folder.join("model.onnx"))?;
    serve(folder, &mut session, &inputs, &case)
}

fn feed(inputs: &[Input]) -> anyhow::Result<Vec<(&str, SessionInputValue<'_>)>> {
    let feed = inputs.iter().map(|i| Ok((i.name.as_str(), i.view()?)));
    feed.collect()
}

fn serve(
    folder: &Path,
    session: &mut Session,
    inputs: &[Input],
    case: &Json,
) -> anyhow::Result<()> {
    let outputs = session.run(feed(inputs)?)?;
    for (at, spec) in case["outputs"].as_array().into_iter().flatten().enumerate() {
        let name = spec["name"].as_str().context("no name")?;
        let value: &Value = &outputs[name];
        let (_, numbers) = value.try_extract_tensor::<f32>()?;
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(folder.join(format!("onnxruntime-{at}.bin")), bytes)?;
    }
    drop(outputs);
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let calls: usize = line?.parse()?;
        let mut times_ns = Vec::with_capacity(calls);
        for _ in 0..calls {
            let start = Instant::now();
            let outputs = session.run(feed(inputs)?)?;
            times_ns.push(u64::try_from(start.elapsed().as_nanos())?);
            drop(outputs);
        }
        times_ns.sort_unstable();
        let least = times_ns.first().context("no call asked for")?;
        let answer = serde_json::json!({"median_ns": times_ns[calls / 2], "least_ns": least});
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

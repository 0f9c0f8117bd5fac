//! What a worker costs and how it bears to be replaced under load.
//!
//! `bench-worker swap AGENT FOLDER`: latency of four clients before and while two versions (FOLDER/1,
//! FOLDER/2) replace each other a hundred times.
//! `bench-worker observe FOLDER`: time to observe one answered request of the model in FOLDER.
//! `bench-worker memory AGENT MODEL`: PSS of a connected agent without a model, and of agent and worker
//! with one; AGENT is `dunlin-agent`, MODEL a folder as `dunlin bundle pack` wants it.
//! All print Markdown.

mod memory;
mod swap;

use anyhow::bail;
use dunlin::pack::{PackRequest, pack};
use std::path::Path;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["swap", agent, folder] => swap::measure(Path::new(agent), Path::new(folder)),
        ["observe", folder] => observe(Path::new(folder)),
        ["memory", agent, model] => memory::measure(Path::new(agent), Path::new(model)),
        _ => bail!("usage: bench-worker swap AGENT FOLDER | observe FOLDER | memory AGENT MODEL"),
    }
}

/// Rounds of as many observations each; the least disturbed round counts.
const ROUNDS: usize = 200;
const EACH: usize = 1_000;

fn observe(recipe: &Path) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let slot = dir.path().join("slot");
    std::fs::create_dir(&slot)?;
    let packed = pack(&PackRequest::new(recipe), &dir.path().join("packed"))?.0;
    std::fs::write(slot.join("manifest.json"), packed.manifest.to_bytes()?)?;
    for name in ["model.onnx", "profile.json"] {
        std::fs::copy(recipe.join(name), slot.join(name))?;
    }
    let slot = slot.as_path();
    let bench = dunlin_agent::inference::ObserveBench::load(slot);
    let mut bench = bench.map_err(anyhow::Error::msg)?;
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| bench.run(EACH).as_nanos() as f64 / EACH as f64)
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "Observing one answered request ({} features, {} classes): **{:.2} \u{b5}s** (median of {ROUNDS} rounds of {EACH}; the quickest {:.2}).\n",
        bench.features(),
        bench.classes(),
        times[ROUNDS / 2] / 1e3,
        times[0] / 1e3
    );
    Ok(())
}

//! Applies a patch from file to file, as a device does: `patch_apply OLD PATCH NEW`. Prints one line
//! of JSON with the seconds it took and the most memory the process ever had.

use dunlin_protocol::patch::{Limits, apply};
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [old, patch, new] = &args[..] else {
        return Err("usage: patch_apply OLD PATCH NEW".into());
    };
    let begun = Instant::now();
    let before_kib = peak_kib()?;
    let mut old = File::open(old)?;
    let mut patch = BufReader::new(File::open(patch)?);
    let mut new = BufWriter::new(File::create(new)?);
    let limits = Limits {
        target_max_bytes: u64::MAX,
    };
    let applied = apply(&mut old, &mut patch, &mut new, &limits)?;
    let json = serde_json::json!({
        "target_bytes": applied.target_bytes,
        "seconds": begun.elapsed().as_secs_f64(),
        "memory_before_bytes": before_kib * 1024,
        "memory_peak_bytes": peak_kib()? * 1024,
    });
    println!("{json}");
    Ok(())
}

/// Most memory this process had in RAM so far, in KiB.
fn peak_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no VmHWM in /proc/self/status")?.parse()?)
}

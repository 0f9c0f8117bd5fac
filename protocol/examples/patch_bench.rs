//! Makes a patch from OLD to NEW and measures: `patch_bench OLD NEW [PATCH]`, one line of JSON.
//!
//! Decoding is measured from memory to memory, on one core, over at least half a second of the
//! core's time; the rate counts bytes of the new file. With PATCH the patch is written there.

use dunlin_protocol::patch::{Limits, Made, Options, apply, make};
use std::error::Error;
use std::io::Cursor;
use std::time::{Duration, Instant};

const MEASURED_AT_LEAST: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [old, new, rest @ ..] = &args[..] else {
        return Err("usage: patch_bench OLD NEW [PATCH]".into());
    };
    let (old, new) = (std::fs::read(old)?, std::fs::read(new)?);
    let begun = Instant::now();
    let made = make(&old, &new, &Options::default())?;
    let make_s = begun.elapsed().as_secs_f64();
    if let [file, ..] = rest {
        std::fs::write(file, &made.patch)?;
    }
    let shares: serde_json::Map<_, _> = made
        .shares
        .iter()
        .map(|share| (share.how.to_owned(), share.target_bytes.into()))
        .collect();
    let json = serde_json::json!({
        "patch_bytes": made.patch.len(),
        "make_s": make_s,
        "apply_mb_s": rate(&old, &new, &made)?,
        "shares": shares,
    });
    println!("{json}");
    Ok(())
}

/// Time this thread had a core for itself, so that other processes do not count.
fn processor_time() -> Result<Duration, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split(' ').next().unwrap_or_default();
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Megabytes of the new file a second.
fn rate(old: &[u8], new: &[u8], made: &Made) -> Result<f64, Box<dyn Error>> {
    let limits = Limits {
        target_max_bytes: new.len() as u64,
    };
    let mut out = Vec::with_capacity(new.len());
    let (mut rounds, begun) = (0_u32, processor_time()?);
    while processor_time()? - begun < MEASURED_AT_LEAST {
        out.clear();
        let mut patch = &made.patch[..];
        apply(&mut Cursor::new(old), &mut patch, &mut out, &limits)?;
        rounds += 1;
    }
    let seconds = (processor_time()? - begun).as_secs_f64() / f64::from(rounds);
    if out != new {
        return Err("the patch gives another file".into());
    }
    Ok(new.len() as f64 / 1e6 / seconds)
}

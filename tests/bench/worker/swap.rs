//! Hot swaps under load.

use anyhow::Context as _;
use dunlin_protocol::bundle::Manifest;
use dunlin_tests::worker::{Client, Worker, requests};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: usize = 4;
const SWAPS: usize = 100;
/// Time without swaps before and after.
const QUIET: Duration = Duration::from_secs(10);

/// What the clients are in the middle of.
const BEFORE: usize = 0;
const DURING: usize = 1;
const AFTER: usize = 2;
const STOP: usize = 3;

pub(crate) fn measure(agent: &Path, folder: &Path) -> anyhow::Result<()> {
    let slots = ["1", "2"].map(|version| folder.join(version));
    let manifest = Manifest::parse(&std::fs::read(slots[0].join("manifest.json"))?)?;
    let input = std::fs::read(slots[0].join("input.bin"))?;
    let (request, _) = requests(&manifest, &input);
    let mut worker = Worker::start(agent, folder)?;
    worker.activate(&slots[0])?;
    let phase = Arc::new(AtomicUsize::new(BEFORE));
    let failed = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (socket, request) = (worker.socket.clone(), request.clone());
            let (phase, failed) = (Arc::clone(&phase), Arc::clone(&failed));
            std::thread::spawn(move || {
                let times = client(&socket, &request, &phase);
                failed.fetch_or(times.is_err(), Ordering::SeqCst);
                times
            })
        })
        .collect();
    std::thread::sleep(QUIET);
    phase.store(DURING, Ordering::SeqCst);
    let (begun, mut swaps) = (Instant::now(), Vec::new());
    let mut resident = Vec::new();
    for swap in 1..=SWAPS {
        let from = Instant::now();
        worker.activate(&slots[swap % 2])?;
        swaps.push(from.elapsed().as_secs_f64() * 1e3);
        if matches!(swap, 1 | 10 | SWAPS) {
            resident.push(super::memory::pss_kib(worker.pid())? as f64 / 1024.0);
        }
    }
    let took = begun.elapsed();
    phase.store(AFTER, Ordering::SeqCst);
    std::thread::sleep(QUIET);
    phase.store(STOP, Ordering::SeqCst);
    let mut times: [Vec<f64>; 3] = Default::default();
    for client in clients {
        let of_client = client.join().ok().context("a client panicked")??;
        for (all, some) in times.iter_mut().zip(of_client) {
            all.extend(some);
        }
    }
    worker.stop()?;
    println!(
        "{CLIENTS} clients over the Unix socket, {SWAPS} swaps in a row within {:.1} s, a swap {:.1} ms from the order to service (median). No request failed or was lost.\n",
        took.as_secs_f64(),
        quantile(&mut swaps, 0.5)
    );
    println!("| | requests | median \u{b5}s | p99 \u{b5}s | most \u{b5}s |\n|---|--:|--:|--:|--:|");
    let mut p99 = Vec::new();
    for (what, times) in ["before", "during the swaps", "after"]
        .iter()
        .zip(&mut times)
    {
        p99.push(quantile(times, 0.99));
        println!(
            "| {what} | {} | {:.0} | {:.0} | {:.0} |",
            times.len(),
            quantile(times, 0.5),
            quantile(times, 0.99),
            quantile(times, 1.0)
        );
    }
    println!(
        "\np99 during the swaps is **{:.2}** times that before. PSS of the worker after the first, tenth and last swap: {:.1}, {:.1}, {:.1} MiB.\n",
        p99[DURING] / p99[BEFORE],
        resident[0],
        resident[1],
        resident[2]
    );
    Ok(())
}

/// Asks until told to stop; times in microseconds by phase.
fn client(socket: &Path, request: &[u8], phase: &AtomicUsize) -> anyhow::Result<[Vec<f64>; 3]> {
    let mut client = Client::new(UnixStream::connect(socket)?, request);
    let mut times: [Vec<f64>; 3] = Default::default();
    loop {
        let from = Instant::now();
        let now = phase.load(Ordering::SeqCst);
        if now == STOP {
            return Ok(times);
        }
        client.ask()?;
        times[now].push(from.elapsed().as_secs_f64() * 1e6);
    }
}

fn quantile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = (times.len().saturating_sub(1) as f64 * q) as usize;
    times.get(at).copied().unwrap_or(f64::NAN)
}

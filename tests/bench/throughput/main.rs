//! What several clients get of one worker, beside what one client gets: the same model, by turns.
//!
//! `bench-throughput AGENT SLOT [ROUNDS [SECONDS]]`: AGENT is a program that runs as `AGENT agent infer`,
//! SLOT a staged bundle with an `input.bin` in it. Prints Markdown.

use anyhow::{Context as _, bail, ensure};
use dunlin_protocol::bundle::Manifest;
use dunlin_tests::worker::{Client, Worker, requests};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const CLIENTS: [usize; 3] = [1, 2, 4];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [agent, slot, rest @ ..] = &arguments[..] else {
        bail!("usage: bench-throughput AGENT SLOT [ROUNDS [SECONDS]]");
    };
    let rounds = rest.first().map_or(Ok(5), |n| n.parse::<usize>())?;
    let seconds = rest.get(1).map_or(Ok(2), |n| n.parse())?;
    let slot = Path::new(slot);
    let manifest = Manifest::parse(&std::fs::read(slot.join("manifest.json"))?)?;
    let input = std::fs::read(slot.join("input.bin"))?;
    let (request, _) = requests(&manifest, &input);
    let mut worker = Worker::start(Path::new(agent), slot)?;
    worker.activate(slot)?;
    let time = Duration::from_secs(seconds);
    let socket = worker.socket.clone();
    let measure = |clients| answered_a_second(&socket, &request, clients, time);
    CLIENTS.into_iter().try_for_each(|n| measure(n).map(drop))?;
    let mut table = Vec::new();
    for _ in 0..rounds {
        let row: Vec<f64> = CLIENTS.into_iter().map(measure).collect::<Result<_, _>>()?;
        table.push(row);
    }
    worker.stop()?;
    println!("| clients | requests a second | to one client |");
    println!("|--:|--:|--:|");
    for (at, clients) in CLIENTS.iter().enumerate() {
        let rate = median(table.iter().map(|row| row[at]).collect());
        let ratio = median(table.iter().map(|row| row[at] / row[0]).collect());
        println!("| {clients} | {rate:.1} | **{ratio:.2}** |");
    }
    Ok(())
}

/// Requests a second that so many clients get answered, each one after the other.
fn answered_a_second(
    socket: &Path,
    request: &[u8],
    clients: usize,
    time: Duration,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let counts: anyhow::Result<Vec<usize>> = std::thread::scope(|scope| {
        let asking = (0..clients).map(|_| scope.spawn(|| repeat(socket, request, start + time)));
        let asking: Vec<_> = asking.collect();
        let joined = asking.into_iter().map(|thread| match thread.join() {
            Ok(count) => count,
            Err(_) => bail!("a client panicked"),
        });
        joined.collect()
    });
    let answered: usize = counts?.iter().sum();
    let took = start.elapsed().as_secs_f64();
    ensure!(answered > 0, "nothing was answered");
    Ok(f64::from(u32::try_from(answered)?) / took)
}

fn repeat(socket: &Path, request: &[u8], until: Instant) -> anyhow::Result<usize> {
    let stream = UnixStream::connect(socket).context("the worker's socket")?;
    let mut client = Client::new(stream, request);
    let mut count = 0;
    while Instant::now() < until {
        client.ask()?;
        count += 1;
    }
    Ok(count)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

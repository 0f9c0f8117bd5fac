//! What the agent adds to a request: the same model on the same input, in this process by the engine alone
//! and asked of a worker over its sockets, one of each in turn.
//!
//! `bench-request AGENT FOLDER [SECONDS]`: AGENT is a program that runs as `AGENT agent infer`, FOLDER has a
//! staged bundle and an `input.bin` in each of its folders. Prints Markdown.

use anyhow::{Context as _, bail, ensure};
use dunlin_agent::inference::graph::Graph;
use dunlin_agent::inference::tensor::Values;
use dunlin_protocol::bundle::{DType, Manifest};
use dunlin_tests::worker::{Client, Worker, chunks, requests};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Rounds before the first that counts.
const WARM_UP: usize = 300;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [agent, folder, rest @ ..] = &arguments[..] else {
        bail!("usage: bench-request AGENT FOLDER [SECONDS]");
    };
    let seconds = rest.first().map_or(Ok(10), |n| n.parse())?;
    let mut folders: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    folders.sort_by_key(|path| std::fs::metadata(path.join("model.onnx")).map_or(0, |m| m.len()));
    println!(
        "Medians in µs, one of each in turn. *Echo*: as many bytes there and back over a Unix socket, to a thread that does nothing else.\n"
    );
    println!(
        "| model | bytes in, out | rounds | bare engine | Unix, binary | added | share | Unix, JSON | TCP, binary | echo |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    for slot in folders {
        let row = measure(Path::new(agent), &slot, Duration::from_secs(seconds));
        println!("{}", row.with_context(|| slot.display().to_string())?);
    }
    Ok(())
}

/// The model as the worker's engine runs it, without an agent.
struct Bare {
    graph: Graph,
    input: Values,
}

impl Bare {
    fn load(slot: &Path, manifest: &Manifest, input: &[u8]) -> anyhow::Result<Self> {
        let [spec] = &manifest.inputs[..] else {
            bail!("a model with one input was expected");
        };
        let numbers = chunks(input);
        let input = match spec.dtype {
            DType::FP32 => Values::FP32(numbers.map(f32::from_le_bytes).collect()),
            DType::INT32 => Values::INT32(numbers.map(i32::from_le_bytes).collect()),
            other => bail!("{other:?} was not expected"),
        };
        let onnx = std::fs::read(slot.join("model.onnx"))?;
        let graph = Graph::load(&onnx, &manifest.inputs, &manifest.outputs)?;
        Ok(Self { graph, input })
    }

    fn run(&self) -> anyhow::Result<Vec<u8>> {
        let outputs = self.graph.run(std::slice::from_ref(&self.input))?;
        let [Values::FP32(numbers)] = &outputs[..] else {
            bail!("one output of FP32 was expected");
        };
        Ok(numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
    }
}

/// A thread that sends as many bytes back as an answer has.
fn echo(there: usize, back: usize) -> anyhow::Result<UnixStream> {
    let (near, mut far) = UnixStream::pair()?;
    std::thread::spawn(move || {
        let (mut request, answer) = (vec![0; there], vec![0; back]);
        while far.read_exact(&mut request).is_ok() && far.write_all(&answer).is_ok() {}
    });
    Ok(near)
}

fn timed<T>(into: &mut Vec<f64>, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let result = work()?;
    into.push(start.elapsed().as_secs_f64() * 1e6);
    Ok(result)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn measure(agent: &Path, slot: &Path, time: Duration) -> anyhow::Result<String> {
    let manifest = Manifest::parse(&std::fs::read(slot.join("manifest.json"))?)?;
    let input = std::fs::read(slot.join("input.bin"))?;
    let bare = Bare::load(slot, &manifest, &input)?;
    let expected = bare.run()?;
    let mut worker = Worker::start(agent, slot)?;
    worker.activate(slot)?;
    let (binary, json) = requests(&manifest, &input);
    let tcp = TcpStream::connect(worker.tcp)?;
    tcp.set_nodelay(true)?;
    let mut unix = Client::new(UnixStream::connect(&worker.socket)?, &binary);
    let mut text = Client::new(UnixStream::connect(&worker.socket)?, &json);
    let mut tcp = Client::new(tcp, &binary);
    let answer_bytes = unix.ask()?.len() + 128;
    let mut echo = echo(binary.len(), answer_bytes)?;
    let mut echoed = vec![0; answer_bytes];
    let mut times: [Vec<f64>; 5] = Default::default();
    let start = Instant::now();
    let mut round = 0;
    while round < WARM_UP || start.elapsed() < time {
        if round == WARM_UP {
            times = Default::default();
        }
        let [of_bare, of_unix, of_text, of_tcp, of_echo] = &mut times;
        timed(of_bare, || bare.run())?;
        let answer = timed(of_unix, || unix.ask())?;
        ensure!(
            answer.ends_with(&expected),
            "the worker computed something else"
        );
        timed(of_text, || text.ask())?;
        let answer = timed(of_tcp, || tcp.ask())?;
        ensure!(
            answer.ends_with(&expected),
            "the worker computed something else"
        );
        timed(of_echo, || {
            echo.write_all(&binary)?;
            Ok(echo.read_exact(&mut echoed)?)
        })?;
        round += 1;
    }
    let rounds = times[0].len();
    drop((unix, text, tcp));
    worker.stop()?;
    let [of_bare, of_unix, of_text, of_tcp, of_echo] = times.each_mut().map(|t| median(t));
    let added = of_unix - of_bare;
    Ok(format!(
        "| {} | {}, {} | {rounds} | {of_bare:.1} | {of_unix:.1} | **{added:.1}** | {:.1} % | {of_text:.1} | {of_tcp:.1} | {of_echo:.1} |",
        manifest.family,
        input.len(),
        expected.len(),
        100.0 * added / of_bare,
    ))
}

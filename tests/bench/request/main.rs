//! What the agent adds to a request: the same model on the same input, bare in this process and asked of a
//! worker over its sockets, one of each in turn.
//!
//! `bench-request AGENT FOLDER [SECONDS]`: AGENT is a program that runs as `AGENT agent infer`, FOLDER has a
//! staged bundle and an `input.bin` in each of its folders. Prints Markdown.

use anyhow::{Context as _, bail, ensure};
use dunlin_protocol::bundle::{DType, Manifest};
use dunlin_tests::worker::{Client, Worker, chunks, requests};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tract_onnx::prelude::{
    DatumType, Framework as _, InferenceFact, InferenceModelExt as _, IntoRunnable as _,
    IntoTValue as _, Tensor, TypedRunnableModel, tvec,
};

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
        "| model | bytes in, out | rounds | bare tract | Unix, binary | added | share | Unix, JSON | TCP, binary | echo |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|");
    for slot in folders {
        let row = measure(Path::new(agent), &slot, Duration::from_secs(seconds));
        println!("{}", row.with_context(|| slot.display().to_string())?);
    }
    Ok(())
}

/// The model as tract runs it, without an agent.
struct Bare {
    plan: Arc<TypedRunnableModel>,
    input: Tensor,
}

impl Bare {
    fn load(slot: &Path, manifest: &Manifest, input: &[u8]) -> anyhow::Result<Self> {
        let [spec] = &manifest.inputs[..] else {
            bail!("a model with one input was expected");
        };
        let dtype = match spec.dtype {
            DType::FP32 => DatumType::F32,
            DType::INT32 => DatumType::I32,
            other => bail!("{other:?} was not expected"),
        };
        let mut model = tract_onnx::onnx()
            .with_ignore_value_info(true)
            .with_ignore_output_shapes(true)
            .model_for_path(slot.join("model.onnx"))?;
        model.set_input_fact(0, InferenceFact::dt_shape(dtype, &spec.shape))?;
        model.set_output_fact(0, InferenceFact::default())?;
        // As the machine has them, which is as the worker reads them on a little-endian one.
        let input = match spec.dtype {
            DType::FP32 => {
                let values: Vec<f32> = chunks(input).map(f32::from_le_bytes).collect();
                Tensor::from_shape(&spec.shape, &values)?
            }
            _ => {
                let values: Vec<i32> = chunks(input).map(i32::from_le_bytes).collect();
                Tensor::from_shape(&spec.shape, &values)?
            }
        };
        Ok(Self {
            plan: model.into_optimized()?.into_runnable()?,
            input,
        })
    }

    fn run(&self) -> anyhow::Result<Vec<u8>> {
        let outputs = self.plan.run(tvec!(self.input.clone().into_tvalue()))?;
        Ok(outputs[0].as_bytes().to_vec())
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

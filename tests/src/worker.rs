//! A worker asked over its sockets without a runtime in between, for benchmarks.

use anyhow::{Context as _, bail, ensure};
use dunlin_agent::pipe::{FromWorker, ToWorker};
use dunlin_protocol::bundle::{DType, Manifest};
use dunlin_protocol::id::Digest;
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A worker without a supervisor.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    words: BufReader<ChildStdout>,
    /// Its Unix socket.
    pub socket: PathBuf,
    /// Its loopback address.
    pub tcp: std::net::SocketAddr,
    _dir: tempfile::TempDir,
}

impl Worker {
    /// Starts one that may read the bundles staged in this folder; AGENT runs as `AGENT agent infer`.
    ///
    /// # Errors
    /// It does not listen.
    pub fn start(agent: &Path, models: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("inference.sock");
        let mut child = Command::new(agent)
            .args(["agent", "infer", "--listen", "127.0.0.1:0", "--socket"])
            .arg(&socket)
            .arg("--models")
            .arg(models)
            // As its supervisor starts it.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut words = BufReader::new(stdout);
        let FromWorker::Listening { tcp: Some(tcp), .. } = word(&mut words)? else {
            bail!("the worker does not listen");
        };
        Ok(Self {
            child,
            words,
            socket,
            tcp,
            _dir: dir,
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it serve a staged bundle, and waits until it does.
    ///
    /// # Errors
    /// It cannot.
    pub fn activate(&mut self, slot: &Path) -> anyhow::Result<()> {
        let bundle = Digest::of(&std::fs::read(slot.join("manifest.json"))?);
        let slot = slot.to_owned();
        let mut line = serde_json::to_vec(&ToWorker::Activate { slot, bundle })?;
        line.push(b'\n');
        self.child
            .stdin
            .as_mut()
            .context("no input")?
            .write_all(&line)?;
        loop {
            match word(&mut self.words)? {
                FromWorker::Activated { bundle: said } if said == bundle => return Ok(()),
                FromWorker::ActivateFailed { detail, .. } => bail!(detail),
                _ => {}
            }
        }
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// It ends badly.
    pub fn stop(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        std::io::copy(&mut self.words, &mut std::io::sink())?;
        ensure!(self.child.wait()?.success(), "the worker ended badly");
        Ok(())
    }
}

fn word(words: &mut BufReader<ChildStdout>) -> anyhow::Result<FromWorker> {
    let mut line = String::new();
    words.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// A connection and the one request that it repeats.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    /// Repeats this request.
    pub fn new(stream: S, request: &[u8]) -> Self {
        Self {
            stream,
            request: request.to_vec(),
            buffer: vec![0; 1 << 20],
        }
    }

    /// Asks once; the body of the answer.
    ///
    /// # Errors
    /// Another status than 200, or the connection ended.
    pub fn ask(&mut self) -> anyhow::Result<&[u8]> {
        self.stream.write_all(&self.request)?;
        let mut read = 0;
        let mut wanted = None;
        loop {
            let n = self.stream.read(&mut self.buffer[read..])?;
            ensure!(n > 0, "the connection ended");
            read += n;
            if wanted.is_none()
                && let Some(end) = self.buffer[..read]
                    .windows(4)
                    .position(|w| w == b"\r\n\r\n")
            {
                let head = std::str::from_utf8(&self.buffer[..end])?;
                ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: "))
                    .context("no length")?;
                wanted = Some((end + 4, end + 4 + length.parse::<usize>()?));
            }
            if let Some((start, end)) = wanted
                && read >= end
            {
                return Ok(&self.buffer[start..end]);
            }
        }
    }
}

fn request(model: &str, json_bytes: Option<usize>, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let json = json_bytes.map_or(String::new(), |n| {
        format!("inference-header-content-length: {n}\r\n")
    });
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nhost: device\r\n{json}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Four bytes each.
pub fn chunks(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.as_chunks::<4>().0.iter().copied()
}

/// The request in binary and in JSON.
///
/// One input of FP32 or INT32.
#[must_use]
pub fn requests(manifest: &Manifest, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (given, got) = (&manifest.inputs[0], &manifest.outputs[0]);
    let head = json!({
        "inputs": [{"name": given.name, "datatype": given.dtype, "shape": given.shape,
            "parameters": {"binary_data_size": input.len()}}],
        "outputs": [{"name": got.name, "parameters": {"binary_data": true}}],
    })
    .to_string();
    let body = [head.as_bytes(), input].concat();
    let family = manifest.family.as_str();
    let binary = request(family, Some(head.len()), &body);
    let data: serde_json::Value = match given.dtype {
        DType::FP32 => chunks(input).map(f32::from_le_bytes).collect(),
        _ => chunks(input).map(i32::from_le_bytes).collect(),
    };
    let body = json!({
        "inputs": [{"name": given.name, "datatype": given.dtype, "shape": given.shape, "data": data}],
    });
    (binary, request(family, None, body.to_string().as_bytes()))
}

//! A worker in a process of its own.

use anyhow::{Context as _, bail, ensure};
use dunlin_agent::pipe::{FromWorker, ToWorker};
use dunlin_protocol::id::Digest;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A worker that serves one bundle.
pub(crate) struct Worker {
    child: Child,
    words: BufReader<ChildStdout>,
    pub(crate) socket: PathBuf,
    pub(crate) tcp: std::net::SocketAddr,
    _dir: tempfile::TempDir,
}

impl Worker {
    pub(crate) fn start(agent: &Path, slot: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("inference.sock");
        let mut child = Command::new(agent)
            .args(["agent", "infer", "--listen", "127.0.0.1:0", "--socket"])
            .arg(&socket)
            .arg("--models")
            .arg(slot)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut words = BufReader::new(stdout);
        let FromWorker::Listening { tcp: Some(tcp), .. } = word(&mut words)? else {
            bail!("the worker does not listen");
        };
        let bundle = Digest::of(&std::fs::read(slot.join("manifest.json"))?);
        let slot = slot.to_owned();
        let mut line = serde_json::to_vec(&ToWorker::Activate { slot, bundle })?;
        line.push(b'\n');
        child.stdin.as_mut().context("no input")?.write_all(&line)?;
        let said = word(&mut words)?;
        ensure!(said == FromWorker::Activated { bundle }, "{said:?}");
        Ok(Self {
            child,
            words,
            socket,
            tcp,
            _dir: dir,
        })
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
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

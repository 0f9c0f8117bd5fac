//! The supervisor's end of the pipelines' process: started, listened to, started again.

use super::command::Charge;
use super::progress::{LINE_MAX_BYTES, Progress};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};

const QUEUE: usize = 64;
/// One that dies at once is started again no faster than this.
const RESTART_MIN_MS: u64 = 250;
const RESTART_MAX_MS: u64 = 30_000;
/// One that lived this long counts as healthy again.
const HEALTHY: Duration = Duration::from_secs(30);
/// Longest time from the word to stop to the end.
const END_TIMEOUT: Duration = Duration::from_secs(8);

/// How the process is started.
#[derive(Debug, Clone)]
pub struct ChildSettings {
    /// The binary that understands `pipelines`.
    pub program: PathBuf,
    /// Arguments before it (the all-in-one binary needs `agent`).
    pub prefix: Vec<String>,
    /// What it is told on its standard input.
    pub charge: Charge,
}

/// What the process does.
#[derive(Debug)]
pub enum ChildEvent {
    /// It says how far a pipeline is.
    Says(Progress),
    /// It is gone, and started again.
    Died(String),
}

/// The running process; it ends when this is dropped.
pub struct Pipelines {
    _stop: oneshot::Sender<()>,
}

/// Starts the process if there are pipelines, and keeps it running.
#[must_use]
pub fn start(settings: ChildSettings) -> (Option<Pipelines>, mpsc::Receiver<ChildEvent>) {
    let (events, event_rx) = mpsc::channel(QUEUE);
    if settings.charge.pipelines.is_empty() {
        return (None, event_rx);
    }
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(keep_running(settings, events, stopped));
    (Some(Pipelines { _stop: stop }), event_rx)
}

async fn keep_running(
    settings: ChildSettings,
    events: mpsc::Sender<ChildEvent>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut quick_deaths = 0_u32;
    loop {
        let born = Instant::now();
        let died = match one_life(&settings, &events, &mut stopped).await {
            Ok(None) => return,
            Ok(Some(how)) => how,
            Err(e) => format!("cannot start {}: {e}", settings.program.display()),
        };
        if events.send(ChildEvent::Died(died)).await.is_err() {
            return;
        }
        let healthy = born.elapsed() > HEALTHY;
        quick_deaths = if healthy {
            0
        } else {
            quick_deaths.saturating_add(1)
        };
        let pause_ms = RESTART_MIN_MS
            .saturating_mul(1 << quick_deaths.saturating_sub(1).min(8))
            .min(RESTART_MAX_MS);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(pause_ms)) => {}
            _ = &mut stopped => return,
        }
    }
}

/// `None`: it was told to end. `Some`: how it died.
async fn one_life(
    settings: &ChildSettings,
    events: &mpsc::Sender<ChildEvent>,
    stopped: &mut oneshot::Receiver<()>,
) -> std::io::Result<Option<String>> {
    let (mut child, mut stdin, stdout) = spawn(settings)?;
    let mut charge = serde_json::to_vec(&settings.charge)?;
    charge.push(b'\n');
    let told = tokio::time::timeout(END_TIMEOUT, stdin.write_all(&charge)).await;
    if told.is_err() {
        let _ = child.kill().await;
        return Ok(Some("did not read its pipelines".to_owned()));
    }
    let (lines_tx, mut lines) = mpsc::channel(QUEUE);
    let reader = tokio::spawn(read(stdout, lines_tx));
    let problem = loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(Ok(progress)) => {
                    if events.send(ChildEvent::Says(progress)).await.is_err() {
                        break None;
                    }
                }
                Some(Err(problem)) => break Some(problem),
                None => break Some(String::new()),
            },
            _ = &mut *stopped => break None,
        }
    };
    // The end of its standard input is the word to end.
    drop(stdin);
    let status = tokio::time::timeout(END_TIMEOUT, child.wait()).await;
    let how = match status {
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(e)) => e.to_string(),
        Err(_) => {
            let _ = child.kill().await;
            "did not end: killed".to_owned()
        }
    };
    reader.abort();
    while let Ok(Ok(progress)) = lines.try_recv() {
        let _ = events.try_send(ChildEvent::Says(progress));
    }
    Ok(problem.map(|problem| match problem.is_empty() {
        true => how,
        false => format!("{problem}; {how}"),
    }))
}

fn spawn(settings: &ChildSettings) -> std::io::Result<(Child, ChildStdin, ChildStdout)> {
    let mut child = Command::new(&settings.program)
        .args(&settings.prefix)
        .arg("pipelines")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(stdin), Some(stdout)) => Ok((child, stdin, stdout)),
        _ => Err(std::io::Error::other("the pipelines' process has no pipes")),
    }
}

async fn read(stdout: ChildStdout, to: mpsc::Sender<Result<Progress, String>>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let limit = LINE_MAX_BYTES as u64;
        let said = match (&mut reader).take(limit).read_until(b'\n', &mut line).await {
            Ok(0) => return,
            Ok(_) if line.last() == Some(&b'\n') => serde_json::from_slice(&line)
                .map_err(|e| format!("it wrote what is no message: {e}")),
            Ok(_) if line.len() >= LINE_MAX_BYTES => {
                Err(format!("it wrote a line of over {LINE_MAX_BYTES} bytes"))
            }
            // It died in the middle of a line.
            Ok(_) => return,
            Err(e) => Err(format!("reading from it: {e}")),
        };
        let last = said.is_err();
        if to.send(said).await.is_err() || last {
            return;
        }
    }
}

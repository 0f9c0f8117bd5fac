//! The child process that runs models: started, spoken to, watched, started again.

use crate::clients::Clients;
use crate::inference::CaptureCharge;
use crate::inference::turns::RulesByModel;
use crate::pipe::{FromWorker, LINE_MAX_BYTES, ToWorker, TrialReport};
use dunlin_protocol::id::Digest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

const QUEUE: usize = 256;
/// What the worker tells glibc of its heap: one for all threads, or what one thread freed of a
/// replaced model is of no use to the next, which loads in another; and limits that stay as they are,
/// or what loading freed stays with the worker. Between 1 and 4 MiB a call's tensors find their
/// memory where the call before left it.
const HEAP: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "1048576"),
    ("MALLOC_TRIM_THRESHOLD_", "4194304"),
];
/// Longest time of a trial, which loads a model and runs its golden cases.
pub const TRIAL_TIMEOUT: Duration = Duration::from_secs(120);
const DRAIN_TIMEOUT_MS: u64 = 10_000;
/// Longest time for the worker to take a line from its pipe.
const WRITE_TIMEOUT_MS: u64 = 5_000;
/// Longest output of a trial.
const TRIAL_OUTPUT_MAX_BYTES: u64 = 64 * 1024;
/// A worker that dies is started again no faster than this, and ever slower after [`QUICK_DEATHS`] in a row.
const RESTART_MIN_MS: u64 = 250;
const RESTART_MAX_MS: u64 = 10_000;
const QUICK_DEATHS: u32 = 3;
/// A worker that lived this long did not die quickly.
const HEALTHY_MS: u128 = 5_000;

/// How the worker is started.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// The binary that understands `infer`.
    pub program: PathBuf,
    /// Arguments before `infer` (the all-in-one binary needs `agent`).
    pub prefix: Vec<String>,
    /// Folder of the slots, the only files the worker may read.
    pub models: PathBuf,
    /// Unix socket for applications.
    pub socket: PathBuf,
    /// Loopback address for applications.
    pub listen: Option<std::net::SocketAddr>,
    /// Where gRPC is served to applications.
    pub grpc_listen: Option<crate::inference::GrpcAddress>,
    /// Group that Unix sockets belong to.
    pub socket_gid: Option<u32>,
    /// Which clients may ask for which models.
    pub clients: Clients,
    /// Queue, concurrency, priority and share of models.
    pub rules: RulesByModel,
    /// Segments that all requests belong to unless they say another, by key.
    pub segments: BTreeMap<String, String>,
    /// For whom inputs may be kept; nothing is kept otherwise.
    pub capture: Option<CaptureCharge>,
    /// Length of a drift window in milliseconds.
    pub window_ms: u64,
    /// Most memory the worker may map, in bytes.
    pub memory_limit_bytes: u64,
    /// Longest time a trial may take; it is killed then.
    pub trial_timeout: Duration,
    /// Whether already the first one says what it is at work on: one before it died, and a version may
    /// be the cause.
    pub confesses: bool,
}

/// What the worker does.
#[derive(Debug)]
pub enum WorkerEvent {
    /// It speaks.
    Says(FromWorker),
    /// It is gone and will be started again.
    Died(Death),
    /// A new one was started; it serves nothing yet.
    Started,
}

/// How a worker ended that should not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// In words.
    pub how: String,
    /// Whether a signal that only others send ended it.
    pub killed: bool,
    /// The bundles that it loaded or computed on, if it said so.
    pub at_work: Option<Vec<Digest>>,
}

impl Death {
    fn new(how: impl Into<String>) -> Self {
        Self {
            how: how.into(),
            killed: false,
            at_work: None,
        }
    }
}

/// The supervisor's end of the worker.
#[derive(Clone)]
pub struct Worker {
    say: mpsc::Sender<ToWorker>,
}

impl Worker {
    /// Tells the worker something; lost if it dies meanwhile (its owner tells the next one again).
    pub async fn say(&self, message: ToWorker) {
        let _ = self.say.send(message).await;
    }
}

/// Starts the worker and keeps it running until every [`Worker`] handle is dropped; it is drained
/// then, and the returned receiver ends after its last word.
#[must_use]
pub fn start(settings: WorkerSettings) -> (Worker, mpsc::Receiver<WorkerEvent>) {
    let (say, orders) = mpsc::channel(QUEUE);
    let (events, event_rx) = mpsc::channel(QUEUE);
    tokio::spawn(keep_running(settings, orders, events));
    (Worker { say }, event_rx)
}

async fn keep_running(
    settings: WorkerSettings,
    mut orders: mpsc::Receiver<ToWorker>,
    events: mpsc::Sender<WorkerEvent>,
) {
    let mut quick_deaths = 0_u32;
    let mut confesses = settings.confesses;
    loop {
        let born = std::time::Instant::now();
        let died = match spawn(&settings, confesses) {
            Ok((child, stdin, stdout)) => {
                if events.send(WorkerEvent::Started).await.is_err() {
                    return;
                }
                // Until such a one says something it is at work on nothing.
                let at_work = confesses.then(Vec::new);
                match one_life(child, stdin, stdout, at_work, &mut orders, &events).await {
                    Life::Drained => return,
                    Life::Died(death) => death,
                }
            }
            Err(e) => Death::new(format!("cannot start {}: {e}", settings.program.display())),
        };
        confesses = true;
        if events.send(WorkerEvent::Died(died)).await.is_err() {
            return;
        }
        quick_deaths = if born.elapsed().as_millis() > HEALTHY_MS {
            0
        } else {
            quick_deaths.saturating_add(1)
        };
        let wait = tokio::time::sleep(restart_wait(quick_deaths));
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => break,
                order = orders.recv() => if order.is_none() { return },
            }
        }
    }
}

fn restart_wait(quick_deaths: u32) -> Duration {
    let doublings = quick_deaths.saturating_sub(QUICK_DEATHS).min(8);
    Duration::from_millis((RESTART_MIN_MS << doublings).min(RESTART_MAX_MS))
}

enum Life {
    Drained,
    Died(Death),
}

fn base_command(settings: &WorkerSettings) -> Command {
    let mut command = Command::new(&settings.program);
    command
        .args(&settings.prefix)
        .arg("infer")
        .arg("--memory-limit-bytes")
        .arg(settings.memory_limit_bytes.to_string())
        .envs(HEAP)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// `confesses`: it is to say what it is at work on, for the one before died.
fn spawn(
    settings: &WorkerSettings,
    confesses: bool,
) -> std::io::Result<(Child, ChildStdin, ChildStdout)> {
    let mut command = base_command(settings);
    command
        .arg("--socket")
        .arg(&settings.socket)
        .arg("--models")
        .arg(&settings.models)
        .arg("--window-ms")
        .arg(settings.window_ms.to_string());
    if let Some(listen) = settings.listen {
        command.arg("--listen").arg(listen.to_string());
    }
    if let Some(grpc) = &settings.grpc_listen {
        command.arg("--grpc-listen").arg(grpc.to_string());
    }
    if let Some(gid) = settings.socket_gid {
        command.arg("--socket-gid").arg(gid.to_string());
    }
    if settings.clients != Clients::default() {
        let rules = serde_json::to_string(&settings.clients)?;
        command.arg("--clients").arg(rules);
    }
    if !settings.rules.is_empty() {
        command
            .arg("--rules")
            .arg(serde_json::to_string(&settings.rules)?);
    }
    if !settings.segments.is_empty() {
        command
            .arg("--segments")
            .arg(serde_json::to_string(&settings.segments)?);
    }
    if let Some(charge) = &settings.capture {
        let charge = serde_json::to_string(charge)?;
        command.arg("--capture").arg(charge);
    }
    if confesses {
        command.arg("--say-at-work");
    }
    let mut child = command.spawn()?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(stdin), Some(stdout)) => Ok((child, stdin, stdout)),
        _ => Err(std::io::Error::other("the worker has no pipes")),
    }
}

async fn one_life(
    mut child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    mut at_work: Option<Vec<Digest>>,
    orders: &mut mpsc::Receiver<ToWorker>,
    events: &mpsc::Sender<WorkerEvent>,
) -> Life {
    let mut stdin = stdin;
    // Reading is a task of its own, so that a line is never cut by the select below.
    let (line_tx, mut lines) = mpsc::channel(QUEUE);
    tokio::spawn(read_lines(stdout, line_tx));
    let mut draining = false;
    let deadline = tokio::time::sleep(Duration::from_secs(u64::MAX >> 32));
    tokio::pin!(deadline);
    let end = |draining, death| {
        if draining {
            Life::Drained
        } else {
            Life::Died(death)
        }
    };
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(Ok(FromWorker::AtWork { bundles })) => at_work = Some(bundles),
                Some(Ok(said)) => {
                    if events.send(WorkerEvent::Says(said)).await.is_err() {
                        return Life::Drained;
                    }
                }
                Some(Err(problem)) => {
                    let _ = child.kill().await;
                    return Life::Died(Death::new(problem));
                }
                None => {
                    let death = Death { at_work, ..ended(&mut child).await };
                    return end(draining, death);
                }
            },
            order = orders.recv(), if !draining => {
                let message = match order {
                    Some(message) => message,
                    None => {
                        draining = true;
                        deadline.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(DRAIN_TIMEOUT_MS));
                        ToWorker::Drain
                    }
                };
                // One that cannot be written to is dying; its end is seen above. One that does not
                // read hangs, and would miss what it has to serve.
                let limit = Duration::from_millis(WRITE_TIMEOUT_MS);
                if tokio::time::timeout(limit, write_line(&mut stdin, &message)).await.is_err() {
                    let _ = child.kill().await;
                    let how = format!("did not read for {WRITE_TIMEOUT_MS} ms: killed");
                    return end(draining, Death::new(how));
                }
            }
            () = &mut deadline => {
                let _ = child.kill().await;
                return end(draining, Death::new("did not drain"));
            }
        }
    }
}

async fn ended(child: &mut Child) -> Death {
    match tokio::time::timeout(Duration::from_secs(2), child.wait()).await {
        Ok(Ok(status)) => Death {
            killed: is_from_outside(status),
            ..Death::new(in_words(status))
        },
        Ok(Err(e)) => Death::new(e.to_string()),
        Err(_) => {
            let _ = child.kill().await;
            Death::new("closed its pipe and went on running: killed")
        }
    }
}

/// A process that breaks ends by another signal than those that are sent to end one.
fn is_from_outside(status: ExitStatus) -> bool {
    use rustix::process::Signal;
    use std::os::unix::process::ExitStatusExt;
    let sent = [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP];
    let signal = status.signal();
    signal.is_some_and(|signal| sent.iter().any(|sent| sent.as_raw() == signal))
}

fn in_words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

async fn write_line(stdin: &mut ChildStdin, message: &ToWorker) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stdin.write_all(&line).await?;
    stdin.flush().await
}

async fn read_lines(stdout: ChildStdout, to: mpsc::Sender<Result<FromWorker, String>>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let max = u64::try_from(LINE_MAX_BYTES).unwrap_or(u64::MAX);
        let read = (&mut reader).take(max).read_until(b'\n', &mut line).await;
        let said = match read {
            Ok(0) => return,
            Ok(_) if line.last() != Some(&b'\n') && line.len() >= LINE_MAX_BYTES => Err(format!(
                "the worker wrote a line of over {LINE_MAX_BYTES} bytes"
            )),
            // The worker died in the middle of a line.
            Ok(_) if line.last() != Some(&b'\n') => return,
            Ok(_) => serde_json::from_slice(&line)
                .map_err(|e| format!("the worker wrote what is no message: {e}")),
            Err(e) => Err(format!("reading from the worker: {e}")),
        };
        let last = said.is_err();
        if to.send(said).await.is_err() || last {
            return;
        }
    }
}

/// Runs the golden cases of a staged bundle in a process of its own, with a memory limit: a model
/// that eats the machine takes neither the supervisor nor the serving worker along.
pub async fn trial(settings: &WorkerSettings, slot: &Path) -> TrialReport {
    let failed = |code: &str, detail: String| TrialReport::Failed {
        code: code.to_owned(),
        detail,
    };
    let mut command = base_command(settings);
    command.arg("--trial").arg(slot).stdin(Stdio::null());
    let child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let detail = format!("cannot start {}: {e}", settings.program.display());
            return failed("trial_start", detail);
        }
    };
    let run = output(child);
    match tokio::time::timeout(settings.trial_timeout, run).await {
        Err(_) => failed(
            "trial_timeout",
            format!("not finished after {:?}: killed", settings.trial_timeout),
        ),
        Ok(Err(e)) => failed("trial_output", e.to_string()),
        Ok(Ok((status, _))) if !status.success() => failed(
            "trial_died",
            format!(
                "the trial process died: {} (memory limit {} bytes)",
                in_words(status),
                settings.memory_limit_bytes
            ),
        ),
        Ok(Ok((_, output))) => serde_json::from_slice(&output).unwrap_or_else(|e| {
            let detail = format!("the trial wrote what is no report: {e}");
            failed("trial_output", detail)
        }),
    }
}

/// Waits for the end of a process; its output is read up to a limit, then its pipe is closed.
async fn output(mut child: Child) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(TRIAL_OUTPUT_MAX_BYTES);
        stdout.read_to_end(&mut output).await?;
    }
    Ok((child.wait().await?, output))
}

#[cfg(test)]
mod tests {
    use super::restart_wait;

    #[test]
    fn a_worker_is_back_soon_unless_it_dies_again_and_again() {
        let waits: Vec<u64> = (0..12)
            .map(|deaths| u64::try_from(restart_wait(deaths).as_millis()).unwrap_or(u64::MAX))
            .collect();
        assert_eq!(waits[..6], [250, 250, 250, 250, 500, 1000]);
        assert_eq!(waits[9..], [10_000; 3]);
    }
}

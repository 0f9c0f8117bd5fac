//! Whole processes of the all-in-one binary, which tests end in order or by SIGKILL.

use anyhow::{Context as _, bail};
use dunlin::demo::processes::Addresses;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const END_TIMEOUT: Duration = Duration::from_secs(30);
const LOG_TAIL_LINES: usize = 40;

/// A child of the test. It dies with the test: killed when dropped, and told to end when the
/// thread that started it is gone, so start it from the test's own thread.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: i32,
    log: PathBuf,
}

impl Process {
    /// Starts the program; its standard error is added to the log.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Path, arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        Self::start_with(program, arguments, &[], log)
    }

    /// As [`Process::start`], with environment variables.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_with(
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).envs(variables.iter().copied());
        Self::spawn(&mut command, log, Stdio::null())
    }

    fn spawn(command: &mut Command, log: &Path, stdout: Stdio) -> anyhow::Result<Self> {
        let file = std::fs::File::options().create(true).append(true).open(log);
        let file = file.with_context(|| log.display().to_string())?;
        let child = command
            .env("DUNLIN_DIE_WITH_PARENT", std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().context("it has ended already")?;
        Ok(Self {
            child,
            pid: i32::try_from(pid)?,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// SIGKILL; on return it is gone.
    ///
    /// # Errors
    /// It had ended by itself before: that is not what the test is about.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("ended by itself ({status}): {}", self.log_tail());
        }
        Ok(self.child.kill().await?)
    }

    /// SIGTERM; how it ended.
    ///
    /// # Errors
    /// It does not end.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// There is no such process any more.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.pid).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        match tokio::time::timeout(END_TIMEOUT, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!(
                "did not end within {END_TIMEOUT:?}; its log: {}",
                self.log_tail()
            ),
        }
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

/// Kills a process that the test knows to be its own or a child of its own.
///
/// # Errors
/// There is no such process any more.
pub fn kill_child(pid: i32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid).context("no process id")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

/// Every process of this machine by its parent, without zombies.
#[must_use]
pub fn children_of(parent: i32) -> Vec<i32> {
    all_parents()
        .into_iter()
        .filter(|(_, p)| *p == parent)
        .map(|(pid, _)| pid)
        .collect()
}

/// Every process that came from this one, however deep, without zombies.
#[must_use]
pub fn descendants_of(ancestor: i32) -> Vec<i32> {
    let parents = all_parents();
    let mut found = vec![ancestor];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(
            parents
                .iter()
                .filter(|(_, p)| **p == parent)
                .map(|(c, _)| c),
        );
        at += 1;
    }
    found.split_off(1)
}

/// Whether a process is there and no zombie.
#[must_use]
pub fn is_alive(pid: i32) -> bool {
    parent_of(pid).is_some()
}

fn all_parents() -> BTreeMap<i32, i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect()
}

/// `pid (name) state ppid …`; the name may hold anything, so what counts is after its end.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut after = stat.rsplit_once(')')?.1.split_whitespace();
    let state = after.next()?;
    (state != "Z").then(|| after.next()?.parse().ok())?
}

/// Starts a fleet server and waits until it listens.
///
/// # Errors
/// It does not start; its log is in the error.
pub async fn start_server(
    program: &Path,
    config: &Path,
    log: &Path,
) -> anyhow::Result<(Process, Addresses)> {
    let mut command = Command::new(program);
    command
        .args(["server", "--print-addresses-json", "--config"])
        .arg(config);
    let mut process = Process::spawn(&mut command, log, Stdio::piped())?;
    let stdout = process.child.stdout.take().context("no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(START_TIMEOUT, lines.next_line()).await;
    match line {
        Ok(Ok(Some(line))) => Ok((process, serde_json::from_str(&line)?)),
        _ => bail!("the server did not start: {}", process.log_tail()),
    }
}

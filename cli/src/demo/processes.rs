//! The demo's processes: one fleet server and many agents, each a real process of this binary.

use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

const START_TIMEOUT_MS: u64 = 60_000;
const STOP_TIMEOUT_MS: u64 = 15_000;
/// Agents and server end when the process that started them does.
const DIE_WITH_PARENT: &str = "DUNLIN_DIE_WITH_PARENT";

/// What the server prints once it listens.
#[derive(Debug, Clone, Deserialize)]
pub struct Addresses {
    /// Admin API, `host:port`.
    pub admin: std::net::SocketAddr,
    /// Enrolment and repository, `host:port`.
    pub devices: std::net::SocketAddr,
    /// Broker, `host:port`.
    pub mqtt: Option<std::net::SocketAddr>,
    /// The first admin token.
    pub token: Option<String>,
}

/// A child with a name, ended with SIGTERM and, if it must be, SIGKILL.
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end; the answer is awaited by [`Process::ended`].
    pub fn ask_to_end(&self) {
        let pid = self
            .pid()
            .and_then(|p| i32::try_from(p).ok())
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Waits for its end, and kills it when it takes too long. `true`: it ended in order.
    pub async fn ended(&mut self) -> bool {
        let limit = Duration::from_millis(STOP_TIMEOUT_MS);
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(Ok(status)) => status.success(),
            _ => {
                tracing::warn!(name = %self.name, "did not end in time: killed");
                let _ = self.child.kill().await;
                false
            }
        }
    }
}

fn command(program: &Path, log: &Path) -> anyhow::Result<Command> {
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| log.display().to_string())?;
    let mut command = Command::new(program);
    command
        .env(DIE_WITH_PARENT, std::process::id().to_string())
        .env_remove("DUNLIN_TOKEN")
        .stdin(Stdio::null())
        .stderr(file)
        // An interrupt from the terminal goes to the demo, which ends its children in order.
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

/// Starts the fleet server and waits until it listens.
pub async fn start_server(program: &Path, dir: &Path) -> anyhow::Result<(Process, Addresses)> {
    let config = dir.join("server.toml");
    let log = dir.join("server.log");
    let text = format!(
        "fleet = \"demo\"\nstate_dir = {:?}\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n[devices]\nlisten = \"127.0.0.1:0\"\n\n[mqtt]\nmode = \"embedded\"\nlisten = \"127.0.0.1:0\"\n\n[rollout]\ntick_ms = 200\n",
        dir.join("server")
    );
    std::fs::write(&config, text).with_context(|| config.display().to_string())?;
    let mut child = command(program, &log)?
        .args(["server", "--print-addresses-json", "--config"])
        .arg(&config)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the fleet server")?;
    let stdout = child.stdout.take().context("the server has no output")?;
    let mut lines = BufReader::new(stdout.take(1 << 20)).lines();
    let addresses = async {
        while let Some(line) = lines.next_line().await? {
            if let Ok(addresses) = serde_json::from_str::<Addresses>(&line) {
                return Ok(addresses);
            }
        }
        bail!(
            "the fleet server ended before it listened; its log is {}",
            log.display()
        )
    };
    let addresses = tokio::time::timeout(Duration::from_millis(START_TIMEOUT_MS), addresses)
        .await
        .context("the fleet server did not start in time")??;
    let process = Process {
        name: "server".to_owned(),
        child,
    };
    Ok((process, addresses))
}

/// One device: its folder and how it is called.
#[derive(Debug, Clone)]
pub struct DeviceDir {
    /// Its id.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
}

impl DeviceDir {
    /// Makes the folder, with a configuration of short windows.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let this = Self {
            name: name.to_owned(),
            dir,
        };
        let text = format!(
            "state_dir = {:?}\ndevice = {name:?}\n\n[inference]\nsocket = {:?}\nwindow_ms = 500\n\n[telemetry]\nmetrics_every_ms = 5000\n",
            this.state_dir(),
            this.socket()
        );
        std::fs::write(this.config(), text)?;
        Ok(this)
    }

    /// Where the agent keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Socket of its inference API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("infer.sock")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// Enrols with a claim token, given on standard input: arguments are seen by everybody.
    pub async fn enroll(&self, program: &Path, token: &str) -> anyhow::Result<()> {
        let mut child = command(program, &self.dir.join("agent.log"))?
            .args(["agent", "enroll", "--config"])
            .arg(self.config())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(token.as_bytes()).await?;
        }
        let limit = Duration::from_millis(START_TIMEOUT_MS);
        let status = tokio::time::timeout(limit, child.wait())
            .await
            .with_context(|| format!("{}: enrolment took too long", self.name))??;
        if !status.success() {
            let log = std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default();
            bail!("{}: enrolment failed: {}", self.name, log.trim());
        }
        Ok(())
    }

    /// Starts the agent.
    pub fn start(&self, program: &Path) -> anyhow::Result<Process> {
        let child = command(program, &self.dir.join("agent.log"))?
            .args(["agent", "run", "--config"])
            .arg(self.config())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting the agent of {}", self.name))?;
        Ok(Process {
            name: self.name.clone(),
            child,
        })
    }
}

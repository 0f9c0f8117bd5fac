//! A whole fleet in one process.

use crate::mosquitto::{Mosquitto, free_port};
use crate::operator::Operator;
use anyhow::Context as _;
use dunlin::demo::stream::{Fed, Stream, feed};
use dunlin_agent::config::Settings as AgentSettings;
use dunlin_agent::shell::{self, Program};
use dunlin_protocol::id::DeviceId;
use dunlin_server::config::{MqttMode, Settings};
use dunlin_server::{RunningServer, Server};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Which broker the fleet talks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// The server's own.
    Embedded,
    /// Debian's mosquitto, with the ACL file that the server writes.
    Mosquitto,
}

/// What to boot.
#[derive(Debug, Clone)]
pub struct FleetBuilder {
    program: PathBuf,
    devices: usize,
    broker: Broker,
    sample_every: Duration,
    transport: &'static str,
    agent_config: String,
}

impl FleetBuilder {
    /// A fleet whose workers are started by this binary (`env!("CARGO_BIN_EXE_dunlin-under-test")`).
    #[must_use]
    pub fn new(program: &str) -> Self {
        Self {
            program: PathBuf::from(program),
            devices: 1,
            broker: Broker::Embedded,
            sample_every: Duration::from_millis(20),
            transport: "auto",
            agent_config: String::new(),
        }
    }

    /// Sections that the first devices' configuration has besides.
    #[must_use]
    pub fn agent_config(mut self, sections: &str) -> Self {
        sections.clone_into(&mut self.agent_config);
        self
    }

    /// What devices fetch over: `https`, `mqtt` or `auto`.
    #[must_use]
    pub fn transport(mut self, transport: &'static str) -> Self {
        self.transport = transport;
        self
    }

    /// Number of devices.
    #[must_use]
    pub fn devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// Which broker.
    #[must_use]
    pub fn broker(mut self, broker: Broker) -> Self {
        self.broker = broker;
        self
    }

    /// Boots everything and waits until every device is connected.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn boot(self) -> anyhow::Result<Fleet> {
        // A second call in one process finds the provider installed, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::Builder::new().prefix("dunlin-test-").tempdir()?;
        let mut settings = Settings::loopback("test".parse()?, dir.path().join("server"));
        settings.rollout_tick_ms = 100;
        let port = free_port()?;
        let acl = dir.path().join("mosquitto.acl");
        if self.broker == Broker::Mosquitto {
            settings.mqtt.mode = MqttMode::External {
                host: "127.0.0.1".to_owned(),
                port,
                ca_file: None,
                cert_file: None,
                key_file: None,
            };
            settings.mqtt.acl_file = Some(acl.clone());
        }
        let server = Server::start(settings).await?;
        let mosquitto = match self.broker {
            Broker::Embedded => None,
            Broker::Mosquitto => {
                let pki = dir.path().join("server/pki");
                Some(Mosquitto::start(dir.path(), &pki, &acl, port)?)
            }
        };
        let token = server.first_admin_token.clone().context("no first token")?;
        let operator = Operator::new(dir.path(), &server.admin.to_string(), &token).await?;
        let mut fleet = Fleet {
            dir,
            program: self.program,
            sample_every: self.sample_every,
            transport: self.transport,
            agent_config: self.agent_config,
            server: Some(server),
            operator,
            mosquitto,
            devices: Vec::new(),
            stop_streams: watch::channel(false).0,
        };
        let claim = fleet.operator.claim(u32::try_from(self.devices)?).await?;
        for n in 1..=self.devices {
            fleet.add_device(&format!("dev-{n:02}"), &claim).await?;
        }
        fleet.operator.online(self.devices).await?;
        Ok(fleet)
    }
}

/// A device whose supervisor runs in this process.
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Its settings.
    pub settings: AgentSettings,
    /// Answers its application got so far.
    pub answered: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<anyhow::Result<()>>>,
    feeder: Option<JoinHandle<Fed>>,
}

/// A running fleet.
pub struct Fleet {
    /// Everything on disk; gone with the fleet.
    pub dir: TempDir,
    program: PathBuf,
    sample_every: Duration,
    transport: &'static str,
    /// Sections that the configuration of the next device has besides.
    pub agent_config: String,
    /// The server.
    pub server: Option<RunningServer>,
    /// Who runs it.
    pub operator: Operator,
    /// The external broker, if there is one.
    pub mosquitto: Option<Mosquitto>,
    /// The devices.
    pub devices: Vec<Device>,
    stop_streams: watch::Sender<bool>,
}

/// A device's settings in a folder, with short windows.
///
/// # Errors
/// The text is no configuration.
pub fn agent_settings(dir: &Path, name: &str) -> anyhow::Result<AgentSettings> {
    agent_settings_over(dir, name, "auto")
}

/// The same, fetching over this transport.
///
/// # Errors
/// The text is no configuration.
pub fn agent_settings_over(
    dir: &Path,
    name: &str,
    transport: &str,
) -> anyhow::Result<AgentSettings> {
    agent_settings_with(dir, name, transport, "")
}

fn agent_settings_with(
    dir: &Path,
    name: &str,
    transport: &str,
    sections: &str,
) -> anyhow::Result<AgentSettings> {
    // A test may add a section of its own.
    let update = match transport {
        "auto" => String::new(),
        other => format!("[update]\ntransport = {other:?}\n"),
    };
    let text = format!(
        "state_dir = {:?}\ndevice = {name:?}\n{update}[inference]\nsocket = {:?}\nwindow_ms = 250\n[telemetry]\nmetrics_every_ms = 1000\n[log]\nlevel = \"warn\"\n{sections}",
        dir.join("state"),
        dir.join("infer.sock"),
    );
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("agent.toml"), &text)?;
    Ok(AgentSettings::parse(&text, Path::new("agent.toml"))?)
}

impl Fleet {
    /// The server.
    ///
    /// # Panics
    /// It was stopped.
    #[must_use]
    #[allow(clippy::expect_used)]
    pub fn server(&self) -> &RunningServer {
        self.server.as_ref().expect("the server was stopped")
    }

    /// Enrols and starts one more device, fed with samples of its own.
    ///
    /// # Errors
    /// It cannot enrol.
    pub async fn add_device(
        &mut self,
        name: &str,
        claim: &dunlin_protocol::enroll::ClaimToken,
    ) -> anyhow::Result<()> {
        let dir = self.dir.path().join(name);
        let settings = agent_settings_with(&dir, name, self.transport, &self.agent_config)?;
        dunlin_agent::enroll::enroll(&settings, claim).await?;
        let mut device = Device {
            id: name.parse()?,
            settings,
            answered: Arc::new(AtomicU64::new(0)),
            stop: None,
            task: None,
            feeder: None,
        };
        device.start(&self.program);
        let seed = u64::try_from(self.devices.len())?;
        let stream = Stream::new(1, seed, Arc::clone(&device.answered));
        let socket = device.settings.inference.socket.clone();
        let feeder = feed(
            socket,
            stream,
            self.sample_every,
            self.stop_streams.subscribe(),
        );
        device.feeder = Some(tokio::spawn(feeder));
        self.devices.push(device);
        Ok(())
    }

    /// Ends one device's supervisor in order and starts it again.
    ///
    /// # Errors
    /// It ended in an error.
    pub async fn restart_device(&mut self, at: usize) -> anyhow::Result<()> {
        let program = self.program.clone();
        let device = self.devices.get_mut(at).context("no such device")?;
        device.stop().await?;
        device.start(&program);
        Ok(())
    }

    /// Ends the server in order; devices go on without it.
    pub async fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
    }

    /// Starts one device's supervisor that was stopped.
    ///
    /// # Errors
    /// There is no such device.
    pub fn start_device(&mut self, at: usize) -> anyhow::Result<()> {
        let program = self.program.clone();
        let device = self.devices.get_mut(at).context("no such device")?;
        device.start(&program);
        Ok(())
    }

    /// Ends every application; what became of their requests.
    ///
    /// # Errors
    /// A feeder panicked.
    pub async fn stop_streams(&mut self) -> anyhow::Result<Vec<Fed>> {
        let _ = self.stop_streams.send(true);
        let mut fed = Vec::new();
        for device in &mut self.devices {
            if let Some(feeder) = device.feeder.take() {
                fed.push(feeder.await?);
            }
        }
        Ok(fed)
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// Something ended in an error.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.stop_streams().await?;
        for device in &mut self.devices {
            device.stop().await?;
        }
        if let Some(server) = self.server.take() {
            server.shutdown().await;
        }
        Ok(())
    }
}

impl Device {
    /// Starts the supervisor.
    pub fn start(&mut self, program: &Path) {
        let (stop, stopped) = oneshot::channel::<()>();
        let program = Program {
            path: program.to_owned(),
            prefix: vec!["agent".to_owned()],
        };
        let run = shell::run(self.settings.clone(), program, async {
            // A dropped sender means the same.
            let _ = stopped.await;
        });
        self.stop = Some(stop);
        self.task = Some(tokio::spawn(run));
    }

    /// Ends the supervisor in order: drained, flushed, said goodbye.
    ///
    /// # Errors
    /// It ended in an error.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        match self.task.take() {
            Some(task) => task.await?,
            None => Ok(()),
        }
    }

    /// Answers its application got so far.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

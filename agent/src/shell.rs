//! The supervisor: feeds the device state machine and carries out what it decides.
//!
//! One task owns the state. Everything else (worker, connection, downloads, trials, telemetry
//! buffer) runs beside it and talks to it in bounded channels. The state is persisted before its
//! effects are carried out.

mod effects;
mod record;

use crate::bundle::receive::Receiver;
use crate::config::Settings;
use crate::device::{self, Effect, Event, State};
use crate::identity::Identity;
use crate::ledger::Ledger;
use crate::mqtt::{self, Incoming, Link, LinkSettings, Outgoing};
use crate::pipe::FromWorker;
use crate::telemetry::{Limits, TelemetryHandle};
use crate::worker::{self, Worker, WorkerEvent, WorkerSettings};
use anyhow::Context as _;
use dunlin_protocol::CONTROL_MESSAGE_MAX_BYTES;
use dunlin_protocol::command::{Ack, Action, Command, Desired, MessageError, parse};
use dunlin_protocol::id::{Digest, Revision};
use dunlin_protocol::telemetry::{Body, Record};
use dunlin_protocol::topic::Channel;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

const TICK_MS: u64 = 500;
const QUEUE: usize = 64;
/// Events kept while the ledger cannot be written.
const DEFERRED_MAX: usize = 256;
const GOODBYE_MS: u64 = 3_000;

/// How the worker's binary is called: by itself, or as `dunlin agent`.
#[derive(Debug, Clone)]
pub struct Program {
    /// The binary.
    pub path: PathBuf,
    /// Arguments before the subcommand.
    pub prefix: Vec<String>,
}

/// SIGTERM or SIGINT.
///
/// # Errors
/// The signals cannot be listened to.
pub fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

/// Runs the agent until `shutdown` is ready, then drains.
///
/// # Errors
/// What cannot work without a person: no identity, no state folder, another agent on it.
pub async fn run(
    settings: Settings,
    program: Program,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let _lock = lock(&settings).context("another agent runs on this state folder")?;
    let identity = Identity::load(&settings.state_dir)?
        .context("this device is not enrolled: run `dunlin-agent enroll` first")?;
    let mut shell = Shell::build(settings, identity, program).await?;
    tracing::info!(
        version = crate::VERSION,
        device = %shell.identity.enrolled.device,
        fleet = %shell.identity.enrolled.fleet,
        broker = %format!("{}:{}", shell.identity.enrolled.mqtt_host, shell.identity.enrolled.mqtt_port),
        state = %shell.settings.state_dir.display(),
        "agent started"
    );
    shell.serve(shutdown).await?;
    shell.drain().await;
    Ok(())
}

/// Held for as long as the agent runs; also tells `status` whether one does.
fn lock(settings: &Settings) -> anyhow::Result<std::fs::File> {
    crate::files::create_private_dir(&settings.state_dir)?;
    let path = settings.state_dir.join("agent.lock");
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    file.try_lock()
        .with_context(|| path.display().to_string())?;
    Ok(file)
}

struct Shell {
    settings: Settings,
    identity: Identity,
    ledger: Ledger,
    state: State,
    deferred: VecDeque<Event>,
    worker: Option<Worker>,
    worker_settings: WorkerSettings,
    worker_events: mpsc::Receiver<WorkerEvent>,
    link: Option<Link>,
    incoming: mpsc::Receiver<Incoming>,
    connected: bool,
    telemetry: TelemetryHandle,
    receiver: Arc<Receiver>,
    job: Option<AbortHandle>,
    job_events: mpsc::Receiver<Event>,
    job_sender: mpsc::Sender<Event>,
    command_revision: Revision,
    live: record::Live,
}

impl Shell {
    async fn build(
        settings: Settings,
        identity: Identity,
        program: Program,
    ) -> anyhow::Result<Self> {
        let ledger = Ledger::new(&settings.state_dir);
        let mut first_events = Vec::new();
        let state = match ledger.load() {
            Ok(Some(state)) => state,
            Ok(None) => fresh_state(&identity),
            Err(e) => {
                let aside = ledger.set_aside()?;
                first_events.push((
                    "ledger_damaged",
                    format!("{e}; kept as {}", aside.display()),
                ));
                fresh_state(&identity)
            }
        };
        let limits = Limits {
            max_bytes: settings.telemetry.max_mib << 20,
        };
        let (telemetry, opened) =
            TelemetryHandle::open(&settings.state_dir.join("telemetry"), limits).await?;
        first_events.extend(opened.events());
        let receiver = Arc::new(Receiver::new(&settings, &identity)?);
        let worker_settings = WorkerSettings {
            program: program.path,
            prefix: program.prefix,
            socket: settings.inference.socket.clone(),
            listen: settings.inference.listen,
            window_ms: settings.inference.window_ms,
            memory_limit_bytes: settings.inference.memory_limit_mib << 20,
        };
        if let Some(folder) = worker_settings.socket.parent()
            && !folder.exists()
        {
            crate::files::create_private_dir(folder)?;
        }
        let (worker, worker_events) = worker::start(worker_settings.clone());
        let (link, incoming) = mqtt::start(LinkSettings {
            host: identity.enrolled.mqtt_host.clone(),
            port: identity.enrolled.mqtt_port,
            fleet: identity.enrolled.fleet.clone(),
            device: identity.enrolled.device.clone(),
            tls: identity.rustls_client_config(),
        });
        let (job_sender, job_events) = mpsc::channel(QUEUE);
        let shell = Self {
            settings,
            identity,
            ledger,
            state,
            deferred: VecDeque::new(),
            worker: Some(worker),
            worker_settings,
            worker_events,
            link: Some(link),
            incoming,
            connected: false,
            telemetry,
            receiver,
            job: None,
            job_events,
            job_sender,
            command_revision: Revision::default(),
            live: record::Live::new(),
        };
        for (code, detail) in first_events {
            shell.record_event(code, detail, None).await;
        }
        Ok(shell)
    }

    async fn serve(&mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::pin!(shutdown);
        let mut tick = tokio::time::interval(Duration::from_millis(TICK_MS));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let every = Duration::from_millis(self.settings.telemetry.metrics_every_ms);
        let mut metrics = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        let telemetry = self.telemetry.clone();
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                Some(event) = self.worker_events.recv() => self.worker_event(event).await,
                Some(event) = self.job_events.recv() => self.feed(event).await,
                incoming = self.incoming.recv() => match incoming {
                    Some(incoming) => self.incoming(incoming).await,
                    None => anyhow::bail!("the connection's task ended"),
                },
                () = telemetry.changed() => self.send_telemetry().await,
                _ = tick.tick() => {
                    self.feed(Event::Tick).await;
                    self.send_telemetry().await;
                    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
                }
                _ = metrics.tick() => self.record_metrics().await,
            }
        }
    }

    /// One step of the state machine: decide, persist, then act.
    async fn feed(&mut self, event: Event) {
        self.deferred.push_back(event);
        while let Some(event) = self.deferred.pop_front() {
            let (next, effects) = device::step(self.state.clone(), event.clone(), now_ms());
            if next != self.state {
                let stored = tokio::task::block_in_place(|| self.ledger.store(&next));
                if let Err(e) = stored {
                    tracing::error!(error = %e, "the ledger cannot be written: nothing is done until it can");
                    // Ticks come again by themselves; what happened once must be kept.
                    if event != Event::Tick && self.deferred.len() < DEFERRED_MAX {
                        self.deferred.push_front(event);
                    }
                    return;
                }
                self.state = next;
            }
            for effect in effects {
                if let Some(event) = self.carry_out(effect).await {
                    self.deferred.push_back(event);
                }
            }
        }
    }

    async fn worker_event(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Started => {
                if self.live.first_worker() {
                    self.feed(Event::Started).await;
                } else if let Some(slot) = self.state.serving()
                    && let Some(event) = self.carry_out(Effect::Serve { slot }).await
                {
                    self.feed(event).await;
                }
            }
            WorkerEvent::Died(detail) => {
                tracing::warn!(%detail, "the inference worker died");
                self.live.worker_died();
                self.feed(Event::WorkerDied { detail }).await;
            }
            WorkerEvent::Says(said) => self.worker_says(said).await,
        }
    }

    async fn worker_says(&mut self, said: FromWorker) {
        match said {
            FromWorker::Listening { tcp } => {
                tracing::info!(socket = %self.worker_settings.socket.display(), ?tcp, "inference API listens");
            }
            FromWorker::Activated { bundle } => tracing::info!(%bundle, "bundle serves"),
            FromWorker::ActivateFailed { slot, detail } => {
                if let Some(slot) = effects::slot_of(&slot) {
                    self.feed(Event::ActivateFailed { slot, detail }).await;
                }
            }
            FromWorker::Progress {
                bundle,
                inferences,
                errors,
            } => {
                let count = device::Count { inferences, errors };
                self.live.counted(bundle, count);
                self.feed(Event::Counted {
                    digest: bundle,
                    count,
                })
                .await;
            }
            FromWorker::Window(window) => {
                let record = Record {
                    time_ms: window.end_ms,
                    body: Body::Window(window),
                };
                self.push(record).await;
            }
            FromWorker::Drained => {}
        }
    }

    async fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Connected => {
                tracing::info!("connected");
                self.connected = true;
                self.telemetry.reset_inflight().await;
                self.send_report().await;
                self.send_telemetry().await;
            }
            Incoming::Disconnected(reason) => {
                if self.connected {
                    tracing::warn!(%reason, "connection lost");
                } else {
                    tracing::info!(%reason, "not connected, trying again");
                }
                self.connected = false;
            }
            Incoming::Message(channel, payload) => {
                if let Err(e) = self.message(channel, &payload).await {
                    tracing::warn!(error = %e, channel = channel.as_str(), "message refused");
                    self.record_event(
                        "message_refused",
                        format!("channel {}: {e}", channel.as_str()),
                        None,
                    )
                    .await;
                }
            }
        }
    }

    async fn message(&mut self, channel: Channel, payload: &[u8]) -> Result<(), MessageError> {
        match channel {
            Channel::Desired => {
                let desired: Desired = parse("desired", CONTROL_MESSAGE_MAX_BYTES, payload)?;
                self.feed(Event::Desired(desired)).await;
            }
            Channel::Ack => {
                let ack: Ack = parse("ack", CONTROL_MESSAGE_MAX_BYTES, payload)?;
                self.telemetry.ack(ack).await;
                self.send_telemetry().await;
            }
            Channel::Command => {
                let command: Command = parse("command", CONTROL_MESSAGE_MAX_BYTES, payload)?;
                self.command(command).await;
            }
            other => {
                return Err(MessageError::Malformed {
                    what: "message",
                    problem: format!("channel {} is not read by a device", other.as_str()),
                });
            }
        }
        Ok(())
    }

    async fn command(&mut self, command: Command) {
        if command.revision <= self.command_revision {
            return;
        }
        self.command_revision = command.revision;
        match command.action {
            Action::Report => self.send_report().await,
            Action::Flush => {
                if let Some(worker) = &self.worker {
                    worker.say(crate::pipe::ToWorker::Flush).await;
                }
            }
        }
    }

    async fn send(&self, channel: Channel, payload: Vec<u8>) {
        if let (true, Some(link)) = (self.connected, &self.link) {
            link.send(Outgoing { channel, payload }).await;
        }
    }

    async fn send_report(&self) {
        let reported = self.state.reported(crate::VERSION);
        match serde_json::to_vec(&reported) {
            Ok(payload) => self.send(Channel::Reported, payload).await,
            Err(e) => tracing::error!(error = %e, "the reported state cannot be written as JSON"),
        }
    }

    async fn send_telemetry(&self) {
        if !self.connected {
            return;
        }
        for segment in self.telemetry.next_batch().await {
            self.send(segment.class.channel(), segment.payload).await;
        }
    }

    async fn push(&self, record: Record) {
        if let Err(e) = self.telemetry.push(record).await {
            tracing::error!(error = %e, "a telemetry record could not be buffered");
        }
    }

    async fn record_event(&self, code: &str, detail: String, bundle: Option<Digest>) {
        tracing::info!(code, %detail, "event");
        self.push(record::event(now_ms(), code, detail, bundle))
            .await;
    }

    async fn record_metrics(&self) {
        let record = self
            .live
            .metrics(now_ms(), &self.state, &self.telemetry.stats().await);
        self.push(record).await;
    }

    /// Ends in order: no more updates, the worker's last windows, then the buffer, then the
    /// connection.
    async fn drain(mut self) {
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        tracing::info!("draining");
        if let Some(job) = self.job.take() {
            job.abort();
        }
        self.worker = None;
        while let Some(event) = self.worker_events.recv().await {
            if let WorkerEvent::Says(FromWorker::Window(window)) = event {
                let record = Record {
                    time_ms: window.end_ms,
                    body: Body::Window(window),
                };
                self.push(record).await;
            }
        }
        if let Err(e) = self.telemetry.flush().await {
            tracing::error!(error = %e, "the telemetry buffer could not be made durable");
        }
        self.send_telemetry().await;
        self.link = None;
        let said = async { while self.incoming.recv().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_millis(GOODBYE_MS), said).await;
        self.telemetry.close().await;
        tracing::info!("stopped");
    }
}

fn fresh_state(identity: &Identity) -> State {
    let digest = Digest::of(identity.enrolled.device.as_str().as_bytes());
    let mut seed = [0_u8; 8];
    seed.copy_from_slice(&digest.as_bytes()[..8]);
    State::new(u64::from_be_bytes(seed))
}

/// The device's clock, in milliseconds since 1970.
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

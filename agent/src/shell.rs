//! The supervisor: feeds the device state machine and carries out what it decides.
//!
//! One task owns the state. Everything else (worker, connection, downloads, trials, telemetry
//! buffer) runs beside it and talks to it in bounded channels, and nothing it waits for may take
//! long: the watchdog is fed from the same loop. [`updater`] decides and persists; this carries its
//! orders to the worker and the server.

mod deferred;
mod detectors;
mod job;
mod orders;
mod outbound;
mod pipelines;
mod record;
mod slots;
mod startup;
pub mod updater;
mod windows;

use crate::bundle::BlockLink;
use crate::capture::Captures;
use crate::config::Settings;
use crate::device::{self, Event};
use crate::files::FileLock;
use crate::health::Health;
use crate::identity::Identity;
use crate::inference::confine::Confinement;
use crate::mqtt::{Incoming, Link};
use crate::pipe::FromWorker;
use crate::pipeline::{ChildEvent, Pipelines};
use crate::renew::Renewal;
use crate::telemetry::TelemetryHandle;
use crate::worker::{Worker, WorkerEvent, WorkerSettings};
use anyhow::Context as _;
use detectors::Detectors;
use dunlin_protocol::CONTROL_MESSAGE_MAX_BYTES;
use dunlin_protocol::command::{Ack, Action, Command, Desired, MessageError, parse};
use dunlin_protocol::id::Revision;
use dunlin_protocol::topic::Channel;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use updater::Updater;

const TICK_MS: u64 = 500;
const LOCK: &str = "agent.lock";

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
    let _lock = lock(&settings).await?;
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
    let ended = shell.serve(shutdown).await;
    shell.drain().await;
    ended
}

/// Held for as long as the agent runs; also tells `status` whether one does.
async fn lock(settings: &Settings) -> anyhow::Result<FileLock> {
    crate::files::create_private_dir(&settings.state_dir)?;
    let path = settings.state_dir.join(LOCK);
    // `status` holds it for the instant in which it looks.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(1);
    loop {
        if let Some(lock) = FileLock::try_take(&path)? {
            return Ok(lock);
        }
        if tokio::time::Instant::now() >= deadline {
            let path = path.display();
            anyhow::bail!("another agent runs on this state folder: it has locked {path}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether an agent runs on a state folder.
#[must_use]
pub fn is_running(state_dir: &Path) -> bool {
    FileLock::is_taken(&state_dir.join(LOCK))
}

struct Shell {
    settings: Settings,
    identity: Identity,
    updater: Updater,
    worker: Option<Worker>,
    worker_settings: WorkerSettings,
    worker_events: mpsc::Receiver<WorkerEvent>,
    /// Whether the worker that lives now has opened its sockets.
    worker_listened: bool,
    /// Whether it was told that the kernel confines the worker in part only.
    confinement_told: bool,
    /// Their process, if the configuration has any.
    pipelines: Option<Pipelines>,
    pipeline_events: mpsc::Receiver<ChildEvent>,
    link: Option<Link>,
    /// Files over MQTT.
    blocks: BlockLink,
    renewal: Renewal,
    incoming: mpsc::Receiver<Incoming>,
    connected: bool,
    /// A report found the connection's queue full.
    report_owed: bool,
    telemetry: TelemetryHandle,
    command_revision: Revision,
    live: record::Live,
    windows: windows::Windows,
    detectors: Detectors,
    health: Health,
    captures: Captures,
}

impl Shell {
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
                Some(event) = self.pipeline_events.recv() => self.pipeline_event(event).await,
                Some(done) = self.updater.done() => {
                    let orders = self.updater.finished(done, now_ms()).await;
                    self.obey(orders).await;
                }
                incoming = self.incoming.recv() => match incoming {
                    Some(incoming) => self.incoming(incoming).await,
                    None => anyhow::bail!("the connection's task ended"),
                },
                said = self.captures.said() => self.record_event(said.code, said.detail, None).await,
                said = self.renewal.said() => self.record_event(said.code, said.detail, None).await,
                () = telemetry.changed() => self.send_telemetry().await,
                _ = tick.tick() => {
                    self.feed(Event::Tick).await;
                    if self.report_owed {
                        self.send_report();
                    }
                    self.send_telemetry().await;
                    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
                }
                _ = metrics.tick() => self.record_metrics().await,
            }
        }
    }

    async fn worker_event(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Started => {
                self.worker_listened = false;
                let families = self.updater.served();
                self.tell(crate::pipe::ToWorker::Expect { families }).await;
                if self.live.first_worker() {
                    self.feed(Event::Started).await;
                } else {
                    let orders = self.updater.worker_started();
                    self.obey(orders).await;
                }
            }
            WorkerEvent::Died(death) => {
                tracing::warn!(how = %death.how, "the inference worker died");
                self.live.worker_died();
                let left = self.windows.died(now_ms());
                self.push_windows(left, Vec::new()).await;
                let died = Event::WorkerDied {
                    detail: death.how,
                    listened: std::mem::take(&mut self.worker_listened),
                    killed: death.killed,
                    at_work: death.at_work,
                };
                self.feed(died).await;
            }
            WorkerEvent::Says(said) => self.worker_says(said).await,
        }
    }

    /// A worker that is not held as tightly as it could be is told of once: it is the kernel's doing.
    async fn tell_confinement(&mut self, confinement: Option<Confinement>) {
        let missing = confinement.filter(|confinement| !confinement.is_whole());
        if let Some(missing) =
            missing.filter(|_| !std::mem::replace(&mut self.confinement_told, true))
        {
            let detail =
                format!("the kernel confines the inference worker in part only: {missing}");
            tracing::warn!("{detail}");
            self.record_event("worker_confinement", detail, None).await;
        }
    }

    async fn worker_says(&mut self, said: FromWorker) {
        match said {
            FromWorker::Listening {
                tcp,
                grpc,
                confinement,
            } => {
                self.worker_listened = true;
                tracing::info!(socket = %self.worker_settings.socket.display(), ?tcp, ?grpc, "inference API listens");
                self.tell_confinement(confinement).await;
            }
            FromWorker::Activated { bundle: digest } => {
                tracing::info!(bundle = %digest, "bundle serves");
                self.resume_detectors(digest).await;
                self.feed(Event::Activated { digest }).await;
            }
            FromWorker::ActivateFailed {
                slot,
                bundle: digest,
                detail,
            } => {
                tracing::error!(bundle = %digest, %detail, "bundle could not be loaded");
                if let Some(slot) = Updater::slot_of(&slot) {
                    self.feed(Event::ActivateFailed {
                        slot,
                        digest,
                        detail,
                    })
                    .await;
                }
            }
            FromWorker::Progress {
                bundle,
                inferences,
                errors,
                slow,
            } => {
                let count = device::Count {
                    inferences,
                    errors,
                    slow,
                };
                self.live.counted(bundle, count);
                self.feed(Event::Counted {
                    digest: bundle,
                    count,
                })
                .await;
            }
            FromWorker::Shadowed { bundle, so_far } => {
                let digest = bundle;
                self.feed(Event::Shadowed { digest, so_far }).await;
            }
            FromWorker::Detected {
                bundle,
                detection,
                untold,
            } => {
                let detail = format!("{detection} untold={untold}");
                self.record_event("drift_detected", detail, Some(bundle))
                    .await;
            }
            FromWorker::Detectors { bundle, state } => {
                tokio::task::block_in_place(|| self.detectors.keep(bundle, *state));
            }
            FromWorker::Window(window) => self.windows.closed(*window),
            FromWorker::Open(window) => self.windows.open(*window),
            FromWorker::Counted => {
                let (closed, open) = self.windows.counted();
                self.push_windows(closed, open).await;
            }
            FromWorker::Captured { sealed, lost } => self.captures.keep(sealed, lost, now_ms()),
            FromWorker::AtWork { .. } | FromWorker::Drained => {}
        }
    }

    async fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Connected => {
                tracing::info!("connected");
                self.connected = true;
                self.blocks.connected();
                self.reset_inflight().await;
                self.send_report();
                self.send_telemetry().await;
                if self.settings.capture.owner.allow {
                    self.captures.nudge();
                }
            }
            Incoming::Disconnected(reason) => {
                if self.connected {
                    tracing::warn!(%reason, "connection lost");
                } else {
                    tracing::info!(%reason, "not connected, trying again");
                }
                self.connected = false;
                self.blocks.disconnected();
                self.renewal.nudge();
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
                if let Some(server_ms) = ack.server_time_ms {
                    self.health.stamped(server_ms, now_ms());
                }
                self.acknowledged(ack).await;
                self.send_telemetry().await;
            }
            Channel::Command => {
                let command: Command = parse("command", CONTROL_MESSAGE_MAX_BYTES, payload)?;
                self.command(command).await;
            }
            // What is lost is asked for again, and so is what is damaged: no event for the server.
            Channel::Block => {
                if let Err(error) = self.blocks.deliver(payload) {
                    tracing::debug!(%error, "block dropped");
                }
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
        if command.action == Action::Capture {
            return self.captures.nudge();
        }
        if command.revision <= self.command_revision {
            return;
        }
        self.command_revision = command.revision;
        match command.action {
            Action::Report => self.send_report(),
            Action::Flush => {
                if let Some(worker) = &self.worker {
                    worker.say(crate::pipe::ToWorker::Flush).await;
                }
            }
            Action::Capture => {}
        }
    }
}

/// The device's clock, in milliseconds since 1970.
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

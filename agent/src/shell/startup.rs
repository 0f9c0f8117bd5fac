//! The supervisor as it is put together at start.

use super::detectors::Detectors;
use super::updater::{Parts, Trial, Updater};
use super::windows::Windows;
use super::{Program, Shell, now_ms, record};
use crate::bundle::receive::Receiver;
use crate::bundle::{BlockLink, stage};
use crate::capture::{Captures, ShelfError};
use crate::config::{Settings, TelemetrySettings};
use crate::files::Disk;
use crate::health::Health;
use crate::http::{self, Proxy};
use crate::identity::Identity;
use crate::inference::CaptureCharge;
use crate::mqtt::{self, Link, LinkSettings, Outgoing};
use crate::pipeline::command::charge;
use crate::pipeline::{ChildEvent, ChildSettings, Pipelines, child};
use crate::renew;
use crate::telemetry::{Ages, Limits, TelemetryHandle};
use crate::throttle::Throttle;
use crate::worker::{self, WorkerSettings};
use dunlin_protocol::id::{Digest, Revision};
use dunlin_protocol::topic::Channel;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

impl Shell {
    pub(super) async fn build(
        settings: Settings,
        identity: Identity,
        program: Program,
    ) -> anyhow::Result<Self> {
        let limits = limits(&settings.telemetry);
        let (telemetry, opened) =
            TelemetryHandle::open(&settings.state_dir.join("telemetry"), limits).await?;
        let mut worker_settings = worker_settings(&settings, &identity, program)?;
        let disk = Disk::native();
        let (link, incoming) = mqtt::start(LinkSettings {
            host: identity.enrolled.mqtt_host.clone(),
            port: identity.enrolled.mqtt_port,
            fleet: identity.enrolled.fleet.clone(),
            device: identity.enrolled.device.clone(),
            tls: identity.rustls_client_config(),
        });
        let throttle = Throttle::new(settings.update.bandwidth_kib_s.saturating_mul(1024));
        let blocks = block_link(&link, throttle.clone(), &settings);
        let receiver = Receiver::new(&disk, &settings, &identity, throttle, blocks.clone())?;
        let renewal = renew::start(&identity, &disk, &settings);
        let parts = Parts {
            disk,
            state_dir: settings.state_dir.clone(),
            receiver,
            clock: Arc::clone(identity.clock()),
            trial: trial(&worker_settings),
            windows: settings.update.windows.clone(),
            jitter_seed: jitter_seed(&identity),
        };
        let updater = tokio::task::block_in_place(|| Updater::open(parts, now_ms()))?;
        let detectors = tokio::task::block_in_place(|| Detectors::open(&settings.state_dir));
        let health = Health::new(&settings.state_dir);
        let captures = captures(&settings, &identity)?;
        worker_settings.confesses = updater.state().has_suspects();
        let (worker, worker_events) = worker::start(worker_settings.clone());
        let (pipelines, pipeline_events) = pipelines(&settings, &identity, &worker_settings)?;
        let mut shell = Self {
            settings,
            identity,
            updater,
            worker: Some(worker),
            worker_settings,
            worker_events,
            worker_listened: false,
            confinement_told: false,
            pipelines,
            pipeline_events,
            link: Some(link),
            blocks,
            renewal,
            incoming,
            connected: false,
            report_owed: false,
            telemetry,
            command_revision: Revision::default(),
            live: record::Live::new(),
            windows: Windows::default(),
            detectors,
            health,
            captures,
        };
        for (code, detail) in opened.events() {
            shell.record_event(code, detail, None).await;
        }
        Ok(shell)
    }
}

fn captures(settings: &Settings, identity: &Identity) -> Result<Captures, ShelfError> {
    let proxy = Proxy::configured(settings.update.proxy.as_ref());
    let way = (http::Limits::from(&settings.update), proxy);
    let (disk, folder) = (Disk::native(), &settings.state_dir);
    tokio::task::block_in_place(|| Captures::start(&settings.capture, identity, &disk, folder, way))
}

/// Starts the pipelines' process if there are any.
fn pipelines(
    settings: &Settings,
    identity: &Identity,
    worker: &WorkerSettings,
) -> anyhow::Result<(Option<Pipelines>, mpsc::Receiver<ChildEvent>)> {
    if !settings.pipelines.is_empty() {
        crate::files::create_private_dir(&settings.state_dir.join("pipelines"))?;
    }
    Ok(child::start(ChildSettings {
        program: worker.program.clone(),
        prefix: worker.prefix.clone(),
        charge: charge(settings, identity.enrolled.device.as_str()),
    }))
}

fn limits(telemetry: &TelemetrySettings) -> Limits {
    let days_ms = |days: u64| i64::try_from(days).map_or(i64::MAX, |days| days * 86_400_000);
    Limits {
        max_bytes: telemetry.max_mib << 20,
        ages: Ages {
            event_ms: days_ms(telemetry.event_days),
            sketch_ms: days_ms(telemetry.sketch_days),
            metrics_ms: days_ms(telemetry.metrics_days),
            log_ms: days_ms(telemetry.log_days),
        },
        drain_bytes_s: telemetry.drain_kib_s * 1024,
    }
}

fn worker_settings(
    settings: &Settings,
    identity: &Identity,
    program: Program,
) -> anyhow::Result<WorkerSettings> {
    let (socket_gid, clients) = settings.inference.access()?;
    // Pipelines ask like every application, as the agent's user.
    let models = settings.pipelines.iter().map(|p| p.model.clone());
    let clients = clients.letting(rustix::process::geteuid().as_raw(), models);
    let worker_settings = WorkerSettings {
        program: program.path,
        prefix: program.prefix,
        models: stage::models_dir(&settings.state_dir),
        socket: settings.inference.socket.clone(),
        listen: settings.inference.listen,
        grpc_listen: settings.inference.grpc_listen.clone(),
        socket_gid,
        clients,
        rules: settings.inference.models.clone(),
        segments: settings.inference.segments.clone(),
        // Whoever may keep nothing is not even told for whom.
        capture: settings.capture.owner.allow.then(|| CaptureCharge {
            fleet: identity.enrolled.fleet.clone(),
            device: identity.enrolled.device.clone(),
            owner: settings.capture.owner.clone(),
        }),
        window_ms: settings.inference.window_ms,
        memory_limit_bytes: settings.inference.memory_limit_mib << 20,
        trial_timeout: worker::TRIAL_TIMEOUT,
        confesses: false,
    };
    // What is not there when the worker is confined can never be read by it.
    crate::files::create_private_dir(&worker_settings.models)?;
    if let Some(folder) = worker_settings.socket.parent()
        && !folder.exists()
    {
        crate::files::create_private_dir(folder)?;
    }
    Ok(worker_settings)
}

/// Blocks are asked for over the device's own connection, and do not keep it alive.
fn block_link(link: &Link, throttle: Throttle, settings: &Settings) -> BlockLink {
    let (link, channel) = (link.weak(), Channel::Fetch);
    let send = move |payload| link.send(Outgoing { channel, payload });
    let stall = Duration::from_millis(settings.update.request_timeout_ms.saturating_mul(2));
    BlockLink::new(send, throttle, stall)
}

/// Spreads a fleet's retries; always the same on one device.
fn jitter_seed(identity: &Identity) -> u64 {
    let digest = Digest::of(identity.enrolled.device.as_str().as_bytes());
    let mut seed = [0_u8; 8];
    seed.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(seed)
}

fn trial(settings: &WorkerSettings) -> Trial {
    let settings = settings.clone();
    Arc::new(move |slot| {
        let settings = settings.clone();
        Box::pin(async move { worker::trial(&settings, &slot).await })
    })
}

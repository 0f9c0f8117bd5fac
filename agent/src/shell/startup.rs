//! The supervisor as it is put together at start.

use super::updater::{Parts, Trial, Updater};
use super::{Program, Shell, now_ms, record};
use crate::bundle::receive::Receiver;
use crate::config::Settings;
use crate::files::Disk;
use crate::identity::Identity;
use crate::mqtt::{self, LinkSettings};
use crate::renew;
use crate::telemetry::{Limits, TelemetryHandle};
use crate::worker::{self, WorkerSettings};
use dunlin_protocol::id::{Digest, Revision};
use std::sync::Arc;

impl Shell {
    pub(super) async fn build(
        settings: Settings,
        identity: Identity,
        program: Program,
    ) -> anyhow::Result<Self> {
        let limits = Limits {
            max_bytes: settings.telemetry.max_mib << 20,
        };
        let (telemetry, opened) =
            TelemetryHandle::open(&settings.state_dir.join("telemetry"), limits).await?;
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
        let disk = Disk::native();
        let receiver = Receiver::new(&disk, &settings, &identity)?;
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
        let (worker, worker_events) = worker::start(worker_settings.clone());
        let (link, incoming) = mqtt::start(LinkSettings {
            host: identity.enrolled.mqtt_host.clone(),
            port: identity.enrolled.mqtt_port,
            fleet: identity.enrolled.fleet.clone(),
            device: identity.enrolled.device.clone(),
            tls: identity.rustls_client_config(),
        });
        let mut shell = Self {
            settings,
            identity,
            updater,
            worker: Some(worker),
            worker_settings,
            worker_events,
            worker_listened: false,
            link: Some(link),
            renewal,
            incoming,
            connected: false,
            report_owed: false,
            telemetry,
            command_revision: Revision::default(),
            live: record::Live::new(),
        };
        for (code, detail) in opened.events() {
            shell.record_event(code, detail, None).await;
        }
        Ok(shell)
    }
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

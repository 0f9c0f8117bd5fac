//! The supervisor as it is put together at start.

use super::effects::{CURRENT, slot_of};
use super::job::Job;
use super::{Program, QUEUE, Shell, deferred, now_ms, record};
use crate::bundle::receive::Receiver;
use crate::bundle::{BlockLink, stage};
use crate::config::Settings;
use crate::device::{Held, State};
use crate::files::Disk;
use crate::identity::Identity;
use crate::inbox::Inbox;
use crate::ledger::{Ledger, LedgerError};
use crate::mqtt::{self, Link, LinkSettings, Outgoing};
use crate::telemetry::{Limits, TelemetryHandle};
use crate::throttle::Throttle;
use crate::worker::{self, WorkerSettings};
use dunlin_protocol::id::{Digest, Revision};
use dunlin_protocol::report::Installed;
use dunlin_protocol::topic::Channel;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

type FirstEvents = Vec<(&'static str, String)>;

impl Shell {
    pub(super) async fn build(
        settings: Settings,
        identity: Identity,
        program: Program,
    ) -> anyhow::Result<Self> {
        let disk = Disk::native();
        let ledger = Ledger::new(&disk, &settings.state_dir);
        let mut first_events = FirstEvents::new();
        let state = tokio::task::block_in_place(|| {
            let state_dir = &settings.state_dir;
            load(&disk, &ledger, state_dir, &identity, &mut first_events)
        })?;
        let limits = Limits {
            max_bytes: settings.telemetry.max_mib << 20,
        };
        let (telemetry, opened) =
            TelemetryHandle::open(&settings.state_dir.join("telemetry"), limits).await?;
        first_events.extend(opened.events());
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
        let receiver = Arc::new(receiver);
        let inbox = Inbox::new(&disk, &settings.state_dir);
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
        let (done_sender, done) = mpsc::channel(QUEUE);
        let mut shell = Self {
            settings,
            identity,
            disk,
            ledger,
            state,
            stored_at: Instant::now(),
            deferred: deferred::Deferred::default(),
            worker: Some(worker),
            worker_settings,
            worker_events,
            worker_listened: false,
            link: Some(link),
            blocks,
            inbox,
            incoming,
            connected: false,
            report_owed: false,
            telemetry,
            receiver,
            update: Job::default(),
            check: Job::default(),
            done,
            done_sender,
            command_revision: Revision::default(),
            live: record::Live::new(),
        };
        for (code, detail) in first_events {
            shell.record_event(code, detail, None).await;
        }
        shell.collect_garbage();
        Ok(shell)
    }
}

/// Blocks are asked for over the device's own connection, and do not keep it alive.
fn block_link(link: &Link, throttle: Throttle, settings: &Settings) -> BlockLink {
    let (link, channel) = (link.weak(), Channel::Fetch);
    let send = move |payload| link.send(Outgoing { channel, payload });
    let stall = Duration::from_millis(settings.update.request_timeout_ms.saturating_mul(2));
    BlockLink::new(send, throttle, stall)
}

/// The persisted state. A damaged ledger is set aside and begun anew; one that cannot be read is
/// left alone, for what it says still holds.
fn load(
    disk: &Disk,
    ledger: &Ledger,
    state_dir: &Path,
    identity: &Identity,
    first_events: &mut FirstEvents,
) -> anyhow::Result<State> {
    match ledger.load() {
        Ok(Some(state)) => return Ok(state),
        Ok(None) => {}
        Err(e @ LedgerError::Damaged { .. }) => {
            let aside = ledger.set_aside()?;
            let detail = format!("{e}; kept as {}", aside.display());
            first_events.push(("ledger_damaged", detail));
        }
        Err(e @ LedgerError::File(_)) => return Err(e.into()),
    }
    let state = fresh_state(identity, served_last(disk, state_dir));
    if let Some(held) = &state.kept {
        let (family, version) = (&held.bundle.family, held.bundle.version);
        let slot = held.slot.name();
        let detail = format!("slot {slot} served last: {family} version {version} is kept");
        first_events.push(("ledger_rebuilt", detail));
    }
    Ok(state)
}

/// A new ledger. Its reports are numbered from the time on, so that the server takes them as newer
/// than those of a ledger that was lost.
fn fresh_state(identity: &Identity, kept: Option<Held>) -> State {
    let digest = Digest::of(identity.enrolled.device.as_str().as_bytes());
    let mut seed = [0_u8; 8];
    seed.copy_from_slice(&digest.as_bytes()[..8]);
    State {
        sequence: u64::try_from(now_ms()).unwrap_or_default(),
        kept,
        ..State::new(u64::from_be_bytes(seed))
    }
}

/// What `slots/current` names, if it is whole.
fn served_last(disk: &Disk, state_dir: &Path) -> Option<Held> {
    let slots = state_dir.join("slots");
    let slot = slot_of(&disk.read_link(&slots.join(CURRENT)).ok()?)?;
    match stage::check(disk, &slots.join(slot.name())) {
        Ok(found) => found.map(|staged| Held {
            slot,
            bundle: Installed {
                family: staged.family,
                version: staged.version,
                digest: staged.digest,
            },
        }),
        Err(error) => {
            tracing::warn!(slot = slot.name(), %error, "the slot that served last is not whole");
            None
        }
    }
}

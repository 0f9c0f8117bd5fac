//! Sends desired state: at every connect of a device, when it has changed, and again every few
//! seconds while the device is connected and has not reported that revision. A device that has
//! accepted it and is still at work is sent it now and then, since it answers with a report: one
//! may have been lost. A device that accepted more than the database knows of makes the server
//! open a higher epoch.

use crate::clock;
use crate::mqtt::{MqttClient, PublishError};
use crate::store::Store;
use dunlin_protocol::CONTROL_MESSAGE_MAX_BYTES;
use dunlin_protocol::command::Desired;
use dunlin_protocol::id::{DeviceId, Revision};
use dunlin_protocol::topic::Channel;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Broker-side life of a desired state; an undelivered one is sent again at connect anyway.
const EXPIRY_S: u32 = 600;
/// Most epochs that a device's report may be ahead: one broken device must not use them up.
const EPOCHS_AHEAD_MAX: u64 = 1_000_000;

/// How often to look and to send again.
#[derive(Debug, Clone, Copy)]
pub struct DeliverSettings {
    /// Time between looks at the database.
    pub tick: Duration,
    /// Time before the same revision is sent to the same device again.
    pub resend_ms: i64,
    /// Time before a device that accepted the revision, and has not said how it ended, is sent it
    /// again to make it report.
    pub ask_again_ms: i64,
}

impl Default for DeliverSettings {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            resend_ms: 5000,
            ask_again_ms: 30_000,
        }
    }
}

/// Tells the delivery loop that there is something to send.
#[derive(Clone, Default)]
pub struct Wake {
    inner: Arc<WakeInner>,
}

#[derive(Default)]
struct WakeInner {
    hellos: Mutex<BTreeSet<DeviceId>>,
    notify: Notify,
}

impl Wake {
    /// A device has connected: it gets its desired state, whatever it reported before.
    pub fn connected(&self, device: &DeviceId) {
        self.hellos().insert(device.clone());
        self.inner.notify.notify_one();
    }

    /// Some desired state has changed.
    pub fn wake(&self) {
        self.inner.notify.notify_one();
    }

    fn hellos(&self) -> std::sync::MutexGuard<'_, BTreeSet<DeviceId>> {
        self.inner
            .hellos
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// When which revision was last sent to whom.
#[derive(Debug, Default)]
struct Sent {
    by_device: BTreeMap<DeviceId, (Revision, i64)>,
}

impl Sent {
    /// Which of the pending ones to send now; forgets devices that are no longer pending.
    fn due(
        &mut self,
        pending: Vec<(DeviceId, Desired)>,
        resend_ms: i64,
        now_ms: i64,
    ) -> Vec<(DeviceId, Desired)> {
        let names: BTreeSet<&DeviceId> = pending.iter().map(|(device, _)| device).collect();
        self.by_device.retain(|device, _| names.contains(device));
        let is_due = |(device, desired): &(DeviceId, Desired)| match self.by_device.get(device) {
            Some((revision, at_ms)) => {
                *revision != desired.revision || now_ms < *at_ms || now_ms - at_ms >= resend_ms
            }
            None => true,
        };
        pending.into_iter().filter(is_due).collect()
    }

    /// Counts those that are new here as sent now.
    fn begin(&mut self, pending: &[(DeviceId, Desired)], now_ms: i64) {
        for (device, desired) in pending {
            let known = self.by_device.get(device);
            if known.is_none_or(|(revision, _)| *revision != desired.revision) {
                self.note(device, desired.revision, now_ms);
            }
        }
    }

    fn note(&mut self, device: &DeviceId, revision: Revision, now_ms: i64) {
        self.by_device.insert(device.clone(), (revision, now_ms));
    }
}

/// Runs until `stop` becomes true.
pub async fn run(
    store: Store,
    mqtt: MqttClient,
    wake: Wake,
    settings: DeliverSettings,
    mut stop: watch::Receiver<bool>,
) {
    let (mut sent, mut asked) = (Sent::default(), Sent::default());
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = wake.inner.notify.notified() => {}
            () = tokio::time::sleep(settings.tick) => {}
        }
        if !mqtt.is_ready() {
            continue;
        }
        let done = async {
            round(&store, &mqtt, &wake, settings, &mut sent).await?;
            ask_again(&store, &mqtt, settings, &mut asked).await?;
            overtake(&store).await
        };
        if let Err(error) = done.await {
            tracing::warn!(%error, "desired state not sent, will try again");
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DeliverError {
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

async fn round(
    store: &Store,
    mqtt: &MqttClient,
    wake: &Wake,
    settings: DeliverSettings,
    sent: &mut Sent,
) -> Result<(), DeliverError> {
    let hellos: Vec<DeviceId> = wake.hellos().iter().cloned().collect();
    for device in hellos {
        if let Some(desired) = store.desired(&device).await? {
            send(mqtt, sent, &device, &desired).await?;
        }
        // Only now, so that a failure above leaves it for the next round.
        wake.hellos().remove(&device);
    }
    let pending = store.desired_pending().await?;
    for (device, desired) in sent.due(pending, settings.resend_ms, clock::now_ms()) {
        send(mqtt, sent, &device, &desired).await?;
    }
    Ok(())
}

/// Makes devices at work report: an equal revision is answered, and changes nothing there.
async fn ask_again(
    store: &Store,
    mqtt: &MqttClient,
    settings: DeliverSettings,
    asked: &mut Sent,
) -> Result<(), DeliverError> {
    let now_ms = clock::now_ms();
    let unfinished = store.desired_unfinished().await?;
    // One that has just begun is given the time to report by itself.
    asked.begin(&unfinished, now_ms);
    for (device, desired) in asked.due(unfinished, settings.ask_again_ms, now_ms) {
        send(mqtt, asked, &device, &desired).await?;
    }
    Ok(())
}

/// Wins over desired states of a life of the database that it does not remember.
async fn overtake(store: &Store) -> Result<(), DeliverError> {
    let known = store.epoch();
    let (ahead, absurd): (Vec<_>, Vec<_>) = store
        .desired_behind()
        .await?
        .into_iter()
        .partition(|(_, revision)| revision.epoch.saturating_sub(known) <= EPOCHS_AHEAD_MAX);
    for (device, revision) in absurd {
        tracing::error!(%device, %revision, epoch = known, "device reports an epoch far beyond this server's: not followed");
    }
    let Some(highest) = ahead.iter().map(|(_, revision)| revision.epoch).max() else {
        return Ok(());
    };
    for (device, revision) in &ahead {
        tracing::warn!(%device, %revision, epoch = known, "device accepted a newer desired state than the database knows: was it set back?");
    }
    let devices: Vec<DeviceId> = ahead.into_iter().map(|(device, _)| device).collect();
    let epoch = store.raise_epoch(highest, &devices).await?;
    tracing::warn!(epoch, devices = devices.len(), "a higher epoch is opened");
    Ok(())
}

async fn send(
    mqtt: &MqttClient,
    sent: &mut Sent,
    device: &DeviceId,
    desired: &Desired,
) -> Result<(), PublishError> {
    sent.note(device, desired.revision, clock::now_ms());
    let json = match serde_json::to_vec(desired) {
        Ok(json) if json.len() <= CONTROL_MESSAGE_MAX_BYTES => json,
        Ok(json) => {
            let (got, max) = (json.len(), CONTROL_MESSAGE_MAX_BYTES);
            tracing::error!(%device, got, max, "desired state is too long to be sent");
            return Ok(());
        }
        Err(error) => {
            tracing::error!(%device, %error, "desired state cannot be written as JSON");
            return Ok(());
        }
    };
    mqtt.publish(device, Channel::Desired, json, Some(EXPIRY_S))
        .await?;
    metrics::counter!("dunlin_desired_sent_total").increment(1);
    tracing::debug!(%device, revision = %desired.revision, "desired state sent");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn pending(generation: u64) -> Vec<(DeviceId, Desired)> {
        let revision = Revision {
            epoch: 1,
            generation,
        };
        vec![(
            "d".parse().unwrap(),
            Desired {
                revision,
                bundles: Vec::new(),
            },
        )]
    }

    #[test]
    fn a_pending_state_is_sent_again_only_after_a_while() {
        let device: DeviceId = "d".parse().unwrap();
        let mut sent = Sent::default();
        assert_eq!(sent.due(pending(1), 5000, 0).len(), 1);
        sent.note(
            &device,
            Revision {
                epoch: 1,
                generation: 1,
            },
            0,
        );
        assert!(sent.due(pending(1), 5000, 4999).is_empty());
        assert_eq!(sent.due(pending(1), 5000, 5000).len(), 1);
        assert_eq!(
            sent.due(pending(2), 5000, 1).len(),
            1,
            "a newer revision goes at once"
        );
        assert_eq!(
            sent.due(pending(1), 5000, -1).len(),
            1,
            "a clock set back delays nothing"
        );
        assert!(sent.due(Vec::new(), 5000, 1).is_empty());
        assert_eq!(
            sent.due(pending(1), 5000, 1).len(),
            1,
            "forgotten once it was not pending"
        );
    }
}

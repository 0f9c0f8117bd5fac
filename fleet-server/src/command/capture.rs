//! Tells connected devices that somebody wants samples of them: at once, and again while they have not
//! answered. What is wanted they ask for themselves over HTTPS, so that a lost word costs time only.

use super::deliver::DeliverError;
use crate::clock;
use crate::mqtt::MqttClient;
use crate::store::Store;
use dunlin_protocol::command::{Action, Command};
use dunlin_protocol::id::{DeviceId, Revision};
use dunlin_protocol::topic::Channel;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};

const TICK: Duration = Duration::from_secs(1);
/// Time before a device that has not answered is told again.
const AGAIN_MS: i64 = 30_000;
const EXPIRY_S: u32 = 60;

/// Which request each device was last told of, and when.
#[derive(Debug, Default)]
struct Told(BTreeMap<DeviceId, (i64, i64)>);

impl Told {
    /// Whom to tell now; forgets those that nothing is wanted of any more.
    fn due(&mut self, waiting: &[(DeviceId, i64)], now_ms: i64) -> Vec<DeviceId> {
        self.0
            .retain(|device, _| waiting.iter().any(|(d, _)| d == device));
        let mut due = Vec::new();
        for (device, newest) in waiting {
            let is_due = self.0.get(device).is_none_or(|(told, at_ms)| {
                newest > told || now_ms < *at_ms || now_ms - at_ms >= AGAIN_MS
            });
            if is_due {
                self.0.insert(device.clone(), (*newest, now_ms));
                due.push(device.clone());
            }
        }
        due
    }
}

/// Runs until `stop` becomes true; `wake` says that there is a request.
pub(crate) async fn run(
    store: Store,
    mqtt: MqttClient,
    wake: Arc<Notify>,
    mut stop: watch::Receiver<bool>,
) {
    let mut told = Told::default();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = wake.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        if !mqtt.is_ready() {
            continue;
        }
        if let Err(error) = round(&store, &mqtt, &mut told).await {
            tracing::warn!(%error, "devices not told that samples are wanted, will try again");
        }
    }
}

async fn round(store: &Store, mqtt: &MqttClient, told: &mut Told) -> Result<(), DeliverError> {
    let now_ms = clock::now_ms();
    let waiting = store.captures_waiting(now_ms).await?;
    for device in told.due(&waiting, now_ms) {
        let command = Command {
            revision: Revision {
                epoch: store.epoch(),
                generation: u64::try_from(now_ms).unwrap_or_default(),
            },
            action: Action::Capture,
        };
        let Ok(json) = serde_json::to_vec(&command) else {
            continue;
        };
        mqtt.publish(&device, Channel::Command, json, Some(EXPIRY_S))
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_device_is_told_at_once_of_what_is_new_and_now_and_then_of_what_is_not() {
        let device: DeviceId = "d".parse().unwrap();
        let waiting = |request| vec![(device.clone(), request)];
        let mut told = Told::default();
        assert_eq!(told.due(&waiting(1), 0).len(), 1);
        assert!(told.due(&waiting(1), AGAIN_MS - 1).is_empty());
        assert_eq!(told.due(&waiting(2), AGAIN_MS - 1).len(), 1);
        assert!(told.due(&waiting(2), AGAIN_MS).is_empty());
        assert_eq!(told.due(&waiting(2), 2 * AGAIN_MS).len(), 1);
        assert_eq!(told.due(&waiting(2), 0).len(), 1, "a clock set back");
        assert!(told.due(&[], 1).is_empty());
        assert_eq!(told.due(&waiting(2), 2).len(), 1, "forgotten in between");
    }
}

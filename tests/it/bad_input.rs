//! Bad input at every door: each gets a clear error that names what and where, nothing is lost,
//! and nothing else stops.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "bad_input/device.rs"]
mod device;
#[path = "bad_input/http.rs"]
mod http;
#[path = "bad_input/inference.rs"]
mod inference;
#[path = "bad_input/mqtt.rs"]
mod mqtt;
#[path = "bad_input/programs.rs"]
mod programs;

use dunlin_server::rollout::model::RolloutState;
use dunlin_server::store::WindowQuery;
use dunlin_tests::fleet::{Fleet, FleetBuilder};
use dunlin_tests::operator::{all_at_once, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dunlin-under-test");

/// A fleet on version 1.
async fn fleet(devices: usize) -> Fleet {
    let builder = FleetBuilder::new(PROGRAM).devices(devices);
    let mut fleet = builder.boot().await.unwrap();
    let v1 = fleet.operator.pack("v1", 1, 1).unwrap();
    fleet.operator.publish(&v1).await.unwrap();
    let id = fleet.operator.roll_out(1, all_at_once(1)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished);
    fleet
}

async fn inferences_stored(fleet: &Fleet, at: usize) -> u64 {
    let query = WindowQuery {
        family: fleet.operator.family.clone(),
        version: None,
        devices: Some([fleet.devices[at].id.clone()].into()),
        since_ms: None,
        until_ms: None,
    };
    let windows = fleet.server().store.windows(&query).await.unwrap();
    windows.iter().map(|(_, w)| w.inferences).sum()
}

/// Every device still answers, and its telemetry still arrives.
async fn goes_on(fleet: &Fleet) {
    for at in 0..fleet.devices.len() {
        let stored = inferences_stored(fleet, at).await;
        eventually("telemetry goes on", async || {
            let now = inferences_stored(fleet, at).await;
            let enough = now > stored + 10;
            Ok(if enough {
                Ok(())
            } else {
                Err(format!("{now} after {stored}"))
            })
        })
        .await
        .unwrap();
    }
}

/// Every answer is in the database once: nothing was lost, nothing counted twice.
/// `besides`: answers that others than the devices' own streams got, from each.
async fn nothing_is_lost(fleet: &mut Fleet, besides: u64) {
    let fed = fleet.stop_streams().await.unwrap();
    for (at, fed) in fed.iter().enumerate() {
        let answered: u64 = besides + fed.by_version.values().map(|(n, _)| n).sum::<u64>();
        eventually("every answer is counted once", async || {
            let stored = inferences_stored(fleet, at).await;
            let exact = stored == answered;
            Ok(if exact {
                Ok(())
            } else {
                Err(format!("{stored} of {answered}"))
            })
        })
        .await
        .unwrap();
    }
}

/// Waits for an event of a device that has this code and these words.
async fn event(fleet: &Fleet, at: usize, code: &str, words: &[&str]) {
    let (store, id) = (&fleet.server().store, &fleet.devices[at].id);
    eventually("an event", async || {
        let events = store.events(id, 1000).await?;
        let texts = events.iter().map(|e| serde_json::to_string(&e.record));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let found = texts
            .iter()
            .any(|t| t.contains(code) && words.iter().all(|w| t.contains(w)));
        Ok(if found {
            Ok(())
        } else {
            Err(format!("{code} {words:?} in {texts:?}"))
        })
    })
    .await
    .unwrap();
}

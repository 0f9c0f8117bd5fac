//! Versions that are ready and wait, at the device and as the operator sees them; versions that did
//! not hold; and updates that are called off before they are kept.

#![allow(clippy::unwrap_used, clippy::panic)]

use dunlin_agent::device::window::Windows;
use dunlin_agent::files::Disk;
use dunlin_agent::hold::HoldFile;
use dunlin_protocol::command::Probation;
use dunlin_protocol::id::RolloutId;
use dunlin_protocol::report::{Hold, Progress};
use dunlin_server::rollout::model::RolloutState;
use dunlin_tests::fleet::{Fleet, FleetBuilder};
use dunlin_tests::operator::{all_at_once, eventually, probation};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

/// One device that keeps version 1, and version 2 published.
async fn one_device() -> Fleet {
    let builder = FleetBuilder::new(env!("CARGO_BIN_EXE_dunlin-under-test"));
    let mut fleet = builder.boot().await.unwrap();
    for version in [1, 2] {
        let name = format!("v{version}");
        let bundle = fleet.operator.pack(&name, version, 1).unwrap();
        fleet.operator.publish(&bundle).await.unwrap();
    }
    let id = fleet.operator.roll_out(1, all_at_once(1)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished);
    fleet
}

/// Waits until the rollout says that it waits, and for what.
async fn says(fleet: &Fleet, id: &RolloutId, words: &str) {
    eventually("the rollout names what is waited for", async || {
        let view = fleet.operator.client().rollout(id).await?;
        let report = view.report.map(|r| r.to_string()).unwrap_or_default();
        Ok(if report.contains(words) {
            Ok(())
        } else {
            Err(report)
        })
    })
    .await
    .unwrap();
}

async fn serves(fleet: &Fleet, version: u64) {
    let reported = fleet.operator.reported(&fleet.devices[0].id).await.unwrap();
    let active = reported.unwrap().active.map(|a| a.version);
    assert_eq!(active, Some(version));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_held_at_the_device_is_ready_and_waits_over_restarts() {
    let mut fleet = one_device().await;
    let hold = HoldFile::new(&Disk::native(), &fleet.devices[0].settings.state_dir);
    hold.write(&Hold {
        reason: "acceptance test on line 3".to_owned(),
        since_ms: Timestamp::now().as_millisecond(),
        until_ms: None,
    })
    .unwrap();
    let id = fleet.operator.roll_out(2, all_at_once(1)).await.unwrap();
    let words = "waits (hold: held back at the device: acceptance test on line 3)";
    says(&fleet, &id, words).await;
    serves(&fleet, 1).await;
    fleet.restart_device(0).await.unwrap();
    says(&fleet, &id, words).await;
    serves(&fleet, 1).await;
    hold.remove().unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
    let reported = fleet
        .operator
        .on_version(&fleet.devices[0].id, 2)
        .await
        .unwrap();
    assert_eq!((reported.hold, reported.waiting), (None, None));
    fleet.end().await.unwrap();
}

/// Open on one day of the week only, which is neither today nor near.
fn closed() -> Windows {
    let day = Timestamp::now()
        .to_zoned(TimeZone::UTC)
        .checked_add(3.days());
    let name = day.unwrap().strftime("%a").to_string();
    let window = format!("{name} 02:00-03:00").parse().unwrap();
    Windows::new(vec![window], TimeZone::UTC)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_version_waits_for_the_window_and_going_back_does_not() {
    let mut fleet = one_device().await;
    fleet.devices[0].settings.update.windows = closed();
    fleet.restart_device(0).await.unwrap();
    let id = fleet.operator.roll_out(2, all_at_once(1)).await.unwrap();
    says(
        &fleet,
        &id,
        "waits (window: outside the maintenance window, which opens at",
    )
    .await;
    serves(&fleet, 1).await;

    // Called off while it waits: the device drops it.
    fleet.operator.client().abort_rollout(&id).await.unwrap();
    let device = fleet.devices[0].id.clone();
    let reported = fleet.operator.settled(&device, 1).await.unwrap();
    assert_eq!(
        (reported.progress, reported.waiting),
        (Progress::Succeeded, None)
    );
    serves(&fleet, 1).await;
    fleet.operator.ended(&id).await.unwrap();

    // With the window open it goes through.
    fleet.devices[0].settings.update.windows = Windows::default();
    fleet.restart_device(0).await.unwrap();
    let id = fleet.operator.roll_out(2, all_at_once(1)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);

    // The way back to the version kept before needs nobody's consent.
    fleet.devices[0].settings.update.windows = closed();
    fleet.restart_device(0).await.unwrap();
    let id = fleet.operator.roll_out(1, all_at_once(1)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
    serves(&fleet, 1).await;
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_did_not_hold_is_refused_until_somebody_insists() {
    let fleet = one_device().await;
    let device = fleet.devices[0].id.clone();
    let hopeless = Probation {
        inferences: 1 << 40,
        deadline_ms: 1,
        ..probation()
    };
    let rolled = fleet.operator.roll_out_under(2, all_at_once(1), hopeless);
    let ended = fleet.operator.ended(&rolled.await.unwrap()).await.unwrap();
    let is_stopped = |state: &RolloutState| matches!(state, RolloutState::Stopped { .. });
    assert!(is_stopped(&ended.state), "{:?}", ended.report);
    fleet.operator.on_version(&device, 1).await.unwrap();

    let id = fleet.operator.roll_out(2, all_at_once(1)).await.unwrap();
    let ended = fleet.operator.ended(&id).await.unwrap();
    assert!(is_stopped(&ended.state), "{:?}", ended.report);
    let shown = serde_json::to_string(&ended.other).unwrap();
    assert!(shown.contains("rolled_back_before"), "{shown}");
    fleet.operator.on_version(&device, 1).await.unwrap();

    let insisting = Probation {
        retry_rolled_back: true,
        ..probation()
    };
    let rolled = fleet.operator.roll_out_under(2, all_at_once(1), insisting);
    let ended = fleet.operator.ended(&rolled.await.unwrap()).await.unwrap();
    assert_eq!(ended.state, RolloutState::Finished, "{:?}", ended.report);
    fleet.operator.on_version(&device, 2).await.unwrap();
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_update_is_called_off_before_it_is_kept() {
    let fleet = one_device().await;
    let device = fleet.devices[0].id.clone();
    let long = Probation {
        inferences: 1 << 40,
        deadline_ms: 3_600_000,
        ..probation()
    };
    let rolled = fleet.operator.roll_out_under(2, all_at_once(1), long);
    let id = rolled.await.unwrap();
    eventually("it is on probation", async || {
        let reported = fleet.operator.reported(&device).await?;
        let progress = reported.map(|r| r.progress);
        let is_on = matches!(progress, Some(Progress::Probation { .. }));
        Ok(if is_on {
            Ok(())
        } else {
            Err(format!("{progress:?}"))
        })
    })
    .await
    .unwrap();
    serves(&fleet, 2).await;
    fleet.operator.client().abort_rollout(&id).await.unwrap();
    fleet.operator.on_version(&device, 1).await.unwrap();
    fleet.end().await.unwrap();
}

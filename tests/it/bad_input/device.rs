//! A device's own folder: shared by two agents, or damaged.

use super::{PROGRAM, event, fleet, goes_on, nothing_is_lost};
use dunlin_tests::operator::eventually;
use dunlin_tests::process::Process;
use std::path::Path;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_second_agent_on_the_same_folder_is_turned_away() {
    let mut fleet = fleet(1).await;
    let dir = fleet.dir.path().join("dev-01");
    let config = dir.join("agent.toml");
    let (arguments, log) = (
        ["agent", "run", "--config", config.to_str().unwrap()],
        dir.join("second.log"),
    );
    let mut second = Process::start(Path::new(PROGRAM), &arguments, &log).unwrap();
    let status = second.ended().await.unwrap();
    let told = second.log_tail();
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(
        told.contains("another agent runs on this state folder"),
        "{told}"
    );
    assert!(told.contains(dir.join("state").to_str().unwrap()), "{told}");
    goes_on(&fleet).await;
    nothing_is_lost(&mut fleet, 0).await;
    fleet.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_ledger_is_set_aside_and_the_device_goes_on() {
    let mut fleet = fleet(1).await;
    for (n, bytes) in [
        &b"{"[..],
        b"",
        b"{\"schema\":\"dunlin.ledger/9\",\"state\":{}}",
    ]
    .into_iter()
    .enumerate()
    {
        fleet.devices[0].stop().await.unwrap();
        let before = fleet.operator.reported(&fleet.devices[0].id).await.unwrap();
        let state = fleet.devices[0].settings.state_dir.clone();
        std::fs::write(state.join("ledger.json"), bytes).unwrap();
        fleet.restart_device(0).await.unwrap();
        event(&fleet, 0, "ledger_damaged", &["ledger.json.corrupt"]).await;
        // The event of an earlier round says nothing of this one.
        let set_aside = async {
            while std::fs::read(state.join("ledger.json.corrupt"))
                .ok()
                .as_deref()
                != Some(bytes)
            {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let limit = std::time::Duration::from_secs(60);
        tokio::time::timeout(limit, set_aside).await.unwrap();
        // It is told again what it should run, and the server believes its reports.
        let version = 1 + n as u64 % 2;
        if version == 2 {
            let v2 = fleet.operator.pack("v2", 2, 1).unwrap();
            fleet.operator.publish(&v2).await.unwrap();
        }
        let (device, family) = (fleet.devices[0].id.clone(), fleet.operator.family.clone());
        let client = fleet.operator.client();
        client.pin_device(&device, &family, version).await.unwrap();
        let after = eventually("a new report is believed", async || {
            let now = fleet.operator.reported(&device).await?;
            let newer = now.as_ref().map(|r| r.sequence) > before.as_ref().map(|r| r.sequence);
            let wanted = now
                .as_ref()
                .and_then(|r| r.target.as_ref())
                .map(|t| t.version);
            let done = newer && wanted == Some(version);
            Ok(if done {
                Ok(now)
            } else {
                Err(format!("{now:?}"))
            })
        });
        after.await.unwrap();
        goes_on(&fleet).await;
    }
    fleet.end().await.unwrap();
}

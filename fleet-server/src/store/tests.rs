#![allow(clippy::unwrap_used, clippy::expect_used)]

mod certificates;
mod early;
mod families;
mod full;
mod pages;
mod rollups;
mod segments;

use super::*;
use dunlin_protocol::command::{Desired, DesiredBundle};
use dunlin_protocol::id::{BootId, DeviceId, Family, Revision};
use dunlin_protocol::report::{Installed, Presence, Progress, Reported};
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::{Body, Class, Event, Gap, Record, Segment, Window};
use std::collections::{BTreeMap, BTreeSet};

struct Fixture {
    store: Store,
    _dir: tempfile::TempDir,
}

async fn open() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("dunlin.db")).await.unwrap();
    Fixture { store, _dir: dir }
}

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

fn family() -> Family {
    "digits".parse().unwrap()
}

fn new_device(name: &str, key: u8) -> NewDevice {
    NewDevice {
        device: id(name),
        hardware: "generic".to_owned(),
        arch: "x86_64".to_owned(),
        agent_version: "0.1.0".to_owned(),
        cert_sha256: [key; 32],
        public_key_sha256: [key; 32],
    }
}

fn claim(uses: u32) -> NewClaim {
    NewClaim {
        id: "c1".to_owned(),
        hash: [9; 32],
        uses,
        created_ms: 0,
        expires_ms: 1000,
        labels: labels("site", "north"),
    }
}

fn labels(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

/// What is asked for, whenever that was.
fn plain(desired: Desired) -> Vec<DesiredBundle> {
    let mut bundles = desired.bundles;
    bundles.iter_mut().for_each(|bundle| bundle.asked = None);
    bundles
}

fn wanted(version: u64) -> DesiredBundle {
    DesiredBundle {
        family: family(),
        version,
        target: format!("digits/{version}/manifest.json"),
        digest: Digest::of(&version.to_be_bytes()),
        rollout: None,
        probation: dunlin_protocol::command::Probation::default(),
        asked: None,
    }
}

fn reported(sequence: u64, generation: u64) -> Reported {
    Reported {
        sequence,
        revision: Revision {
            epoch: 1,
            generation,
        },
        target: None,
        rollout: None,
        progress: Progress::Idle,
        waiting: None,
        hold: None,
        active: Some(Installed {
            family: family(),
            version: 1,
            digest: Digest::of(b"1"),
        }),
        agent_version: "0.1.0".to_owned(),
        trust: None,
        capture: None,
        models: Vec::new(),
    }
}

fn presence(online: bool, connection: &str) -> Presence {
    Presence {
        online,
        connection: connection.to_owned(),
        agent_version: "0.1.0".to_owned(),
    }
}

fn window(start_ms: i64, inferences: u64) -> Window {
    Window {
        bundle: Digest::of(b"1"),
        family: family(),
        version: 1,
        start_ms,
        end_ms: start_ms + 10,
        inferences,
        errors: 1,
        confidence_sum_micro: inferences * 900_000,
        entropy_sum_micro: 0,
        outputs: vec![inferences, 0],
        confidence: Histogram::new(2),
        entropy: Histogram::new(2),
        features: Vec::new(),
        profile: None,
        latency: Latency::default(),
        expected_confusion_nano: None,
        segment: None,
        refused: 0,
    }
}

fn segment(device: &str, number: u64, body: Body) -> IncomingSegment {
    IncomingSegment {
        device: id(device),
        class: body.class(),
        segment: Segment {
            boot: BootId([7; 16]),
            segment: number,
            backfilled: false,
            records: vec![Record { time_ms: 5, body }],
        },
        received_ms: 100,
    }
}

#[tokio::test]
async fn a_claim_is_redeemed_as_often_as_it_says_and_a_repeat_costs_nothing() {
    let Fixture { store, _dir } = open().await;
    store.insert_claim(&claim(1)).await.unwrap();
    let enrol = |device: NewDevice, now_ms| {
        let store = store.clone();
        async move { store.enrol(&[9; 32], &device, now_ms).await.unwrap() }
    };
    assert_eq!(
        store.enrol(&[8; 32], &new_device("a", 1), 1).await.unwrap(),
        EnrolmentOutcome::UnknownToken
    );
    assert_eq!(
        enrol(new_device("a", 1), 2000).await,
        EnrolmentOutcome::ExpiredToken { expires_ms: 1000 }
    );
    assert_eq!(
        enrol(new_device("a", 1), 1).await,
        EnrolmentOutcome::Enrolled(labels("site", "north"))
    );
    let again = NewDevice {
        cert_sha256: [5; 32],
        ..new_device("a", 1)
    };
    assert_eq!(
        enrol(again, 2).await,
        EnrolmentOutcome::Repeated(labels("site", "north"))
    );
    let standing = async |cert| store.standing(&id("a"), &[cert; 32]).await.unwrap();
    assert_eq!(standing(1).await, Standing::Current);
    assert_eq!(standing(5).await, Standing::Next);
    assert_eq!(
        enrol(new_device("a", 2), 3).await,
        EnrolmentOutcome::IdTaken
    );
    assert_eq!(
        enrol(new_device("b", 2), 3).await,
        EnrolmentOutcome::SpentToken
    );
    assert_eq!(
        store.device_of_key(&[9; 32], &[1; 32]).await.unwrap(),
        Some(id("a"))
    );
}

#[tokio::test]
async fn a_revoked_device_is_refused_until_it_enrols_again() {
    let Fixture { store, _dir } = open().await;
    store.insert_claim(&claim(2)).await.unwrap();
    store.enrol(&[9; 32], &new_device("a", 1), 1).await.unwrap();
    store
        .set_desired(&[(id("a"), vec![wanted(1)])])
        .await
        .unwrap();
    assert!(store.revoke_device(&id("a")).await.unwrap());
    assert!(!store.revoke_device(&id("a")).await.unwrap());
    assert_eq!(
        store.standing(&id("a"), &[1; 32]).await.unwrap(),
        Standing::Revoked
    );
    assert!(
        !store
            .set_presence(&id("a"), &presence(true, "x"), Some(2))
            .await
            .unwrap()
    );
    assert_eq!(
        store.list_devices(&DeviceFilter::default()).await.unwrap(),
        []
    );
    let outcome = store.enrol(&[9; 32], &new_device("a", 2), 3).await.unwrap();
    assert!(matches!(outcome, EnrolmentOutcome::Enrolled(_)));
    assert_eq!(
        store.standing(&id("a"), &[1; 32]).await.unwrap(),
        Standing::Superseded
    );
    let row = store.device(&id("a")).await.unwrap().unwrap();
    assert!(!row.revoked);
    assert_eq!(plain(row.desired.unwrap()), [wanted(1)]);
}

#[tokio::test]
async fn a_late_last_will_does_not_overtake_a_new_hello() {
    let Fixture { store, _dir } = open().await;
    store
        .insert_device(&new_device("a", 1), &labels("k", "v"), 0)
        .await
        .unwrap();
    assert!(
        store
            .set_presence(&id("a"), &presence(true, "old"), Some(1))
            .await
            .unwrap()
    );
    assert!(
        store
            .set_presence(&id("a"), &presence(true, "new"), Some(2))
            .await
            .unwrap()
    );
    assert!(
        !store
            .set_presence(&id("a"), &presence(false, "old"), Some(3))
            .await
            .unwrap()
    );
    assert!(store.device(&id("a")).await.unwrap().unwrap().online);
    assert!(
        store
            .set_presence(&id("a"), &presence(false, "new"), Some(4))
            .await
            .unwrap()
    );
    assert!(!store.device(&id("a")).await.unwrap().unwrap().online);
}

#[tokio::test]
async fn older_reports_are_ignored_and_devices_are_filtered() {
    let Fixture { store, _dir } = open().await;
    store
        .insert_device(&new_device("a", 1), &labels("site", "n\"1"), 0)
        .await
        .unwrap();
    store
        .insert_device(&new_device("b", 2), &labels("site", "s"), 0)
        .await
        .unwrap();
    assert!(
        store
            .set_reported(&id("a"), &reported(4, 0), 1)
            .await
            .unwrap()
    );
    assert!(
        !store
            .set_reported(&id("a"), &reported(4, 0), 2)
            .await
            .unwrap()
    );
    assert!(
        !store
            .set_reported(&id("a"), &reported(3, 0), 2)
            .await
            .unwrap()
    );
    let names = |filter: DeviceFilter| {
        let store = store.clone();
        async move {
            let rows = store.list_devices(&filter).await.unwrap();
            rows.iter()
                .map(|r| r.device.to_string())
                .collect::<Vec<_>>()
        }
    };
    let all = DeviceFilter::default;
    assert_eq!(names(all()).await, ["a", "b"]);
    assert_eq!(
        names(DeviceFilter {
            labels: labels("site", "n\"1"),
            ..all()
        })
        .await,
        ["a"]
    );
    assert_eq!(
        names(DeviceFilter {
            version: Some(1),
            ..all()
        })
        .await,
        ["a"]
    );
    assert_eq!(
        names(DeviceFilter {
            after: Some(id("a")),
            ..all()
        })
        .await,
        ["b"]
    );
    assert_eq!(
        names(DeviceFilter {
            limit: Some(1),
            ..all()
        })
        .await,
        ["a"]
    );
    assert_eq!(
        names(DeviceFilter {
            online: Some(true),
            ..all()
        })
        .await,
        [""; 0]
    );
}

#[tokio::test]
async fn desired_states_rise_by_one_and_pend_until_accepted() {
    let Fixture { store, _dir } = open().await;
    store
        .insert_device(&new_device("a", 1), &BTreeMap::new(), 0)
        .await
        .unwrap();
    let first = store
        .set_desired(&[(id("a"), vec![wanted(1)])])
        .await
        .unwrap();
    let second = store
        .set_desired(&[(id("a"), vec![wanted(2)])])
        .await
        .unwrap();
    assert_eq!(
        first,
        [Revision {
            epoch: 1,
            generation: 1
        }]
    );
    assert_eq!(
        second,
        [Revision {
            epoch: 1,
            generation: 2
        }]
    );
    assert_eq!(store.desired_pending().await.unwrap(), []);
    store
        .set_presence(&id("a"), &presence(true, "x"), Some(1))
        .await
        .unwrap();
    let pending = store.desired_pending().await.unwrap();
    assert_eq!(plain(pending[0].1.clone()), [wanted(2)]);
    store
        .set_reported(&id("a"), &reported(1, 2), 2)
        .await
        .unwrap();
    assert_eq!(store.desired_pending().await.unwrap(), []);
}

#[tokio::test]
async fn a_segment_counts_once_however_often_it_comes() {
    let Fixture { store, _dir } = open().await;
    let batch = [
        segment("a", 1, Body::Window(Box::new(window(0, 10)))),
        segment("a", 1, Body::Window(Box::new(window(0, 10)))),
        segment("a", u64::MAX, Body::Window(Box::new(window(10, 5)))),
        segment("b", 1, Body::Window(Box::new(window(0, 7)))),
    ];
    for _ in 0..2 {
        assert_eq!(store.ingest(&batch).await.unwrap().len(), 4);
    }
    let period = PeriodQuery {
        device: id("a"),
        bundle: Digest::of(b"1"),
        from_ms: 0,
        until_ms: 20,
    };
    let short = PeriodQuery {
        until_ms: 19,
        ..period.clone()
    };
    let sums = store.periods(&family(), &[period, short]).await.unwrap();
    assert_eq!((sums[0].inferences, sums[0].errors), (15, 2));
    assert_eq!(sums[0].confidence_sum_micro, 13_500_000);
    assert_eq!(sums[0].outputs, [15, 0]);
    assert_eq!(sums[1].inferences, 10);
    let numbers = store
        .segment_numbers(&id("a"), &BootId([7; 16]))
        .await
        .unwrap();
    assert_eq!(numbers, BTreeSet::from([1, u64::MAX]));
    let query = WindowQuery {
        family: family(),
        version: Some(1),
        devices: Some(BTreeSet::from([id("b")])),
        since_ms: None,
        until_ms: None,
    };
    assert_eq!(
        store.windows(&query).await.unwrap(),
        [(id("b"), window(0, 7))]
    );
}

#[tokio::test]
async fn gaps_events_and_pruning() {
    let Fixture { store, _dir } = open().await;
    let gap = Gap {
        class: Class::Sketch,
        segments: (10..2510).collect(),
        records: 2500,
        reason: "disk".to_owned(),
    };
    let event = Event {
        code: "update_refused".to_owned(),
        detail: "why".to_owned(),
        bundle: None,
    };
    let batch = [
        segment("a", 1, Body::Gap(gap)),
        segment("a", 2, Body::Event(event.clone())),
    ];
    store.ingest(&batch).await.unwrap();
    let gaps = store
        .gap_segments(&id("a"), &BootId([7; 16]))
        .await
        .unwrap();
    assert_eq!(gaps.len(), 2500);
    let events = store.events(&id("a"), 1).await.unwrap();
    assert_eq!(events[0].record.body, Body::Event(event));
    assert_eq!(
        store.prune(kept(101)).await.unwrap(),
        2502,
        "gaps and what they name"
    );
    let numbers = store
        .segment_numbers(&id("a"), &BootId([7; 16]))
        .await
        .unwrap();
    assert_eq!(numbers.len(), 2, "numbers outlive rows");
}

fn kept(since_ms: i64) -> Kept {
    Kept {
        records_since_ms: since_ms,
        windows_since_ms: since_ms,
    }
}

fn rollout(name: &str) -> RolloutRow {
    RolloutRow {
        id: name.parse().unwrap(),
        family: family(),
        version: 2,
        digest: Digest::of(b"2"),
        policy: serde_json::json!({"seed": u64::MAX}),
        selector: BTreeMap::new(),
        probation: dunlin_protocol::command::Probation::default(),
        created_ms: 1,
        created_by: "admin".to_owned(),
        running: true,
        abort_requested_ms: None,
        resume_requested_ms: None,
        state: serde_json::json!({}),
        report: serde_json::json!({}),
    }
}

#[tokio::test]
async fn a_plan_is_applied_whole_and_one_rollout_runs_a_family() {
    let Fixture { store, _dir } = open().await;
    let device = RolloutDeviceRow {
        device: id("a"),
        stage: 0,
        position: 0,
        before: Some(wanted(1)),
        state: serde_json::json!("waiting"),
    };
    let (r1, r2) = (rollout("r1"), rollout("r2"));
    store
        .insert_rollout(&r1, std::slice::from_ref(&device))
        .await
        .unwrap();
    assert!(matches!(
        store.insert_rollout(&r2, &[]).await,
        Err(StoreError::Conflict(_))
    ));
    let plan = PlanApplication {
        now_ms: 5,
        running: false,
        ended: true,
        abort_requested_ms: Some(4),
        resume_requested_ms: None,
        new_state: serde_json::json!({"phase": "done"}),
        report: serde_json::json!({"why": "done"}),
        device_updates: vec![RolloutDeviceRow {
            state: serde_json::json!("assigned"),
            ..device
        }],
        desired: vec![DesiredChange {
            device: id("a"),
            family: family(),
            bundle: Some(wanted(2)),
            seen: None,
        }],
        verdict: Some(serde_json::json!({"decision": "pass"})),
    };
    assert!(store.request_abort(&r1.id, 4).await.unwrap());
    let unaware = PlanApplication {
        abort_requested_ms: None,
        ..plan.clone()
    };
    assert!(
        matches!(
            store.apply_plan(&r1.id, &unaware).await,
            Err(StoreError::NotFound(_))
        ),
        "an abort asked for meanwhile is not lost"
    );
    store.apply_plan(&r1.id, &plan).await.unwrap();
    assert!(matches!(
        store.apply_plan(&r1.id, &plan).await,
        Err(StoreError::NotFound(_))
    ));
    let row = store.rollout(&r1.id).await.unwrap().unwrap();
    assert_eq!((row.running, row.abort_requested_ms), (false, Some(4)));
    assert_eq!(row.policy["seed"], u64::MAX);
    assert_eq!(
        store.rollout_devices(&r1.id).await.unwrap(),
        plan.device_updates
    );
    assert_eq!(store.rollout_verdicts(&r1.id).await.unwrap().len(), 1);
    assert_eq!(
        plain(store.desired(&id("a")).await.unwrap().unwrap()),
        [wanted(2)]
    );
    store.insert_rollout(&r2, &[]).await.unwrap();
    assert_eq!(store.running_rollouts().await.unwrap().len(), 1);
    let in_rollout = async || store.families_in_rollout().await.unwrap();
    assert_eq!(in_rollout().await, BTreeSet::from([family()]));
    // Stopped, and looked at until a device that is never heard of again has gone back.
    let stopped = PlanApplication {
        running: true,
        ended: true,
        abort_requested_ms: None,
        device_updates: Vec::new(),
        desired: Vec::new(),
        ..plan
    };
    store.apply_plan(&r2.id, &stopped).await.unwrap();
    assert_eq!(store.running_rollouts().await.unwrap().len(), 1);
    assert_eq!(in_rollout().await, BTreeSet::new());
}

#[tokio::test]
async fn floors_never_fall_and_what_is_delisted_is_not_offered() {
    let Fixture { store, _dir } = open().await;
    let bundle = |version, rollback_floor| BundleRow {
        family: family(),
        version,
        digest: Digest::of(b"m"),
        target: "t".to_owned(),
        rollback_floor,
        manifest_json: "{}".to_owned(),
        profile: None,
        published_ms: 1,
        listed: true,
    };
    store
        .set_bundles(&[bundle(1, 1), bundle(2, 2)])
        .await
        .unwrap();
    assert_eq!(store.floor(&family()).await.unwrap(), 2);
    store
        .set_bundles(&[bundle(2, 1), bundle(3, 1)])
        .await
        .unwrap();
    assert_eq!(store.floor(&family()).await.unwrap(), 2);
    assert_eq!(store.bundle(&family(), 1).await.unwrap(), None);
    assert!(store.bundle(&family(), 3).await.unwrap().is_some());
    assert_eq!(store.list_bundles().await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_no_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dunlin.db");
    std::fs::write(
        &path,
        b"not a database, and long enough to be looked at as one....",
    )
    .unwrap();
    let error = Store::open(&path).await.unwrap_err().to_string();
    assert!(error.contains("dunlin.db"), "{error}");
}

#[tokio::test]
async fn a_database_set_back_opens_a_higher_epoch() {
    let Fixture { store, _dir } = open().await;
    let device = new_device("a", 1);
    store
        .insert_device(&device, &labels("k", "v"), 0)
        .await
        .unwrap();
    store
        .set_desired(&[(id("a"), vec![wanted(1)])])
        .await
        .unwrap();
    store
        .set_presence(&id("a"), &presence(true, "x"), Some(1))
        .await
        .unwrap();
    let mut newer = reported(1, 1);
    newer.revision = Revision {
        epoch: 4,
        generation: 9,
    };
    store.set_reported(&id("a"), &newer, 2).await.unwrap();
    assert!(store.desired_pending().await.unwrap().is_empty());
    let behind = store.desired_behind().await.unwrap();
    assert_eq!(behind, [(id("a"), newer.revision)]);
    assert_eq!(store.raise_epoch(4, &[id("a")]).await.unwrap(), 5);
    assert_eq!(store.epoch(), 5);
    let pending = store.desired_pending().await.unwrap();
    assert_eq!(pending[0].1.revision.epoch, 5);
    assert_eq!(plain(pending[0].1.clone()), [wanted(1)]);
}

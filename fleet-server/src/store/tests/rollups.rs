use super::*;
use crate::drift::query::Soundness;
use crate::drift::rollup::Rolled;
use dunlin_protocol::distinct::{Distinct, hash};

const HOUR_MS: i64 = 3_600_000;

async fn filled() -> Fixture {
    let fixture = open().await;
    let batch = [
        segment("a", 1, Body::Window(Box::new(window(0, 10)))),
        segment("a", 2, Body::Window(Box::new(window(10, 5)))),
        segment("a", 3, Body::Window(Box::new(window(HOUR_MS, 7)))),
        segment("b", 1, Body::Window(Box::new(window(20, 1)))),
    ];
    fixture.store.ingest(&batch).await.unwrap();
    fixture
}

async fn group(store: &Store) -> WindowGroup {
    let (groups, _) = store
        .groups_due((0, HOUR_MS), 101, None, 100)
        .await
        .unwrap();
    assert_eq!(groups.len(), 3, "two hours of a, one of b");
    groups.into_iter().next().unwrap()
}

/// The first two windows of `a` as one.
fn sum(rows: &[(i64, ReceivedWindow)]) -> Rolled {
    let (id, mut sum) = rows[0].clone();
    sum.window = window(0, 15);
    sum.window.end_ms = 20;
    sum.parts = 2;
    sum.soundness = Some(vec![Soundness::Sound, Soundness::Constant]);
    Rolled {
        sums: vec![(id, sum)],
        gone: vec![rows[1].0],
        left: Vec::new(),
    }
}

fn all() -> WindowQuery {
    WindowQuery {
        family: family(),
        version: None,
        devices: None,
        since_ms: None,
        until_ms: None,
    }
}

#[tokio::test]
async fn a_sum_takes_the_place_of_rows_and_is_read_back_as_it_was() {
    let Fixture { store, _dir } = filled().await;
    let group = group(&store).await;
    let rows = store.windows_of(&group, HOUR_MS, 101).await.unwrap();
    let rolled = sum(&rows);
    let right = store.may_roll_up().unwrap();
    let all_of = [rolled.clone()];
    store.write_rollups(&right, HOUR_MS, &all_of).await.unwrap();
    // What was added up is not due by the hour again, and is by the day.
    let (groups, _) = store
        .groups_due((0, HOUR_MS), 101, None, 100)
        .await
        .unwrap();
    assert_eq!(groups.len(), 2);
    let day_ms = 24 * HOUR_MS;
    let due = store
        .groups_due((HOUR_MS, day_ms), 101, None, 100)
        .await
        .unwrap();
    assert_eq!(due.0.len(), 1);
    let again = store.windows_of(&group, HOUR_MS, 101).await.unwrap();
    assert_eq!(again, rolled.sums);
    // A row that has gone meanwhile leaves everything as it is.
    let problem = store.write_rollups(&right, HOUR_MS, &all_of).await;
    assert!(
        matches!(problem, Err(StoreError::Conflict(_))),
        "{problem:?}"
    );
    drop(right);
    assert_eq!(store.windows(&all()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn nothing_is_added_up_while_windows_are_read() {
    let Fixture { store, _dir } = filled().await;
    let mut scan = store.scan_windows(all()).await;
    assert_eq!(scan.page(1).await.unwrap().len(), 1);
    assert!(store.may_roll_up().is_none());
    assert!(store.clone().may_roll_up().is_none());
    drop(scan);
    assert!(store.may_roll_up().is_some());
}

#[tokio::test]
async fn rows_of_a_server_before_are_read_and_added_up() {
    let Fixture { store, _dir } = filled().await;
    let old = window(30, 9);
    sqlx::query(
        "INSERT INTO windows (device, bundle, family, version, start_ms, end_ms, received_ms, window)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind("b")
    .bind(&old.bundle.0[..])
    .bind("digits")
    .bind(1)
    .bind(old.start_ms)
    .bind(old.end_ms)
    .bind(100)
    .bind(to_json("window", &old).unwrap())
    .execute(&store.writer)
    .await
    .unwrap();
    let windows = store.windows(&all()).await.unwrap();
    assert!(windows.contains(&(id("b"), old.clone())));
    let (groups, _) = store
        .groups_due((0, HOUR_MS), 101, None, 100)
        .await
        .unwrap();
    let of_b = groups.iter().find(|g| g.device == id("b")).unwrap();
    let rows = store.windows_of(of_b, HOUR_MS, 101).await.unwrap();
    assert_eq!(rows[1].1, ReceivedWindow::single(id("b"), 100, old));
}

#[tokio::test]
async fn what_counts_towards_nothing_goes_sooner() {
    let Fixture { store, _dir } = filled().await;
    let group = group(&store).await;
    let rows = store.windows_of(&group, HOUR_MS, 101).await.unwrap();
    let next = WindowGroup {
        unit: 1,
        ..group.clone()
    };
    let left = store.windows_of(&next, HOUR_MS, 101).await.unwrap();
    let left = left.into_iter().map(|(id, _)| id).collect();
    let rolled = Rolled { left, ..sum(&rows) };
    let right = store.may_roll_up().unwrap();
    store
        .write_rollups(&right, HOUR_MS, &[rolled])
        .await
        .unwrap();
    drop(right);
    let records_alone = Kept {
        records_since_ms: 101,
        windows_since_ms: 0,
    };
    assert_eq!(store.prune(records_alone).await.unwrap(), 1, "the one left");
    assert_eq!(store.windows(&all()).await.unwrap().len(), 2);
    assert_eq!(store.prune(kept(101)).await.unwrap(), 2, "all");
}

#[tokio::test]
async fn a_window_is_stored_whole() {
    let Fixture { store, _dir } = open().await;
    let mut one = window(i64::MIN, 1);
    one.inferences = u64::MAX;
    one.end_ms = i64::MAX;
    one.confidence_sum_micro = u64::MAX;
    one.segment = Some("camera".to_owned());
    one.profile = Some(Digest::of(b"profile"));
    one.expected_confusion_nano = Some(Vec::new());
    one.refused = 3;
    one.latency.buckets = vec![0, 0, 9];
    let mut sketch = Distinct::default();
    sketch.add(hash(b"yew"));
    one.features = vec![
        Histogram::new(0),
        Histogram {
            counts: vec![0, u64::MAX, 1],
            under: 1,
            over: 2,
            nan: 3,
            pos_inf: 4,
            neg_inf: 5,
            missing: 6,
            distinct: Some(sketch),
        },
    ];
    let batch = [segment("a", 1, Body::Window(Box::new(one.clone())))];
    store.ingest(&batch).await.unwrap();
    assert_eq!(store.windows(&all()).await.unwrap(), [(id("a"), one)]);
}

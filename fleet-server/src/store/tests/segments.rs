use super::*;

fn event(number: u64, received_ms: i64) -> IncomingSegment {
    let event = Event {
        code: format!("n-{number}"),
        detail: String::new(),
        bundle: None,
    };
    IncomingSegment {
        received_ms,
        ..segment("a", number, Body::Event(event))
    }
}

async fn rows(store: &Store, sql: &'static str) -> i64 {
    let count = sqlx::query_scalar(sql).fetch_one(&store.reader).await;
    count.unwrap()
}

#[tokio::test]
async fn what_arrived_long_ago_is_known_by_runs_and_counts_once_all_the_same() {
    let Fixture { store, _dir } = open().await;
    let boot = BootId([7; 16]);
    let numbers = [1, 2, 3, 5, 9, 10, u64::MAX, u64::MAX - 1, 1 << 63];
    let all: Vec<_> = numbers.iter().map(|n| event(*n, 100)).collect();
    store.ingest(&all).await.unwrap();
    assert_eq!(store.fold_segments(100).await.unwrap(), 0, "too young");
    assert_eq!(store.fold_segments(101).await.unwrap(), 9);
    // 1 to 3, 5, 9 and 10, the two largest, and the one in the middle.
    let (young, runs) = (
        "SELECT count(*) FROM segments",
        "SELECT count(*) FROM segment_ranges",
    );
    assert_eq!(
        (rows(&store, young).await, rows(&store, runs).await),
        (0, 5)
    );
    let a = id("a");
    let known = || store.segment_numbers(&a, &boot);
    assert_eq!(known().await.unwrap(), BTreeSet::from(numbers));
    assert_eq!(store.boots(&id("a")).await.unwrap(), BTreeSet::from([boot]));

    // Sent again: acknowledged, and stored once.
    let mut again = all.clone();
    again.extend([event(4, 200), event(6, 200), event(11, 200)]);
    assert_eq!(store.ingest(&again).await.unwrap().len(), 12);
    let records = "SELECT count(*) FROM records";
    assert_eq!(
        (rows(&store, records).await, rows(&store, young).await),
        (12, 3)
    );
    assert_eq!(store.fold_segments(201).await.unwrap(), 3);
    // 1 to 6, 9 to 11, and those beyond.
    assert_eq!(
        (rows(&store, young).await, rows(&store, runs).await),
        (0, 4)
    );
    assert_eq!(known().await.unwrap().len(), 12);
    store.ingest(&again).await.unwrap();
    assert_eq!(
        (rows(&store, records).await, rows(&store, young).await),
        (12, 0)
    );
    // Another life of the buffer counts anew.
    let mut other = event(1, 300);
    other.segment.boot = BootId([8; 16]);
    store.ingest(&[other]).await.unwrap();
    assert_eq!(rows(&store, records).await, 13);
}

use super::*;
use crate::rollout::pairs::Entry;
use crate::store::{SPAN_WINDOWS_MAX, SpanEnd, SpanQuery, StageKey};
use dunlin_protocol::id::RolloutId;

/// Windows of `n` inferences each, of version 1, from one device at these times.
async fn send(store: &Store, device: &str, first_segment: u64, times: &[(i64, u64)]) {
    let segments: Vec<_> = times
        .iter()
        .enumerate()
        .map(|(at, (start_ms, n))| {
            let mut one = window(*start_ms, *n);
            one.end_ms = start_ms + 5;
            one.outputs = vec![*n];
            segment(
                device,
                first_segment + at as u64,
                Body::Window(Box::new(one)),
            )
        })
        .collect();
    store.ingest(&segments).await.unwrap();
}

fn span(device: &str, from_ms: i64, until_ms: i64) -> SpanQuery {
    SpanQuery {
        device: id(device),
        bundle: window(0, 1).bundle,
        from_ms,
        until_ms,
    }
}

#[tokio::test]
async fn a_span_is_added_up_from_either_end_in_order_of_start() {
    let Fixture { store, _dir } = open().await;
    // As they may arrive: the newest first.
    send(&store, "a", 0, &[(40, 4), (30, 3), (20, 2), (10, 1)]).await;
    // Of one start: a device's segments.
    send(&store, "b", 0, &[(10, 50), (20, 60), (10, 5)]).await;
    let asked = [
        span("b", 0, 100),
        span("a", 15, 100),
        span("c", 0, 100),
        span("a", 15, 36),
    ];
    let inferences = async |end| {
        let sums = store.spans(&family(), &asked, end).await.unwrap();
        sums.iter()
            .map(|span| span.sum.inferences)
            .collect::<Vec<_>>()
    };
    let first = SpanEnd::First { inferences: 3 };
    assert_eq!(inferences(first).await, [50 + 5, 2 + 3, 0, 2 + 3]);
    let first = SpanEnd::First { inferences: 2 };
    assert_eq!(inferences(first).await, [50 + 5, 2, 0, 2]);
    assert_eq!(inferences(SpanEnd::Last).await, [115, 9, 0, 5]);
    let other = "letters".parse().unwrap();
    let none = store.spans(&other, &asked, SpanEnd::Last).await.unwrap();
    assert!(
        none.iter()
            .all(|span| span.sum.inferences == 0 && !span.is_full)
    );
}

#[tokio::test]
async fn no_span_reads_more_windows_than_the_limit() {
    let Fixture { store, _dir } = open().await;
    let limit = i64::try_from(SPAN_WINDOWS_MAX).unwrap();
    // The first one has ten inferences, the last one a hundred, the others one each.
    let times: Vec<_> = (0..=limit)
        .map(|at| match at {
            0 => (0, 10),
            at if at == limit => (at * 10, 100),
            at => (at * 10, 1),
        })
        .collect();
    send(&store, "a", 0, &times).await;
    let asked = [span("a", 0, i64::MAX)];
    for (end, expected) in [
        (SpanEnd::First { inferences: 10_000 }, 10 + limit - 1),
        (SpanEnd::Last, limit - 1 + 100),
    ] {
        let sum = store.spans(&family(), &asked, end).await.unwrap().remove(0);
        assert!(sum.is_full);
        assert_eq!(
            sum.sum.inferences,
            u64::try_from(expected).unwrap(),
            "{end:?}"
        );
    }
}

#[tokio::test]
async fn senders_of_new_windows_are_named_behind_a_mark() {
    let Fixture { store, _dir } = open().await;
    assert_eq!(store.newest_window_mark().await.unwrap(), 0);
    send(&store, "a", 0, &[(10, 1)]).await;
    let mark = store.newest_window_mark().await.unwrap();
    send(&store, "b", 0, &[(10, 1), (20, 1)]).await;
    send(&store, "c", 0, &[(10, 1)]).await;
    let named = |new: &crate::store::NewWindows| new.devices.iter().cloned().collect::<Vec<_>>();
    let new = store.new_windows(&family(), mark, 2).await.unwrap();
    assert_eq!((named(&new), new.windows), (vec!["b".to_owned()], 2));
    let rest = store.new_windows(&family(), new.mark, 2).await.unwrap();
    assert_eq!(named(&rest), ["c"]);
    let none = store.new_windows(&family(), rest.mark, 2).await.unwrap();
    assert_eq!((named(&none).len(), none.mark), (0, rest.mark));
    // Retention may empty the table, and numbers begin anew, below the mark.
    store.prune(kept(i64::MAX)).await.unwrap();
    let emptied = store.new_windows(&family(), rest.mark, 2).await.unwrap();
    assert_eq!(emptied.mark, 0);
    send(&store, "d", 0, &[(10, 1)]).await;
    let after = store.new_windows(&family(), emptied.mark, 2).await.unwrap();
    assert_eq!(named(&after), ["d"]);
}

#[tokio::test]
async fn what_has_entered_stays() {
    let Fixture { store, _dir } = open().await;
    let rollout: RolloutId = "r1".parse().unwrap();
    let key = |stage| StageKey {
        rollout: &rollout,
        stage,
    };
    let entry = |device: &str, change_nano| Entry {
        device: device.to_owned(),
        change_nano,
    };
    assert_eq!(store.rollout_mark(key(0)).await.unwrap(), None);
    let first = [entry("b", Some(-5)), entry("a", None)];
    store.enter(key(0), &first, 7, 1).await.unwrap();
    let again = [
        entry("a", Some(9)),
        entry("b", Some(8)),
        entry("c", Some(3)),
    ];
    store.enter(key(0), &again, 9, 2).await.unwrap();
    let kept = store.rollout_entries(key(0)).await.unwrap();
    assert_eq!(
        kept,
        [entry("b", Some(-5)), entry("a", None), entry("c", Some(3))]
    );
    assert_eq!(store.rollout_mark(key(0)).await.unwrap(), Some(9));
    assert_eq!(store.rollout_entries(key(1)).await.unwrap(), []);
}

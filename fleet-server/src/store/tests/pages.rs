use super::*;

#[tokio::test]
async fn windows_come_by_the_page_each_once_and_in_order() {
    let Fixture { store, _dir } = open().await;
    let mut batch = Vec::new();
    for number in 0..23_u64 {
        // Several of one start, and two versions.
        let mut one = window(i64::try_from(number / 5).unwrap() * 10, number);
        one.version = 1 + number % 2;
        batch.push(segment("a", number, Body::Window(Box::new(one))));
    }
    store.ingest(&batch).await.unwrap();
    let query = WindowQuery {
        family: family(),
        version: None,
        devices: None,
        since_ms: None,
        until_ms: None,
    };
    let mut scan = store.scan_windows(query).await;
    let mut seen = Vec::new();
    loop {
        let page = scan.page(4).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 4);
        let key = |r: &ReceivedWindow| (r.window.version, r.window.start_ms, r.window.inferences);
        seen.extend(page.iter().map(key));
    }
    assert_eq!(seen.len(), 23);
    assert!(seen.is_sorted(), "{seen:?}");
    scan.skip_past(1);
    let page = scan.page(100).await.unwrap();
    assert!(page.len() == 11 && page.iter().all(|r| r.window.version == 2));
}

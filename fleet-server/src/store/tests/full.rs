//! A disk without room, as SQLite itself sees it.

use super::*;

impl Store {
    /// The most pages that the database may have, or as many as it has now if that is more: beyond,
    /// SQLite says that the disk is full.
    pub(crate) async fn limit_pages(&self, pages: u32) {
        let options = self.writer.connect_options().as_ref().clone();
        let options = options.pragma("max_page_count", pages.to_string());
        self.writer.set_connect_options(options);
        let sql = format!("PRAGMA max_page_count = {pages}");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(&self.writer)
            .await
            .unwrap();
    }

    /// Lets the database refuse a segment for its number, and end the transaction by itself.
    pub(crate) async fn refuse_segment(&self, number: u32) {
        let sql = format!(
            "CREATE TRIGGER refused BEFORE INSERT ON segments WHEN NEW.segment = {number}
             BEGIN SELECT RAISE(ROLLBACK, 'refused'); END"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(&self.writer)
            .await
            .unwrap();
    }
}

fn batch(numbers: std::ops::Range<u64>) -> Vec<IncomingSegment> {
    let event = Event {
        code: "test".to_owned(),
        detail: "x".repeat(20_000),
        bundle: None,
    };
    numbers
        .map(|number| segment("a", number, Body::Event(event.clone())))
        .collect()
}

#[tokio::test]
async fn writes_go_on_once_a_full_disk_has_room_again() {
    let Fixture { store, _dir } = open().await;
    store.ingest(&batch(0..2)).await.unwrap();
    store.limit_pages(1).await;
    for _ in 0..3 {
        let error = store.ingest(&batch(2..66)).await.unwrap_err();
        let StoreError::Sql(sqlx::Error::Database(full)) = &error else {
            panic!("{error}");
        };
        assert_eq!(full.code().as_deref(), Some("13"), "{error}");
        assert!(!error.is_of_contents());
    }
    store.ping_write().await.unwrap();
    store.limit_pages(u32::MAX - 1).await;
    assert_eq!(store.ingest(&batch(0..66)).await.unwrap().len(), 66);
    let events = store.events(&id("a"), 100).await.unwrap();
    assert_eq!(events.len(), 66);
    store.close().await;
}

#[tokio::test]
async fn a_transaction_that_ends_by_itself_does_not_end_all_others() {
    let Fixture { store, _dir } = open().await;
    store.refuse_segment(1).await;
    let error = store.ingest(&batch(1..2)).await.unwrap_err();
    assert!(error.is_of_contents(), "{error}");
    store.ingest(&batch(2..3)).await.unwrap();
    store.close().await;
}

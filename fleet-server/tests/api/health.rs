//! What `/healthz` says of a database that takes no writes.

use super::fixture::Fleet;
use http::StatusCode;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, raw_sql};
use std::time::Duration;

async fn until(fleet: &Fleet, expected: StatusCode) {
    let seen = tokio::time::timeout(Duration::from_secs(60), async {
        while fleet.get("/healthz").await.status != expected {
            tokio::task::yield_now().await;
        }
    });
    seen.await.unwrap();
}

#[tokio::test]
async fn a_database_that_takes_no_writes_is_told_of_until_it_does() {
    let fleet = Fleet::start().await;
    let path = fleet.dir.path().join("state/dunlin.db");
    let options = SqliteConnectOptions::new().filename(path);
    let mut beside = SqliteConnection::connect_with(&options).await.unwrap();
    // As a full disk does: an error, and SQLite ends the transaction by itself.
    let refuse = "CREATE TRIGGER refused BEFORE UPDATE ON meta
                  BEGIN SELECT RAISE(ROLLBACK, 'no room'); END";
    raw_sql(refuse).execute(&mut beside).await.unwrap();
    until(&fleet, StatusCode::SERVICE_UNAVAILABLE).await;
    let unwell = fleet.get("/healthz").await;
    assert_eq!(unwell.code(), "no_writes");
    assert!(unwell.json().to_string().contains("no room"));

    raw_sql("DROP TRIGGER refused")
        .execute(&mut beside)
        .await
        .unwrap();
    until(&fleet, StatusCode::OK).await;
    beside.close().await.unwrap();
    fleet.server.shutdown().await;
}

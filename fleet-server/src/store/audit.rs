//! Who did what with that which is not everybody's to see. Rows are written in the transaction of what
//! they tell of, and never changed.

use super::{Result, Store, from_json, to_json};
use serde_json::Value;
use sqlx::{Row, Sqlite, Transaction};

/// One deed.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// Rises with every deed.
    pub id: i64,
    /// When, in milliseconds since 1970.
    pub time_ms: i64,
    /// `admin:NAME` or `device:ID`.
    pub actor: String,
    /// What was done, such as `capture.download`.
    pub action: String,
    /// With what.
    pub detail: Value,
}

/// A deed that is about to be done.
#[derive(Debug, Clone)]
pub struct Deed<'a> {
    /// When, in milliseconds since 1970.
    pub time_ms: i64,
    /// `admin:NAME` or `device:ID`.
    pub actor: &'a str,
    /// What.
    pub action: &'static str,
    /// With what.
    pub detail: Value,
}

pub(super) async fn note(tx: &mut Transaction<'static, Sqlite>, deed: &Deed<'_>) -> Result<()> {
    sqlx::query("INSERT INTO audit (time_ms, actor, action, detail) VALUES (?, ?, ?, ?)")
        .bind(deed.time_ms)
        .bind(deed.actor)
        .bind(deed.action)
        .bind(to_json("audit detail", &deed.detail)?)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

impl Store {
    /// Deeds below an id (none: the newest), the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit(&self, before: Option<i64>, limit: u32) -> Result<Vec<AuditRow>> {
        let rows = sqlx::query("SELECT * FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?")
            .bind(before.unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(&self.reader)
            .await?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            Ok(AuditRow {
                id: row.try_get("id")?,
                time_ms: row.try_get("time_ms")?,
                actor: row.try_get("actor")?,
                action: row.try_get("action")?,
                detail: from_json("audit detail", row.try_get("detail")?)?,
            })
        };
        rows.iter().map(read).collect()
    }
}

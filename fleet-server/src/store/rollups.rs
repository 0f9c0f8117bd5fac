//! Windows added up by the hour and the day, and rows that go.

use super::window::{self, ReceivedWindow};
use super::{Result, Store, digest, parsed, uint};
use crate::drift::rollup::Rolled;
use dunlin_protocol::id::{DeviceId, Digest, Family};
use sqlx::{QueryBuilder, Row as _, Sqlite, Transaction};
use std::collections::BTreeSet;
use tokio::sync::OwnedRwLockWriteGuard;

/// How much longer a segment's number is remembered than its rows, in milliseconds (90 days).
const MEMORY_MS: i64 = 90 * 24 * 3_600_000;
/// Rows of one device and unit that are added up at once; more are when it is their turn again.
const GROUP_ROWS_MAX: u32 = 5000;
/// Rows deleted by one statement.
const IDS_IN_STATEMENT: usize = 10_000;

/// Windows of one device, one bundle and one unit of time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowGroup {
    /// Their family.
    pub family: Family,
    /// Their version.
    pub version: u64,
    /// Their bundle.
    pub bundle: Digest,
    /// Who sent them.
    pub device: DeviceId,
    /// Which unit since 1970 they begin in.
    pub unit: i64,
}

/// A place in the order in which windows arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    received_ms: i64,
    id: i64,
}

/// How long rows are kept. Moments in milliseconds since 1970: what arrived before goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Events, metrics, logs, and windows that count towards nothing.
    pub records_since_ms: i64,
    /// Windows.
    pub windows_since_ms: i64,
}

impl Store {
    /// The groups of the next windows that arrived before `before_ms` and are added up by `from_unit_ms`
    /// as yet (0: not at all), at most `limit` windows, and where to go on.
    ///
    /// # Errors
    /// The database failed.
    pub async fn groups_due(
        &self,
        (from_unit_ms, unit_ms): (i64, i64),
        before_ms: i64,
        after: Option<Arrival>,
        limit: u32,
    ) -> Result<(BTreeSet<WindowGroup>, Option<Arrival>)> {
        let after = after.unwrap_or(Arrival {
            received_ms: i64::MIN,
            id: i64::MIN,
        });
        let rows = sqlx::query(
            "SELECT id, received_ms, family, version, bundle, device, start_ms FROM windows
             WHERE unit_ms = ? AND received_ms < ? AND (received_ms, id) > (?, ?)
             ORDER BY received_ms, id LIMIT ?",
        )
        .bind(from_unit_ms)
        .bind(before_ms)
        .bind(after.received_ms)
        .bind(after.id)
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        let mut groups = BTreeSet::new();
        let mut last = None;
        for row in &rows {
            let (bundle, start_ms): (Vec<u8>, i64) =
                (row.try_get("bundle")?, row.try_get("start_ms")?);
            groups.insert(WindowGroup {
                family: parsed("family", row.try_get("family")?)?,
                version: uint(row, "version")?,
                bundle: digest("bundle", &bundle)?,
                device: parsed("device id", row.try_get("device")?)?,
                unit: start_ms.div_euclid(unit_ms),
            });
            last = Some(Arrival {
                received_ms: row.try_get("received_ms")?,
                id: row.try_get("id")?,
            });
        }
        Ok((groups, last))
    }

    /// A group's windows that arrived before `before_ms`, and are added up by `unit_ms` at most.
    ///
    /// # Errors
    /// The database failed.
    pub async fn windows_of(
        &self,
        group: &WindowGroup,
        unit_ms: i64,
        before_ms: i64,
    ) -> Result<Vec<(i64, ReceivedWindow)>> {
        let start_ms = group.unit.saturating_mul(unit_ms);
        let rows = sqlx::query(
            "SELECT * FROM windows
             WHERE device = ? AND bundle = ? AND start_ms >= ? AND start_ms < ?
               AND family = ? AND version = ? AND unit_ms <= ? AND received_ms < ?
             ORDER BY start_ms, id LIMIT ?",
        )
        .bind(group.device.as_str())
        .bind(&group.bundle.0[..])
        .bind(start_ms)
        .bind(start_ms.saturating_add(unit_ms))
        .bind(group.family.as_str())
        .bind(super::int(group.version))
        .bind(unit_ms)
        .bind(before_ms)
        .bind(GROUP_ROWS_MAX)
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("id")?, window::received(row)?)))
            .collect()
    }

    /// The right to add windows up: none while windows are being read.
    #[must_use]
    pub fn may_roll_up(&self) -> Option<RollupRight> {
        let held = std::sync::Arc::clone(&self.scans).try_write_owned().ok()?;
        Some(RollupRight { _held: held })
    }

    /// Puts sums in the place of rows, all or none of them.
    ///
    /// # Errors
    /// The database failed, or a row has gone meanwhile; nothing is changed then.
    pub async fn write_rollups(
        &self,
        _right: &RollupRight,
        unit_ms: i64,
        rolled: &[Rolled],
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        for one in rolled {
            for (id, sum) in &one.sums {
                write_sum(&mut tx, unit_ms, *id, sum).await?;
            }
            for some in one.gone.chunks(IDS_IN_STATEMENT) {
                let mut sql = QueryBuilder::<Sqlite>::new("DELETE FROM windows WHERE id IN (");
                push_ids(&mut sql, some)?;
                let done = sql.build().execute(&mut *tx).await?;
                all_there(done.rows_affected(), some.len())?;
            }
            for some in one.left.chunks(IDS_IN_STATEMENT) {
                let mut sql = QueryBuilder::<Sqlite>::new("UPDATE windows SET unit_ms = ");
                sql.push_bind(unit_ms).push(" WHERE id IN (");
                push_ids(&mut sql, some)?;
                sql.build().execute(&mut *tx).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// Deletes what is not kept any longer; segment numbers are remembered 90 days longer than records.
    /// Gives the number of rows deleted.
    ///
    /// # Errors
    /// The database failed.
    pub async fn prune(&self, kept: Kept) -> Result<u64> {
        let mut tx = self.begin().await?;
        let mut deleted = 0;
        for (sql, bound_ms) in [
            (
                "DELETE FROM windows WHERE unit_ms IN (0, 3600000, 86400000) AND received_ms < ?",
                kept.windows_since_ms,
            ),
            (
                "DELETE FROM windows WHERE unit_ms IN (3600000, 86400000) AND received_ms < ?
                   AND soundness IS NULL",
                kept.records_since_ms,
            ),
            (
                "DELETE FROM records WHERE received_ms < ?",
                kept.records_since_ms,
            ),
            (
                "DELETE FROM segments WHERE received_ms < ?",
                kept.records_since_ms.saturating_sub(MEMORY_MS),
            ),
        ] {
            let done = sqlx::query(sql).bind(bound_ms).execute(&mut *tx).await?;
            deleted += done.rows_affected();
        }
        tx.commit().await?;
        Ok(deleted)
    }
}

/// While it is held, nobody reads windows page by page.
#[derive(Debug)]
pub struct RollupRight {
    _held: OwnedRwLockWriteGuard<()>,
}

async fn write_sum(
    tx: &mut Transaction<'static, Sqlite>,
    unit_ms: i64,
    id: i64,
    sum: &ReceivedWindow,
) -> Result<()> {
    let soundness = sum.soundness.as_deref().map(window::codes);
    let done = sqlx::query(
        "UPDATE windows SET start_ms = ?, end_ms = ?, received_ms = ?, window = ?, parts = ?,
           soundness = ?, unit_ms = ? WHERE id = ?",
    )
    .bind(sum.window.start_ms)
    .bind(sum.window.end_ms)
    .bind(sum.received_ms)
    .bind(window::encode(&sum.window))
    .bind(super::int(sum.parts))
    .bind(soundness)
    .bind(unit_ms)
    .bind(id)
    .execute(&mut **tx)
    .await?;
    all_there(done.rows_affected(), 1)
}

fn push_ids(sql: &mut QueryBuilder<Sqlite>, ids: &[i64]) -> Result<()> {
    sql.push("SELECT value FROM json_each(")
        .push_bind(super::to_json("row ids", &ids)?)
        .push("))");
    Ok(())
}

/// A row that has gone is not in the sum that would take its place.
fn all_there(found: u64, expected: usize) -> Result<()> {
    if usize::try_from(found) == Ok(expected) {
        return Ok(());
    }
    Err(super::StoreError::Conflict(format!(
        "windows to be added up: expected {expected} rows, found {found}"
    )))
}

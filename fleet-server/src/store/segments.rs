//! Which segments are on disk already: a row each while they are young, runs of numbers after that.

use super::telemetry::IncomingSegment;
use super::{ROWS_IN_STATEMENT, Result, Store, StoreError, parsed, to_json};
use dunlin_protocol::id::{BootId, DeviceId};
use sqlx::{QueryBuilder, Row as _, Sqlite, Transaction};
use std::collections::BTreeSet;

/// Numbers that become runs in one transaction.
const FOLD_MAX: u32 = 20_000;

/// A segment's identity, as acknowledged.
pub(super) type SegmentId = (DeviceId, BootId, u64);

pub(super) fn identity(incoming: &IncomingSegment) -> SegmentId {
    (
        incoming.device.clone(),
        incoming.segment.boot,
        incoming.segment.segment,
    )
}

/// Numbers without a hole, both ends included. The same 64 bits as a number's, with a sign, as SQLite
/// orders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    first: i64,
    last: i64,
    received_ms: i64,
}

/// Puts runs together that touch or overlap.
fn joined(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut all: Vec<Run> = Vec::new();
    for run in runs {
        match all.last_mut() {
            Some(before) if run.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(run.last);
                before.received_ms = before.received_ms.max(run.received_ms);
            }
            _ => all.push(run),
        }
    }
    all
}

impl Store {
    /// The numbers of a device's segments stored under a boot.
    ///
    /// # Errors
    /// The database failed.
    pub async fn segment_numbers(&self, device: &DeviceId, boot: &BootId) -> Result<BTreeSet<u64>> {
        let young = "SELECT segment FROM segments WHERE device = ? AND boot = ?";
        let mut numbers = self.numbers(young, device, boot).await?;
        let mut conn = self.reader.acquire().await?;
        for run in runs_of(&mut conn, device, boot).await? {
            numbers.extend((run.first..=run.last).map(i64::cast_unsigned));
        }
        Ok(numbers)
    }

    /// The numbers of a device's segments that it said it dropped under a boot.
    ///
    /// # Errors
    /// The database failed.
    pub async fn gap_segments(&self, device: &DeviceId, boot: &BootId) -> Result<BTreeSet<u64>> {
        let gaps = "SELECT segment FROM gaps WHERE device = ? AND boot = ?";
        self.numbers(gaps, device, boot).await
    }

    async fn numbers(
        &self,
        sql: &'static str,
        device: &DeviceId,
        boot: &BootId,
    ) -> Result<BTreeSet<u64>> {
        let numbers = sqlx::query_scalar::<_, i64>(sql)
            .bind(device.as_str())
            .bind(&boot.0[..])
            .fetch_all(&self.reader)
            .await?;
        Ok(numbers.into_iter().map(i64::cast_unsigned).collect())
    }

    /// Every boot under which a device's segments are stored.
    ///
    /// # Errors
    /// The database failed.
    pub async fn boots(&self, device: &DeviceId) -> Result<BTreeSet<BootId>> {
        let raw = sqlx::query_scalar::<_, Vec<u8>>(
            "SELECT boot FROM segments WHERE device = ?1
             UNION SELECT boot FROM segment_ranges WHERE device = ?1",
        )
        .bind(device.as_str())
        .fetch_all(&self.reader)
        .await?;
        raw.into_iter().map(boot).collect()
    }

    /// Keeps the numbers of segments that arrived before a moment as runs; how many there were.
    ///
    /// # Errors
    /// The database failed; what was written until then is whole.
    pub async fn fold_segments(&self, before_ms: i64) -> Result<u64> {
        let rows = sqlx::query("SELECT DISTINCT device, boot FROM segments WHERE received_ms < ?")
            .bind(before_ms)
            .fetch_all(&self.reader)
            .await?;
        let mut folded = 0;
        for row in rows {
            let device: DeviceId = parsed("device id", row.try_get("device")?)?;
            let boot = boot(row.try_get("boot")?)?;
            loop {
                let some = self.fold_boot(&device, &boot, before_ms).await?;
                folded += some;
                if some < u64::from(FOLD_MAX) {
                    break;
                }
            }
        }
        Ok(folded)
    }

    async fn fold_boot(&self, device: &DeviceId, boot: &BootId, before_ms: i64) -> Result<u64> {
        let mut tx = self.begin().await?;
        let rows = sqlx::query(
            "DELETE FROM segments WHERE device = ?1 AND boot = ?2 AND segment IN (
               SELECT segment FROM segments WHERE device = ?1 AND boot = ?2 AND received_ms < ?3
               ORDER BY segment LIMIT ?4)
             RETURNING segment, received_ms",
        )
        .bind(device.as_str())
        .bind(&boot.0[..])
        .bind(before_ms)
        .bind(FOLD_MAX)
        .fetch_all(&mut *tx)
        .await?;
        let before = runs_of(&mut tx, device, boot).await?;
        let mut runs = before.clone();
        for row in &rows {
            let number = row.try_get("segment")?;
            runs.push(Run {
                first: number,
                last: number,
                received_ms: row.try_get("received_ms")?,
            });
        }
        let after = joined(runs);
        // Most runs of a device stay as they are; ends that moved are written anew.
        let (old, new): (BTreeSet<Run>, BTreeSet<Run>) =
            (before.into_iter().collect(), after.into_iter().collect());
        for run in old.difference(&new) {
            sqlx::query("DELETE FROM segment_ranges WHERE device = ? AND boot = ? AND first = ?")
                .bind(device.as_str())
                .bind(&boot.0[..])
                .bind(run.first)
                .execute(&mut *tx)
                .await?;
        }
        for run in new.difference(&old) {
            sqlx::query(
                "INSERT INTO segment_ranges (device, boot, first, last, received_ms)
                 VALUES (?, ?, ?, ?, ?)",
            )
            .bind(device.as_str())
            .bind(&boot.0[..])
            .bind(run.first)
            .bind(run.last)
            .bind(run.received_ms)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(rows.len() as u64)
    }
}

async fn runs_of(
    conn: &mut sqlx::SqliteConnection,
    device: &DeviceId,
    boot: &BootId,
) -> Result<Vec<Run>> {
    let rows = sqlx::query(
        "SELECT first, last, received_ms FROM segment_ranges WHERE device = ? AND boot = ?",
    )
    .bind(device.as_str())
    .bind(&boot.0[..])
    .fetch_all(conn)
    .await?;
    let run = |row: &sqlx::sqlite::SqliteRow| -> Result<Run> {
        Ok(Run {
            first: row.try_get("first")?,
            last: row.try_get("last")?,
            received_ms: row.try_get("received_ms")?,
        })
    };
    rows.iter().map(run).collect()
}

fn boot(bytes: Vec<u8>) -> Result<BootId> {
    <[u8; 16]>::try_from(bytes)
        .map(BootId)
        .map_err(|bytes| StoreError::Damaged {
            what: "boot id",
            problem: format!("expected 16 bytes, got {}", bytes.len()),
        })
}

/// Remembers the segments' identities; gives those not known before.
pub(super) async fn claim_segments(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &[IncomingSegment],
) -> Result<BTreeSet<SegmentId>> {
    let mut fresh = BTreeSet::new();
    for chunk in batch.chunks(ROWS_IN_STATEMENT) {
        let known = in_runs(tx, chunk).await?;
        let others = (0..).zip(chunk).filter(|(at, _)| !known.contains(at));
        let others: Vec<&IncomingSegment> = others.map(|(_, incoming)| incoming).collect();
        if others.is_empty() {
            continue;
        }
        let mut sql = QueryBuilder::<Sqlite>::new(
            "INSERT OR IGNORE INTO segments (device, boot, segment, received_ms) ",
        );
        sql.push_values(others, |mut tuple, incoming| {
            tuple
                .push_bind(incoming.device.as_str())
                .push_bind(&incoming.segment.boot.0[..])
                // The same 64 bits: a number above 2^63 must stay distinct.
                .push_bind(incoming.segment.segment.cast_signed())
                .push_bind(incoming.received_ms);
        });
        sql.push(" RETURNING device, boot, segment");
        for row in sql.build().fetch_all(&mut **tx).await? {
            let number: i64 = row.try_get("segment")?;
            let device = parsed("device id", row.try_get("device")?)?;
            let boot = boot(row.try_get("boot")?)?;
            fresh.insert((device, boot, number.cast_unsigned()));
        }
    }
    Ok(fresh)
}

/// Places of the segments that are in a run.
async fn in_runs(
    tx: &mut Transaction<'static, Sqlite>,
    chunk: &[IncomingSegment],
) -> Result<BTreeSet<i64>> {
    let asked = chunk.iter().map(|incoming| {
        (
            incoming.device.as_str(),
            hex::encode(incoming.segment.boot.0),
            incoming.segment.segment.cast_signed(),
        )
    });
    let asked = to_json("segments", &asked.collect::<Vec<_>>())?;
    let known = sqlx::query_scalar::<_, i64>(
        "SELECT asked.key FROM json_each(?) AS asked
         WHERE asked.value ->> 2 <= (
             SELECT last FROM segment_ranges
             WHERE device = asked.value ->> 0 AND boot = unhex(asked.value ->> 1)
               AND first <= asked.value ->> 2
             ORDER BY first DESC LIMIT 1)",
    )
    .bind(asked)
    .fetch_all(&mut **tx)
    .await?;
    Ok(known.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_become_one() {
        let run = |first, last, received_ms| Run {
            first,
            last,
            received_ms,
        };
        let runs = vec![
            run(7, 7, 3),
            run(1, 4, 9),
            run(5, 5, 1),
            run(i64::MAX, i64::MAX, 1),
            run(3, 3, 1),
            run(i64::MIN, -1, 1),
        ];
        let expected = [
            run(i64::MIN, -1, 1),
            run(1, 5, 9),
            run(7, 7, 3),
            run(i64::MAX, i64::MAX, 1),
        ];
        assert_eq!(joined(runs), expected);
    }
}

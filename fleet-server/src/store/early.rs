//! What the early looks at a rollout rest on: which devices have new windows, what their first or
//! last windows add up to, and what each device showed, written once.

use super::{PeriodSum, ROWS_IN_STATEMENT, Result, Store, to_json, window};
use crate::rollout::pairs::Entry;
use dunlin_protocol::id::{DeviceId, Digest, Family, RolloutId};
use futures_util::TryStreamExt as _;
use sqlx::{QueryBuilder, Row, Sqlite};
use std::collections::BTreeSet;

/// Most windows that one device's side of a comparison is added up from.
pub const SPAN_WINDOWS_MAX: usize = 256;
/// Devices whose windows one statement reads.
const DEVICES_IN_STATEMENT: usize = 250;

/// One stage of a rollout.
#[derive(Debug, Clone, Copy)]
pub struct StageKey<'a> {
    /// The rollout.
    pub rollout: &'a RolloutId,
    /// Index of the stage.
    pub stage: usize,
}

impl StageKey<'_> {
    fn stage(self) -> i64 {
        i64::try_from(self.stage).unwrap_or(i64::MAX)
    }
}

/// Devices that sent windows lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewWindows {
    /// Who.
    pub devices: BTreeSet<String>,
    /// Behind these windows the next look begins.
    pub mark: i64,
    /// How many there were.
    pub windows: u64,
}

/// One device's windows of one bundle, from one end of a span of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanQuery {
    /// The device.
    pub device: DeviceId,
    /// The bundle that computed the outputs.
    pub bundle: Digest,
    /// Windows that begin at or after this, in milliseconds since 1970.
    pub from_ms: i64,
    /// Windows that end at or before this, in milliseconds since 1970.
    pub until_ms: i64,
}

/// From which end a span is added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanEnd {
    /// Windows in order of their start, until there are as many inferences as this. Those of one
    /// start (a device's segments) are added together or not at all.
    First {
        /// Inferences after which no further window is added.
        inferences: u64,
    },
    /// The last windows.
    Last,
}

/// What a span adds up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpanSum {
    /// The sums.
    pub sum: PeriodSum,
    /// No more windows than [`SPAN_WINDOWS_MAX`] are read, and there were as many.
    pub is_full: bool,
}

/// A span while its windows come.
#[derive(Debug, Clone, Default)]
struct Adding {
    sum: PeriodSum,
    windows: usize,
    last_start_ms: Option<i64>,
}

impl Adding {
    /// Whether the next window counts.
    fn takes(&mut self, start_ms: i64, end: SpanEnd) -> bool {
        self.windows += 1;
        let is_enough =
            matches!(end, SpanEnd::First { inferences } if self.sum.usable() >= inferences);
        let takes = !is_enough || self.last_start_ms == Some(start_ms);
        if takes {
            self.last_start_ms = Some(start_ms);
        }
        takes
    }

    fn done(self) -> SpanSum {
        SpanSum {
            sum: self.sum,
            is_full: self.windows >= SPAN_WINDOWS_MAX,
        }
    }
}

impl PeriodSum {
    /// Inferences with both confidence and class.
    #[must_use]
    pub fn usable(&self) -> u64 {
        let classified = self
            .outputs
            .iter()
            .fold(0_u64, |sum, n| sum.saturating_add(*n));
        self.inferences.min(classified)
    }
}

impl Store {
    /// What the stage's devices have shown, in the order in which they had.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rollout_entries(&self, key: StageKey<'_>) -> Result<Vec<Entry>> {
        let rows = sqlx::query(
            "SELECT device, change_nano FROM rollout_entries WHERE rollout = ? AND stage = ? ORDER BY id",
        )
        .bind(key.rollout.as_str())
        .bind(key.stage())
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Entry {
                    device: row.try_get("device")?,
                    change_nano: row.try_get("change_nano")?,
                })
            })
            .collect()
    }

    /// Up to which window the stage's devices were looked through; `None`: not at all yet.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rollout_mark(&self, key: StageKey<'_>) -> Result<Option<i64>> {
        Ok(sqlx::query_scalar(
            "SELECT window_id FROM rollout_marks WHERE rollout = ? AND stage = ?",
        )
        .bind(key.rollout.as_str())
        .bind(key.stage())
        .fetch_optional(&self.reader)
        .await?)
    }

    /// Behind the newest window.
    ///
    /// # Errors
    /// The database failed.
    pub async fn newest_window_mark(&self) -> Result<i64> {
        let newest: Option<i64> = sqlx::query_scalar("SELECT MAX(id) FROM windows")
            .fetch_one(&self.reader)
            .await?;
        Ok(newest.unwrap_or(0))
    }

    /// Devices with windows of a family behind a mark; at most `limit` windows are looked at.
    ///
    /// # Errors
    /// The database failed.
    pub async fn new_windows(&self, family: &Family, mark: i64, limit: u32) -> Result<NewWindows> {
        // Numbers begin anew in a table that was emptied.
        let mark = mark.min(self.newest_window_mark().await?);
        let rows =
            sqlx::query("SELECT id, device, family FROM windows WHERE id > ? ORDER BY id LIMIT ?")
                .bind(mark)
                .bind(limit)
                .fetch_all(&self.reader)
                .await?;
        let mut new = NewWindows {
            mark,
            windows: rows.len() as u64,
            ..NewWindows::default()
        };
        for row in &rows {
            new.mark = row.try_get("id")?;
            if row.try_get::<&str, _>("family")? == family.as_str() {
                new.devices.insert(row.try_get("device")?);
            }
        }
        Ok(new)
    }

    /// Sums over one end of each span, in the order asked: at most [`SPAN_WINDOWS_MAX`] windows of
    /// each are read, and a statement reads for many devices.
    ///
    /// # Errors
    /// The database failed.
    pub async fn spans(
        &self,
        family: &Family,
        queries: &[SpanQuery],
        end: SpanEnd,
    ) -> Result<Vec<SpanSum>> {
        let mut sums = Vec::with_capacity(queries.len());
        for chunk in queries.chunks(DEVICES_IN_STATEMENT) {
            let of_chunk = self.spans_of(family, chunk, end).await?;
            sums.extend(of_chunk);
        }
        Ok(sums)
    }

    async fn spans_of(
        &self,
        family: &Family,
        queries: &[SpanQuery],
        end: SpanEnd,
    ) -> Result<Vec<SpanSum>> {
        let asked: Vec<_> = queries
            .iter()
            .map(|q| {
                (
                    q.device.as_str(),
                    hex::encode(q.bundle.0),
                    q.from_ms,
                    q.until_ms,
                )
            })
            .collect();
        let mut sql = QueryBuilder::<Sqlite>::new("SELECT asked.key AS asked, w.* FROM json_each(");
        sql.push_bind(to_json("spans", &asked)?).push(
            ") AS asked CROSS JOIN windows AS w ON w.id IN (
                 SELECT id FROM windows
                 WHERE device = asked.value ->> 0 AND bundle = unhex(asked.value ->> 1)
                   AND start_ms >= asked.value ->> 2 AND end_ms <= asked.value ->> 3
                   AND family = ",
        );
        sql.push_bind(family.as_str()).push(match end {
            SpanEnd::First { .. } => " ORDER BY start_ms, id LIMIT ",
            SpanEnd::Last => " ORDER BY start_ms DESC, id DESC LIMIT ",
        });
        sql.push_bind(i64::try_from(SPAN_WINDOWS_MAX).unwrap_or(i64::MAX))
            .push(") ORDER BY asked.key, w.start_ms, w.id");
        let mut known = Vec::with_capacity(queries.len());
        for query in queries {
            known.push(self.known(&query.bundle).await?);
        }
        let mut spans = vec![Adding::default(); queries.len()];
        // Row by row: a device's windows may be a megabyte.
        let mut rows = sql.build().fetch(&self.reader);
        while let Some(row) = rows.try_next().await? {
            let at = usize::try_from(row.try_get::<i64, _>("asked")?).unwrap_or(usize::MAX);
            let start_ms = row.try_get("start_ms")?;
            if let (Some(span), Some(known)) = (spans.get_mut(at), known.get(at))
                && span.takes(start_ms, end)
            {
                span.sum.add(&window::received(&row)?, known);
            }
        }
        Ok(spans.into_iter().map(Adding::done).collect())
    }

    /// Writes what devices have shown, and up to where their windows were looked through, in one
    /// transaction. A device that has entered before keeps what it had.
    ///
    /// # Errors
    /// The database failed.
    pub async fn enter(
        &self,
        key: StageKey<'_>,
        entries: &[Entry],
        mark: i64,
        now_ms: i64,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        for chunk in entries.chunks(ROWS_IN_STATEMENT) {
            let mut sql = QueryBuilder::<Sqlite>::new(
                "INSERT OR IGNORE INTO rollout_entries (rollout, stage, device, change_nano, entered_ms) ",
            );
            sql.push_values(chunk, |mut tuple, entry| {
                tuple
                    .push_bind(key.rollout.as_str())
                    .push_bind(key.stage())
                    .push_bind(&entry.device)
                    .push_bind(entry.change_nano)
                    .push_bind(now_ms);
            });
            sql.build().execute(&mut *tx).await?;
        }
        sqlx::query(
            "INSERT INTO rollout_marks (rollout, stage, window_id) VALUES (?, ?, ?)
             ON CONFLICT (rollout, stage) DO UPDATE SET window_id = excluded.window_id",
        )
        .bind(key.rollout.as_str())
        .bind(key.stage())
        .bind(mark)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }
}

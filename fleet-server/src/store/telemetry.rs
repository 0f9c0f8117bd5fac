//! Telemetry: segments taken in exactly once, and the sums that gates and drift rest on.

use super::references::Known;
use super::scan::{WindowQuery, WindowScan};
use super::segments::{SegmentId, claim_segments, identity};
use super::window::{self, ReceivedWindow};
use super::{ROWS_IN_STATEMENT, Result, Store, from_json, to_json, totals};
use dunlin_protocol::id::{DeviceId, Digest, Family};
use dunlin_protocol::telemetry::{Body, Class, Record, Segment, Window};
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};
use std::sync::Arc;

/// Most windows one query gives.
pub const WINDOW_ROWS_MAX: u32 = 200_000;
/// A segment as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct IncomingSegment {
    /// Who sent it.
    pub device: DeviceId,
    /// Its class.
    pub class: Class,
    /// The segment.
    pub segment: Segment,
    /// When it arrived, in milliseconds since 1970.
    pub received_ms: i64,
}

/// One device's windows of one bundle within a time span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeriodQuery {
    /// The device.
    pub device: DeviceId,
    /// The bundle that computed the outputs.
    pub bundle: Digest,
    /// Windows that begin at or after this, in milliseconds since 1970.
    pub from_ms: i64,
    /// Windows that end at or before this, in milliseconds since 1970.
    pub until_ms: i64,
}

/// Sums over the windows of a [`PeriodQuery`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeriodSum {
    /// Inferences that gave an answer.
    pub inferences: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Sum of top-1 confidences, in millionths.
    pub confidence_sum_micro: u64,
    /// Answers by class.
    pub outputs: Vec<u64>,
}

/// A record that is no window.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRecord {
    /// When it arrived, in milliseconds since 1970.
    pub received_ms: i64,
    /// The record.
    pub record: Record,
}

impl Store {
    /// Takes segments in, in one transaction, each at most once.
    ///
    /// Gives the identities of all of them, those that were stored before included: all are on
    /// disk now and may be acknowledged.
    ///
    /// # Errors
    /// The database failed; nothing is stored then.
    pub async fn ingest(&self, batch: &[IncomingSegment]) -> Result<Vec<SegmentId>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let published = self.published_of(batch).await?;
        let mut tx = self.begin().await?;
        let mut fresh = claim_segments(&mut tx, batch).await?;
        let new: Vec<&IncomingSegment> = batch
            .iter()
            .filter(|incoming| fresh.remove(&identity(incoming)))
            .collect();
        write_windows(&mut tx, &new).await?;
        write_records(&mut tx, &new).await?;
        write_gaps(&mut tx, &new).await?;
        totals::add(&mut tx, &new, &published).await?;
        tx.commit().await?;
        Ok(batch.iter().map(identity).collect())
    }

    /// Sums over each period, in the order asked.
    ///
    /// # Errors
    /// The database failed.
    pub async fn periods(
        &self,
        family: &Family,
        queries: &[PeriodQuery],
    ) -> Result<Vec<PeriodSum>> {
        let mut known = Vec::with_capacity(queries.len());
        for query in queries {
            known.push(self.known(&query.bundle).await?);
        }
        // One transaction, so that all sums are of one moment.
        let mut tx = self.reader.begin().await?;
        let mut sums = Vec::with_capacity(queries.len());
        for (query, known) in queries.iter().zip(&known) {
            let rows = sqlx::query(
                "SELECT * FROM windows
                 WHERE device = ? AND bundle = ? AND start_ms >= ? AND end_ms <= ? AND family = ?",
            )
            .bind(query.device.as_str())
            .bind(&query.bundle.0[..])
            .bind(query.from_ms)
            .bind(query.until_ms)
            .bind(family.as_str())
            .fetch_all(&mut *tx)
            .await?;
            let mut sum = PeriodSum::default();
            for row in &rows {
                sum.add(&window::received(row)?, known);
            }
            sums.push(sum);
        }
        Ok(sums)
    }

    /// Windows, by version and start, at most [`WINDOW_ROWS_MAX`].
    ///
    /// # Errors
    /// The database failed.
    pub async fn windows(&self, query: &WindowQuery) -> Result<Vec<(DeviceId, Window)>> {
        let mut scan = self.scan_windows(query.clone()).await;
        let received = scan.page(WINDOW_ROWS_MAX).await?;
        Ok(received.into_iter().map(|r| (r.device, r.window)).collect())
    }

    /// The windows of a query, page by page. While it is held, none are added up by the hour or the day, so
    /// that each counts once.
    pub async fn scan_windows(&self, query: WindowQuery) -> WindowScan {
        WindowScan {
            reader: self.reader.clone(),
            query,
            versions: None,
            after: None,
            _held: Arc::clone(&self.scans).read_owned().await,
        }
    }

    /// A device's newest events and gaps, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn events(&self, device: &DeviceId, limit: u32) -> Result<Vec<StoredRecord>> {
        self.records(device, Class::Event, limit).await
    }

    /// A device's newest records of a class other than windows, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn records(
        &self,
        device: &DeviceId,
        class: Class,
        limit: u32,
    ) -> Result<Vec<StoredRecord>> {
        let rows = sqlx::query(
            "SELECT time_ms, received_ms, body FROM records WHERE device = ? AND class = ?
             ORDER BY id DESC LIMIT ?",
        )
        .bind(device.as_str())
        .bind(class.as_str())
        .bind(limit)
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(StoredRecord {
                    received_ms: row.try_get("received_ms")?,
                    record: Record {
                        time_ms: row.try_get("time_ms")?,
                        body: from_json("record", row.try_get("body")?)?,
                    },
                })
            })
            .collect()
    }
}

impl PeriodSum {
    /// A window that no honest device sends counts as none.
    pub(super) fn add(&mut self, received: &ReceivedWindow, known: &Known) {
        let window = &received.window;
        if !known.is_sound(window, received.soundness.is_some()) {
            return;
        }
        self.inferences = self.inferences.saturating_add(window.inferences);
        self.errors = self.errors.saturating_add(window.errors);
        self.confidence_sum_micro = self
            .confidence_sum_micro
            .saturating_add(window.confidence_sum_micro);
        if self.outputs.len() < window.outputs.len() {
            self.outputs.resize(window.outputs.len(), 0);
        }
        for (slot, n) in self.outputs.iter_mut().zip(&window.outputs) {
            *slot = slot.saturating_add(*n);
        }
    }
}

fn records<'a>(
    batch: &[&'a IncomingSegment],
) -> impl Iterator<Item = (&'a IncomingSegment, &'a Record)> {
    let owned: Vec<&'a IncomingSegment> = batch.to_vec();
    owned
        .into_iter()
        .flat_map(|incoming| incoming.segment.records.iter().map(move |r| (incoming, r)))
}

async fn write_windows(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &[&IncomingSegment],
) -> Result<()> {
    let mut rows = Vec::new();
    for (incoming, record) in records(batch) {
        if let Body::Window(window) = &record.body {
            // One that a row cannot hold would be another version's there; that it came was said.
            if let Ok(version) = i64::try_from(window.version) {
                rows.push((incoming, window, version, window::encode(window)));
            }
        }
    }
    for chunk in rows.chunks(ROWS_IN_STATEMENT) {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "INSERT INTO windows
               (device, bundle, family, version, start_ms, end_ms, received_ms, window) ",
        );
        sql.push_values(chunk, |mut tuple, (incoming, window, version, counts)| {
            tuple
                .push_bind(incoming.device.as_str())
                .push_bind(&window.bundle.0[..])
                .push_bind(window.family.as_str())
                .push_bind(*version)
                .push_bind(window.start_ms)
                .push_bind(window.end_ms)
                .push_bind(incoming.received_ms)
                .push_bind(counts.as_slice());
        });
        sql.build().execute(&mut **tx).await?;
    }
    Ok(())
}

async fn write_records(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &[&IncomingSegment],
) -> Result<()> {
    let mut rows = Vec::new();
    for (incoming, record) in records(batch) {
        if !matches!(record.body, Body::Window(_)) {
            rows.push((incoming, record, to_json("record", &record.body)?));
        }
    }
    for chunk in rows.chunks(ROWS_IN_STATEMENT) {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "INSERT INTO records (device, class, time_ms, received_ms, body) ",
        );
        sql.push_values(chunk, |mut tuple, (incoming, record, json)| {
            tuple
                .push_bind(incoming.device.as_str())
                .push_bind(incoming.class.as_str())
                .push_bind(record.time_ms)
                .push_bind(incoming.received_ms)
                .push_bind(json);
        });
        sql.build().execute(&mut **tx).await?;
    }
    Ok(())
}

async fn write_gaps(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &[&IncomingSegment],
) -> Result<()> {
    let mut rows = Vec::new();
    for (incoming, record) in records(batch) {
        if let Body::Gap(gap) = &record.body {
            rows.extend(gap.segments.iter().map(|number| (incoming, *number)));
        }
    }
    for chunk in rows.chunks(ROWS_IN_STATEMENT) {
        let mut sql = QueryBuilder::<Sqlite>::new(
            "INSERT OR IGNORE INTO gaps (device, boot, segment, received_ms) ",
        );
        sql.push_values(chunk, |mut tuple, (incoming, number)| {
            tuple
                .push_bind(incoming.device.as_str())
                .push_bind(&incoming.segment.boot.0[..])
                .push_bind(number.cast_signed())
                .push_bind(incoming.received_ms);
        });
        sql.build().execute(&mut **tx).await?;
    }
    Ok(())
}

//! What each version has answered in all, counted as windows come in.

use super::references::Known;
use super::{IncomingSegment, Result, Store, digest, from_json, int, parsed, to_json, uint};
use crate::drift::plausible;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::sketch::Latency;
use dunlin_protocol::telemetry::{Body, Window};
use sqlx::{Row, Sqlite, Transaction};
use std::collections::{BTreeMap, BTreeSet};

/// A version's totals. None of them ever falls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionTotals {
    /// The family.
    pub family: Family,
    /// The version.
    pub version: u64,
    /// Inferences that gave an answer.
    pub inferences: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time from request to answer.
    pub latency: Latency,
}

impl Store {
    /// Totals of the versions that windows came of at or after a moment.
    ///
    /// # Errors
    /// The database failed.
    pub async fn version_totals(&self, heard_since_ms: i64) -> Result<Vec<VersionTotals>> {
        let rows = sqlx::query(
            "SELECT family, version, inferences, errors, latency FROM version_totals
             WHERE heard_ms >= ? ORDER BY family, version",
        )
        .bind(heard_since_ms)
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(VersionTotals {
                    family: parsed("family", row.try_get("family")?)?,
                    version: uint(row, "version")?,
                    inferences: uint(row, "inferences")?,
                    errors: uint(row, "errors")?,
                    latency: from_json("latency totals", row.try_get("latency")?)?,
                })
            })
            .collect()
    }

    /// The bundles of a batch's windows that were published, as their versions.
    pub(super) async fn published_of(&self, batch: &[IncomingSegment]) -> Result<Published> {
        let windows = batch.iter().flat_map(|incoming| &incoming.segment.records);
        let named: BTreeSet<(&Family, u64)> = windows
            .filter_map(|record| match &record.body {
                Body::Window(window) => Some((&window.family, window.version)),
                _ => None,
            })
            .collect();
        let mut published = Published::new();
        for (family, version) in named {
            let own = sqlx::query_scalar::<_, Vec<u8>>(
                "SELECT digest FROM bundles WHERE family = ? AND version = ?",
            )
            .bind(family.as_str())
            .bind(int(version))
            .fetch_optional(&self.reader)
            .await?;
            let Some(own) = own else { continue };
            let bundle = digest("bundle digest", &own)?;
            let known = self.known(&bundle).await?;
            published.insert((family.clone(), version), (bundle, known));
        }
        Ok(published)
    }
}

/// Bundles by family and version.
pub(super) type Published = BTreeMap<(Family, u64), (Digest, Known)>;

#[derive(Default)]
struct Sum {
    inferences: u64,
    errors: u64,
    latency: Latency,
    heard_ms: i64,
}

impl Sum {
    fn add(&mut self, window: &Window, received_ms: i64) {
        // Neither can overflow: both are bounded by `plausible`.
        self.inferences = self.inferences.saturating_add(window.inferences);
        self.errors = self.errors.saturating_add(window.errors);
        if self.latency.merge(&window.latency).is_err() {
            return;
        }
        self.heard_ms = self.heard_ms.max(received_ms);
    }
}

/// Adds what new segments bring to the totals of published versions. Nothing that a device sends makes
/// a row of a version that there is not.
pub(super) async fn add(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &[&IncomingSegment],
    published: &Published,
) -> Result<()> {
    let mut sums = BTreeMap::<(&Family, u64), Sum>::new();
    for incoming in batch {
        for record in &incoming.segment.records {
            let Body::Window(window) = &record.body else {
                continue;
            };
            let key = (window.family.clone(), window.version);
            let Some((bundle, known)) = published.get(&key) else {
                continue;
            };
            let received_ms = incoming.received_ms;
            if window.bundle != *bundle || plausible::clock(window, received_ms).is_err() {
                continue;
            }
            if known.is_sound(window, false) {
                let of_version = sums.entry((&window.family, window.version)).or_default();
                of_version.add(window, received_ms);
            }
        }
    }
    for ((family, version), sum) in sums {
        if sum.heard_ms > 0 {
            write(tx, family, version, sum).await?;
        }
    }
    Ok(())
}

async fn write(
    tx: &mut Transaction<'static, Sqlite>,
    family: &Family,
    version: u64,
    mut sum: Sum,
) -> Result<()> {
    let before = sqlx::query(
        "SELECT inferences, errors, latency FROM version_totals WHERE family = ? AND version = ?",
    )
    .bind(family.as_str())
    .bind(int(version))
    .fetch_optional(&mut **tx)
    .await?;
    if let Some(row) = before {
        sum.inferences = sum.inferences.saturating_add(uint(&row, "inferences")?);
        sum.errors = sum.errors.saturating_add(uint(&row, "errors")?);
        let mut latency: Latency = from_json("latency totals", row.try_get("latency")?)?;
        // Beyond 64 bits it stays where it is, rather than begin anew.
        let _ = latency.merge(&sum.latency);
        sum.latency = latency;
    }
    sqlx::query(
        "INSERT INTO version_totals (family, version, inferences, errors, latency, heard_ms)
         VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT (family, version) DO UPDATE SET
            inferences = excluded.inferences, errors = excluded.errors,
            latency = excluded.latency, heard_ms = MAX(heard_ms, excluded.heard_ms)",
    )
    .bind(family.as_str())
    .bind(int(version))
    .bind(int(sum.inferences))
    .bind(int(sum.errors))
    .bind(to_json("latency totals", &sum.latency)?)
    .bind(sum.heard_ms)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

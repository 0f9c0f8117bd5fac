//! Reading windows in order, a page at a time.

use super::window::{self, ReceivedWindow};
use super::{Result, int, to_json};
use dunlin_protocol::id::{DeviceId, Family};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite};
use std::collections::BTreeSet;
use tokio::sync::OwnedRwLockReadGuard;

/// Which windows to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowQuery {
    /// Their family.
    pub family: Family,
    /// Their version; `None`: every one.
    pub version: Option<u64>,
    /// Only of these devices.
    pub devices: Option<BTreeSet<DeviceId>>,
    /// Windows that begin at or after this, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Windows that end at or before this, in milliseconds since 1970.
    pub until_ms: Option<i64>,
}

/// The windows of a query, by version, start and arrival.
#[derive(Debug)]
pub struct WindowScan {
    pub(super) reader: SqlitePool,
    pub(super) query: WindowQuery,
    pub(super) versions: Option<BTreeSet<u64>>,
    pub(super) after: Option<WindowMark>,
    pub(super) _held: OwnedRwLockReadGuard<()>,
}

/// A place in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WindowMark {
    version: i64,
    start_ms: i64,
    id: i64,
}

impl WindowScan {
    /// The next windows, at most `limit`; fewer if these are the last.
    ///
    /// # Errors
    /// The database failed; the same may be asked again.
    pub async fn page(&mut self, limit: u32) -> Result<Vec<ReceivedWindow>> {
        let rows = self.select(limit)?.build().fetch_all(&self.reader).await?;
        let windows = rows.iter().map(window::received).collect::<Result<_>>()?;
        if let Some(last) = rows.last() {
            self.after = Some(WindowMark::of(last)?);
        }
        Ok(windows)
    }

    /// Leaves out windows of other versions than these.
    #[must_use]
    pub fn of_versions(self, versions: BTreeSet<u64>) -> Self {
        Self {
            versions: Some(versions),
            ..self
        }
    }

    /// Goes to the first window of the next version behind this one.
    pub fn skip_past(&mut self, version: u64) {
        self.after = Some(WindowMark {
            version: int(version),
            start_ms: i64::MAX,
            id: i64::MAX,
        });
    }

    fn select(&self, limit: u32) -> Result<QueryBuilder<Sqlite>> {
        let query = &self.query;
        let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM windows WHERE family = ");
        sql.push_bind(query.family.as_str().to_owned());
        if let Some(version) = query.version {
            sql.push(" AND version = ").push_bind(int(version));
        }
        if let Some(versions) = &self.versions {
            let versions: Vec<i64> = versions.iter().map(|version| int(*version)).collect();
            // Not by an index: the one that gives the order is to be walked along.
            sql.push(" AND +version IN (SELECT value FROM json_each(")
                .push_bind(to_json("versions", &versions)?)
                .push("))");
        }
        if let Some(devices) = &query.devices {
            let ids: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
            sql.push(" AND device IN (SELECT value FROM json_each(")
                .push_bind(to_json("device ids", &ids)?)
                .push("))");
        }
        if let Some(since_ms) = query.since_ms {
            sql.push(" AND start_ms >= ").push_bind(since_ms);
        }
        if let Some(until_ms) = query.until_ms {
            sql.push(" AND end_ms <= ").push_bind(until_ms);
        }
        if let Some(mark) = self.after {
            sql.push(" AND (version, start_ms, id) > (")
                .push_bind(mark.version)
                .push(", ")
                .push_bind(mark.start_ms)
                .push(", ")
                .push_bind(mark.id)
                .push(")");
        }
        sql.push(" ORDER BY version, start_ms, id LIMIT ")
            .push_bind(limit);
        Ok(sql)
    }
}

impl WindowMark {
    fn of(row: &SqliteRow) -> Result<Self> {
        Ok(Self {
            version: row.try_get("version")?,
            start_ms: row.try_get("start_ms")?,
            id: row.try_get("id")?,
        })
    }
}

//! Everything the server must not forget, in one SQLite file (write-ahead log, full syncs): what
//! is acknowledged to a device is on disk.
//!
//! One connection writes, four read. Every change that belongs together is one transaction. This
//! folder alone names sqlx.

mod alerts;
mod audit;
mod bundles;
mod captures;
mod certificates;
mod claims;
mod consumers;
mod desired;
mod devices;
mod early;
mod enrolment;
mod references;
mod rollouts;
mod rollups;
mod scan;
mod segments;
mod telemetry;
#[cfg(test)]
mod tests;
mod totals;
mod trust;
mod window;
mod writes;

pub use alerts::{
    AlertRow, Attempt, DeliveryRow, Look, NewAlert, SilenceRow, TrackKey, WebhookRow,
};
pub use audit::{AuditRow, Deed};
pub use bundles::BundleRow;
pub use captures::{
    BatchOutcome, CaptureFilter, CaptureQuota, CaptureRequestRow, CaptureRow, CaptureTargetRow,
    IncomingBatch, NewCaptureRequest,
};
pub use certificates::{Standing, Succession, Successor};
pub use claims::{ClaimRow, NewClaim};
pub use consumers::{ConsumerCertificate, ConsumerRow};
pub use desired::DesiredChange;
pub use devices::{DeviceFilter, DeviceRow};
pub use early::{NewWindows, SPAN_WINDOWS_MAX, SpanEnd, SpanQuery, SpanSum, StageKey};
pub use enrolment::{EnrolmentOutcome, NewDevice};
pub use rollouts::{PlanApplication, RolloutDeviceRow, RolloutRow, VerdictRow};
pub use rollups::{Arrival, Kept, RollupRight, WindowGroup};
pub use scan::{WindowQuery, WindowScan};
pub use telemetry::{IncomingSegment, PeriodQuery, PeriodSum, StoredRecord, WINDOW_ROWS_MAX};
pub use totals::VersionTotals;
pub use trust::ReportedVersions;
pub use window::ReceivedWindow;

use dunlin_protocol::id::Digest;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row, Sqlite, Transaction};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::RwLock;

/// Rows in one multi-row statement; SQLite takes at most 32 766 bound values.
const ROWS_IN_STATEMENT: usize = 1000;
/// Longest wait for a connection or for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 4;

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or brought up to date.
    #[error("database {}: {problem}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// A statement failed.
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
    /// A stored value is not what this version wrote.
    #[error("database: {what} is damaged: {problem}")]
    Damaged {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A value cannot be written as JSON.
    #[error("database: {what} cannot be written: {problem}")]
    Unwritable {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Something of that name, or a running one of that family, is there already.
    #[error("{0}")]
    Conflict(String),
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
}

/// What store functions give.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The database. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    reader: SqlitePool,
    epoch: Arc<AtomicU64>,
    /// Read while windows are read page by page, written while they are added up.
    scans: Arc<RwLock<()>>,
    writes: Arc<writes::Writes>,
    references: Arc<references::References>,
}

impl Store {
    /// Opens the database, makes it if there is none, and brings its tables up to date.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or was written by a newer version.
    pub async fn open(path: &Path) -> Result<Self> {
        let failed = |problem: String| StoreError::Open {
            path: path.to_owned(),
            problem,
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledged segment is deleted on the device: the commit must survive power loss.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("trusted_schema", "OFF");
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(BUSY_TIMEOUT)
                .after_release(|conn, _| Box::pin(writes::is_usable(conn)))
        };
        let writer = pool()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .map_err(|e| failed(e.to_string()))?;
        sqlx::migrate!("./migrations")
            .run(&writer)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let reader = pool()
            .max_connections(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(|e| failed(e.to_string()))?;
        let epoch: String = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'epoch'")
            .fetch_one(&writer)
            .await?;
        let epoch = parsed("meta.epoch", &epoch)?;
        Ok(Self {
            writer,
            reader,
            epoch: Arc::new(AtomicU64::new(epoch)),
            scans: Arc::default(),
            writes: Arc::default(),
            references: Arc::default(),
        })
    }

    /// Life of this database: the first half of every revision.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Writes back the log and closes every connection. Later calls fail.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.reader).await?;
        Ok(())
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// A counter as SQLite holds it; beyond 2^63−1 it stays there.
fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn uint(row: &SqliteRow, column: &str) -> Result<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| StoreError::Unwritable {
        what,
        problem: e.to_string(),
    })
}

fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Damaged {
        what,
        problem: e.to_string(),
    })
}

fn parsed<T: FromStr<Err: Display>>(what: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|e: T::Err| StoreError::Damaged {
        what,
        problem: e.to_string(),
    })
}

fn digest(what: &'static str, bytes: &[u8]) -> Result<Digest> {
    match <[u8; 32]>::try_from(bytes) {
        Ok(raw) => Ok(Digest(raw)),
        Err(_) => Err(StoreError::Damaged {
            what,
            problem: format!("expected 32 bytes, got {}", bytes.len()),
        }),
    }
}

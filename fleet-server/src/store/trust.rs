//! Versions of what the server signs: kept apart from the repository's folder, so that one of the
//! two may come back from a backup without devices being shown a version again.

use super::{Result, Store, uint};
use crate::repository::OnlineVersions;
use sqlx::Row as _;

const SNAPSHOT: &str = "snapshot_version";
const TIMESTAMP: &str = "timestamp_version";

impl Store {
    /// The highest versions signed so far, as far as the database knows.
    ///
    /// # Errors
    /// The database's.
    pub async fn online_versions(&self) -> Result<OnlineVersions> {
        Ok(OnlineVersions {
            snapshot: self.meta_version(SNAPSHOT).await?,
            timestamp: self.meta_version(TIMESTAMP).await?,
        })
    }

    async fn meta_version(&self, key: &str) -> Result<u64> {
        let row = sqlx::query("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.reader)
            .await?;
        let Some(row) = row else {
            return Ok(0);
        };
        let text: String = row.try_get("value")?;
        Ok(text.parse().unwrap_or(0))
    }

    /// Keeps versions that were signed; lower ones than kept are passed over.
    ///
    /// # Errors
    /// The database's.
    pub async fn raise_online_versions(&self, signed: OnlineVersions) -> Result<()> {
        for (key, version) in [(SNAPSHOT, signed.snapshot), (TIMESTAMP, signed.timestamp)] {
            sqlx::query(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2
                 WHERE CAST(value AS INTEGER) < CAST(?2 AS INTEGER)",
            )
            .bind(key)
            .bind(version.to_string())
            .execute(&self.writer)
            .await?;
        }
        Ok(())
    }

    /// The highest versions that devices say they trust.
    ///
    /// # Errors
    /// The database's.
    pub async fn reported_online_versions(&self) -> Result<OnlineVersions> {
        let row = sqlx::query(
            "SELECT COALESCE(MAX(CAST(json_extract(reported, '$.trust.snapshot') AS INTEGER)), 0) AS snapshot,
                    COALESCE(MAX(CAST(json_extract(reported, '$.trust.timestamp') AS INTEGER)), 0) AS timestamp
             FROM devices WHERE revoked = 0",
        )
        .fetch_one(&self.reader)
        .await?;
        Ok(OnlineVersions {
            snapshot: uint(&row, "snapshot")?,
            timestamp: uint(&row, "timestamp")?,
        })
    }
}

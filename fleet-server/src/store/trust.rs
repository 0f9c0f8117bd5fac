//! Versions of what the server signs: kept apart from the repository's folder, so that one of the
//! two may come back from a backup without devices being shown a version again.

use super::{Result, Store, int, uint};
use crate::repository::OnlineVersions;
use crate::repository::online::VERSION_SANE_MAX;
use sqlx::Row as _;

const SNAPSHOT: &str = "snapshot_version";
const TIMESTAMP: &str = "timestamp_version";

/// What devices report of metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReportedVersions {
    /// The highest versions that can be true; 0 if there is none.
    pub versions: OnlineVersions,
    /// How many devices report what cannot be.
    pub impossible: u64,
}

impl Store {
    /// The highest versions signed so far, as far as the database knows; absurd ones, which a
    /// thief of keys signed, are not kept.
    ///
    /// # Errors
    /// The database's.
    pub async fn online_versions(&self) -> Result<OnlineVersions> {
        Ok(OnlineVersions {
            snapshot: self.meta_version(SNAPSHOT).await?,
            timestamp: self.meta_version(TIMESTAMP).await?,
        }
        .sane())
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

    /// Keeps versions that were signed; lower ones than kept are passed over, and absurd ones.
    ///
    /// # Errors
    /// The database's.
    pub async fn raise_online_versions(&self, signed: OnlineVersions) -> Result<()> {
        let signed = signed.sane();
        for (key, version) in [(SNAPSHOT, signed.snapshot), (TIMESTAMP, signed.timestamp)] {
            sqlx::query(
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2
                 WHERE CAST(value AS INTEGER) < CAST(?2 AS INTEGER) OR CAST(value AS INTEGER) > ?3",
            )
            .bind(key)
            .bind(version.to_string())
            .bind(int(VERSION_SANE_MAX))
            .execute(&self.writer)
            .await?;
        }
        Ok(())
    }

    /// The highest versions that devices say they trust, each no more than in `most`: what a device
    /// says beyond it hides nothing that others say.
    ///
    /// # Errors
    /// The database's.
    pub async fn reported_online_versions(&self, most: OnlineVersions) -> Result<ReportedVersions> {
        let row = sqlx::query(
            "WITH trusted AS (
               SELECT CAST(json_extract(reported, '$.trust.snapshot') AS INTEGER) AS snapshot,
                      CAST(json_extract(reported, '$.trust.timestamp') AS INTEGER) AS timestamp
               FROM devices WHERE revoked = 0)
             SELECT COALESCE(MAX(snapshot) FILTER (WHERE snapshot <= ?1), 0) AS snapshot,
                    COALESCE(MAX(timestamp) FILTER (WHERE timestamp <= ?2), 0) AS timestamp,
                    COUNT(*) FILTER (WHERE snapshot > ?1 OR timestamp > ?2) AS impossible
             FROM trusted",
        )
        .bind(int(most.snapshot))
        .bind(int(most.timestamp))
        .fetch_one(&self.reader)
        .await?;
        Ok(ReportedVersions {
            versions: OnlineVersions {
                snapshot: uint(&row, "snapshot")?,
                timestamp: uint(&row, "timestamp")?,
            },
            impossible: uint(&row, "impossible")?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::NewDevice;
    use dunlin_protocol::report::Reported;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn versions_signed_and_reported_are_kept_and_only_rise() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("dunlin.db")).await.unwrap();
        let none = OnlineVersions::default();
        assert_eq!(store.online_versions().await.unwrap(), none);
        let most = OnlineVersions {
            snapshot: 1000,
            timestamp: 1000,
        };
        let seen = store.reported_online_versions(most).await.unwrap();
        assert_eq!(seen, ReportedVersions::default());
        let at = |snapshot, timestamp| OnlineVersions {
            snapshot,
            timestamp,
        };
        for (signed, kept) in [
            (at(3, 12), at(3, 12)),
            (at(9, 2), at(9, 12)),
            (at(10, 100), at(10, 100)),
            (at(u64::MAX - 1, 101), at(10, 101)),
        ] {
            store.raise_online_versions(signed).await.unwrap();
            assert_eq!(store.online_versions().await.unwrap(), kept);
        }
        for (name, key, timestamp) in [("a", 1, 7), ("b", 2, u64::MAX)] {
            let device = NewDevice {
                device: name.parse().unwrap(),
                hardware: "generic".to_owned(),
                arch: "x86_64".to_owned(),
                agent_version: "0.1.0".to_owned(),
                cert_sha256: [key; 32],
                public_key_sha256: [key; 32],
            };
            store
                .insert_device(&device, &BTreeMap::new(), 0)
                .await
                .unwrap();
            let report = json!({
                "sequence": 1, "revision": {"epoch": 1, "generation": 0},
                "progress": {"state": "idle"}, "agent_version": "0.1.0",
                "trust": {"timestamp": timestamp, "snapshot": 5},
            });
            let report: Reported = serde_json::from_value(report).unwrap();
            store
                .set_reported(&device.device, &report, 1)
                .await
                .unwrap();
        }
        // A number beyond the database's integers is a large one, no failure, and hides no other.
        let seen = store.reported_online_versions(most).await.unwrap();
        assert_eq!((seen.versions, seen.impossible), (at(5, 7), 1));
    }
}

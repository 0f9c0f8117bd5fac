//! Consumers: their rights, the one certificate that counts, and who gave and took them.

use super::{Result, Store, StoreError, from_json, parsed, to_json};
use crate::consumer::{ConsumerName, ReadRights};
use dunlin_protocol::id::DeviceId;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::collections::BTreeSet;

/// A certificate that a consumer got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerCertificate {
    /// SHA-256 of the certificate (DER).
    pub sha256: [u8; 32],
    /// When it was signed, in milliseconds since 1970.
    pub issued_ms: i64,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: i64,
    /// The administrator who asked for it.
    pub by: String,
}

/// A consumer as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerRow {
    /// Its name.
    pub name: ConsumerName,
    /// What it may read.
    pub rights: ReadRights,
    /// When it was added, in milliseconds since 1970.
    pub created_ms: i64,
    /// Who added it.
    pub created_by: String,
    /// When its certificate was signed, in milliseconds since 1970.
    pub issued_ms: i64,
    /// Who had its certificate renewed last.
    pub renewed_by: Option<String>,
    /// When its certificate ends, in milliseconds since 1970.
    pub expires_ms: i64,
    /// When it was revoked, in milliseconds since 1970.
    pub revoked_ms: Option<i64>,
    /// Who revoked it.
    pub revoked_by: Option<String>,
}

fn rights(row: &SqliteRow) -> Result<ReadRights> {
    let channels: Vec<String> = from_json("consumer channels", row.try_get("channels")?)?;
    let devices: BTreeSet<DeviceId> = from_json("consumer devices", row.try_get("devices")?)?;
    ReadRights::new(&channels, devices).map_err(|e| StoreError::Damaged {
        what: "consumer",
        problem: e.to_string(),
    })
}

fn consumer_row(row: &SqliteRow) -> Result<ConsumerRow> {
    Ok(ConsumerRow {
        name: parsed("consumer", row.try_get("name")?)?,
        rights: rights(row)?,
        created_ms: row.try_get("created_ms")?,
        created_by: row.try_get("created_by")?,
        issued_ms: row.try_get("issued_ms")?,
        renewed_by: row.try_get("renewed_by")?,
        expires_ms: row.try_get("expires_ms")?,
        revoked_ms: row.try_get("revoked_ms")?,
        revoked_by: row.try_get("revoked_by")?,
    })
}

impl Store {
    /// Adds a consumer.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: there is, or was, one of that name. The database failed.
    pub async fn insert_consumer(
        &self,
        name: &ConsumerName,
        rights: &ReadRights,
        certificate: &ConsumerCertificate,
    ) -> Result<()> {
        let channels: Vec<&str> = rights.channels().map(|c| c.as_str()).collect();
        let done = sqlx::query(
            "INSERT INTO consumers (name, channels, devices, cert_sha256, issued_ms, expires_ms,
                created_ms, created_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?5, ?7) ON CONFLICT DO NOTHING",
        )
        .bind(name.as_str())
        .bind(to_json("consumer channels", &channels)?)
        .bind(to_json("consumer devices", rights.devices())?)
        .bind(&certificate.sha256[..])
        .bind(certificate.issued_ms)
        .bind(certificate.expires_ms)
        .bind(&certificate.by)
        .execute(&self.writer)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Conflict(format!(
                "there is a consumer {name} already, or was: a name is given once; take another"
            )));
        }
        Ok(())
    }

    /// Puts another certificate in the place of a consumer's; the one before counts no more. `false`
    /// if there is no live consumer of that name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn renew_consumer(
        &self,
        name: &ConsumerName,
        certificate: &ConsumerCertificate,
    ) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE consumers SET cert_sha256 = ?, issued_ms = ?, expires_ms = ?, renewed_by = ?
             WHERE name = ? AND revoked_ms IS NULL",
        )
        .bind(&certificate.sha256[..])
        .bind(certificate.issued_ms)
        .bind(certificate.expires_ms)
        .bind(&certificate.by)
        .bind(name.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Every consumer by name, the revoked too.
    ///
    /// # Errors
    /// The database failed.
    pub async fn consumers(&self) -> Result<Vec<ConsumerRow>> {
        let rows = sqlx::query("SELECT * FROM consumers ORDER BY name")
            .fetch_all(&self.reader)
            .await?;
        rows.iter().map(consumer_row).collect()
    }

    /// One consumer.
    ///
    /// # Errors
    /// The database failed.
    pub async fn consumer(&self, name: &ConsumerName) -> Result<Option<ConsumerRow>> {
        let row = sqlx::query("SELECT * FROM consumers WHERE name = ?")
            .bind(name.as_str())
            .fetch_optional(&self.reader)
            .await?;
        row.as_ref().map(consumer_row).transpose()
    }

    /// What the holder of a certificate may read: `None` if it is not the consumer's newest one, or
    /// the consumer is revoked or unknown.
    ///
    /// # Errors
    /// The database failed.
    pub async fn consumer_rights(
        &self,
        name: &ConsumerName,
        cert_sha256: &[u8; 32],
    ) -> Result<Option<ReadRights>> {
        let row = sqlx::query(
            "SELECT * FROM consumers WHERE name = ? AND cert_sha256 = ? AND revoked_ms IS NULL",
        )
        .bind(name.as_str())
        .bind(&cert_sha256[..])
        .fetch_optional(&self.reader)
        .await?;
        row.as_ref().map(rights).transpose()
    }

    /// Lets a consumer in no more; whether there was a live one of that name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn revoke_consumer(
        &self,
        name: &ConsumerName,
        by: &str,
        now_ms: i64,
    ) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE consumers SET revoked_ms = ?, revoked_by = ?
             WHERE name = ? AND revoked_ms IS NULL",
        )
        .bind(now_ms)
        .bind(by)
        .bind(name.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

//! Claim tokens and administrators. Only SHA-256 digests of secrets are stored.

use super::{Result, Store, from_json, to_json, uint};
use sqlx::Row;
use std::collections::BTreeMap;

/// A claim token about to be issued.
#[derive(Debug, Clone)]
pub struct NewClaim {
    /// Public id, for lists.
    pub id: String,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// How many devices may enrol with it.
    pub uses: u32,
    /// When it was issued, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: i64,
    /// Labels it gives.
    pub labels: BTreeMap<String, String>,
}

/// A claim token as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRow {
    /// Public id.
    pub id: String,
    /// Uses left.
    pub uses_left: u64,
    /// When it was issued, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: i64,
    /// Labels it gives.
    pub labels: BTreeMap<String, String>,
}

impl Store {
    /// Stores a claim token.
    ///
    /// # Errors
    /// The database failed.
    pub async fn insert_claim(&self, claim: &NewClaim) -> Result<()> {
        sqlx::query(
            "INSERT INTO claims (id, hash, uses_left, expires_ms, created_ms, labels)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&claim.id)
        .bind(&claim.hash[..])
        .bind(claim.uses)
        .bind(claim.expires_ms)
        .bind(claim.created_ms)
        .bind(to_json("claim labels", &claim.labels)?)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Every claim token, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list_claims(&self) -> Result<Vec<ClaimRow>> {
        let rows = sqlx::query("SELECT * FROM claims ORDER BY created_ms DESC, id")
            .fetch_all(&self.reader)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(ClaimRow {
                    id: row.try_get("id")?,
                    uses_left: uint(row, "uses_left")?,
                    created_ms: row.try_get("created_ms")?,
                    expires_ms: row.try_get("expires_ms")?,
                    labels: from_json("claim labels", row.try_get("labels")?)?,
                })
            })
            .collect()
    }

    /// Takes a claim token back; whether there was one of that id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn delete_claim(&self, id: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM claims WHERE id = ?")
            .bind(id)
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Stores an administrator's token; an earlier one of that name ends.
    ///
    /// # Errors
    /// The database failed.
    pub async fn insert_admin(&self, name: &str, hash: &[u8; 32]) -> Result<()> {
        sqlx::query("INSERT OR REPLACE INTO admins (name, hash) VALUES (?, ?)")
            .bind(name)
            .bind(&hash[..])
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Every administrator's name and token hash, to be compared in constant time.
    ///
    /// # Errors
    /// The database failed.
    pub async fn admins(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let rows = sqlx::query("SELECT name, hash FROM admins ORDER BY name")
            .fetch_all(&self.reader)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("name")?, row.try_get("hash")?)))
            .collect()
    }

    /// The administrator whose token has this SHA-256, found by looking at all of them in
    /// constant time.
    ///
    /// # Errors
    /// The database failed.
    pub async fn is_admin(&self, hash: &[u8; 32]) -> Result<Option<String>> {
        use subtle::ConstantTimeEq as _;
        let mut found = None;
        for (name, stored) in self.admins().await? {
            if bool::from(stored.ct_eq(&hash[..])) {
                found = Some(name);
            }
        }
        Ok(found)
    }
}

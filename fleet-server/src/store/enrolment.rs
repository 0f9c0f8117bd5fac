//! Redeeming a claim token and taking a device in: one transaction, so that a cut in between
//! neither spends a use for nothing nor lets one be spent twice.

use super::certificates::{Successor, follow, install};
use super::{Result, Store, from_json, to_json, uint};
use dunlin_protocol::id::{DeviceId, Digest};
use sqlx::{Row, Sqlite, Transaction};
use std::collections::BTreeMap;

/// A device that asks to be taken in; its key's possession is proven already.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Its id.
    pub device: DeviceId,
    /// What it says it is.
    pub hardware: String,
    /// Architecture as Rust names it.
    pub arch: String,
    /// Version of its agent.
    pub agent_version: String,
    /// SHA-256 of its new certificate (DER).
    pub cert_sha256: [u8; 32],
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    pub public_key_sha256: [u8; 32],
}

/// What became of an enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolmentOutcome {
    /// Taken in; the labels come from the claim token.
    Enrolled(BTreeMap<String, String>),
    /// The same key with the same token again, as after a lost answer: no further use is spent.
    Repeated(BTreeMap<String, String>),
    /// No such token.
    UnknownToken,
    /// The token has ended.
    ExpiredToken {
        /// When, in milliseconds since 1970.
        expires_ms: i64,
    },
    /// All its uses are spent.
    SpentToken,
    /// A live device with another key has this id.
    IdTaken,
}

impl Store {
    /// The live device that has this public key and came with this token, if there is one: a
    /// device that did not ask for an id gets the same one when it repeats.
    ///
    /// # Errors
    /// The database failed.
    pub async fn device_of_key(
        &self,
        claim_hash: &[u8; 32],
        public_key_sha256: &[u8; 32],
    ) -> Result<Option<DeviceId>> {
        let id: Option<String> = sqlx::query_scalar(
            "SELECT devices.id FROM devices JOIN claims ON claims.id = devices.claim
             WHERE public_key_sha256 = ? AND claims.hash = ? AND revoked = 0",
        )
        .bind(&public_key_sha256[..])
        .bind(&claim_hash[..])
        .fetch_optional(&self.reader)
        .await?;
        id.map(|id| super::parsed("device id", &id)).transpose()
    }

    /// Redeems a claim token for a device.
    ///
    /// A revoked device may come back under its id, and a live one with its own key, with a token
    /// that still has uses; what it should run stays.
    ///
    /// # Errors
    /// The database failed.
    pub async fn enrol(
        &self,
        claim_hash: &[u8; 32],
        device: &NewDevice,
        now_ms: i64,
    ) -> Result<EnrolmentOutcome> {
        let mut tx = self.begin().await?;
        let claim = sqlx::query("SELECT * FROM claims WHERE hash = ?")
            .bind(&claim_hash[..])
            .fetch_optional(&mut *tx)
            .await?;
        let Some(claim) = claim else {
            return Ok(EnrolmentOutcome::UnknownToken);
        };
        let claim_id: String = claim.try_get("id")?;
        let expires_ms: i64 = claim.try_get("expires_ms")?;
        let labels: BTreeMap<String, String> = from_json("claim labels", claim.try_get("labels")?)?;
        if now_ms >= expires_ms {
            return Ok(EnrolmentOutcome::ExpiredToken { expires_ms });
        }
        let known = sqlx::query(
            "SELECT public_key_sha256, claim FROM devices WHERE id = ? AND revoked = 0",
        )
        .bind(device.device.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let mut is_live = false;
        if let Some(known) = known {
            let key: Vec<u8> = known.try_get("public_key_sha256")?;
            if key != device.public_key_sha256 {
                return Ok(EnrolmentOutcome::IdTaken);
            }
            if known.try_get::<String, _>("claim")? == claim_id {
                // A running agent goes on with the one before until it is started again.
                follow(&mut tx, &device.device, &device.as_successor(), now_ms).await?;
                tx.commit().await?;
                return Ok(EnrolmentOutcome::Repeated(labels));
            }
            is_live = true;
        }
        if uint(&claim, "uses_left")? == 0 {
            return Ok(EnrolmentOutcome::SpentToken);
        }
        sqlx::query("UPDATE claims SET uses_left = uses_left - 1 WHERE id = ?")
            .bind(&claim_id)
            .execute(&mut *tx)
            .await?;
        match is_live {
            true => reclaim(&mut tx, device, &claim_id, &labels, now_ms).await?,
            false => write_device(&mut tx, device, &claim_id, &labels, now_ms).await?,
        }
        tx.commit().await?;
        Ok(EnrolmentOutcome::Enrolled(labels))
    }

    /// Stores a device without a claim token, for tests and tools that hold the database.
    ///
    /// # Errors
    /// The database failed.
    pub async fn insert_device(
        &self,
        device: &NewDevice,
        labels: &BTreeMap<String, String>,
        now_ms: i64,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        write_device(&mut tx, device, "", labels, now_ms).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// A device taken in anew starts its reports at the beginning: its ledger may be new.
async fn write_device(
    tx: &mut Transaction<'static, Sqlite>,
    device: &NewDevice,
    claim_id: &str,
    labels: &BTreeMap<String, String>,
    now_ms: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT OR REPLACE INTO devices
           (id, labels, hardware, arch, agent_version, cert_sha256, public_key_sha256, claim,
            enrolled_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(device.device.as_str())
    .bind(to_json("device labels", labels)?)
    .bind(&device.hardware)
    .bind(&device.arch)
    .bind(&device.agent_version)
    .bind(&device.cert_sha256[..])
    .bind(&device.public_key_sha256[..])
    .bind(claim_id)
    .bind(now_ms)
    .execute(&mut **tx)
    .await?;
    install(tx, &device.device, &device.as_successor(), now_ms).await
}

/// A live device comes again with its own key and another token. The certificate that it uses counts
/// until the new one is used: the answer may be lost, or its agent still be running.
async fn reclaim(
    tx: &mut Transaction<'static, Sqlite>,
    device: &NewDevice,
    claim_id: &str,
    labels: &BTreeMap<String, String>,
    now_ms: i64,
) -> Result<()> {
    // Its reports may start at the beginning, as those of a device taken in anew.
    sqlx::query(
        "UPDATE devices SET labels = ?, hardware = ?, arch = ?, agent_version = ?, claim = ?,
            reported_sequence = -1
         WHERE id = ?",
    )
    .bind(to_json("device labels", labels)?)
    .bind(&device.hardware)
    .bind(&device.arch)
    .bind(&device.agent_version)
    .bind(claim_id)
    .bind(device.device.as_str())
    .execute(&mut **tx)
    .await?;
    follow(tx, &device.device, &device.as_successor(), now_ms).await
}

impl NewDevice {
    /// The certificate's digest as an id.
    #[must_use]
    pub fn certificate(&self) -> Digest {
        Digest(self.cert_sha256)
    }

    fn as_successor(&self) -> Successor {
        Successor {
            sha256: self.certificate(),
            public_key_sha256: self.public_key_sha256,
        }
    }
}

//! Which of a device's certificates counts, and how one follows on another.
//!
//! ```text
//!            signed            first use
//!   (none) ─────────▶ next ───────────────▶ current ──────────▶ superseded
//!                      │        of this one           of a newer    ▲
//!                      └────────────────────────────────────────────┘
//!                               first use of another
//! ```
//! Nothing is taken from a device before it has shown that it holds what replaces it, so that an
//! answer that is lost costs nothing. Several may be `next`: an answer may come after its repetition.

use super::{Result, Store, to_json};
use dunlin_protocol::id::{DeviceId, Digest};
use dunlin_protocol::telemetry::{Body, Class, Event};
use sqlx::{Sqlite, Transaction};

/// How many certificates a device may be given in one hour.
pub const ISSUED_AN_HOUR_MAX: u32 = 20;
const HOUR_MS: i64 = 3_600_000;
/// Superseded certificates are remembered so long after they were signed.
const MEMORY_MS: i64 = 5 * 365 * 24 * HOUR_MS;

/// What a certificate is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The newest that the device has used.
    Current,
    /// Signed after that one, not used so far.
    Next,
    /// A newer one was used: this is a copy, a restored backup, or stolen.
    Superseded,
    /// The device is not let in.
    Revoked,
    /// No such device.
    UnknownDevice,
    /// The device never had it.
    UnknownCertificate,
}

impl Standing {
    /// Whether its holder is let in.
    #[must_use]
    pub fn is_admitted(self) -> bool {
        matches!(self, Self::Current | Self::Next)
    }
}

/// A certificate that follows on another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    /// SHA-256 of it (DER).
    pub sha256: Digest,
    /// SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    pub public_key_sha256: [u8; 32],
}

/// What became of a certificate that was to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// It counts as [`Standing::Next`] from now on.
    Recorded,
    /// The one before it does not entitle to it.
    Refused(Standing),
    /// The device was given [`ISSUED_AN_HOUR_MAX`] in the last hour.
    TooMany,
}

impl Store {
    /// What a certificate is worth; changes nothing.
    ///
    /// # Errors
    /// The database failed.
    pub async fn standing(&self, device: &DeviceId, sha256: &[u8; 32]) -> Result<Standing> {
        let row: Option<(bool, Option<String>)> = sqlx::query_as(STANDING)
            .bind(&sha256[..])
            .bind(device.as_str())
            .fetch_optional(&self.reader)
            .await?;
        Ok(read_standing(row))
    }

    /// As [`standing`](Self::standing), of a certificate in use: one that was `Next` is `Current` from now on, and
    /// every other one of the device's superseded. The use of a superseded one is noted among the
    /// device's events, once an hour at most.
    ///
    /// # Errors
    /// The database failed.
    pub async fn admit(
        &self,
        device: &DeviceId,
        sha256: &[u8; 32],
        now_ms: i64,
    ) -> Result<Standing> {
        match self.standing(device, sha256).await? {
            Standing::Next => self.promote(device, sha256).await,
            Standing::Superseded => {
                self.note_misuse(device, sha256, now_ms).await?;
                Ok(Standing::Superseded)
            }
            other => Ok(other),
        }
    }

    async fn promote(&self, device: &DeviceId, sha256: &[u8; 32]) -> Result<Standing> {
        let mut tx = self.begin().await?;
        // Another connection may have been faster, with this one or with another.
        let standing = standing_in(&mut tx, device, sha256).await?;
        if standing != Standing::Next {
            return Ok(standing);
        }
        supersede_all(&mut tx, device).await?;
        sqlx::query(
            "UPDATE device_certificates SET state = 'current' WHERE device = ? AND sha256 = ?",
        )
        .bind(device.as_str())
        .bind(&sha256[..])
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE devices SET cert_sha256 = ?1, public_key_sha256 =
                (SELECT public_key_sha256 FROM device_certificates
                 WHERE device = ?2 AND sha256 = ?1)
             WHERE id = ?2",
        )
        .bind(&sha256[..])
        .bind(device.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Standing::Current)
    }

    async fn note_misuse(&self, device: &DeviceId, sha256: &[u8; 32], now_ms: i64) -> Result<()> {
        let noted = sqlx::query(
            "UPDATE device_certificates SET misused_ms = ?1
             WHERE device = ?2 AND sha256 = ?3 AND (misused_ms IS NULL OR misused_ms <= ?1 - ?4)",
        )
        .bind(now_ms)
        .bind(device.as_str())
        .bind(&sha256[..])
        .bind(HOUR_MS)
        .execute(&self.writer)
        .await?;
        if noted.rows_affected() == 0 {
            return Ok(());
        }
        let detail = format!(
            "certificate {} was used though a newer one is in use: two devices with one identity, a restored backup, or a stolen key",
            Digest(*sha256).short()
        );
        tracing::warn!(%device, detail, "identity shared");
        self.note(device, "identity_shared", &detail, now_ms).await
    }

    /// Records a certificate that follows on `holds`, which must count now.
    ///
    /// # Errors
    /// The database failed.
    pub async fn succeed(
        &self,
        device: &DeviceId,
        holds: &Digest,
        successor: &Successor,
        now_ms: i64,
    ) -> Result<Succession> {
        let mut tx = self.begin().await?;
        let standing = standing_in(&mut tx, device, holds.as_bytes()).await?;
        if !standing.is_admitted() {
            return Ok(Succession::Refused(standing));
        }
        let issued: u32 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM device_certificates WHERE device = ? AND issued_ms > ?",
        )
        .bind(device.as_str())
        .bind(now_ms.saturating_sub(HOUR_MS))
        .fetch_one(&mut *tx)
        .await?;
        if issued >= ISSUED_AN_HOUR_MAX {
            return Ok(Succession::TooMany);
        }
        insert(&mut tx, device, successor, now_ms, "next").await?;
        tx.commit().await?;
        Ok(Succession::Recorded)
    }

    /// Whether a certificate was signed for the device with this public key before.
    ///
    /// # Errors
    /// The database failed.
    pub async fn has_had_key(
        &self,
        device: &DeviceId,
        public_key_sha256: &[u8; 32],
    ) -> Result<bool> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM device_certificates WHERE device = ? AND public_key_sha256 = ? LIMIT 1",
        )
        .bind(device.as_str())
        .bind(&public_key_sha256[..])
        .fetch_optional(&self.reader)
        .await?;
        Ok(found.is_some())
    }

    /// Adds an event of the server's own to a device's.
    ///
    /// # Errors
    /// The database failed.
    pub async fn note(
        &self,
        device: &DeviceId,
        code: &str,
        detail: &str,
        now_ms: i64,
    ) -> Result<()> {
        let body = Body::Event(Event {
            code: code.to_owned(),
            detail: detail.to_owned(),
            bundle: None,
        });
        sqlx::query(
            "INSERT INTO records (device, class, time_ms, received_ms, body) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(device.as_str())
        .bind(Class::Event.as_str())
        .bind(now_ms)
        .bind(now_ms)
        .bind(to_json("event", &body)?)
        .execute(&self.writer)
        .await?;
        Ok(())
    }
}

const STANDING: &str = "SELECT devices.revoked, device_certificates.state
     FROM devices LEFT JOIN device_certificates
       ON device_certificates.device = devices.id AND device_certificates.sha256 = ?
     WHERE devices.id = ?";

fn read_standing(row: Option<(bool, Option<String>)>) -> Standing {
    match row {
        None => Standing::UnknownDevice,
        Some((true, _)) => Standing::Revoked,
        Some((false, state)) => match state.as_deref() {
            Some("current") => Standing::Current,
            Some("next") => Standing::Next,
            Some(_) => Standing::Superseded,
            None => Standing::UnknownCertificate,
        },
    }
}

async fn standing_in(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    sha256: &[u8; 32],
) -> Result<Standing> {
    let row: Option<(bool, Option<String>)> = sqlx::query_as(STANDING)
        .bind(&sha256[..])
        .bind(device.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(read_standing(row))
}

async fn supersede_all(tx: &mut Transaction<'static, Sqlite>, device: &DeviceId) -> Result<()> {
    sqlx::query("UPDATE device_certificates SET state = 'superseded' WHERE device = ?")
        .bind(device.as_str())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn insert(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    certificate: &Successor,
    now_ms: i64,
    state: &str,
) -> Result<()> {
    sqlx::query(
        "INSERT OR REPLACE INTO device_certificates
           (device, sha256, public_key_sha256, issued_ms, state) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(device.as_str())
    .bind(&certificate.sha256.0[..])
    .bind(&certificate.public_key_sha256[..])
    .bind(now_ms)
    .bind(state)
    .execute(&mut **tx)
    .await?;
    // A bound on the table: long after, an unknown certificate is refused as a superseded one is.
    sqlx::query(
        "DELETE FROM device_certificates
         WHERE device = ? AND state = 'superseded' AND issued_ms < ?",
    )
    .bind(device.as_str())
    .bind(now_ms.saturating_sub(MEMORY_MS))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Makes a certificate the current one at once, as enrolment does.
pub(super) async fn install(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    certificate: &Successor,
    now_ms: i64,
) -> Result<()> {
    supersede_all(tx, device).await?;
    insert(tx, device, certificate, now_ms, "current").await
}

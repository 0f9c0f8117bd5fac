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
    /// A newer one was used, but only after this connection was made: it may be finished.
    Finishing,
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
        matches!(self, Self::Current | Self::Next | Self::Finishing)
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
    /// The device was given as many as it may be in the last hour.
    TooMany,
}

impl Store {
    /// What a certificate is worth; changes nothing.
    ///
    /// # Errors
    /// The database failed.
    pub async fn standing(&self, device: &DeviceId, sha256: &[u8; 32]) -> Result<Standing> {
        let row = sqlx::query_as(STANDING)
            .bind(&sha256[..])
            .bind(device.as_str())
            .fetch_optional(&self.reader)
            .await?;
        Ok(read_standing(row).0)
    }

    /// As [`standing`](Self::standing), of a certificate in use on a connection made at
    /// `connected_ms`: one that was `Next` is `Current` from now on, and every other one of the device's
    /// superseded. The use of a superseded one is noted among the device's events, once an hour at
    /// most.
    ///
    /// # Errors
    /// The database failed.
    pub async fn admit(
        &self,
        device: &DeviceId,
        sha256: &[u8; 32],
        connected_ms: i64,
        now_ms: i64,
    ) -> Result<Standing> {
        let row = sqlx::query_as(STANDING)
            .bind(&sha256[..])
            .bind(device.as_str())
            .fetch_optional(&self.reader)
            .await?;
        let (standing, superseded_ms) = read_standing(row);
        match standing {
            Standing::Next => self.promote(device, sha256, now_ms).await,
            Standing::Superseded if superseded_ms.is_some_and(|ms| connected_ms <= ms) => {
                Ok(Standing::Finishing)
            }
            Standing::Superseded => {
                self.note_misuse(device, sha256, now_ms).await?;
                Ok(Standing::Superseded)
            }
            other => Ok(other),
        }
    }

    async fn promote(&self, device: &DeviceId, sha256: &[u8; 32], now_ms: i64) -> Result<Standing> {
        let mut tx = self.begin().await?;
        // Another connection may have been faster, with this one or with another.
        let standing = standing_in(&mut tx, device, sha256).await?;
        if standing != Standing::Next {
            return Ok(standing);
        }
        supersede_all(&mut tx, device, now_ms).await?;
        sqlx::query(
            "UPDATE device_certificates SET state = 'current', superseded_ms = NULL
             WHERE device = ? AND sha256 = ?",
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

    /// Records a certificate that follows on `holds`, which must count now, unless the device was
    /// given `an_hour_max` in the last hour.
    ///
    /// # Errors
    /// The database failed.
    pub async fn succeed(
        &self,
        device: &DeviceId,
        holds: &Digest,
        successor: &Successor,
        an_hour_max: u32,
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
        if issued >= an_hour_max {
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

const STANDING: &str = "SELECT devices.revoked, device_certificates.state,
       device_certificates.superseded_ms
     FROM devices LEFT JOIN device_certificates
       ON device_certificates.device = devices.id AND device_certificates.sha256 = ?
     WHERE devices.id = ?";

/// What the database says of a certificate: whether the device is revoked, the state, and when it was
/// superseded.
type StandingRow = (bool, Option<String>, Option<i64>);

fn read_standing(row: Option<StandingRow>) -> (Standing, Option<i64>) {
    let superseded_ms = row.as_ref().and_then(|row| row.2);
    let standing = match row {
        None => Standing::UnknownDevice,
        Some((true, ..)) => Standing::Revoked,
        Some((false, state, _)) => match state.as_deref() {
            Some("current") => Standing::Current,
            Some("next") => Standing::Next,
            Some(_) => Standing::Superseded,
            None => Standing::UnknownCertificate,
        },
    };
    (standing, superseded_ms)
}

async fn standing_in(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    sha256: &[u8; 32],
) -> Result<Standing> {
    let row = sqlx::query_as(STANDING)
        .bind(&sha256[..])
        .bind(device.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(read_standing(row).0)
}

async fn supersede_all(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    now_ms: i64,
) -> Result<()> {
    sqlx::query(
        "UPDATE device_certificates SET state = 'superseded', superseded_ms = ?
         WHERE device = ? AND state <> 'superseded'",
    )
    .bind(now_ms)
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

/// Records a certificate that follows on the current one.
pub(super) async fn follow(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    certificate: &Successor,
    now_ms: i64,
) -> Result<()> {
    insert(tx, device, certificate, now_ms, "next").await
}

/// Makes a certificate the current one at once, as a device's first.
pub(super) async fn install(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    certificate: &Successor,
    now_ms: i64,
) -> Result<()> {
    supersede_all(tx, device, now_ms).await?;
    insert(tx, device, certificate, now_ms, "current").await
}

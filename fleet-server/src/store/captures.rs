//! Requests for samples, and the sealed batches that devices sent for them.

use super::audit::{Deed, note};
use super::{Result, Store, StoreError, digest, from_json, int, parsed, to_json, uint};
use dunlin_protocol::capture::seal::Header;
use dunlin_protocol::capture::{WANTED_MAX, Wanted};
use dunlin_protocol::id::{DeviceId, Digest, Family};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};

/// A request to be made.
#[derive(Debug, Clone)]
pub struct NewCaptureRequest<'a> {
    /// Of this family only.
    pub family: Option<&'a Family>,
    /// Of this version only.
    pub version: Option<u64>,
    /// Why, in the words of who asks.
    pub reason: &'a str,
    /// Who asks.
    pub by: &'a str,
    /// When, in milliseconds since 1970.
    pub now_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
    /// Of whom, and why it is known beforehand that one will not.
    pub devices: &'a [(DeviceId, Option<String>)],
}

/// A request as listed.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptureRequestRow {
    /// Its number.
    pub id: i64,
    /// Of this family only.
    pub family: Option<Family>,
    /// Of this version only.
    pub version: Option<u64>,
    /// Why.
    pub reason: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_ms: i64,
    /// Where its devices stand.
    pub targets: Vec<CaptureTargetRow>,
}

/// Where a device stands with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureTargetRow {
    /// The device.
    pub device: DeviceId,
    /// `waiting`, `done`, `refused` or `cancelled`.
    pub state: String,
    /// For people.
    pub detail: String,
    /// Batches that came.
    pub batches: i64,
    /// Their bytes.
    pub bytes: i64,
    /// When that was last so, in milliseconds since 1970.
    pub changed_ms: i64,
}

/// A batch that came in.
#[derive(Debug)]
pub struct IncomingBatch<'a> {
    /// The request that it answers.
    pub request: u64,
    /// Who sent it.
    pub device: &'a DeviceId,
    /// SHA-256 of it.
    pub sha256: Digest,
    /// What it says to be.
    pub header: &'a Header,
    /// It.
    pub sealed: &'a [u8],
    /// When, in milliseconds since 1970.
    pub now_ms: i64,
}

/// Bounds of what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureQuota {
    /// Of all devices together, in bytes.
    pub max_bytes: u64,
    /// Of one device.
    pub device_max_bytes: u64,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchOutcome {
    /// It is stored.
    Stored,
    /// It was here already.
    Known,
    /// Nothing like it is wanted of this device.
    NotWanted,
    /// There is no room for it.
    Full,
}

/// A batch as listed.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptureRow {
    /// SHA-256 of it.
    pub sha256: Digest,
    /// The request that it answered.
    pub request: i64,
    /// What it says to be.
    pub header: Header,
    /// Its length.
    pub bytes: i64,
    /// When it came, in milliseconds since 1970.
    pub received_ms: i64,
}

/// Which batches to list.
#[derive(Debug, Clone, Default)]
pub struct CaptureFilter {
    /// Of this request.
    pub request: Option<u64>,
    /// Of this device.
    pub device: Option<DeviceId>,
    /// Of this family.
    pub family: Option<Family>,
    /// Of this version.
    pub version: Option<u64>,
}

fn target_row(row: &SqliteRow) -> Result<CaptureTargetRow> {
    Ok(CaptureTargetRow {
        device: parsed("device id", row.try_get("device")?)?,
        state: row.try_get("state")?,
        detail: row.try_get("detail")?,
        batches: row.try_get("batches")?,
        bytes: row.try_get("bytes")?,
        changed_ms: row.try_get("changed_ms")?,
    })
}

fn capture_row(row: &SqliteRow) -> Result<CaptureRow> {
    Ok(CaptureRow {
        sha256: digest("capture", row.try_get("sha256")?)?,
        request: row.try_get("request")?,
        header: from_json("capture header", row.try_get("header")?)?,
        bytes: row.try_get("bytes")?,
        received_ms: row.try_get("received_ms")?,
    })
}

fn selection(row: &SqliteRow) -> Result<(Option<Family>, Option<u64>)> {
    let family: Option<String> = row.try_get("family")?;
    let family = family.map(|f| parsed("family", &f)).transpose()?;
    let version: Option<i64> = row.try_get("version")?;
    Ok((family, version.and_then(|v| u64::try_from(v).ok())))
}

impl Store {
    /// Makes a request, audited; its number.
    ///
    /// # Errors
    /// The database failed.
    pub async fn insert_capture_request(&self, new: &NewCaptureRequest<'_>) -> Result<i64> {
        let mut tx = self.begin().await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO capture_requests (family, version, reason, created_ms, created_by,
                expires_ms) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(new.family.map(Family::as_str))
        .bind(new.version.map(int))
        .bind(new.reason)
        .bind(new.now_ms)
        .bind(new.by)
        .bind(new.expires_ms)
        .fetch_one(&mut *tx)
        .await?;
        for (device, refused) in new.devices {
            let state = if refused.is_some() {
                "refused"
            } else {
                "waiting"
            };
            sqlx::query(
                "INSERT INTO capture_targets (request, device, state, detail, batches, bytes,
                    changed_ms) VALUES (?, ?, ?, ?, 0, 0, ?)",
            )
            .bind(id)
            .bind(device.as_str())
            .bind(state)
            .bind(refused.as_deref().unwrap_or_default())
            .bind(new.now_ms)
            .execute(&mut *tx)
            .await?;
        }
        let devices: Vec<&str> = new
            .devices
            .iter()
            .map(|(device, _)| device.as_str())
            .collect();
        let detail = serde_json::json!({
            "request": id, "family": new.family, "version": new.version, "reason": new.reason,
            "devices": devices,
        });
        let deed = Deed {
            time_ms: new.now_ms,
            actor: &format!("admin:{}", new.by),
            action: "capture.request",
            detail,
        };
        note(&mut tx, &deed).await?;
        tx.commit().await?;
        Ok(id)
    }

    /// Requests, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn capture_requests(&self, limit: u32) -> Result<Vec<CaptureRequestRow>> {
        let rows = sqlx::query("SELECT * FROM capture_requests ORDER BY id DESC LIMIT ?")
            .bind(limit)
            .fetch_all(&self.reader)
            .await?;
        let mut all = Vec::new();
        for row in &rows {
            let id: i64 = row.try_get("id")?;
            let targets =
                sqlx::query("SELECT * FROM capture_targets WHERE request = ? ORDER BY device")
                    .bind(id)
                    .fetch_all(&self.reader)
                    .await?;
            let (family, version) = selection(row)?;
            all.push(CaptureRequestRow {
                id,
                family,
                version,
                reason: row.try_get("reason")?,
                created_ms: row.try_get("created_ms")?,
                created_by: row.try_get("created_by")?,
                expires_ms: row.try_get("expires_ms")?,
                targets: targets.iter().map(target_row).collect::<Result<_>>()?,
            });
        }
        Ok(all)
    }

    /// Ends a request for those that have not answered it yet, audited; how many those were.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]: there is no such request. The database failed.
    pub async fn cancel_capture_request(&self, id: u64, deed: &Deed<'_>) -> Result<u64> {
        let mut tx = self.begin().await?;
        let known = sqlx::query("SELECT 1 FROM capture_requests WHERE id = ?")
            .bind(int(id))
            .fetch_optional(&mut *tx)
            .await?;
        if known.is_none() {
            return Err(StoreError::NotFound(format!("no capture request {id}")));
        }
        let done = sqlx::query(
            "UPDATE capture_targets SET state = 'cancelled', changed_ms = ?
             WHERE request = ? AND state = 'waiting'",
        )
        .bind(deed.time_ms)
        .bind(int(id))
        .execute(&mut *tx)
        .await?;
        note(&mut tx, deed).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// What is wanted of a device now, the oldest request first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn captures_wanted(&self, device: &DeviceId, now_ms: i64) -> Result<Vec<Wanted>> {
        let rows = sqlx::query(
            "SELECT id, family, version FROM capture_targets JOIN capture_requests ON id = request
             WHERE device = ? AND state = 'waiting' AND expires_ms > ? ORDER BY id LIMIT ?",
        )
        .bind(device.as_str())
        .bind(now_ms)
        .bind(i64::try_from(WANTED_MAX).unwrap_or(i64::MAX))
        .fetch_all(&self.reader)
        .await?;
        let read = |row: &SqliteRow| {
            let (family, version) = selection(row)?;
            let id = uint(row, "id")?;
            Ok(Wanted {
                id,
                family,
                version,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Connected devices that something is wanted of, each with the newest request.
    ///
    /// # Errors
    /// The database failed.
    pub async fn captures_waiting(&self, now_ms: i64) -> Result<Vec<(DeviceId, i64)>> {
        let rows = sqlx::query(
            "SELECT device, MAX(capture_requests.id) AS newest FROM capture_targets
             JOIN capture_requests ON capture_requests.id = request
             JOIN devices ON devices.id = device
             WHERE state = 'waiting' AND expires_ms > ? AND online = 1 AND revoked = 0
             GROUP BY device",
        )
        .bind(now_ms)
        .fetch_all(&self.reader)
        .await?;
        let read = |row: &SqliteRow| {
            let device = parsed("device id", row.try_get("device")?)?;
            Ok((device, row.try_get("newest")?))
        };
        rows.iter().map(read).collect()
    }

    /// Takes a batch in, audited.
    ///
    /// # Errors
    /// The database failed.
    pub async fn insert_capture(
        &self,
        batch: &IncomingBatch<'_>,
        quota: CaptureQuota,
    ) -> Result<BatchOutcome> {
        let wanted = self.captures_wanted(batch.device, batch.now_ms).await?;
        let header = batch.header;
        let asked = wanted
            .iter()
            .any(|w| w.id == batch.request && w.matches(&header.family, header.version));
        if !asked {
            return Ok(BatchOutcome::NotWanted);
        }
        let mut tx = self.begin().await?;
        let known = sqlx::query("SELECT 1 FROM captures WHERE sha256 = ?")
            .bind(&batch.sha256.0[..])
            .fetch_optional(&mut *tx)
            .await?;
        if known.is_some() {
            return Ok(BatchOutcome::Known);
        }
        let length = u64::try_from(batch.sealed.len()).unwrap_or(u64::MAX);
        if !has_room(&mut tx, batch.device, length, quota).await? {
            return Ok(BatchOutcome::Full);
        }
        write(&mut tx, batch, length).await?;
        let deed = Deed {
            time_ms: batch.now_ms,
            actor: &format!("device:{}", batch.device),
            action: "capture.upload",
            detail: serde_json::json!({
                "request": batch.request, "sha256": batch.sha256, "bytes": length,
                "samples": header.samples,
            }),
        };
        note(&mut tx, &deed).await?;
        tx.commit().await?;
        Ok(BatchOutcome::Stored)
    }

    /// A device has answered a request, audited; `false` if it was not waited for.
    ///
    /// # Errors
    /// The database failed.
    pub async fn end_capture(
        &self,
        request: u64,
        device: &DeviceId,
        refused: Option<&str>,
        now_ms: i64,
    ) -> Result<bool> {
        let mut tx = self.begin().await?;
        let state = if refused.is_some() { "refused" } else { "done" };
        let done = sqlx::query(
            "UPDATE capture_targets SET state = ?, detail = ?, changed_ms = ?
             WHERE request = ? AND device = ? AND state = 'waiting'",
        )
        .bind(state)
        .bind(refused.unwrap_or_default())
        .bind(now_ms)
        .bind(int(request))
        .bind(device.as_str())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let deed = Deed {
            time_ms: now_ms,
            actor: &format!("device:{device}"),
            action: "capture.answered",
            detail: serde_json::json!({"request": request, "refused": refused}),
        };
        note(&mut tx, &deed).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Batches, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn captures(&self, filter: &CaptureFilter, limit: u32) -> Result<Vec<CaptureRow>> {
        let mut query = QueryBuilder::new("SELECT * FROM captures WHERE 1 = 1");
        if let Some(request) = filter.request {
            query.push(" AND request = ").push_bind(int(request));
        }
        if let Some(device) = &filter.device {
            query.push(" AND device = ").push_bind(device.as_str());
        }
        if let Some(family) = &filter.family {
            query.push(" AND family = ").push_bind(family.as_str());
        }
        if let Some(version) = filter.version {
            query.push(" AND version = ").push_bind(int(version));
        }
        query
            .push(" ORDER BY received_ms DESC, sha256 LIMIT ")
            .push_bind(limit);
        let rows = query.build().fetch_all(&self.reader).await?;
        rows.iter().map(capture_row).collect()
    }

    /// The bytes of a batch, for somebody, audited.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]: there is none. The database failed.
    pub async fn capture_content(&self, sha256: &Digest, deed: &Deed<'_>) -> Result<Vec<u8>> {
        let mut tx = self.begin().await?;
        let sealed: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT sealed FROM capture_contents WHERE sha256 = ?")
                .bind(&sha256.0[..])
                .fetch_optional(&mut *tx)
                .await?;
        let Some(sealed) = sealed else {
            return Err(no_such(sha256));
        };
        note(&mut tx, deed).await?;
        tx.commit().await?;
        Ok(sealed)
    }

    /// Deletes a batch, audited.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]: there is none. The database failed.
    pub async fn delete_capture(&self, sha256: &Digest, deed: &Deed<'_>) -> Result<()> {
        let mut tx = self.begin().await?;
        let done = sqlx::query("DELETE FROM captures WHERE sha256 = ?")
            .bind(&sha256.0[..])
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Err(no_such(sha256));
        }
        note(&mut tx, deed).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Deletes batches and requests from before a time; how many batches those were. Of the audit only
    /// what is older than `audit_ms`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn prune_captures(&self, older_than_ms: i64, audit_ms: i64) -> Result<u64> {
        let mut tx = self.begin().await?;
        let done = sqlx::query("DELETE FROM captures WHERE received_ms < ?")
            .bind(older_than_ms)
            .execute(&mut *tx)
            .await?;
        for (sql, bound_ms) in [
            (
                "DELETE FROM capture_requests WHERE expires_ms < ?",
                older_than_ms,
            ),
            ("DELETE FROM audit WHERE time_ms < ?", audit_ms),
        ] {
            sqlx::query(sql).bind(bound_ms).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}

async fn has_room(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
    length: u64,
    quota: CaptureQuota,
) -> Result<bool> {
    let sums = sqlx::query(
        "SELECT COALESCE(SUM(bytes), 0) AS everybodys,
            COALESCE(SUM(bytes) FILTER (WHERE device = ?), 0) AS own FROM captures",
    )
    .bind(device.as_str())
    .fetch_one(&mut **tx)
    .await?;
    let all = uint(&sums, "everybodys")?.saturating_add(length);
    let own = uint(&sums, "own")?.saturating_add(length);
    Ok(all <= quota.max_bytes && own <= quota.device_max_bytes)
}

async fn write(
    tx: &mut Transaction<'static, Sqlite>,
    batch: &IncomingBatch<'_>,
    length: u64,
) -> Result<()> {
    let header = batch.header;
    sqlx::query(
        "INSERT INTO captures (sha256, request, device, family, version, header, bytes,
            received_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&batch.sha256.0[..])
    .bind(int(batch.request))
    .bind(batch.device.as_str())
    .bind(header.family.as_str())
    .bind(int(header.version))
    .bind(to_json("capture header", header)?)
    .bind(int(length))
    .bind(batch.now_ms)
    .execute(&mut **tx)
    .await?;
    sqlx::query("INSERT INTO capture_contents (sha256, sealed) VALUES (?, ?)")
        .bind(&batch.sha256.0[..])
        .bind(batch.sealed)
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "UPDATE capture_targets SET batches = batches + 1, bytes = bytes + ?, changed_ms = ?
         WHERE request = ? AND device = ?",
    )
    .bind(int(length))
    .bind(batch.now_ms)
    .bind(int(batch.request))
    .bind(batch.device.as_str())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn no_such(sha256: &Digest) -> StoreError {
    StoreError::NotFound(format!("no captured batch {sha256}"))
}

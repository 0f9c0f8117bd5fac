//! Devices: who they are, whether they are connected, what they say they run.

use super::{Result, Store, digest, from_json, int, parsed, to_json};
use dunlin_protocol::command::Desired;
use dunlin_protocol::id::{DeviceId, Digest, Family, Revision};
use dunlin_protocol::report::{Presence, Reported};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use std::collections::{BTreeMap, BTreeSet};

/// A device and the newest that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceRow {
    /// Its id.
    pub device: DeviceId,
    /// Labels from its claim token.
    pub labels: BTreeMap<String, String>,
    /// What it says it is.
    pub hardware: String,
    /// Architecture as Rust names it.
    pub arch: String,
    /// Version of its agent.
    pub agent_version: String,
    /// SHA-256 of its certificate (DER).
    pub cert_sha256: Digest,
    /// No longer let in.
    pub revoked: bool,
    /// Connected to the broker.
    pub online: bool,
    /// When it was last heard of, in milliseconds since 1970.
    pub last_seen_ms: Option<i64>,
    /// When it enrolled, in milliseconds since 1970.
    pub enrolled_ms: i64,
    /// Its newest report.
    pub reported: Option<Reported>,
    /// What it should run.
    pub desired: Option<Desired>,
}

/// Which devices to list. Everything given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFilter {
    /// Labels it must have.
    pub labels: BTreeMap<String, String>,
    /// Connected or not.
    pub online: Option<bool>,
    /// Family of its active bundle.
    pub family: Option<Family>,
    /// Version of its active bundle.
    pub version: Option<u64>,
    /// Only ids after this one, for paging.
    pub after: Option<DeviceId>,
    /// Most rows; `None`: all.
    pub limit: Option<u32>,
    /// Also those that are revoked.
    pub with_revoked: bool,
}

const SELECT: &str = "SELECT devices.*, desired.epoch, desired.generation, desired.bundles
                      FROM devices LEFT JOIN desired ON desired.device = devices.id ";

fn device_row(row: &SqliteRow) -> Result<DeviceRow> {
    let cert: Vec<u8> = row.try_get("cert_sha256")?;
    let reported: Option<String> = row.try_get("reported")?;
    let bundles: Option<String> = row.try_get("bundles")?;
    let desired = bundles.map(|text| super::desired::desired_row(row, &text));
    Ok(DeviceRow {
        device: parsed("device id", row.try_get("id")?)?,
        labels: from_json("device labels", row.try_get("labels")?)?,
        hardware: row.try_get("hardware")?,
        arch: row.try_get("arch")?,
        agent_version: row.try_get("agent_version")?,
        cert_sha256: digest("device certificate", &cert)?,
        revoked: row.try_get("revoked")?,
        online: row.try_get("online")?,
        last_seen_ms: row.try_get("last_seen_ms")?,
        enrolled_ms: row.try_get("enrolled_ms")?,
        reported: reported
            .map(|t| from_json("device report", &t))
            .transpose()?,
        desired: desired.transpose()?,
    })
}

/// Devices that run such a bundle, whatever else they run. Agents of before report one alone.
fn push_active(query: &mut QueryBuilder<Sqlite>, filter: &DeviceFilter) {
    let condition = |query: &mut QueryBuilder<Sqlite>, family: &str, version: &str| {
        query.push("1 = 1");
        if let Some(wanted) = &filter.family {
            query.push(format!(" AND {family} = "));
            query.push_bind(wanted.to_string());
        }
        if let Some(wanted) = filter.version {
            query.push(format!(" AND {version} = "));
            query.push_bind(int(wanted));
        }
    };
    query.push(" AND ((");
    condition(query, "active_family", "active_version");
    query
        .push(") OR EXISTS (SELECT 1 FROM json_each(devices.reported, '$.models') AS model WHERE ");
    condition(
        query,
        "json_extract(model.value, '$.active.family')",
        "json_extract(model.value, '$.active.version')",
    );
    query.push("))");
}

impl Store {
    /// One device.
    ///
    /// # Errors
    /// The database failed.
    pub async fn device(&self, device: &DeviceId) -> Result<Option<DeviceRow>> {
        let mut query = QueryBuilder::new(SELECT);
        query.push("WHERE id = ").push_bind(device.as_str());
        let row = query.build().fetch_optional(&self.reader).await?;
        row.as_ref().map(device_row).transpose()
    }

    /// Devices by id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list_devices(&self, filter: &DeviceFilter) -> Result<Vec<DeviceRow>> {
        let mut query = QueryBuilder::new(SELECT);
        query.push("WHERE 1 = 1");
        if !filter.with_revoked {
            query.push(" AND revoked = 0");
        }
        for (key, value) in &filter.labels {
            query
                .push(" AND EXISTS (SELECT 1 FROM json_each(devices.labels) AS label WHERE label.key = ")
                .push_bind(key)
                .push(" AND label.value = ")
                .push_bind(value)
                .push(")");
        }
        if let Some(online) = filter.online {
            query.push(" AND online = ").push_bind(online);
        }
        if filter.family.is_some() || filter.version.is_some() {
            push_active(&mut query, filter);
        }
        if let Some(after) = &filter.after {
            query.push(" AND id > ").push_bind(after.as_str());
        }
        query.push(" ORDER BY id");
        if let Some(limit) = filter.limit {
            query.push(" LIMIT ").push_bind(limit);
        }
        let rows = query.build().fetch_all(&self.reader).await?;
        rows.iter().map(device_row).collect()
    }

    /// Number of live devices, and of those connected.
    ///
    /// # Errors
    /// The database failed.
    pub async fn count_devices(&self) -> Result<(u64, u64)> {
        let row = sqlx::query(
            "SELECT COUNT(*) AS live, COALESCE(SUM(online), 0) AS online FROM devices
             WHERE revoked = 0",
        )
        .fetch_one(&self.reader)
        .await?;
        Ok((super::uint(&row, "live")?, super::uint(&row, "online")?))
    }

    /// Those of these devices that are enrolled and not revoked.
    ///
    /// # Errors
    /// The database failed.
    pub async fn live_devices(&self, devices: &BTreeSet<&DeviceId>) -> Result<BTreeSet<DeviceId>> {
        let names: Vec<&str> = devices.iter().map(|device| device.as_str()).collect();
        let rows = sqlx::query(
            "SELECT id FROM devices
             WHERE revoked = 0 AND id IN (SELECT value FROM json_each(?))",
        )
        .bind(to_json("device ids", &names)?)
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| parsed("device id", row.try_get("id")?))
            .collect()
    }

    /// Lets a device in no more; whether there was a live one of that id.
    ///
    /// # Errors
    /// The database failed.
    pub async fn revoke_device(&self, device: &DeviceId) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE devices SET revoked = 1, online = 0, connection = NULL
             WHERE id = ? AND revoked = 0",
        )
        .bind(device.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Takes a presence message in; `heard_ms` is when the device itself was heard by it, `None` if
    /// it was not (a retained message, a last will). `false` if it is the late last will of an earlier connection,
    /// or of a device that is not let in.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_presence(
        &self,
        device: &DeviceId,
        presence: &Presence,
        heard_ms: Option<i64>,
    ) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE devices SET online = ?1, connection = ?2, agent_version = ?3,
                last_seen_ms = COALESCE(?4, last_seen_ms)
             WHERE id = ?5 AND revoked = 0 AND (?1 = 1 OR connection IS NULL OR connection = ?2)",
        )
        .bind(presence.online)
        .bind(&presence.connection)
        .bind(&presence.agent_version)
        .bind(heard_ms)
        .bind(device.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Marks every device as not connected: right when the broker itself has just started.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_all_offline(&self) -> Result<()> {
        sqlx::query("UPDATE devices SET online = 0 WHERE online = 1")
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Notes that a device was heard of.
    ///
    /// # Errors
    /// The database failed.
    pub async fn touch(&self, device: &DeviceId, now_ms: i64) -> Result<()> {
        sqlx::query("UPDATE devices SET last_seen_ms = ? WHERE id = ?")
            .bind(now_ms)
            .bind(device.as_str())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Takes a report in; `false` if it is not newer than the one known.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_reported(
        &self,
        device: &DeviceId,
        reported: &Reported,
        now_ms: i64,
    ) -> Result<bool> {
        let Revision { epoch, generation } = reported.revision;
        let active = reported.active.as_ref();
        let done = sqlx::query(
            "UPDATE devices SET reported = ?1, reported_sequence = ?2, reported_epoch = ?3,
                reported_generation = ?4, active_family = ?5, active_version = ?6,
                agent_version = ?7, last_seen_ms = ?8
             WHERE id = ?9 AND revoked = 0 AND reported_sequence < ?2",
        )
        .bind(to_json("device report", reported)?)
        .bind(int(reported.sequence))
        .bind(int(epoch))
        .bind(int(generation))
        .bind(active.map(|a| a.family.to_string()))
        .bind(active.map(|a| int(a.version)))
        .bind(&reported.agent_version)
        .bind(now_ms)
        .bind(device.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

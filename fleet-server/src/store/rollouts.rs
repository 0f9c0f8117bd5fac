//! Rollouts. Policy, state, report and verdicts are the planner's JSON; the columns are what the
//! database itself must know.

use super::desired::{DesiredChange, change_desired};
use super::{Result, Store, StoreError, digest, from_json, int, parsed, to_json, uint};
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_protocol::id::{DeviceId, Digest, Family, RolloutId};
use serde_json::Value;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use std::collections::{BTreeMap, BTreeSet};

/// A rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutRow {
    /// Its id.
    pub id: RolloutId,
    /// The family it moves.
    pub family: Family,
    /// The version it brings.
    pub version: u64,
    /// Digest of that version's manifest.
    pub digest: Digest,
    /// The frozen policy, as the planner reads it.
    pub policy: Value,
    /// Labels of the devices it is for.
    pub selector: BTreeMap<String, String>,
    /// What the version must go through on each device.
    pub probation: Probation,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
    /// The administrator who created it.
    pub created_by: String,
    /// Whether the planner still has to look at it.
    pub running: bool,
    /// When an operator asked to abort it, in milliseconds since 1970; the planner acts on it.
    pub abort_requested_ms: Option<i64>,
    /// When an operator asked to go on with it, in milliseconds since 1970; the planner acts on it.
    pub resume_requested_ms: Option<i64>,
    /// The planner's state.
    pub state: Value,
    /// The planner's newest report: what it did and why nothing moves.
    pub report: Value,
}

/// One device's part in a rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutDeviceRow {
    /// The device.
    pub device: DeviceId,
    /// Index of its stage, from 0.
    pub stage: u32,
    /// Place in the draw, from 0.
    pub position: u32,
    /// What it was asked to run of this family before; to this it goes back.
    pub before: Option<DesiredBundle>,
    /// The planner's state of it.
    pub state: Value,
}

/// A verdict of a gate, with everything it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct VerdictRow {
    /// When it was given, in milliseconds since 1970.
    pub at_ms: i64,
    /// The verdict.
    pub verdict: Value,
}

/// What one tick of the planner changes, written as one transaction.
#[derive(Debug, Clone)]
pub struct PlanApplication {
    /// When, in milliseconds since 1970.
    pub now_ms: i64,
    /// Whether the planner still has to look at it.
    pub running: bool,
    /// Whether its state has ended: its family is free for another rollout.
    pub ended: bool,
    /// The abort that was looked at: one asked for meanwhile is not lost.
    pub abort_requested_ms: Option<i64>,
    /// The resumption that was looked at; done with by this.
    pub resume_requested_ms: Option<i64>,
    /// The planner's new state.
    pub new_state: Value,
    /// The planner's report.
    pub report: Value,
    /// New states of devices; devices that join are added.
    pub device_updates: Vec<RolloutDeviceRow>,
    /// New desired states.
    pub desired: Vec<DesiredChange>,
    /// A verdict to keep.
    pub verdict: Option<Value>,
}

fn rollout_row(row: &SqliteRow) -> Result<RolloutRow> {
    let own: Vec<u8> = row.try_get("digest")?;
    Ok(RolloutRow {
        id: parsed("rollout id", row.try_get("id")?)?,
        family: parsed("rollout family", row.try_get("family")?)?,
        version: uint(row, "version")?,
        digest: digest("rollout digest", &own)?,
        policy: from_json("rollout policy", row.try_get("policy")?)?,
        selector: from_json("rollout selector", row.try_get("selector")?)?,
        probation: from_json("rollout probation", row.try_get("probation")?)?,
        created_ms: row.try_get("created_ms")?,
        created_by: row.try_get("created_by")?,
        running: row.try_get("running")?,
        abort_requested_ms: row.try_get("abort_requested_ms")?,
        resume_requested_ms: row.try_get("resume_requested_ms")?,
        state: from_json("rollout state", row.try_get("state")?)?,
        report: from_json("rollout report", row.try_get("report")?)?,
    })
}

fn device_row(row: &SqliteRow) -> Result<RolloutDeviceRow> {
    let before: Option<String> = row.try_get("before")?;
    Ok(RolloutDeviceRow {
        device: parsed("device id", row.try_get("device")?)?,
        stage: row.try_get("stage")?,
        position: row.try_get("position")?,
        before: before.map(|t| from_json("bundle before", &t)).transpose()?,
        state: from_json("rollout device state", row.try_get("state")?)?,
    })
}

async fn write_devices(
    tx: &mut sqlx::Transaction<'static, Sqlite>,
    rollout: &RolloutId,
    devices: &[RolloutDeviceRow],
) -> Result<()> {
    for chunk in devices.chunks(super::ROWS_IN_STATEMENT) {
        let mut rows = Vec::with_capacity(chunk.len());
        for device in chunk {
            let before = device.before.as_ref();
            let before = before.map(|b| to_json("bundle before", b)).transpose()?;
            rows.push((
                device,
                before,
                to_json("rollout device state", &device.state)?,
            ));
        }
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO rollout_devices (rollout, device, stage, position, before, state) ",
        );
        query.push_values(rows, |mut tuple, (device, before, state)| {
            tuple
                .push_bind(rollout.as_str())
                .push_bind(device.device.as_str())
                .push_bind(device.stage)
                .push_bind(device.position)
                .push_bind(before)
                .push_bind(state);
        });
        query.push(
            " ON CONFLICT (rollout, device) DO UPDATE SET
                stage = excluded.stage, position = excluded.position, state = excluded.state,
                before = excluded.before",
        );
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}

impl Store {
    /// Stores a new rollout with its devices.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if the family has a rollout that has not ended, or the id is taken.
    pub async fn insert_rollout(
        &self,
        rollout: &RolloutRow,
        devices: &[RolloutDeviceRow],
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "INSERT INTO rollouts (id, family, version, digest, policy, selector, probation,
                 created_ms, created_by, running, state, report)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(rollout.id.as_str())
        .bind(rollout.family.as_str())
        .bind(int(rollout.version))
        .bind(&rollout.digest.0[..])
        .bind(to_json("rollout policy", &rollout.policy)?)
        .bind(to_json("rollout selector", &rollout.selector)?)
        .bind(to_json("rollout probation", &rollout.probation)?)
        .bind(rollout.created_ms)
        .bind(&rollout.created_by)
        .bind(rollout.running)
        .bind(to_json("rollout state", &rollout.state)?)
        .bind(to_json("rollout report", &rollout.report)?)
        .execute(&mut *tx)
        .await;
        if let Err(e) = done {
            let taken = e
                .as_database_error()
                .is_some_and(|e| e.is_unique_violation());
            return Err(match taken {
                true => StoreError::Conflict(format!(
                    "family {} has a running rollout already; end or abort it first",
                    rollout.family
                )),
                false => e.into(),
            });
        }
        write_devices(&mut tx, &rollout.id, devices).await?;
        tx.commit().await?;
        Ok(())
    }

    /// One rollout.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rollout(&self, id: &RolloutId) -> Result<Option<RolloutRow>> {
        let row = sqlx::query("SELECT * FROM rollouts WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.reader)
            .await?;
        row.as_ref().map(rollout_row).transpose()
    }

    /// Every rollout, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list_rollouts(&self) -> Result<Vec<RolloutRow>> {
        let rows = sqlx::query("SELECT * FROM rollouts ORDER BY created_ms DESC, id")
            .fetch_all(&self.reader)
            .await?;
        rows.iter().map(rollout_row).collect()
    }

    /// The rollouts the planner has to look at, the oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn running_rollouts(&self) -> Result<Vec<RolloutRow>> {
        let rows = sqlx::query("SELECT * FROM rollouts WHERE running = 1 ORDER BY created_ms, id")
            .fetch_all(&self.reader)
            .await?;
        rows.iter().map(rollout_row).collect()
    }

    /// Families with a rollout that has not ended.
    ///
    /// # Errors
    /// The database failed.
    pub async fn families_in_rollout(&self) -> Result<BTreeSet<Family>> {
        let families: Vec<String> =
            sqlx::query_scalar("SELECT DISTINCT family FROM rollouts WHERE ended = 0")
                .fetch_all(&self.reader)
                .await?;
        families
            .iter()
            .map(|family| parsed("rollout family", family))
            .collect()
    }

    /// A rollout's devices, in the order of the draw.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rollout_devices(&self, id: &RolloutId) -> Result<Vec<RolloutDeviceRow>> {
        let rows = sqlx::query(
            "SELECT * FROM rollout_devices WHERE rollout = ? ORDER BY position, device",
        )
        .bind(id.as_str())
        .fetch_all(&self.reader)
        .await?;
        rows.iter().map(device_row).collect()
    }

    /// A rollout's verdicts, the oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn rollout_verdicts(&self, id: &RolloutId) -> Result<Vec<VerdictRow>> {
        let rows = sqlx::query("SELECT * FROM rollout_verdicts WHERE rollout = ? ORDER BY id")
            .bind(id.as_str())
            .fetch_all(&self.reader)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(VerdictRow {
                    at_ms: row.try_get("at_ms")?,
                    verdict: from_json("verdict", row.try_get("verdict")?)?,
                })
            })
            .collect()
    }

    /// Notes that an operator wants a rollout aborted; `false` if it has ended, or none has that id.
    /// Asking again changes nothing.
    ///
    /// # Errors
    /// The database failed.
    pub async fn request_abort(&self, id: &RolloutId, now_ms: i64) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE rollouts SET abort_requested_ms = COALESCE(abort_requested_ms, ?)
             WHERE id = ? AND ended = 0",
        )
        .bind(now_ms)
        .bind(id.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Notes that an operator wants a paused rollout to go on; `false` if none of that id is
    /// paused.
    ///
    /// # Errors
    /// The database failed.
    pub async fn request_resume(&self, id: &RolloutId, now_ms: i64) -> Result<bool> {
        let done = sqlx::query(
            "UPDATE rollouts SET resume_requested_ms = ?
             WHERE id = ? AND ended = 0 AND json_extract(state, '$.state') = 'paused'",
        )
        .bind(now_ms)
        .bind(id.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Replaces the planner's report, and nothing else.
    ///
    /// # Errors
    /// The database failed.
    pub async fn set_rollout_report(&self, id: &RolloutId, report: &Value) -> Result<()> {
        sqlx::query("UPDATE rollouts SET report = ? WHERE id = ?")
            .bind(to_json("rollout report", report)?)
            .bind(id.as_str())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Writes what one tick of the planner decided, all or nothing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if no rollout of that id runs, or an operator has asked something of
    /// it meanwhile; [`StoreError::Conflict`] if a device's desired state is no longer the one that
    /// was looked at; the database failed.
    pub async fn apply_plan(&self, id: &RolloutId, plan: &PlanApplication) -> Result<()> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "UPDATE rollouts SET running = ?, ended = ?, state = ?, report = ?,
                 resume_requested_ms = NULL
             WHERE id = ? AND running = 1 AND abort_requested_ms IS ? AND resume_requested_ms IS ?",
        )
        .bind(plan.running)
        .bind(plan.ended)
        .bind(to_json("rollout state", &plan.new_state)?)
        .bind(to_json("rollout report", &plan.report)?)
        .bind(id.as_str())
        .bind(plan.abort_requested_ms)
        .bind(plan.resume_requested_ms)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NotFound(format!(
                "no rollout {id} is running as it was looked at"
            )));
        }
        write_devices(&mut tx, id, &plan.device_updates).await?;
        change_desired(&mut tx, self.epoch(), &plan.desired).await?;
        if let Some(verdict) = &plan.verdict {
            sqlx::query("INSERT INTO rollout_verdicts (rollout, at_ms, verdict) VALUES (?, ?, ?)")
                .bind(id.as_str())
                .bind(plan.now_ms)
                .bind(to_json("verdict", verdict)?)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

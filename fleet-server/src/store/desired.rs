//! Desired state: what each device should run, ordered by (epoch, generation).

use super::{Result, Store, StoreError, from_json, parsed, to_json, uint};
use dunlin_protocol::command::{Desired, DesiredBundle};
use dunlin_protocol::id::{DeviceId, Family, Revision};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use std::sync::atomic::Ordering;

pub(super) fn desired_row(row: &SqliteRow, bundles: &str) -> Result<Desired> {
    Ok(Desired {
        revision: Revision {
            epoch: uint(row, "epoch")?,
            generation: uint(row, "generation")?,
        },
        bundles: from_json("desired bundles", bundles)?,
    })
}

/// One family's part of a device's desired state; what it should run of others stays.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredChange {
    /// The device.
    pub device: DeviceId,
    /// The family.
    pub family: Family,
    /// What to run of it; `None`: nothing.
    pub bundle: Option<DesiredBundle>,
    /// The revision the decision rests on; `None`: nothing was ever asked of the device.
    pub seen: Option<Revision>,
}

async fn read_desired(
    tx: &mut Transaction<'static, Sqlite>,
    device: &DeviceId,
) -> Result<Option<Desired>> {
    let row = sqlx::query("SELECT epoch, generation, bundles FROM desired WHERE device = ?")
        .bind(device.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    row.map(|row| desired_row(&row, row.try_get("bundles")?))
        .transpose()
}

fn with_family(
    current: Option<Desired>,
    family: &Family,
    bundle: Option<DesiredBundle>,
) -> Vec<DesiredBundle> {
    let mut bundles = current.map(|desired| desired.bundles).unwrap_or_default();
    bundles.retain(|other| other.family != *family);
    bundles.extend(bundle);
    bundles
}

/// Changes desired states, all or none.
///
/// # Errors
/// [`StoreError::Conflict`] if one is not the one that was looked at.
pub(super) async fn change_desired(
    tx: &mut Transaction<'static, Sqlite>,
    epoch: u64,
    changes: &[DesiredChange],
) -> Result<()> {
    let mut wanted = Vec::with_capacity(changes.len());
    for change in changes {
        let current = read_desired(tx, &change.device).await?;
        if current.as_ref().map(|desired| desired.revision) != change.seen {
            return Err(StoreError::Conflict(format!(
                "the desired state of {} has changed meanwhile",
                change.device
            )));
        }
        let bundles = with_family(current, &change.family, change.bundle.clone());
        wanted.push((change.device.clone(), bundles));
    }
    write_desired(tx, epoch, &wanted).await.map(drop)
}

/// The revision after `current` in an epoch.
fn following(epoch: u64, current: Option<Revision>) -> Revision {
    let same = current.filter(|current| current.epoch == epoch);
    Revision {
        epoch,
        generation: same.map_or(1, |current| current.generation.saturating_add(1)),
    }
}

/// Bundles that are asked for anew are so by this revision.
fn stamped(bundles: &[DesiredBundle], revision: Revision) -> Vec<DesiredBundle> {
    let mut bundles = bundles.to_vec();
    for bundle in &mut bundles {
        bundle.asked.get_or_insert(revision);
    }
    bundles
}

/// Writes desired states, each one generation above the device's last.
pub(super) async fn write_desired(
    tx: &mut Transaction<'static, Sqlite>,
    epoch: u64,
    wanted: &[(DeviceId, Vec<DesiredBundle>)],
) -> Result<Vec<Revision>> {
    let mut revisions = Vec::with_capacity(wanted.len());
    for (device, bundles) in wanted {
        let current = read_desired(tx, device).await?;
        let next = following(epoch, current.map(|desired| desired.revision));
        let bundles = stamped(bundles, next);
        let generation: i64 = sqlx::query_scalar(
            "INSERT INTO desired (device, epoch, generation, bundles) VALUES (?1, ?2, 1, ?3)
             ON CONFLICT (device) DO UPDATE SET
                generation = CASE WHEN epoch = ?2 THEN generation + 1 ELSE 1 END,
                epoch = ?2, bundles = ?3
             RETURNING generation",
        )
        .bind(device.as_str())
        .bind(super::int(epoch))
        .bind(to_json("desired bundles", &bundles)?)
        .fetch_one(&mut **tx)
        .await?;
        revisions.push(Revision {
            epoch,
            generation: u64::try_from(generation).unwrap_or(0),
        });
    }
    Ok(revisions)
}

impl Store {
    /// What a device should run, if anything was ever asked of it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn desired(&self, device: &DeviceId) -> Result<Option<Desired>> {
        let row = sqlx::query("SELECT epoch, generation, bundles FROM desired WHERE device = ?")
            .bind(device.as_str())
            .fetch_optional(&self.reader)
            .await?;
        match row {
            None => Ok(None),
            Some(row) => desired_row(&row, row.try_get("bundles")?).map(Some),
        }
    }

    /// Sets what devices should run, all at once; their new revisions, in the same order.
    ///
    /// # Errors
    /// The database failed; nothing is changed then.
    pub async fn set_desired(
        &self,
        wanted: &[(DeviceId, Vec<DesiredBundle>)],
    ) -> Result<Vec<Revision>> {
        let mut tx = self.begin().await?;
        let revisions = write_desired(&mut tx, self.epoch(), wanted).await?;
        tx.commit().await?;
        Ok(revisions)
    }

    /// Sets what a device should run of one family; what it should run of others stays.
    ///
    /// # Errors
    /// The database failed; nothing is changed then.
    pub async fn set_desired_family(
        &self,
        device: &DeviceId,
        family: &Family,
        bundle: Option<DesiredBundle>,
    ) -> Result<()> {
        let mut tx = self.begin().await?;
        let current = read_desired(&mut tx, device).await?;
        let bundles = with_family(current, family, bundle);
        write_desired(&mut tx, self.epoch(), &[(device.clone(), bundles)]).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Connected devices that accepted their newest desired state and are, as far as anybody
    /// knows, still at work on it. Asked again they answer with a report: one may have been lost.
    ///
    /// # Errors
    /// The database failed.
    pub async fn desired_unfinished(&self) -> Result<Vec<(DeviceId, Desired)>> {
        self.desired_where(
            "(reported_epoch, reported_generation) = (epoch, generation)
               AND (json_extract(reported, '$.progress.state') IN ('receiving', 'trial', 'probation')
                 OR EXISTS (SELECT 1 FROM json_each(reported, '$.models') AS model
                   WHERE json_extract(model.value, '$.progress.state')
                     IN ('receiving', 'trial', 'probation')))",
        )
        .await
    }

    /// Connected devices that accepted a newer desired state than this database knows of: it was
    /// set back, from a backup for instance. The second is what the device reported.
    ///
    /// # Errors
    /// The database failed.
    pub async fn desired_behind(&self) -> Result<Vec<(DeviceId, Revision)>> {
        let rows = sqlx::query(
            "SELECT device, reported_epoch AS epoch, reported_generation AS generation FROM desired
             JOIN devices ON devices.id = desired.device
             WHERE online = 1 AND revoked = 0
               AND (reported_epoch, reported_generation) > (desired.epoch, desired.generation)
             ORDER BY device",
        )
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| {
                let revision = Revision {
                    epoch: uint(row, "epoch")?,
                    generation: uint(row, "generation")?,
                };
                Ok((parsed("device id", row.try_get("device")?)?, revision))
            })
            .collect()
    }

    /// Opens an epoch above `above` and every other known here, and issues the desired states of
    /// these devices anew in it, so that they win over what the devices accepted; the epoch.
    ///
    /// # Errors
    /// The database failed; nothing is changed then.
    pub async fn raise_epoch(&self, above: u64, devices: &[DeviceId]) -> Result<u64> {
        let mut tx = self.begin().await?;
        let epoch = above.max(self.epoch()).saturating_add(1);
        sqlx::query("UPDATE meta SET value = ? WHERE key = 'epoch'")
            .bind(epoch.to_string())
            .execute(&mut *tx)
            .await?;
        for device in devices {
            sqlx::query("UPDATE desired SET epoch = ?, generation = 1 WHERE device = ?")
                .bind(super::int(epoch))
                .bind(device.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        self.epoch.fetch_max(epoch, Ordering::AcqRel);
        Ok(epoch)
    }

    /// Connected devices that have not yet said that they accepted their newest desired state.
    ///
    /// # Errors
    /// The database failed.
    pub async fn desired_pending(&self) -> Result<Vec<(DeviceId, Desired)>> {
        self.desired_where("(reported_epoch, reported_generation) < (epoch, generation)")
            .await
    }

    async fn desired_where(&self, condition: &'static str) -> Result<Vec<(DeviceId, Desired)>> {
        let mut query = sqlx::QueryBuilder::<Sqlite>::new(
            "SELECT device, epoch, generation, bundles FROM desired
             JOIN devices ON devices.id = desired.device
             WHERE online = 1 AND revoked = 0 AND ",
        );
        query.push(condition).push(" ORDER BY device");
        let rows = query.build().fetch_all(&self.reader).await?;
        rows.iter()
            .map(|row| {
                let device = parsed("device id", row.try_get("device")?)?;
                Ok((device, desired_row(row, row.try_get("bundles")?)?))
            })
            .collect()
    }
}

//! Desired state: what each device should run, ordered by (epoch, generation).

use super::{Result, Store, from_json, parsed, to_json, uint};
use dunlin_protocol::command::{Desired, DesiredBundle};
use dunlin_protocol::id::{DeviceId, Revision};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

pub(super) fn desired_row(row: &SqliteRow, bundles: &str) -> Result<Desired> {
    Ok(Desired {
        revision: Revision {
            epoch: uint(row, "epoch")?,
            generation: uint(row, "generation")?,
        },
        bundles: from_json("desired bundles", bundles)?,
    })
}

/// Writes desired states, each one generation above the device's last.
pub(super) async fn write_desired(
    tx: &mut Transaction<'static, Sqlite>,
    epoch: u64,
    wanted: &[(DeviceId, Vec<DesiredBundle>)],
) -> Result<Vec<Revision>> {
    let mut revisions = Vec::with_capacity(wanted.len());
    for (device, bundles) in wanted {
        let generation: i64 = sqlx::query_scalar(
            "INSERT INTO desired (device, epoch, generation, bundles) VALUES (?1, ?2, 1, ?3)
             ON CONFLICT (device) DO UPDATE SET
                generation = CASE WHEN epoch = ?2 THEN generation + 1 ELSE 1 END,
                epoch = ?2, bundles = ?3
             RETURNING generation",
        )
        .bind(device.as_str())
        .bind(super::int(epoch))
        .bind(to_json("desired bundles", bundles)?)
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
        let revisions = write_desired(&mut tx, self.epoch, wanted).await?;
        tx.commit().await?;
        Ok(revisions)
    }

    /// Connected devices that have not yet said that they accepted their newest desired state.
    ///
    /// # Errors
    /// The database failed.
    pub async fn desired_pending(&self) -> Result<Vec<(DeviceId, Desired)>> {
        let rows = sqlx::query(
            "SELECT device, epoch, generation, bundles FROM desired
             JOIN devices ON devices.id = desired.device
             WHERE online = 1 AND revoked = 0
               AND (reported_epoch, reported_generation) < (epoch, generation)
             ORDER BY device",
        )
        .fetch_all(&self.reader)
        .await?;
        rows.iter()
            .map(|row| {
                let device = parsed("device id", row.try_get("device")?)?;
                Ok((device, desired_row(row, row.try_get("bundles")?)?))
            })
            .collect()
    }
}

//! Published bundles, as the signed list says.

use super::{Result, Store, digest, int, parsed, uint};
use dunlin_protocol::id::{Digest, Family};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// A published bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleRow {
    /// Its family.
    pub family: Family,
    /// Its version.
    pub version: u64,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Path of its manifest among the signed targets.
    pub target: String,
    /// Lowest version of the family that devices take once they have seen this one.
    pub rollback_floor: u64,
    /// The manifest, exactly as hashed.
    pub manifest_json: String,
    /// Digest of its reference profile.
    pub profile: Option<Digest>,
    /// When it was first published, in milliseconds since 1970.
    pub published_ms: i64,
    /// Whether the newest signed list still holds it.
    pub listed: bool,
}

fn bundle_row(row: &SqliteRow) -> Result<BundleRow> {
    let profile: Option<Vec<u8>> = row.try_get("profile")?;
    let own: Vec<u8> = row.try_get("digest")?;
    Ok(BundleRow {
        family: parsed("bundle family", row.try_get("family")?)?,
        version: uint(row, "version")?,
        digest: digest("bundle digest", &own)?,
        target: row.try_get("target")?,
        rollback_floor: uint(row, "rollback_floor")?,
        manifest_json: row.try_get("manifest_json")?,
        profile: profile.map(|p| digest("profile digest", &p)).transpose()?,
        published_ms: row.try_get("published_ms")?,
        listed: row.try_get("listed")?,
    })
}

async fn write_bundle(tx: &mut Transaction<'static, Sqlite>, bundle: &BundleRow) -> Result<()> {
    sqlx::query(
        "INSERT INTO bundles (family, version, digest, target, rollback_floor, manifest_json,
                              profile, published_ms, listed)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (family, version) DO UPDATE SET
            digest = excluded.digest, target = excluded.target,
            manifest_json = excluded.manifest_json, profile = excluded.profile,
            rollback_floor = MAX(rollback_floor, excluded.rollback_floor),
            listed = excluded.listed",
    )
    .bind(bundle.family.as_str())
    .bind(int(bundle.version))
    .bind(&bundle.digest.0[..])
    .bind(&bundle.target)
    .bind(int(bundle.rollback_floor))
    .bind(&bundle.manifest_json)
    .bind(bundle.profile.as_ref().map(|p| &p.0[..]))
    .bind(bundle.published_ms)
    .bind(bundle.listed)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// Stores one bundle, or brings its row up to date; its floor never falls.
    ///
    /// # Errors
    /// The database failed.
    pub async fn insert_bundle(&self, bundle: &BundleRow) -> Result<()> {
        let mut tx = self.begin().await?;
        write_bundle(&mut tx, bundle).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Stores the whole signed list: bundles not in it stay known, but are no longer listed.
    ///
    /// # Errors
    /// The database failed; nothing is changed then.
    pub async fn set_bundles(&self, bundles: &[BundleRow]) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("UPDATE bundles SET listed = 0")
            .execute(&mut *tx)
            .await?;
        for bundle in bundles {
            write_bundle(&mut tx, bundle).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// One bundle, if it is on the newest signed list.
    ///
    /// # Errors
    /// The database failed.
    pub async fn bundle(&self, family: &Family, version: u64) -> Result<Option<BundleRow>> {
        let row =
            sqlx::query("SELECT * FROM bundles WHERE family = ? AND version = ? AND listed = 1")
                .bind(family.as_str())
                .bind(int(version))
                .fetch_optional(&self.reader)
                .await?;
        row.as_ref().map(bundle_row).transpose()
    }

    /// The bundle with this manifest digest, listed or not.
    ///
    /// # Errors
    /// The database failed.
    pub async fn bundle_by_digest(&self, digest: &Digest) -> Result<Option<BundleRow>> {
        let row = sqlx::query("SELECT * FROM bundles WHERE digest = ? LIMIT 1")
            .bind(&digest.0[..])
            .fetch_optional(&self.reader)
            .await?;
        row.as_ref().map(bundle_row).transpose()
    }

    /// Every bundle ever published, by family and version.
    ///
    /// # Errors
    /// The database failed.
    pub async fn list_bundles(&self) -> Result<Vec<BundleRow>> {
        let rows = sqlx::query("SELECT * FROM bundles ORDER BY family, version")
            .fetch_all(&self.reader)
            .await?;
        rows.iter().map(bundle_row).collect()
    }

    /// The highest rollback floor ever signed for a family; 0 if none.
    ///
    /// # Errors
    /// The database failed.
    pub async fn floor(&self, family: &Family) -> Result<u64> {
        let row = sqlx::query(
            "SELECT COALESCE(MAX(rollback_floor), 0) AS floor FROM bundles WHERE family = ?",
        )
        .bind(family.as_str())
        .fetch_one(&self.reader)
        .await?;
        uint(&row, "floor")
    }
}

//! Telemetry for data scientists: Parquet files of windows, histograms, references and samples
//! (docs/export.md has every column).

pub mod reference;
pub mod samples;
pub mod stream;
pub mod table;
pub mod windows;

use crate::clock;
use crate::drift::query::{self, Reference};
use crate::store::{BundleRow, RolloutRow, StoreError};
use dunlin_protocol::bundle::Manifest;
use dunlin_protocol::id::{Family, FleetId};
use serde::Serialize;
use serde_json::{Value, json};
use table::TableError;

/// Why an export broke off.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A version of a family, as far as exports tell of it.
#[derive(Debug, Clone)]
pub struct VersionLineage {
    /// Its published bundle.
    pub bundle: BundleRow,
    /// Its frozen profile, or why there is none.
    pub(crate) reference: Result<Reference, String>,
    /// What is told of it.
    lineage: BundleLineage,
}

/// What a bundle is and where it comes from, as it stands in a file's metadata.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct BundleLineage {
    version: u64,
    bundle: String,
    target: String,
    published_ms: i64,
    listed: bool,
    rollback_floor: u64,
    /// The version that was published before it.
    parent: Option<u64>,
    rollouts: Vec<String>,
    /// SHA-256 of its model.
    model: Option<String>,
    /// By name in the bundle, such as `profile.json`: SHA-256 and length in bytes.
    files: Value,
    labels: Vec<String>,
    /// What the operator signed: digest of the training data, code, licence, figures.
    lineage: Value,
}

impl VersionLineage {
    /// Reads the profile and the manifest of each bundle of a family.
    pub async fn of(
        family: &Family,
        version: Option<u64>,
        bundles: &[BundleRow],
        rollouts: &[RolloutRow],
        blobs: &crate::blobs::Blobs,
    ) -> Vec<Self> {
        let own = bundles.iter().filter(|b| b.family == *family);
        let mut known = Vec::new();
        for bundle in own
            .clone()
            .filter(|b| version.is_none_or(|v| b.version == v))
        {
            let earlier = own.clone().map(|b| b.version);
            let parent = earlier.filter(|v| *v < bundle.version).max();
            let of_bundle = rollouts.iter().filter(|r| r.digest == bundle.digest);
            known.push(Self {
                bundle: bundle.clone(),
                reference: query::reference(bundle, blobs).await,
                lineage: BundleLineage::of(bundle, parent, of_bundle),
            });
        }
        known
    }

    /// SHA-256 of its model.
    pub(crate) fn model(&self) -> Option<&str> {
        self.lineage.model.as_deref()
    }
}

impl BundleLineage {
    fn of<'a>(
        bundle: &BundleRow,
        parent: Option<u64>,
        rollouts: impl Iterator<Item = &'a RolloutRow>,
    ) -> Self {
        let manifest = Manifest::parse(bundle.manifest_json.as_bytes()).ok();
        let files = manifest.as_ref().map_or(Value::Null, |manifest| {
            let named = manifest.files.named().into_iter();
            let files = named.map(|(role, blob)| {
                let file = json!({"sha256": blob.sha256, "length_bytes": blob.length});
                (role.to_owned(), file)
            });
            Value::Object(files.collect())
        });
        let lineage = manifest.as_ref().map(|m| json!(m.lineage));
        let model = manifest.as_ref().map(|m| m.files.model.sha256.to_string());
        Self {
            version: bundle.version,
            bundle: bundle.digest.to_string(),
            target: bundle.target.clone(),
            published_ms: bundle.published_ms,
            listed: bundle.listed,
            rollback_floor: bundle.rollback_floor,
            parent,
            rollouts: rollouts.map(|r| r.id.to_string()).collect(),
            model,
            files,
            labels: manifest.map(|m| m.labels).unwrap_or_default(),
            lineage: lineage.unwrap_or(Value::Null),
        }
    }
}

/// A file's key-value metadata: what it is, of what, and where the models come from.
fn about(
    table: &str,
    fleet: &FleetId,
    family: &Family,
    query: Value,
    versions: &[VersionLineage],
) -> Vec<(String, String)> {
    let lineages: Vec<&BundleLineage> = versions.iter().map(|v| &v.lineage).collect();
    let pairs = [
        ("dunlin.format", format!("dunlin.{table}/1")),
        ("dunlin.server", env!("CARGO_PKG_VERSION").to_owned()),
        ("dunlin.fleet", fleet.to_string()),
        ("dunlin.family", family.to_string()),
        ("dunlin.exported_at", clock::now().to_string()),
        ("dunlin.query", query.to_string()),
        ("dunlin.bundles", json!(lineages).to_string()),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

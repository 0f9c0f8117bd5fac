//! `dunlin bundle patch` and `apply`, and the patches that are made when a bundle is published.

use crate::api::ApiClient;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::pack::{PackedBundle, unpack};
use crate::table::{self, Table, bytes_text};
use dunlin_protocol::bundle::{Blob, Manifest};
use dunlin_protocol::id::Digest;
use dunlin_protocol::patch::{self, Limits, Made, Options};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::io::Cursor;
use std::path::Path;

/// Earlier versions that publishing makes patches from.
pub const EARLIER_VERSIONS: usize = 3;

/// Longest model patches are made of, in bytes: both are held in memory.
const MODEL_MAX_BYTES: u64 = 1 << 30;
/// Above this, models are patched at a quick level: the slow ones take minutes there.
const SLOW_LEVEL_MAX_BYTES: usize = 64 << 20;
const QUICK_LEVEL: i32 = 9;

/// What became of a patch from one version to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// The family and the new version, as `digits/2`.
    pub bundle: String,
    /// The old version.
    pub from_version: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Made and uploaded.
    Uploaded {
        /// Length of the patch.
        patch_bytes: u64,
        /// Length of the whole model as it travels.
        whole_bytes: u64,
    },
    /// The server had it.
    AlreadyThere,
    /// Both versions have the same model.
    SameModel,
    /// It would spare nothing: devices fetch the whole model.
    NotSmaller,
    /// It could not be made or uploaded: devices fetch the whole model.
    Failed(String),
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from version {}: ", self.bundle, self.from_version)?;
        match &self.outcome {
            Outcome::Uploaded {
                patch_bytes,
                whole_bytes,
            } => {
                let percent = 100.0 * *patch_bytes as f64 / (*whole_bytes).max(1) as f64;
                let (patch, whole) = (bytes_text(*patch_bytes), bytes_text(*whole_bytes));
                write!(f, "a patch of {patch} instead of {whole} ({percent:.1} %)")
            }
            Outcome::AlreadyThere => write!(f, "the patch was there already"),
            Outcome::SameModel => write!(f, "the same model, no patch needed"),
            Outcome::NotSmaller => write!(f, "a patch would spare nothing"),
            Outcome::Failed(why) => write!(f, "no patch: {why}"),
        }
    }
}

/// Makes patches from the newest `earlier` versions of the bundle's family that are listed, and
/// uploads those that are smaller than the whole model.
pub async fn offer(client: &ApiClient, bundle: &PackedBundle, earlier: usize) -> Vec<Offer> {
    if earlier == 0 {
        return Vec::new();
    }
    let name = format!("{}/{}", bundle.manifest.family, bundle.manifest.version);
    let offer = |from_version, outcome| Offer {
        bundle: name.clone(),
        from_version,
        outcome,
    };
    let versions = match client.bundles().await {
        Ok(all) => earlier_versions(&all, bundle, earlier),
        Err(error) => return vec![offer(0, Outcome::Failed(error.to_string()))],
    };
    let mut offers = Vec::new();
    for version in versions {
        let outcome = patch_from(client, bundle, version).await;
        let outcome = outcome.unwrap_or_else(|failure| Outcome::Failed(failure.message));
        offers.push(offer(version, outcome));
    }
    offers
}

/// Versions of the bundle's family below its own that are listed, the newest first.
fn earlier_versions(all: &[Value], bundle: &PackedBundle, most: usize) -> Vec<u64> {
    let manifest = &bundle.manifest;
    let family = manifest.family.to_string();
    let mut versions: Vec<u64> = all
        .iter()
        .filter(|b| b["family"] == *family && b["listed"] == true)
        .filter_map(|b| b["version"].as_u64())
        .filter(|version| *version < manifest.version)
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.truncate(most);
    versions
}

async fn patch_from(
    client: &ApiClient,
    bundle: &PackedBundle,
    version: u64,
) -> Result<Outcome, Failure> {
    let new_blob = &bundle.manifest.files.model;
    let view = client.bundle(&bundle.manifest.family, version).await?;
    let manifest: Manifest = serde_json::from_value(view["manifest"].clone())
        .map_err(|e| Failure::new(format!("manifest of version {version}: {e}")))?;
    let old_blob = manifest.files.model;
    if old_blob.sha256 == new_blob.sha256 {
        return Ok(Outcome::SameModel);
    }
    if client.has_patch(&old_blob.sha256, &new_blob.sha256).await? {
        return Ok(Outcome::AlreadyThere);
    }
    for blob in [&old_blob, new_blob] {
        check_length(blob.length)?;
    }
    let old = old_model(client, &old_blob).await?;
    let new = bundle.model()?;
    let made = tokio::task::spawn_blocking(move || make(&old, &new)).await;
    let made = made.map_err(Failure::new)??;
    let (patch_bytes, whole_bytes) = (made.patch.len() as u64, new_blob.transport().1);
    if patch_bytes >= whole_bytes {
        return Ok(Outcome::NotSmaller);
    }
    let (from, to) = (old_blob.sha256, new_blob.sha256);
    client.put_patch(&from, &to, made.patch).await?;
    Ok(Outcome::Uploaded {
        patch_bytes,
        whole_bytes,
    })
}

async fn old_model(client: &ApiClient, blob: &Blob) -> Result<Vec<u8>, Failure> {
    let (digest, length) = blob.transport();
    let travels = client.blob(&digest, length).await?;
    unpack(blob, travels).map_err(|problem| Failure::new(format!("blob {digest}: {problem}")))
}

fn check_length(length: u64) -> Result<(), Failure> {
    if length > MODEL_MAX_BYTES {
        let (got, most) = (bytes_text(length), bytes_text(MODEL_MAX_BYTES));
        return Err(Failure::new(format!(
            "a model of {got}: patches are made up to {most}"
        )));
    }
    Ok(())
}

fn make(old: &[u8], new: &[u8]) -> Result<Made, Failure> {
    let level = match old.len().max(new.len()) > SLOW_LEVEL_MAX_BYTES {
        true => QUICK_LEVEL,
        false => Options::default().level,
    };
    patch::make(old, new, &Options { level }).map_err(Failure::new)
}

/// The model of a packed bundle, or any file.
fn read_model(path: &Path) -> Result<Vec<u8>, Failure> {
    if path.is_dir() {
        let bundle = PackedBundle::open(path)?;
        check_length(bundle.manifest.files.model.length)?;
        return Ok(bundle.model()?);
    }
    Ok(files::read_bounded(path, MODEL_MAX_BYTES)?)
}

/// `dunlin bundle patch`.
///
/// # Errors
/// A file cannot be read or written, or no patch could be made.
pub fn run_make(old: &Path, new: &Path, out: &Path, is_json: bool) -> Result<Exit, Failure> {
    let (old, new) = (read_model(old)?, read_model(new)?);
    let made = make(&old, &new)?;
    files::write_whole(out, &made.patch)?;
    if is_json {
        let shares = made.shares.iter();
        let shares = shares.map(|s| json!({"how": s.how, "bytes": s.target_bytes}));
        table::print_json(&json!({
            "out": out, "patch_bytes": made.patch.len(), "new_bytes": new.len(),
            "from": Digest::of(&old), "to": Digest::of(&new), "shares": shares.collect::<Vec<_>>(),
        }));
        return Ok(Exit::Done);
    }
    let mut rows = Table::new(&["of the new model", "bytes>"]);
    for share in &made.shares {
        rows.row([share.how.to_owned(), share.target_bytes.to_string()]);
    }
    let patch_bytes = made.patch.len() as f64;
    table::print(&format!(
        "{}: {} for a model of {} ({:.1} %)\n\n{}",
        out.display(),
        bytes_text(made.patch.len() as u64),
        bytes_text(new.len() as u64),
        100.0 * patch_bytes / new.len().max(1) as f64,
        rows.to_text()
    ));
    Ok(Exit::Done)
}

/// `dunlin bundle apply`.
///
/// # Errors
/// A file cannot be read or written, or the patch does not fit the old model.
pub fn run_apply(old: &Path, patch: &Path, out: &Path, is_json: bool) -> Result<Exit, Failure> {
    let old = read_model(old)?;
    let patch = files::read_bounded(patch, MODEL_MAX_BYTES)?;
    let limits = Limits {
        target_max_bytes: MODEL_MAX_BYTES,
    };
    let mut new = Vec::new();
    patch::apply(&mut Cursor::new(old), &mut &patch[..], &mut new, &limits)
        .map_err(Failure::new)?;
    files::write_whole(out, &new)?;
    let digest = Digest::of(&new);
    if is_json {
        table::print_json(&json!({"out": out, "bytes": new.len(), "sha256": digest}));
    } else {
        table::print_line(&format!(
            "{}: {} with SHA-256 {digest}",
            out.display(),
            bytes_text(new.len() as u64)
        ));
    }
    Ok(Exit::Done)
}

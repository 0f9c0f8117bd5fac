//! Uploading a bundle: blobs first, then the signed targets that list it, then patches from earlier
//! versions.

use crate::api::ApiClient;
use crate::failure::Failure;
use crate::pack::PackedBundle;
use crate::patch::{self, Offer};
use dunlin_protocol::trust::{Envelope, Metadata, TARGETS_MAX_BYTES, TargetsMetadata};
use serde::Serialize;

/// What publishing did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Version of the targets metadata.
    pub targets_version: u64,
    /// Blobs sent.
    pub uploaded: usize,
    /// Blobs that the server had already.
    pub already_there: usize,
    /// Patches from earlier versions: what became of each.
    pub patches: Vec<Offer>,
}

/// [`publish_with`] patches from as many earlier versions as is usual.
///
/// # Errors
/// As there.
pub async fn publish(
    client: &ApiClient,
    bundles: &[PackedBundle],
    targets: &[u8],
) -> Result<Published, Failure> {
    publish_with(client, bundles, targets, None, patch::EARLIER_VERSIONS).await
}

/// Uploads what the server lacks, then posts the targets (or, if a role is named, the list of that
/// delegated role), then makes and uploads patches from so many `earlier` versions to each bundle.
///
/// # Errors
/// `targets` does not list a bundle as it is packed, or the server cannot be reached or refuses.
/// That a patch could not be made is no error: it stands in the result.
pub async fn publish_with(
    client: &ApiClient,
    bundles: &[PackedBundle],
    targets: &[u8],
    role: Option<&str>,
    earlier: usize,
) -> Result<Published, Failure> {
    let envelope = Envelope::parse(targets, TARGETS_MAX_BYTES)?;
    let listed = TargetsMetadata::read(&envelope)?;
    let text = String::from_utf8(targets.to_vec())
        .map_err(|_| Failure::new("targets metadata: not UTF-8"))?;
    let mut manifests = Vec::new();
    for bundle in bundles {
        let entry = listed.targets.get(&bundle.target.path);
        match entry {
            Some(entry) if entry == &bundle.target => {}
            Some(entry) => {
                return Err(Failure::new(format!(
                    "{}: signed as SHA-256 {}, but {} holds {} (or another floor or hardware): sign what is packed",
                    entry.path,
                    entry.sha256()?,
                    bundle.dir.display(),
                    bundle.digest()
                )));
            }
            None => {
                return Err(Failure::new(format!(
                    "targets version {} does not list {}: run `dunlin bundle sign {}` first",
                    listed.version,
                    bundle.target.path,
                    bundle.dir.display()
                )));
            }
        }
        let manifest = String::from_utf8(bundle.manifest_bytes.clone());
        manifests.push(manifest.map_err(|_| Failure::new("manifest: not UTF-8"))?);
    }
    let mut published = Published {
        targets_version: listed.version,
        uploaded: 0,
        already_there: 0,
        patches: Vec::new(),
    };
    for (digest, _, file) in bundles.iter().flat_map(PackedBundle::blobs) {
        if client.has_blob(&digest).await? {
            published.already_there += 1;
        } else {
            client.put_blob(&digest, &file).await?;
            published.uploaded += 1;
        }
    }
    client.publish_list(role, &text, &manifests).await?;
    for bundle in bundles {
        let offers = patch::offer(client, bundle, earlier).await;
        published.patches.extend(offers);
    }
    Ok(published)
}

//! A staged bundle, loaded: manifest, graph and reference profile.

use super::graph::{Graph, GraphError};
use super::steps;
use super::tensor::Values;
use dunlin_protocol::bundle::{
    Blob, DOCUMENT_MAX_BYTES, MANIFEST_MAX_BYTES, Manifest, ManifestError, Profile, ProfileError,
};
use dunlin_protocol::id::Digest;
use dunlin_protocol::{SEGMENT_MAX_BYTES, id::Family};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most counters (bins and classes) a window may have, so that a full one fits a telemetry
/// segment at six bytes a counter.
const WINDOW_MAX_COUNTERS: usize = SEGMENT_MAX_BYTES / 6;

/// Why a staged bundle cannot be loaded, or did not compute.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not the one that the manifest signs, or too long.
    #[error("{}: {problem}", file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// Expected and got.
        problem: String,
    },
    /// The manifest does not parse or is not consistent.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The profile does not parse or does not belong to the manifest.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The profile has more bins than a window can carry.
    #[error(
        "profile: {got} bins and classes, at most {WINDOW_MAX_COUNTERS} fit a telemetry segment"
    )]
    ProfileSize {
        /// Bins and classes together.
        got: usize,
    },
    /// The graph cannot be loaded or did not run.
    #[error("model.onnx: {0}")]
    Graph(#[from] GraphError),
}

/// A loaded bundle; any number of threads may use it at once.
#[derive(Debug)]
pub struct Engine {
    manifest: Manifest,
    bundle: Digest,
    profile: Option<Arc<(Digest, Profile)>>,
    graph: Graph,
}

impl Engine {
    /// Loads the bundle staged in a folder: `manifest.json`, `model.onnx` and, if the manifest
    /// has one, `profile.json`. The files are checked again against the manifest's digests, since
    /// flash memory forgets.
    ///
    /// # Errors
    /// [`EngineError`] names the file and what is wrong with it.
    pub fn load(slot: &Path) -> Result<Self, EngineError> {
        let (manifest, bundle) = load_manifest(slot)?;
        let profile = match &manifest.files.profile {
            None => None,
            Some(blob) => {
                let bytes = read_blob(slot, "profile.json", blob, DOCUMENT_MAX_BYTES)?;
                let profile = Profile::parse(&bytes, &manifest)?;
                check_window_size(&manifest, &profile)?;
                Some(Arc::new((blob.sha256, profile)))
            }
        };
        let model = &manifest.files.model;
        let onnx = read_blob(slot, "model.onnx", model, model.length)?;
        let graph = Graph::load(&onnx, &manifest.inputs, &manifest.outputs)?;
        Ok(Self {
            manifest,
            bundle,
            profile,
            graph,
        })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The family.
    #[must_use]
    pub fn family(&self) -> &Family {
        &self.manifest.family
    }

    /// Digest of the manifest's bytes.
    #[must_use]
    pub fn bundle(&self) -> Digest {
        self.bundle
    }

    /// The reference profile and the digest of its file.
    #[must_use]
    pub fn profile(&self) -> Option<&(Digest, Profile)> {
        self.profile.as_deref()
    }

    pub(crate) fn profile_shared(&self) -> Option<Arc<(Digest, Profile)>> {
        self.profile.clone()
    }

    /// Computes what an application gets for what it sent: steps before the graph, the graph,
    /// steps after it. One value list a tensor, in the manifest's order.
    ///
    /// # Errors
    /// Values that do not fit the manifest, or an engine that failed.
    pub fn infer(&self, inputs: &[Values]) -> Result<Vec<Values>, EngineError> {
        let prepared = self.prepared(inputs);
        let mut outputs = self.graph.run(&prepared)?;
        for (spec, values) in self.manifest.outputs.iter().zip(&mut outputs) {
            steps::apply(&self.manifest.steps.post, spec, values);
        }
        Ok(outputs)
    }

    fn prepared<'a>(&self, inputs: &'a [Values]) -> Cow<'a, [Values]> {
        if self.manifest.steps.pre.is_empty() {
            return Cow::Borrowed(inputs);
        }
        let mut inputs = inputs.to_vec();
        for (spec, values) in self.manifest.inputs.iter().zip(&mut inputs) {
            steps::apply(&self.manifest.steps.pre, spec, values);
        }
        Cow::Owned(inputs)
    }
}

fn check_window_size(manifest: &Manifest, profile: &Profile) -> Result<(), EngineError> {
    let features: usize = profile.features.iter().map(|f| f.edges.bins()).sum();
    let got = features
        + profile.confidence.edges.bins()
        + profile.entropy.edges.bins()
        + manifest.labels.len().max(profile.outputs.classes.len());
    if got > WINDOW_MAX_COUNTERS {
        return Err(EngineError::ProfileSize { got });
    }
    Ok(())
}

/// The staged manifest and its digest.
pub(crate) fn load_manifest(slot: &Path) -> Result<(Manifest, Digest), EngineError> {
    let file = slot.join("manifest.json");
    let limit = u64::try_from(MANIFEST_MAX_BYTES).unwrap_or(u64::MAX);
    let bytes = read_bounded(&file, limit)?;
    Ok((Manifest::parse(&bytes)?, Digest::of(&bytes)))
}

/// A file of the bundle, checked against the manifest's length and digest.
pub(crate) fn read_blob(
    slot: &Path,
    name: &str,
    blob: &Blob,
    max_bytes: u64,
) -> Result<Vec<u8>, EngineError> {
    let file = slot.join(name);
    let bytes = read_bounded(&file, blob.length.min(max_bytes))?;
    let got = Digest::of(&bytes);
    if got != blob.sha256 {
        return Err(EngineError::Content {
            file,
            problem: format!(
                "expected {} bytes with SHA-256 {}, got {} bytes with {got}",
                blob.length,
                blob.sha256,
                bytes.len()
            ),
        });
    }
    Ok(bytes)
}

fn read_bounded(file: &Path, max_bytes: u64) -> Result<Vec<u8>, EngineError> {
    let read = |source| EngineError::Read {
        file: file.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|f| f.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(read)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max_bytes {
        return Err(EngineError::Content {
            file: file.to_owned(),
            problem: format!("longer than the {max_bytes} bytes expected"),
        });
    }
    Ok(bytes)
}

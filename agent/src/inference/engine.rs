//! A staged bundle, loaded: manifest, graph and reference profile.

use super::graph::{Graph, GraphError};
use super::mend::Mend;
use super::steps::state::Streams;
use super::steps::{Observed, Plan, Sequence, SequenceError, Shaped, State, StepError};
use super::tensor::{Values, describe};
use dunlin_protocol::bundle::{
    Blob, DOCUMENT_MAX_BYTES, MANIFEST_MAX_BYTES, Manifest, ManifestError, Profile, ProfileError,
};
use dunlin_protocol::id::Digest;
use dunlin_protocol::{SEGMENT_MAX_BYTES, id::Family};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Most counters (bins and classes) a window may have, so that a full one fits a telemetry segment.
const WINDOW_MAX_COUNTERS: usize = SEGMENT_MAX_BYTES / COUNTER_BYTES;
/// Bytes of a counter in a segment.
pub(super) const COUNTER_BYTES: usize = 6;

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
    /// A step refuses what was sent.
    #[error("{0}")]
    Sent(StepError),
    /// The request names no stream that can go on.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// A step cannot work on what the graph gave.
    #[error("{0}")]
    Given(StepError),
}

impl EngineError {
    /// Whether the request is to blame and not the bundle.
    pub(crate) fn is_of_request(&self) -> bool {
        matches!(self, Self::Sent(_) | Self::Sequence(_))
    }
}

/// What one call gave.
#[derive(Debug)]
pub struct Inference<'a> {
    outputs: Vec<Shaped>,
    observed: Observed,
    graph_inputs: Cow<'a, [Values]>,
}

impl Inference<'_> {
    /// What the application gets, one value a declared output, in order.
    #[must_use]
    pub fn outputs(&self) -> &[Shaped] {
        &self.outputs
    }

    /// What the application gets.
    #[must_use]
    pub fn into_outputs(self) -> Vec<Shaped> {
        self.outputs
    }

    /// The scores whose class, confidence and entropy are observed.
    pub(crate) fn observed(&self) -> Option<&Values> {
        match &self.observed {
            Observed::Output(index) => self.outputs.get(*index).map(|o| &o.values),
            Observed::Hidden(values) => Some(values),
            Observed::Nothing => None,
        }
    }

    /// What the graph computed on, in the manifest's order.
    pub(crate) fn graph_inputs(&self) -> &[Values] {
        &self.graph_inputs
    }
}

/// A loaded bundle; any number of threads may use it at once.
#[derive(Debug)]
pub struct Engine {
    manifest: Manifest,
    bundle: Digest,
    profile: Option<Arc<(Digest, Profile)>>,
    graph: Graph,
    plan: Plan,
    streams: Option<Streams>,
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
        let plan = Plan::compile(&manifest)?;
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
        let bounds = manifest.steps.streams.unwrap_or_default();
        let streams = plan
            .is_stateful()
            .then(|| Streams::new(bounds, plan.initial().clone()));
        Ok(Self {
            manifest,
            bundle,
            profile,
            graph,
            plan,
            streams,
        })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the graph was mended by to be loaded; empty if it was taken as it is.
    #[must_use]
    pub fn mends(&self) -> &[Mend] {
        self.graph.mends()
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

    /// The processing steps, and with them what applications send and get.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What a stream begins with; empty if the bundle keeps nothing between calls.
    #[must_use]
    pub fn initial_state(&self) -> &State {
        self.plan.initial()
    }

    /// Computes what an application gets for what it sent: steps before the graph, the graph, steps
    /// after it. `inputs` is one value list for each thing the application sends, in order. Also gives
    /// what the stream's next call begins with.
    ///
    /// # Errors
    /// Values that do not fit the manifest, or an engine that failed.
    pub fn run<'a>(
        &self,
        inputs: &'a [Values],
        state: &State,
    ) -> Result<(Inference<'a>, State), EngineError> {
        self.check_sent(inputs)?;
        let mut prepared = self.plan.before(inputs, state).map_err(EngineError::Sent)?;
        let given = self.graph.run(&prepared.inputs)?;
        let (geometry, next) = prepared.rest();
        let finished = self.plan.after(given, geometry, next);
        let finished = finished.map_err(EngineError::Given)?;
        let inference = Inference {
            outputs: finished.outputs,
            observed: finished.observed,
            graph_inputs: prepared.inputs,
        };
        Ok((inference, finished.next))
    }

    /// As [`run`](Self::run), for a request: a bundle that keeps something between calls keeps it for
    /// the stream that the request's parameters name.
    ///
    /// # Errors
    /// As there, or a request that names no stream that can go on.
    pub fn infer<'a>(
        &self,
        inputs: &'a [Values],
        parameters: Option<&Map<String, Value>>,
        now: Instant,
    ) -> Result<Inference<'a>, EngineError> {
        let Some(streams) = &self.streams else {
            return Ok(self.run(inputs, self.plan.initial())?.0);
        };
        let lease = streams.hold(&Sequence::from_parameters(parameters)?, now)?;
        let (inference, next) = self.run(inputs, lease.state())?;
        lease.done(next);
        Ok(inference)
    }

    fn check_sent(&self, inputs: &[Values]) -> Result<(), EngineError> {
        let expected = self.plan.inputs();
        let wrong = |problem: String| {
            EngineError::Sent(StepError {
                place: "inputs".to_owned(),
                problem,
            })
        };
        if inputs.len() != expected.len() {
            let (wanted, got) = (expected.len(), inputs.len());
            return Err(wrong(format!("expected {wanted} tensors, got {got}")));
        }
        for (input, values) in expected.iter().zip(inputs) {
            let spec = &input.spec;
            if values.dtype() != spec.dtype || values.len() != spec.elements() {
                let (got, dtype) = (values.len(), values.dtype().as_str());
                let wanted = describe(spec);
                return Err(wrong(format!(
                    "expected {wanted}, got {got} values of {dtype}"
                )));
            }
            if let Values::BYTES(list) = values
                && let Some(long) = list.iter().find(|b| b.len() > input.bytes_max)
            {
                let (name, got, most) = (&spec.name, long.len(), input.bytes_max);
                return Err(wrong(format!(
                    "{name:?}: {got} bytes, at most {most} are accepted"
                )));
            }
        }
        Ok(())
    }
}

pub(super) fn check_window_size(manifest: &Manifest, profile: &Profile) -> Result<(), EngineError> {
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

//! The manifest and its own consistency rules.

use super::flow::{Application, Flow};
use super::step::Steps;
use crate::capture::CaptureRules;
use crate::id::{Digest, Family};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest manifest accepted, in bytes.
pub const MANIFEST_MAX_BYTES: usize = 1 << 20;

/// Most elements one tensor may have.
const TENSOR_MAX_ELEMENTS: usize = super::flow::MAX_ELEMENTS;
const TENSOR_MAX_RANK: usize = 8;
const MAX_TENSORS: usize = 64;
const MAX_LABELS: usize = 100_000;

/// Why bytes are not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too long to be parsed.
    #[error("manifest: {got} bytes, at most {max} are accepted")]
    TooLarge {
        /// Limit in bytes.
        max: usize,
        /// Length found.
        got: usize,
    },
    /// Not JSON of this shape.
    #[error("manifest: {0}")]
    Json(String),
    /// Parsed, yet not consistent.
    #[error("manifest: {field}: {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Element type of a tensor, named as in the Open Inference Protocol v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum DType {
    BOOL,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    INT8,
    INT16,
    INT32,
    INT64,
    FP16,
    FP32,
    FP64,
    /// Byte strings of any length; between applications and steps only, never in a graph.
    BYTES,
}

impl DType {
    /// The protocol's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BOOL => "BOOL",
            Self::UINT8 => "UINT8",
            Self::UINT16 => "UINT16",
            Self::UINT32 => "UINT32",
            Self::UINT64 => "UINT64",
            Self::INT8 => "INT8",
            Self::INT16 => "INT16",
            Self::INT32 => "INT32",
            Self::INT64 => "INT64",
            Self::FP16 => "FP16",
            Self::FP32 => "FP32",
            Self::FP64 => "FP64",
            Self::BYTES => "BYTES",
        }
    }
}

/// A named tensor with a concrete shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name in the ONNX graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, all known, outermost first.
    pub shape: Vec<usize>,
    /// Meaning of the dimensions, such as `NCHW`, where it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A blob as it travels when it is smaller compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// The only encoding so far: `zstd`.
    pub encoding: String,
    /// Digest of the compressed bytes.
    pub sha256: Digest,
    /// Length of the compressed bytes.
    pub length: u64,
}

/// A file of the bundle, addressed by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Digest of the file's bytes.
    pub sha256: Digest,
    /// Length of the file in bytes.
    pub length: u64,
    /// The compressed form, if that is smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Packed>,
}

impl Blob {
    /// Digest and length of what is fetched.
    #[must_use]
    pub fn transport(&self) -> (Digest, u64) {
        match &self.packed {
            Some(p) => (p.sha256, p.length),
            None => (self.sha256, self.length),
        }
    }
}

/// The bundle's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// The ONNX graph.
    pub model: Blob,
    /// Golden cases, `dunlin.golden/1`.
    pub golden: Blob,
    /// Reference profile, `dunlin.profile/1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Blob>,
    /// Model card, Markdown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<Blob>,
}

impl Files {
    /// Each file with the name it has on the device.
    #[must_use]
    pub fn named(&self) -> Vec<(&'static str, &Blob)> {
        let mut all = vec![("model.onnx", &self.model), ("golden.json", &self.golden)];
        all.extend(self.profile.as_ref().map(|b| ("profile.json", b)));
        all.extend(self.card.as_ref().map(|b| ("card.md", b)));
        all
    }
}

/// What golden cases must meet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest absolute difference from an expected output.
    pub tolerance_abs: f64,
    /// Longest time the median golden case may take on the device, in milliseconds.
    pub latency_budget_ms: u64,
}

/// What the device needs, checked before the download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory the worker needs for this model, in bytes.
    pub ram_bytes: u64,
    /// Space the bundle needs on disk, in bytes.
    pub disk_bytes: u64,
    /// Architectures as Rust names them (`x86_64`, `aarch64`, `arm`), or `any`.
    pub arch: Vec<String>,
    /// Oldest agent that can run it, `major.minor.patch`.
    pub agent_min: String,
}

/// Where the model comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// Digest of the training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_sha256: Option<Digest>,
    /// Training code: a commit or a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Licence of weights and data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Figures measured when it was trained.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// What a bundle is, as signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `dunlin.manifest/1`.
    pub schema: String,
    /// `model` (other kinds come later).
    pub kind: String,
    /// The family whose earlier version it replaces.
    pub family: Family,
    /// Rises with every release of the family.
    pub version: u64,
    /// Inputs of the graph.
    pub inputs: Vec<TensorSpec>,
    /// Outputs of the graph.
    pub outputs: Vec<TensorSpec>,
    /// Processing on the device.
    #[serde(default)]
    pub steps: Steps,
    /// What applications send and get, where it differs from the graph's inputs and outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application: Option<Application>,
    /// Class names, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What golden cases must meet.
    pub limits: Limits,
    /// What the device needs.
    pub resources: Resources,
    /// Where it comes from.
    #[serde(default)]
    pub lineage: Lineage,
    /// What devices may keep of its inputs, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureRules>,
    /// The files.
    pub files: Files,
}

impl Manifest {
    /// The schema this code reads.
    pub const SCHEMA: &'static str = "dunlin.manifest/1";

    /// Parses and checks a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] names the field and what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_MAX_BYTES {
            return Err(ManifestError::TooLarge {
                max: MANIFEST_MAX_BYTES,
                got: bytes.len(),
            });
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(e.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes that are hashed and signed: this type as JSON, fields in declared order.
    ///
    /// # Errors
    /// A number that JSON cannot hold (NaN) in limits or steps.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        serde_json::to_vec(self).map_err(|e| ManifestError::Json(e.to_string()))
    }

    /// Path of this manifest's target in the TUF repository.
    #[must_use]
    pub fn target_path(&self) -> String {
        target_path(&self.family, self.version)
    }

    /// Checks the rules that types alone cannot hold.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn check(&self) -> Result<(), ManifestError> {
        let bad = |field: &str, problem: String| {
            Err(ManifestError::Invalid {
                field: field.to_owned(),
                problem,
            })
        };
        if self.schema != Self::SCHEMA {
            return bad(
                "schema",
                format!("expected {:?}, got {:?}", Self::SCHEMA, self.schema),
            );
        }
        if self.kind != "model" {
            return bad("kind", format!("expected \"model\", got {:?}", self.kind));
        }
        if self.version == 0 {
            return bad("version", "must be 1 or more".to_owned());
        }
        check_tensors("inputs", &self.inputs)?;
        check_tensors("outputs", &self.outputs)?;
        for (field, tensors) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            if let Some(at) = tensors.iter().position(|t| t.dtype == DType::BYTES) {
                return bad(
                    &format!("{field}[{at}]"),
                    "BYTES is for application.inputs: a graph works on numbers".to_owned(),
                );
            }
        }
        if self.labels.len() > MAX_LABELS {
            return bad(
                "labels",
                format!("{} labels, at most {MAX_LABELS}", self.labels.len()),
            );
        }
        Flow::of(self)?;
        let t = self.limits.tolerance_abs;
        if !(t.is_finite() && t >= 0.0) {
            return bad(
                "limits.tolerance_abs",
                format!("must be finite and not negative, got {t}"),
            );
        }
        if self.limits.latency_budget_ms == 0 {
            return bad("limits.latency_budget_ms", "must be 1 or more".to_owned());
        }
        if super::selection::parse_version(&self.resources.agent_min).is_none() {
            return bad(
                "resources.agent_min",
                format!(
                    "expected major.minor.patch, got {:?}",
                    self.resources.agent_min
                ),
            );
        }
        if let Some(Err((field, problem))) = self.capture.as_ref().map(CaptureRules::check) {
            return bad(field, problem);
        }
        check_blobs(&self.files)
    }
}

/// Path of a version's manifest in the TUF repository.
#[must_use]
pub fn target_path(family: &Family, version: u64) -> String {
    format!("{family}/{version}/manifest.json")
}

pub(super) fn check_tensors(field: &str, tensors: &[TensorSpec]) -> Result<(), ManifestError> {
    let bad = |field: String, problem: String| Err(ManifestError::Invalid { field, problem });
    if tensors.is_empty() || tensors.len() > MAX_TENSORS {
        return bad(
            field.to_owned(),
            format!("1 to {MAX_TENSORS} tensors, got {}", tensors.len()),
        );
    }
    for (at, tensor) in tensors.iter().enumerate() {
        let here = format!("{field}[{at}] {:?}", tensor.name);
        if tensor.name.is_empty() || tensors[..at].iter().any(|t| t.name == tensor.name) {
            return bad(here, "names must be unique and not empty".to_owned());
        }
        let elements = tensor
            .shape
            .iter()
            .try_fold(1_usize, |n, &d| n.checked_mul(d));
        let fits = elements.is_some_and(|n| n > 0 && n <= TENSOR_MAX_ELEMENTS);
        if !fits || tensor.shape.len() > TENSOR_MAX_RANK {
            return bad(
                here,
                format!(
                    "shape {:?}: at most {TENSOR_MAX_RANK} dimensions, all positive, with at most {TENSOR_MAX_ELEMENTS} elements",
                    tensor.shape
                ),
            );
        }
    }
    Ok(())
}

fn check_blobs(files: &Files) -> Result<(), ManifestError> {
    for (name, blob) in files.named() {
        let max = if name == "model.onnx" {
            super::BLOB_MAX_BYTES
        } else {
            super::DOCUMENT_MAX_BYTES
        };
        let invalid = |problem: String| ManifestError::Invalid {
            field: format!("files.{name}"),
            problem,
        };
        if blob.length == 0 || blob.length > max {
            return Err(invalid(format!(
                "length must be 1 to {max} bytes, got {}",
                blob.length
            )));
        }
        if let Some(p) = &blob.packed {
            if p.encoding != "zstd" {
                return Err(invalid(format!(
                    "encoding {:?} is unknown, expected \"zstd\"",
                    p.encoding
                )));
            }
            if p.length == 0 || p.length >= blob.length {
                return Err(invalid(format!(
                    "packed length must be 1 to {}, got {}",
                    blob.length - 1,
                    p.length
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::super::step::Step;
    use super::*;

    pub(crate) fn sample() -> Manifest {
        let blob = |text: &str| Blob {
            sha256: Digest::of(text.as_bytes()),
            length: 100,
            packed: None,
        };
        let tensor = |name: &str, shape: &[usize]| TensorSpec {
            name: name.to_owned(),
            dtype: DType::FP32,
            shape: shape.to_vec(),
            layout: None,
        };
        Manifest {
            schema: Manifest::SCHEMA.to_owned(),
            kind: "model".to_owned(),
            family: "digits".parse().unwrap(),
            version: 2,
            inputs: vec![tensor("pixels", &[1, 64])],
            outputs: vec![tensor("probabilities", &[1, 10])],
            steps: Steps {
                pre: vec![Step::Scale {
                    tensor: "pixels".to_owned(),
                    mul: 0.0625,
                    add: 0.0,
                }],
                post: vec![],
                streams: None,
            },
            application: None,
            labels: (0..10).map(|n| n.to_string()).collect(),
            limits: Limits {
                tolerance_abs: 1e-4,
                latency_budget_ms: 50,
            },
            resources: Resources {
                ram_bytes: 1 << 26,
                disk_bytes: 1 << 20,
                arch: vec!["any".to_owned()],
                agent_min: "0.1.0".to_owned(),
            },
            lineage: Lineage::default(),
            capture: None,
            files: Files {
                model: blob("model"),
                golden: blob("golden"),
                profile: Some(blob("profile")),
                card: None,
            },
        }
    }

    #[test]
    fn a_manifest_reads_back_what_it_wrote() {
        let m = sample();
        assert_eq!(Manifest::parse(&m.to_bytes().unwrap()).unwrap(), m);
        assert_eq!(m.target_path(), "digits/2/manifest.json");
    }

    #[test]
    fn each_broken_rule_is_named() {
        type Break = fn(&mut Manifest);
        let cases: [(&str, Break); 9] = [
            ("schema", |m| m.schema = "x".to_owned()),
            ("kind", |m| m.kind = "toaster".to_owned()),
            ("version", |m| m.version = 0),
            ("inputs[0]", |m| m.inputs[0].shape = vec![usize::MAX, 2]),
            ("outputs", |m| m.outputs.clear()),
            ("steps.pre[0]", |m| {
                m.steps.pre[0] = Step::Softmax {
                    tensor: "nope".to_owned(),
                };
            }),
            ("limits.tolerance_abs", |m| m.limits.tolerance_abs = -1.0),
            ("resources.agent_min", |m| {
                m.resources.agent_min = "new".to_owned();
            }),
            ("files.model.onnx", |m| m.files.model.length = 0),
        ];
        for (field, change) in cases {
            let mut m = sample();
            change(&mut m);
            let error = m.check().unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn endless_bytes_are_not_parsed() {
        let big = vec![b' '; MANIFEST_MAX_BYTES + 1];
        assert!(matches!(
            Manifest::parse(&big),
            Err(ManifestError::TooLarge { .. })
        ));
    }
}

//! The frozen reference profile: bins and counts that every device's windows are compared with.

use super::segments::{Segments, SegmentsError};
use super::{DType, Flow, Manifest, Statistic, TensorSpec};
use crate::calibration::{Calibration, CalibrationError};
use crate::sketch::{Edges, SketchError};
use serde::{Deserialize, Serialize};

const MAX_FEATURES: usize = 4096;
const MAX_CLASSES: usize = 100_000;

/// Why a document is no reference profile for a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON of this shape.
    #[error("profile: {0}")]
    Json(String),
    /// Another schema.
    #[error("profile: schema: expected \"dunlin.profile/1\", got {0:?}")]
    Schema(String),
    /// The manifest itself is not consistent.
    #[error("profile: {0}")]
    Manifest(String),
    /// A feature names a tensor or an index that the manifest has not.
    #[error("profile: feature {feature:?}: input {tensor:?} has no element {index}")]
    Feature {
        /// Name of the feature.
        feature: String,
        /// Tensor it names.
        tensor: String,
        /// Element it names.
        index: usize,
    },
    /// Edges or counts that make no histogram.
    #[error("profile: {what}: {error}")]
    Histogram {
        /// Which histogram.
        what: String,
        /// What is wrong.
        error: SketchError,
    },
    /// A statistic along a dimension that the tensor has not.
    #[error(
        "profile: feature {feature:?}: input {tensor:?} has no dimension {axis} with a place {index}"
    )]
    Axis {
        /// Name of the feature.
        feature: String,
        /// Tensor it names.
        tensor: String,
        /// Dimension it names.
        axis: usize,
        /// Place along it.
        index: usize,
    },
    /// Categories whose edges are not their places.
    #[error("profile: feature {feature:?}: categories need the edges 0, 1, 2, …, and no statistic")]
    Categories {
        /// Name of the feature.
        feature: String,
    },
    /// Segments that cannot be used.
    #[error("profile: segments: {0}")]
    Segments(#[from] SegmentsError),
    /// Not a calibration of these classes.
    #[error("profile: calibration: {0}")]
    Calibration(#[from] CalibrationError),
    /// Lengths that do not belong together.
    #[error("profile: {what}: expected {expected}, got {got}")]
    Length {
        /// Which list.
        what: String,
        /// Length expected.
        expected: usize,
        /// Length found.
        got: usize,
    },
}

/// One histogram of the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureProfile {
    /// Name shown to people.
    pub name: String,
    /// Input tensor.
    pub tensor: String,
    /// Whether the tensor is the graph's input, after the processing steps, and not what the
    /// application sends: for images and whatever else has no element of its own to look at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub after_steps: bool,
    /// What is looked at, where it is not one element: a statistic of all of them, for images and
    /// sound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistic: Option<Statistic>,
    /// With a statistic: only of the elements at place `index` of this dimension, such as one colour;
    /// of all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<usize>,
    /// Element of the tensor, row-major; with an `axis`, the place along it; 0 with a statistic of all.
    pub index: usize,
    /// Values that have no order, as they are written; a tensor of `BYTES` has only such. Bin n is value
    /// n, the edges are 0, 1, 2 and so on, and what is none of them is above the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub categories: Option<Vec<String>>,
    /// Bin edges, see [`Edges`].
    pub edges: Edges,
    /// Reference rows by bin.
    pub counts: Vec<u64>,
}

/// Reference of the predicted classes, or of confidence or entropy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputProfile {
    /// Bin edges, see [`Edges`].
    pub edges: Edges,
    /// Reference rows by bin.
    pub counts: Vec<u64>,
}

/// Reference of the predicted classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassProfile {
    /// Class names.
    pub classes: Vec<String>,
    /// Reference rows by class.
    pub counts: Vec<u64>,
}

/// The reference profile (`dunlin.profile/1`). Feature values are those that applications send,
/// before the processing steps, unless the feature says `after_steps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// `dunlin.profile/1`.
    pub schema: String,
    /// Rows the reference was computed from.
    pub rows: u64,
    /// Input features.
    pub features: Vec<FeatureProfile>,
    /// Predicted classes (of the observed scores, by their largest element).
    pub outputs: ClassProfile,
    /// Largest element of the observed scores.
    pub confidence: OutputProfile,
    /// Entropy of the observed scores, in nats.
    pub entropy: OutputProfile,
    /// From scores to probabilities, where accuracy is to be estimated without labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// What is counted apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
}

impl FeatureProfile {
    /// Whether it looks at something that the tensor has.
    fn check(&self, tensor: Option<&TensorSpec>) -> Result<(), ProfileError> {
        if let Some(categories) = &self.categories {
            let steps = self.edges.as_slice().iter().zip(0_u32..);
            if self.statistic.is_some() || !steps.into_iter().all(|(e, n)| *e == f64::from(n)) {
                return Err(ProfileError::Categories {
                    feature: self.name.clone(),
                });
            }
            if categories.len() != self.edges.bins() {
                return Err(ProfileError::Length {
                    what: self.name.clone(),
                    expected: self.edges.bins(),
                    got: categories.len(),
                });
            }
        }
        let shape = tensor.map_or(&[][..], |t| &t.shape);
        let elements = tensor.map_or(0, TensorSpec::elements);
        match (self.statistic, self.axis) {
            (Some(_), Some(axis)) if shape.get(axis).is_none_or(|n| self.index >= *n) => {
                Err(ProfileError::Axis {
                    feature: self.name.clone(),
                    tensor: self.tensor.clone(),
                    axis,
                    index: self.index,
                })
            }
            (Some(_), Some(_)) => Ok(()),
            (Some(_), None) if elements > 0 && self.index == 0 => Ok(()),
            (None, None) if self.index < elements => Ok(()),
            _ => Err(ProfileError::Feature {
                feature: self.name.clone(),
                tensor: self.tensor.clone(),
                index: self.index,
            }),
        }
    }
}

impl Profile {
    /// Parses a profile and checks it against the manifest it belongs to. The caller has bounded
    /// `bytes` by the manifest's signed length.
    ///
    /// # Errors
    /// What does not fit, by feature.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, ProfileError> {
        let profile: Self =
            serde_json::from_slice(bytes).map_err(|e| ProfileError::Json(e.to_string()))?;
        if profile.schema != "dunlin.profile/1" {
            return Err(ProfileError::Schema(profile.schema));
        }
        let length = |what: &str, expected: usize, got: usize| {
            (expected == got)
                .then_some(())
                .ok_or_else(|| ProfileError::Length {
                    what: what.to_owned(),
                    expected,
                    got,
                })
        };
        if profile.features.len() > MAX_FEATURES {
            length("features (at most)", MAX_FEATURES, profile.features.len())?;
        }
        if profile.outputs.classes.len() > MAX_CLASSES {
            length(
                "classes (at most)",
                MAX_CLASSES,
                profile.outputs.classes.len(),
            )?;
        }
        length(
            "outputs.counts",
            profile.outputs.classes.len(),
            profile.outputs.counts.len(),
        )?;
        let flow = Flow::of(manifest).map_err(|e| ProfileError::Manifest(e.to_string()))?;
        for f in &profile.features {
            let sent = flow.inputs.iter().map(|i| &i.spec);
            let found = if f.after_steps {
                manifest.inputs.iter().find(|t| t.name == f.tensor)
            } else {
                sent.filter(|t| t.dtype != DType::BYTES || f.categories.is_some())
                    .find(|t| t.name == f.tensor)
            };
            f.check(found)?;
            length(&f.name, f.edges.bins(), f.counts.len())?;
        }
        for (what, h) in [
            ("confidence", &profile.confidence),
            ("entropy", &profile.entropy),
        ] {
            length(what, h.edges.bins(), h.counts.len())?;
        }
        if let Some(calibration) = &profile.calibration {
            calibration.check(profile.outputs.classes.len())?;
        }
        if let Some(segments) = &profile.segments {
            segments.check()?;
        }
        Ok(profile)
    }
}

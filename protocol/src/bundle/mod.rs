//! A bundle: one signed manifest and content-addressed blobs.
//!
//! The manifest signs as one unit all that decides what a device computes: the ONNX graph, the
//! concrete shapes of its inputs and outputs, the processing steps, the labels, the golden cases,
//! the frozen reference profile and the resources it needs. Its own SHA-256 is the bundle's
//! digest, which every telemetry record carries.

pub mod flow;
mod golden;
mod manifest;
mod profile;
pub mod segments;
mod selection;
mod statistic;
pub mod step;

pub use flow::{Application, ApplicationInput, Dim, Flow, TensorType};
pub use golden::{GoldenCase, GoldenError, GoldenSet, GoldenValues};
pub use manifest::{
    Blob, DType, Files, Limits, Lineage, MANIFEST_MAX_BYTES, Manifest, ManifestError, Packed,
    Resources, TensorSpec, target_path,
};
pub use profile::{ClassProfile, FeatureProfile, OutputProfile, Profile, ProfileError};
pub use segments::Segments;
pub use selection::{HostFacts, Unfit, check_fit};
pub use statistic::Statistic;
pub use step::{Step, Steps};

/// Largest blob a manifest may name, in bytes.
pub const BLOB_MAX_BYTES: u64 = 4 << 30;

/// Largest golden or profile document, in bytes.
pub const DOCUMENT_MAX_BYTES: u64 = 64 << 20;

//! The repository's real models, staged in folders as on a device.

use dunlin_agent::inference;
use dunlin_agent::pipe::TrialReport;
use dunlin_protocol::bundle::{
    Application, Blob, Files, Limits, Lineage, Manifest, Resources, Steps, TensorSpec,
};
use dunlin_protocol::id::{Digest, Family};
use serde_json::Value;
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct BundleToml {
    family: Family,
    version: u64,
    labels: Vec<String>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    steps: Steps,
    application: Option<Application>,
    limits: Limits,
    resources: Resources,
    lineage: Lineage,
    #[serde(default)]
    capture: Option<dunlin_protocol::capture::CaptureRules>,
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/digits")
}

/// A folder staged as a device has it.
pub(crate) struct Slot(tempfile::TempDir);

impl Slot {
    /// A committed version of the model.
    pub(crate) fn of(version: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = models().join(format!("v{version}"));
        for name in ["model.onnx", "golden.json", "profile.json", "bundle.toml"] {
            std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
        }
        let slot = Self(dir);
        slot.sign(|_| ());
        slot
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path().join(name), bytes).unwrap();
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path().join(name)).unwrap()).unwrap()
    }

    /// Version 2 behind steps that read pictures.
    pub(crate) fn of_pictures() -> Self {
        Self::behind_steps("digits-png", "digits/v2/model.onnx")
    }

    /// A model that keeps a state for each of two streams.
    pub(crate) fn of_streams() -> Self {
        Self::behind_steps("running-level", "running-level/model.onnx")
    }

    fn behind_steps(name: &str, model: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let models = models().join("..");
        for file in ["golden.json", "bundle.toml"] {
            std::fs::copy(models.join(name).join(file), dir.path().join(file)).unwrap();
        }
        std::fs::copy(models.join(model), dir.path().join("model.onnx")).unwrap();
        let slot = Self(dir);
        slot.sign(|_| ());
        slot
    }

    /// Writes a manifest over the files as they are now.
    pub(crate) fn sign(&self, change: impl FnOnce(&mut Manifest)) {
        let blob = |name: &str| {
            let bytes = std::fs::read(self.path().join(name)).unwrap();
            Blob {
                sha256: Digest::of(&bytes),
                length: bytes.len() as u64,
                packed: None,
            }
        };
        let text = std::fs::read_to_string(self.path().join("bundle.toml")).unwrap();
        let recipe: BundleToml = toml::from_str(&text).unwrap();
        let mut manifest = Manifest {
            schema: Manifest::SCHEMA.to_owned(),
            kind: "model".to_owned(),
            family: recipe.family,
            version: recipe.version,
            inputs: recipe.inputs,
            outputs: recipe.outputs,
            steps: recipe.steps,
            application: recipe.application,
            labels: recipe.labels,
            limits: recipe.limits,
            resources: recipe.resources,
            lineage: recipe.lineage,
            capture: recipe.capture,
            files: Files {
                model: blob("model.onnx"),
                golden: blob("golden.json"),
                profile: self
                    .path()
                    .join("profile.json")
                    .exists()
                    .then(|| blob("profile.json")),
                card: None,
            },
        };
        change(&mut manifest);
        self.write("manifest.json", &manifest.to_bytes().unwrap());
    }

    pub(crate) fn bundle(&self) -> Digest {
        Digest::of(&std::fs::read(self.path().join("manifest.json")).unwrap())
    }

    pub(crate) fn trial_failure(&self) -> (String, String) {
        match inference::trial(self.path()) {
            TrialReport::Failed { code, detail } => (code, detail),
            passed => panic!("passed: {passed:?}"),
        }
    }
}

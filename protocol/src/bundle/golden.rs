//! Golden cases: inputs with the outputs that the training runtime computed.

use super::Manifest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MAX_CASES: usize = 10_000;

/// Why a document is no set of golden cases for a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoldenError {
    /// Not JSON of this shape.
    #[error("golden cases: {0}")]
    Json(String),
    /// Another schema.
    #[error("golden cases: schema: expected \"dunlin.golden/1\", got {0:?}")]
    Schema(String),
    /// No case or too many.
    #[error("golden cases: 1 to {MAX_CASES} cases, got {0}")]
    Count(usize),
    /// A tensor that the manifest does not know, a missing one, or one of another length.
    #[error("golden case {case:?}: tensor {tensor:?}: expected {expected} values, got {got}")]
    Tensor {
        /// Name of the case.
        case: String,
        /// Name of the tensor.
        tensor: String,
        /// Elements by the manifest (0: the manifest has no such tensor).
        expected: usize,
        /// Values in the case.
        got: usize,
    },
}

/// One case: what an application sends and what it must get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenCase {
    /// Name, for reports.
    pub name: String,
    /// Values by input, row-major, before the processing steps.
    pub inputs: BTreeMap<String, Vec<f64>>,
    /// Values by output, row-major, after the processing steps.
    pub outputs: BTreeMap<String, Vec<f64>>,
}

/// A set of golden cases (`dunlin.golden/1`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenSet {
    /// `dunlin.golden/1`.
    pub schema: String,
    /// The runtime that computed the outputs.
    pub producer: String,
    /// The cases.
    pub cases: Vec<GoldenCase>,
}

impl GoldenSet {
    /// Parses a set and checks it against the manifest it belongs to. The caller has bounded
    /// `bytes` by the manifest's signed length.
    ///
    /// # Errors
    /// What does not fit, by case and tensor.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, GoldenError> {
        let set: Self =
            serde_json::from_slice(bytes).map_err(|e| GoldenError::Json(e.to_string()))?;
        if set.schema != "dunlin.golden/1" {
            return Err(GoldenError::Schema(set.schema));
        }
        if set.cases.is_empty() || set.cases.len() > MAX_CASES {
            return Err(GoldenError::Count(set.cases.len()));
        }
        for case in &set.cases {
            check(case, &case.inputs, &manifest.inputs)?;
            check(case, &case.outputs, &manifest.outputs)?;
        }
        Ok(set)
    }
}

fn check(
    case: &GoldenCase,
    values: &BTreeMap<String, Vec<f64>>,
    specs: &[super::TensorSpec],
) -> Result<(), GoldenError> {
    let wrong = |tensor: &str, expected, got| {
        Err(GoldenError::Tensor {
            case: case.name.clone(),
            tensor: tensor.to_owned(),
            expected,
            got,
        })
    };
    for spec in specs {
        let got = values.get(&spec.name).map_or(0, Vec::len);
        if got != spec.elements() {
            return wrong(&spec.name, spec.elements(), got);
        }
    }
    match values
        .iter()
        .find(|(name, _)| specs.iter().all(|s| s.name != **name))
    {
        Some((name, v)) => wrong(name, 0, v.len()),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn document(pixels: usize, extra: &str) -> Vec<u8> {
        format!(
            r#"{{"schema":"dunlin.golden/1","producer":"p","cases":[{{"name":"a","inputs":{{"pixels":{:?}{extra}}},"outputs":{{"probabilities":{:?}}}}}]}}"#,
            vec![0.0; pixels],
            vec![0.1; 10]
        )
        .into_bytes()
    }

    #[test]
    fn cases_must_fit_the_manifest() {
        let manifest = super::super::manifest::tests::sample();
        assert!(GoldenSet::parse(&document(64, ""), &manifest).is_ok());
        let short = GoldenSet::parse(&document(63, ""), &manifest).unwrap_err();
        assert!(short.to_string().contains("expected 64 values, got 63"));
        let extra = GoldenSet::parse(&document(64, r#","y":[1]"#), &manifest).unwrap_err();
        assert!(matches!(extra, GoldenError::Tensor { expected: 0, .. }));
    }
}

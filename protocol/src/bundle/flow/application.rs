//! What applications send and get.

use super::{Side, TensorType, carried, invalid};
use crate::bundle::manifest::{DType, Manifest, ManifestError, TensorSpec, check_tensors};
use crate::bundle::step::Step;
use serde::{Deserialize, Serialize};

/// Longest element of `BYTES` that may be signed, in bytes.
const BYTES_MAX: usize = 64 << 20;
/// Longest element of `BYTES` if nothing is signed, in bytes.
const BYTES_DEFAULT: usize = 4 << 20;

/// What applications send, if that is not what the graph takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationInput {
    /// Name.
    pub name: String,
    /// Element type, `BYTES` among them.
    pub dtype: DType,
    /// Dimensions, all known, outermost first.
    pub shape: Vec<usize>,
    /// Of `BYTES`: longest element, in bytes; 4 MiB if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<usize>,
}

/// What applications send and get, where it differs from what the graph takes and gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// What they send; if empty, the graph's inputs (without those that are carried).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<ApplicationInput>,
    /// Names of what they get, in order; if empty, all that there is after the steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Name, after the steps, of the scores whose class, confidence and entropy are observed; if
    /// absent, the first output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<String>,
}

/// What an application sends under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Name, element type and shape.
    pub spec: TensorSpec,
    /// Of `BYTES`: longest element, in bytes; 0 for all others.
    pub bytes_max: usize,
    /// Of `BYTES`: whether JSON has them as base64, since an image's bytes are no text.
    pub base64: bool,
}

/// What an application gets under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Name.
    pub name: String,
    /// Element type and shape.
    pub of: TensorType,
    /// Its slot after the graph.
    pub slot: usize,
}

impl From<TensorSpec> for Input {
    fn from(spec: TensorSpec) -> Self {
        Self {
            spec,
            bytes_max: 0,
            base64: false,
        }
    }
}

pub(super) fn inputs(manifest: &Manifest) -> Result<Vec<Input>, ManifestError> {
    let declared = manifest.application.as_ref().map(|a| &a.inputs[..]);
    let declared = declared.unwrap_or_default();
    if declared.is_empty() {
        let sent = manifest.inputs.iter();
        let sent = sent.filter(|s| carried(manifest).all(|c| c.tensor != s.name));
        return Ok(sent.cloned().map(Input::from).collect());
    }
    let specs: Vec<TensorSpec> = declared
        .iter()
        .map(|input| TensorSpec {
            name: input.name.clone(),
            dtype: input.dtype,
            shape: input.shape.clone(),
            layout: None,
        })
        .collect();
    check_tensors("application.inputs", &specs)?;
    let mut inputs = Vec::new();
    for (at, (input, spec)) in declared.iter().zip(specs).enumerate() {
        let field = format!("application.inputs[{at}] {:?}", input.name);
        let bytes_max = match (input.dtype, input.bytes_max) {
            (DType::BYTES, limit) => limit.unwrap_or(BYTES_DEFAULT),
            (_, None) => 0,
            (dtype, Some(_)) => {
                let problem = format!("bytes_max is for BYTES, this is {}", dtype.as_str());
                return Err(invalid(field, problem));
            }
        };
        let all = bytes_max.saturating_mul(spec.elements());
        if input.dtype == DType::BYTES && (bytes_max == 0 || all > BYTES_MAX) {
            let problem = format!("bytes_max · elements must be 1 to {BYTES_MAX} bytes, got {all}");
            return Err(invalid(field, problem));
        }
        let is_decoded =
            |step: &Step| matches!(step, Step::DecodeImage(s) if s.tensor == spec.name);
        let base64 = manifest.steps.pre.iter().any(is_decoded);
        inputs.push(Input {
            spec,
            bytes_max,
            base64,
        });
    }
    Ok(inputs)
}

pub(super) fn outputs(manifest: &Manifest, after: &Side) -> Result<Vec<Output>, ManifestError> {
    let named = manifest.application.as_ref().map(|a| &a.outputs[..]);
    let named = named.unwrap_or_default();
    let slots: Vec<usize> = if named.is_empty() {
        let hidden = |name: &str| carried(manifest).any(|c| c.from == name);
        let all = after.slots.iter().enumerate();
        all.filter(|(_, (name, _))| !hidden(name))
            .map(|(slot, _)| slot)
            .collect()
    } else {
        let mut slots = Vec::new();
        for (at, name) in named.iter().enumerate() {
            let field = format!("application.outputs[{at}] {name:?}");
            let slot = after.slot(name);
            match slot {
                Some(slot) if !slots.contains(&slot) => slots.push(slot),
                Some(_) => return Err(invalid(field, "named twice")),
                None => return Err(invalid(field, "there is no such tensor after the steps")),
            }
        }
        slots
    };
    if slots.is_empty() {
        return Err(invalid(
            "application.outputs",
            "applications would get nothing",
        ));
    }
    let outputs = slots.into_iter().map(|slot| {
        let (name, of) = after.slots[slot].clone();
        Output { name, of, slot }
    });
    Ok(outputs.collect())
}

pub(super) fn observed(
    manifest: &Manifest,
    after: &Side,
    outputs: &[Output],
) -> Result<Option<usize>, ManifestError> {
    let Some(name) = manifest
        .application
        .as_ref()
        .and_then(|a| a.observed.as_ref())
    else {
        let is_scores = |o: &&Output| o.of.dtype != DType::BYTES && o.of.fixed_shape().is_some();
        let first = outputs.first().filter(is_scores);
        return Ok(first.map(|o| o.slot));
    };
    let slot = after.slot(name);
    let numeric = slot.filter(|&s| {
        let of = &after.slots[s].1;
        of.dtype != DType::BYTES && of.fixed_shape().is_some()
    });
    numeric.map(Some).ok_or_else(|| {
        let problem = format!("{name:?} is no tensor of numbers of a fixed shape after the steps");
        invalid("application.observed", problem)
    })
}

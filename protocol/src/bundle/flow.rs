//! Types and shapes through a manifest's steps, worked out when the manifest is read: what
//! applications send, what every step makes of it, that the graph gets exactly what it takes, and
//! what applications get. Pure; a bundle whose steps do not fit together is refused when it is
//! packed, uploaded and received.

mod signature;

use super::manifest::{DType, Manifest, ManifestError, TensorSpec};
use super::step::Step;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most steps on one side of the graph.
const MAX_STEPS: usize = 256;
/// Most elements a value between steps may have.
pub(crate) const MAX_ELEMENTS: usize = 1 << 26;
/// Longest element of `BYTES` that may be signed, in bytes.
const BYTES_MAX: usize = 64 << 20;
/// Longest element of `BYTES` if nothing is signed, in bytes.
const BYTES_DEFAULT: usize = 4 << 20;
const MAX_STREAMS: usize = 4096;
/// Most memory that all streams' values together may take, in bytes.
const STREAM_BYTES_MAX: usize = 256 << 20;

/// A dimension of a value between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// Always this many.
    Fixed(usize),
    /// 0 up to this many, from call to call.
    UpTo(usize),
}

impl Dim {
    /// The largest it can be.
    #[must_use]
    pub fn max(self) -> usize {
        match self {
            Self::Fixed(n) | Self::UpTo(n) => n,
        }
    }

    /// As the Open Inference Protocol writes it: −1 if it varies.
    #[must_use]
    pub fn on_the_wire(self) -> i64 {
        match self {
            Self::Fixed(n) => i64::try_from(n).unwrap_or(i64::MAX),
            Self::UpTo(_) => -1,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::UpTo(n) => write!(f, "≤{n}"),
        }
    }
}

/// Element type and shape of a value between steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type whose dimensions are all known.
    #[must_use]
    pub fn fixed(dtype: DType, shape: &[usize]) -> Self {
        Self {
            dtype,
            shape: shape.iter().map(|&n| Dim::Fixed(n)).collect(),
        }
    }

    /// The dimensions, if none of them varies.
    #[must_use]
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        let fixed = self.shape.iter().map(|d| match d {
            Dim::Fixed(n) => Some(*n),
            Dim::UpTo(_) => None,
        });
        fixed.collect()
    }

    /// Most elements; `usize::MAX` if there is no such number.
    #[must_use]
    pub fn elements_max(&self) -> usize {
        let dims = self.shape.iter();
        dims.fold(1_usize, |n, d| n.saturating_mul(d.max()))
    }

    /// Whether a shape found while running is one of this type.
    #[must_use]
    pub fn admits(&self, shape: &[usize]) -> bool {
        let fits = |(dim, &n): (&Dim, &usize)| match dim {
            Dim::Fixed(want) => n == *want,
            Dim::UpTo(most) => n <= *most,
        };
        shape.len() == self.shape.len() && self.shape.iter().zip(shape).all(fits)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.shape.iter().map(Dim::to_string).collect();
        write!(f, "{} [{}]", self.dtype.as_str(), dims.join(", "))
    }
}

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

/// A step with the slots it reads and writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Wired {
    /// The step.
    pub step: Step,
    /// Slots read.
    pub reads: Vec<usize>,
    /// Slots written.
    pub writes: Vec<usize>,
    /// Types read.
    pub takes: Vec<TensorType>,
    /// Types written.
    pub gives: Vec<TensorType>,
}

/// One side of the graph: the values that exist there, and the steps over them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Side {
    /// Name and last type of each slot. The first ones are what comes in, in order.
    pub slots: Vec<(String, TensorType)>,
    /// The steps, in order.
    pub steps: Vec<Wired>,
}

impl Side {
    /// The slot of a name.
    #[must_use]
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|(n, _)| n == name)
    }
}

/// A manifest's whole way from what is sent to what is got.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    /// What applications send.
    pub inputs: Vec<Input>,
    /// Before the graph. The first slots are `inputs`.
    pub before: Side,
    /// For each graph input, its slot in `before`.
    pub graph_inputs: Vec<usize>,
    /// After the graph. The first slots are the graph's outputs.
    pub after: Side,
    /// What applications get.
    pub outputs: Vec<Output>,
    /// Slot in `after` whose class, confidence and entropy are observed, if it has such.
    pub observed: Option<usize>,
}

impl Flow {
    /// Works a manifest's steps out.
    ///
    /// # Errors
    /// The first step that does not fit: its place and name, what it expects and what it got.
    pub fn of(manifest: &Manifest) -> Result<Self, ManifestError> {
        let inputs = inputs(manifest)?;
        let mut before = Side::default();
        for input in &inputs {
            let of = TensorType::fixed(input.spec.dtype, &input.spec.shape);
            before.slots.push((input.spec.name.clone(), of));
        }
        wire(
            "steps.pre",
            &manifest.steps.pre,
            &mut before,
            manifest,
            None,
        )?;
        let graph_inputs = meet_graph(manifest, &before, inputs.len())?;
        let mut after = Side::default();
        for spec in &manifest.outputs {
            let of = TensorType::fixed(spec.dtype, &spec.shape);
            after.slots.push((spec.name.clone(), of));
        }
        let post = &manifest.steps.post;
        wire("steps.post", post, &mut after, manifest, Some(&before))?;
        let outputs = outputs(manifest, &after)?;
        let observed = observed(manifest, &after, &outputs)?;
        check_streams(manifest, &before)?;
        Ok(Self {
            inputs,
            before,
            graph_inputs,
            after,
            outputs,
            observed,
        })
    }

    /// Whether a step keeps something from one call of a stream to the next.
    #[must_use]
    pub fn is_stateful(&self) -> bool {
        self.before.steps.iter().any(|w| keeps(&w.step))
    }
}

fn keeps(step: &Step) -> bool {
    matches!(step, Step::Carry(_) | Step::SlidingWindow(_))
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> ManifestError {
    ManifestError::Invalid {
        field: field.into(),
        problem: problem.into(),
    }
}

fn carried(manifest: &Manifest) -> impl Iterator<Item = &super::step::Carry> {
    manifest.steps.pre.iter().filter_map(|s| match s {
        Step::Carry(carry) => Some(carry),
        _ => None,
    })
}

fn inputs(manifest: &Manifest) -> Result<Vec<Input>, ManifestError> {
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
    super::manifest::check_tensors("application.inputs", &specs)?;
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

/// Gives every step its slots and checks its signature. `before` is the other side, if this is the
/// one after the graph.
fn wire(
    field: &str,
    steps: &[Step],
    side: &mut Side,
    manifest: &Manifest,
    before: Option<&Side>,
) -> Result<(), ManifestError> {
    if steps.len() > MAX_STEPS {
        let problem = format!("{} steps, at most {MAX_STEPS}", steps.len());
        return Err(invalid(field, problem));
    }
    for (at, step) in steps.iter().enumerate() {
        let here = || format!("{field}[{at}] {}", step.name());
        let bad = |problem: String| invalid(here(), problem);
        let mut reads = Vec::new();
        for name in step.reads() {
            let slot = side.slot(name).ok_or_else(|| {
                let known: Vec<&str> = side.slots.iter().map(|(n, _)| n.as_str()).collect();
                bad(format!("unknown tensor {name:?}; there is {known:?}"))
            })?;
            reads.push(slot);
        }
        let takes: Vec<TensorType> = reads.iter().map(|&s| side.slots[s].1.clone()).collect();
        let context = signature::Context { manifest, before };
        let gives = signature::of(step, &takes, &context).map_err(bad)?;
        let writes = write(step, &gives, side, &reads).map_err(bad)?;
        side.steps.push(Wired {
            step: step.clone(),
            reads,
            writes,
            takes,
            gives,
        });
    }
    Ok(())
}

/// Puts what a step gives into its slots.
fn write(
    step: &Step,
    gives: &[TensorType],
    side: &mut Side,
    reads: &[usize],
) -> Result<Vec<usize>, String> {
    if let Some(wide) = gives
        .iter()
        .find(|t| t.elements_max() > MAX_ELEMENTS && t.fixed_shape().is_some() || t.shape.len() > 8)
    {
        return Err(format!(
            "gives {wide}: at most 8 dimensions and {MAX_ELEMENTS} elements"
        ));
    }
    if step.is_in_place() {
        side.slots[reads[0]].1 = gives[0].clone();
        return Ok(reads.to_vec());
    }
    let mut writes = Vec::new();
    for (name, of) in step.writes().into_iter().zip(gives) {
        if name.is_empty() || side.slot(name).is_some() {
            return Err(format!(
                "{name:?} is empty or taken: a result needs a new name"
            ));
        }
        writes.push(side.slots.len());
        side.slots.push((name.to_owned(), of.clone()));
    }
    Ok(writes)
}

/// Every graph input must be there, of its type; everything sent must be used.
fn meet_graph(
    manifest: &Manifest,
    before: &Side,
    sent: usize,
) -> Result<Vec<usize>, ManifestError> {
    let mut slots = Vec::new();
    for (at, spec) in manifest.inputs.iter().enumerate() {
        let field = format!("inputs[{at}] {:?}", spec.name);
        let want = TensorType::fixed(spec.dtype, &spec.shape);
        let Some(slot) = before.slot(&spec.name) else {
            let problem = format!("expected {want}, nothing of this name comes from the steps");
            return Err(invalid(field, problem));
        };
        let got = &before.slots[slot].1;
        if *got != want {
            let problem = format!("the graph takes {want}, the steps give {got}");
            return Err(invalid(field, problem));
        }
        slots.push(slot);
    }
    let is_read = |slot| before.steps.iter().any(|w| w.reads.contains(&slot));
    if let Some(unused) = (0..sent).find(|s| !slots.contains(s) && !is_read(*s)) {
        let field = format!("application.inputs[{unused}] {:?}", before.slots[unused].0);
        return Err(invalid(field, "neither a step nor the graph uses it"));
    }
    Ok(slots)
}

fn outputs(manifest: &Manifest, after: &Side) -> Result<Vec<Output>, ManifestError> {
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

fn observed(
    manifest: &Manifest,
    after: &Side,
    outputs: &[Output],
) -> Result<Option<usize>, ManifestError> {
    let Some(name) = manifest
        .application
        .as_ref()
        .and_then(|a| a.observed.as_ref())
    else {
        let first = outputs.first().filter(|o| o.of.dtype != DType::BYTES);
        return Ok(first.map(|o| o.slot));
    };
    let slot = after.slot(name);
    let numeric = slot.filter(|&s| after.slots[s].1.dtype != DType::BYTES);
    numeric.map(Some).ok_or_else(|| {
        let problem = format!("{name:?} is no tensor of numbers after the steps");
        invalid("application.observed", problem)
    })
}

fn check_streams(manifest: &Manifest, before: &Side) -> Result<(), ManifestError> {
    let kept = before.steps.iter().filter(|w| keeps(&w.step));
    let bytes = kept.flat_map(|w| &w.gives).fold(0_usize, |n, t| {
        n.saturating_add(t.elements_max().saturating_mul(8))
    });
    let Some(bounds) = manifest.steps.streams else {
        return if bytes > STREAM_BYTES_MAX / super::step::StreamBounds::default().max {
            let problem = format!("{bytes} bytes a stream: say how many there may be");
            Err(invalid("steps.streams", problem))
        } else {
            Ok(())
        };
    };
    let problem = if bytes == 0 {
        "no step keeps anything between calls".to_owned()
    } else if bounds.max == 0 || bounds.max > MAX_STREAMS || bounds.idle_ms_max == 0 {
        format!("max must be 1 to {MAX_STREAMS} and idle_ms_max 1 or more")
    } else if bytes.saturating_mul(bounds.max) > STREAM_BYTES_MAX {
        format!(
            "{} streams of {bytes} bytes: at most {STREAM_BYTES_MAX} bytes together",
            bounds.max
        )
    } else {
        return Ok(());
    };
    Err(invalid("steps.streams", problem))
}

#[cfg(test)]
#[path = "flow/tests.rs"]
#[allow(clippy::unwrap_used)]
mod tests;

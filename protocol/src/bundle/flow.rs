//! Types and shapes through a manifest's steps, worked out when the manifest is read: what
//! applications send, what every step makes of it, that the graph gets exactly what it takes, and
//! what applications get. Pure; a bundle whose steps do not fit together is refused when it is
//! packed, uploaded and received.

mod application;
mod signature;
mod types;

pub use application::{Application, ApplicationInput, Input, Output};
pub use types::{Dim, TensorType};

use super::manifest::{Manifest, ManifestError};
use super::step::Step;
use application::{inputs, observed, outputs};

/// Most steps on one side of the graph.
const MAX_STEPS: usize = 256;
/// Most elements a value between steps may have.
pub(crate) const MAX_ELEMENTS: usize = 1 << 26;
const MAX_STREAMS: usize = 4096;
/// Most memory that all streams' values together may take, in bytes.
const STREAM_BYTES_MAX: usize = 256 << 20;

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

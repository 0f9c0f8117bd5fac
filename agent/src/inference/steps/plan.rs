//! The steps of one manifest, ready to run.

use super::boxes::Geometry;
use super::run::{Run, Task, missing, run_all};
use super::state::State;
use super::{Shaped, numbers};
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::flow::{Input, Output};
use dunlin_protocol::bundle::{DType, Flow, Manifest, ManifestError, Step};
use std::borrow::Cow;

/// A step that could not do its work on these values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct StepError {
    /// Where it stands and its name, such as `steps.pre[0] decode_image`.
    pub place: String,
    /// What was expected and what was got.
    pub problem: String,
}

/// The steps of one manifest.
#[derive(Debug)]
pub struct Plan {
    flow: Flow,
    before: Vec<Task>,
    after: Vec<Task>,
    labels: Vec<Vec<u8>>,
    /// What a stream begins with: zeros.
    initial: State,
    /// Shapes of the graph's outputs, which are signed and fixed.
    given: Vec<Vec<usize>>,
    /// For each carried value, its place in the state and the graph output that is next.
    carried: Vec<(usize, usize)>,
}

/// What the graph is to compute on, and what is needed again afterwards.
#[derive(Debug)]
pub struct Prepared<'a> {
    /// One value list a graph input, in the manifest's order.
    pub inputs: Cow<'a, [Values]>,
    geometry: Vec<Option<Geometry>>,
    next: State,
}

/// What is observed of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Observed {
    /// An output, by its index.
    Output(usize),
    /// Values that the application does not get.
    Hidden(Values),
    /// Nothing.
    Nothing,
}

/// What the application gets.
#[derive(Debug)]
pub struct Finished {
    /// One a declared output, in order.
    pub outputs: Vec<Shaped>,
    /// What is observed.
    pub observed: Observed,
    /// What the stream's next call begins with.
    pub next: State,
}

impl Plan {
    /// Works out a manifest's steps.
    ///
    /// # Errors
    /// They do not fit together.
    pub fn compile(manifest: &Manifest) -> Result<Self, ManifestError> {
        let flow = Flow::of(manifest)?;
        let mut initial = Vec::new();
        let mut carried = Vec::new();
        let wired = &flow.before.steps;
        let mut before = Vec::new();
        for (at, step) in wired.iter().enumerate() {
            let mut task = Task::new("steps.pre", at, wired, &flow.graph_inputs);
            let of = match &step.step {
                Step::Carry(carry) => {
                    let from = manifest.outputs.iter().position(|o| o.name == carry.from);
                    carried.extend(from.map(|from| (initial.len(), from)));
                    step.gives
                        .first()
                        .and_then(|t| Some((t.dtype, t.fixed_shape()?)))
                }
                Step::SlidingWindow(s) => step.takes.first().and_then(|t| {
                    let mut shape = t.fixed_shape()?;
                    let last = shape.last_mut()?;
                    *last = s.length - *last;
                    Some((t.dtype, shape))
                }),
                _ => None,
            };
            if let Some((dtype, shape)) = of {
                task.kept = Some(initial.len());
                initial.push(zeros(dtype, shape.iter().product()));
            }
            before.push(task);
        }
        let mut needed: Vec<usize> = flow.outputs.iter().map(|o| o.slot).collect();
        needed.extend(flow.observed);
        let wired = &flow.after.steps;
        let after = (0..wired.len()).map(|at| Task::new("steps.post", at, wired, &needed));
        let after = after.collect();
        Ok(Self {
            before,
            after,
            labels: manifest
                .labels
                .iter()
                .map(|l| l.clone().into_bytes())
                .collect(),
            initial: State(initial),
            given: manifest.outputs.iter().map(|o| o.shape.clone()).collect(),
            carried,
            flow,
        })
    }

    /// What an application sends.
    pub(crate) fn inputs(&self) -> &[Input] {
        &self.flow.inputs
    }

    /// What an application gets.
    pub(crate) fn outputs(&self) -> &[Output] {
        &self.flow.outputs
    }

    /// Whether something is kept from one call of a stream to the next.
    pub(crate) fn is_stateful(&self) -> bool {
        self.flow.is_stateful()
    }

    /// What a stream begins with.
    pub fn initial(&self) -> &State {
        &self.initial
    }

    /// From what was sent to what the graph takes. Their number, element types and lengths have been
    /// checked against `inputs`.
    ///
    /// # Errors
    /// A step refuses what was sent.
    pub fn before<'a>(&self, sent: &'a [Values], state: &State) -> Result<Prepared<'a>, StepError> {
        let straight = self.flow.graph_inputs.iter().copied().eq(0..sent.len());
        if self.before.is_empty() && straight {
            return Ok(Prepared {
                inputs: Cow::Borrowed(sent),
                geometry: Vec::new(),
                next: State(Vec::new()),
            });
        }
        let mut slots: Vec<Option<Shaped>> = vec![None; self.flow.before.slots.len()];
        for (slot, (input, values)) in slots.iter_mut().zip(self.flow.inputs.iter().zip(sent)) {
            *slot = Some(Shaped::new(input.spec.shape.clone(), values.clone()));
        }
        let mut run = Run {
            geometry: vec![None; slots.len()],
            sent: None,
            state,
            next: self.initial.clone(),
            labels: &self.labels,
        };
        run_all(&self.before, &mut slots, &mut run)?;
        let inputs = self.flow.graph_inputs.iter().map(|&slot| {
            let value = slots.get(slot).cloned().flatten();
            value
                .map(|v| v.values)
                .ok_or_else(|| missing("the graph", slot))
        });
        Ok(Prepared {
            inputs: inputs.collect::<Result<_, _>>()?,
            geometry: run.geometry,
            next: run.next,
        })
    }

    /// From what the graph gave to what the application gets.
    ///
    /// # Errors
    /// A step cannot work on what the graph gave.
    pub fn after(
        &self,
        given: Vec<Values>,
        geometry: Vec<Option<Geometry>>,
        mut next: State,
    ) -> Result<Finished, StepError> {
        for &(place, from) in &self.carried {
            if let (Some(kept), Some(values)) = (next.0.get_mut(place), given.get(from)) {
                *kept = values.clone();
            }
        }
        let types = &self.flow.after.slots;
        let mut slots: Vec<Option<Shaped>> = vec![None; types.len()];
        for ((slot, values), shape) in slots.iter_mut().zip(given).zip(&self.given) {
            *slot = Some(Shaped::new(shape.clone(), values));
        }
        let mut run = Run {
            geometry: vec![None; slots.len()],
            sent: Some((&self.flow, &geometry)),
            state: &self.initial,
            next: State(Vec::new()),
            labels: &self.labels,
        };
        run_all(&self.after, &mut slots, &mut run)?;
        let observed = match self.flow.observed {
            None => Observed::Nothing,
            Some(slot) => match self.flow.outputs.iter().position(|o| o.slot == slot) {
                Some(index) => Observed::Output(index),
                None => slots
                    .get_mut(slot)
                    .and_then(Option::take)
                    .map_or(Observed::Nothing, |v| Observed::Hidden(v.values)),
            },
        };
        let outputs = self.flow.outputs.iter().map(|output| {
            let value = slots.get_mut(output.slot).and_then(Option::take);
            let value = value.ok_or_else(|| missing("an answer", output.slot))?;
            if output.of.admits(&value.shape) {
                return Ok(value);
            }
            Err(StepError {
                place: format!("output {:?}", output.name),
                problem: format!("expected {}, got {:?}", output.of, value.shape),
            })
        });
        Ok(Finished {
            outputs: outputs.collect::<Result<_, _>>()?,
            observed,
            next,
        })
    }
}

impl Prepared<'_> {
    /// Takes what [`Plan::after`] needs; the inputs stay.
    pub fn rest(&mut self) -> (Vec<Option<Geometry>>, State) {
        let next = State(std::mem::take(&mut self.next.0));
        (std::mem::take(&mut self.geometry), next)
    }
}

fn zeros(dtype: DType, count: usize) -> Values {
    numbers::cast(&Values::UINT8(vec![0; count]), dtype)
}

//! The steps of one manifest, ready to run.

use super::boxes::Geometry;
use super::state::State;
use super::tabular::Columns;
use super::{MAX_ELEMENTS, Shaped, audio, boxes, image, numbers, resize, scores, tabular};
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::flow::{Input, Output, Wired};
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

/// A step with what was worked out for it beforehand.
#[derive(Debug)]
struct Task {
    wired: Wired,
    place: String,
    /// Of each value read, whether nothing needs it afterwards.
    last: Vec<bool>,
    /// Of a one-hot step, the column of each category.
    columns: Option<Columns>,
    /// Of a step that keeps something, where.
    kept: Option<usize>,
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

/// What a step may look at and leave behind besides its values.
struct Run<'a> {
    geometry: Vec<Option<Geometry>>,
    /// Of the side before the graph, if this is the one after it.
    sent: Option<(&'a Flow, &'a [Option<Geometry>])>,
    state: &'a State,
    next: State,
    labels: &'a [Vec<u8>],
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
    /// checked against [`inputs`](Self::inputs).
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

fn missing(who: &str, slot: usize) -> StepError {
    StepError {
        place: "steps".to_owned(),
        problem: format!("{who} needs a value that no step left (slot {slot})"),
    }
}

fn zeros(dtype: DType, count: usize) -> Values {
    numbers::cast(&Values::UINT8(vec![0; count]), dtype)
}

impl Task {
    fn new(side: &str, at: usize, all: &[Wired], needed: &[usize]) -> Self {
        let wired = all[at].clone();
        let later = |slot: &usize| {
            needed.contains(slot) || all[at + 1..].iter().any(|w| w.reads.contains(slot))
        };
        let in_place = wired.step.is_in_place();
        let last = wired.reads.iter().map(|slot| in_place || !later(slot));
        Self {
            place: format!("{side}[{at}] {}", wired.step.name()),
            last: last.collect(),
            columns: match &wired.step {
                Step::OneHot(s) => Some(Columns::of(&s.categories)),
                _ => None,
            },
            kept: None,
            wired,
        }
    }
}

fn run_all(
    tasks: &[Task],
    slots: &mut [Option<Shaped>],
    run: &mut Run<'_>,
) -> Result<(), StepError> {
    for task in tasks {
        let failed = |problem: String| StepError {
            place: task.place.clone(),
            problem,
        };
        let mut values = Vec::with_capacity(task.wired.reads.len());
        for (&slot, &last) in task.wired.reads.iter().zip(&task.last) {
            let value = slots.get_mut(slot);
            let value = value.and_then(|v| if last { v.take() } else { v.clone() });
            values.push(value.ok_or_else(|| missing(&task.place, slot))?);
        }
        let given = apply(task, values, run).map_err(failed)?;
        for (&slot, value) in task.wired.writes.iter().zip(given) {
            if value.values.len() > MAX_ELEMENTS {
                let got = value.values.len();
                return Err(failed(format!(
                    "at most {MAX_ELEMENTS} elements, got {got}"
                )));
            }
            if let Some(place) = slots.get_mut(slot) {
                *place = Some(value);
            }
        }
    }
    Ok(())
}

fn apply(task: &Task, mut values: Vec<Shaped>, run: &mut Run<'_>) -> Result<Vec<Shaped>, String> {
    let step = &task.wired.step;
    match step {
        Step::Concat(_) => return Ok(vec![numbers::concat(values)?]),
        Step::Carry(_) => return Ok(vec![carry(task, run)?]),
        Step::Constant(s) => {
            let values = Values::from_f64(s.dtype, &s.values)?;
            return Ok(vec![Shaped::new(s.shape.clone(), values)]);
        }
        Step::NonMaxSuppression(s) => return boxes::non_max_suppression(s, values),
        _ => {}
    }
    let value = values.pop().ok_or("there is no value")?;
    let from = task.wired.reads.first().copied().unwrap_or_default();
    let given = match step {
        Step::TopK(s) => return scores::top_k(s.k, value),
        Step::SlidingWindow(s) => {
            let place = task.kept.ok_or("keeps nothing")?;
            let before = run
                .state
                .0
                .get(place)
                .ok_or("the stream has no such value")?;
            let window = audio::sliding_window(s.length, before, value)?;
            if let Some(kept) = run.next.0.get_mut(place) {
                *kept = window.kept;
            }
            window.whole
        }
        Step::BoxesToImage(s) => {
            let (flow, geometry) = run.sent.ok_or("stands before the graph")?;
            let slot = flow.before.slot(&s.image).ok_or("there is no such image")?;
            let geometry = geometry.get(slot).copied().flatten();
            boxes::to_image(value, geometry.ok_or("the image was never one")?)?
        }
        Step::OneHot(s) => {
            let columns = task.columns.as_ref().ok_or("has no columns")?;
            tabular::one_hot(columns, s.unknown, &value)?
        }
        Step::Labels(_) => scores::labels(run.labels, value)?,
        _ => {
            let known = run.geometry.get(from).copied().flatten();
            let known = known.or_else(|| Geometry::of(&value.shape));
            let (given, geometry) = pictured(step, value, known)?;
            if let Some(place) = task
                .wired
                .writes
                .first()
                .and_then(|&w| run.geometry.get_mut(w))
            {
                *place = geometry;
            }
            given
        }
    };
    Ok(vec![given])
}

fn carry(task: &Task, run: &Run<'_>) -> Result<Shaped, String> {
    let place = task.kept.ok_or("keeps nothing")?;
    let values = run
        .state
        .0
        .get(place)
        .ok_or("the stream has no such value")?;
    let shape = task.wired.gives.first().and_then(|t| t.fixed_shape());
    let shape = shape.ok_or("has no fixed shape")?;
    Ok(Shaped::new(shape, values.clone()))
}

/// Steps that may move an image's pixels, and all others that read one value and give one.
fn pictured(
    step: &Step,
    value: Shaped,
    known: Option<Geometry>,
) -> Result<(Shaped, Option<Geometry>), String> {
    let moved = |(given, moved): (Shaped, boxes::Move)| (given, known.map(|g| g.then(moved)));
    Ok(match step {
        Step::DecodeImage(s) => {
            let given = image::decode_one(s, value)?;
            let geometry = Geometry::of(&given.shape);
            (given, geometry)
        }
        Step::Resize(s) => moved(resize::resize(s, value)?),
        Step::Crop(s) => moved(image::crop(s, value)?),
        Step::CenterCrop(s) => moved(image::center_crop(s, value)?),
        Step::Pad(s) => moved(image::pad(s, value)?),
        Step::Letterbox(s) => moved(image::letterbox(s, value)?),
        _ => (plain(step, value)?, known),
    })
}

fn plain(step: &Step, value: Shaped) -> Result<Shaped, String> {
    Ok(match step {
        Step::Scale { mul, add, .. } => scores::scale(*mul, *add, value)?,
        Step::Softmax { .. } => scores::softmax(value)?,
        Step::Sigmoid(_) => scores::sigmoid(value)?,
        Step::ArgMax(_) => scores::arg_max(&value)?,
        Step::Threshold(s) => scores::threshold(&s.at, value)?,
        Step::Cast(s) => Shaped::new(value.shape, numbers::cast(&value.values, s.to)),
        Step::Reshape(s) => Shaped::new(s.shape.clone(), value.values),
        Step::Layout(s) => numbers::layout(&s.from, &s.to, value)?,
        Step::Slice(s) => numbers::slice(s.axis, s.start, s.end, value)?,
        Step::Normalise(s) => numbers::normalise(s, value)?,
        Step::ReverseChannels(_) => numbers::reverse_rows(value),
        Step::Greyscale(_) => image::greyscale(value)?,
        Step::PcmToFloat(_) => audio::pcm_to_float(value)?,
        Step::Frame(s) => audio::frame(s.length, s.hop, value)?,
        Step::MinMax(s) => tabular::min_max(s, value)?,
        Step::Impute(s) => tabular::impute(&s.values, value)?,
        // Copies; all others have been dealt with.
        _ => value,
    })
}

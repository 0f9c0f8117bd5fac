//! How the steps of a plan run, one after the other.

use super::boxes::Geometry;
use super::plan::StepError;
use super::state::State;
use super::tabular::Columns;
use super::{MAX_ELEMENTS, Shaped, audio, boxes, image, numbers, resize, scores, tabular};
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::flow::Wired;
use dunlin_protocol::bundle::{Flow, Step};

/// A step with what was worked out for it beforehand.
#[derive(Debug)]
pub(super) struct Task {
    wired: Wired,
    place: String,
    /// Of each value read, whether nothing needs it afterwards.
    last: Vec<bool>,
    /// Of a one-hot step, the column of each category.
    columns: Option<Columns>,
    /// Of a step that keeps something, where.
    pub(super) kept: Option<usize>,
}

/// What a step may look at and leave behind besides its values.
pub(super) struct Run<'a> {
    pub(super) geometry: Vec<Option<Geometry>>,
    /// Of the side before the graph, if this is the one after it.
    pub(super) sent: Option<(&'a Flow, &'a [Option<Geometry>])>,
    pub(super) state: &'a State,
    pub(super) next: State,
    pub(super) labels: &'a [Vec<u8>],
}

pub(super) fn missing(who: &str, slot: usize) -> StepError {
    StepError {
        place: "steps".to_owned(),
        problem: format!("{who} needs a value that no step left (slot {slot})"),
    }
}

impl Task {
    pub(super) fn new(side: &str, at: usize, all: &[Wired], needed: &[usize]) -> Self {
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

pub(super) fn run_all(
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

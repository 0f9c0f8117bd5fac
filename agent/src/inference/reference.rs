//! Makes a reference profile: runs the model over reference rows and looks at them with the same eyes as
//! a device.
//!
//! Bins are left-closed and frozen: the quantiles n/40 of the rows (the deciles among them), and a bin of
//! its own for each value that one row in forty or more has. The last edge is the next number above the
//! largest, so that every row falls inside.

mod calibrate;

use super::engine::{Engine, EngineError, check_window_size};
use super::observe::{Observation, look};
use super::tensor::Values;
use calibrate::calibration;
use dunlin_protocol::bundle::{
    ClassProfile, FeatureProfile, GoldenValues, OutputProfile, Profile, Segments, Statistic,
    TensorSpec,
};
use dunlin_protocol::sketch::{Edges, Histogram};
use std::collections::BTreeMap;
use std::path::Path;

/// Quantiles that become edges.
const QUANTILES: usize = 40;
/// Most categories that get a bin; the rarer ones count as unseen.
pub const CATEGORIES_MAX: usize = 100;
/// Tensors up to this size are looked at element by element.
pub const ELEMENTS_MAX: usize = 256;
/// Fewest labelled rows of a calibration.
const CALIBRATION_ROWS_MIN: usize = 100;

/// Why no profile can be made.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The bundle cannot be loaded, or a row cannot be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A row has no value for a tensor, or one of another type.
    #[error("{tensor:?}: {problem}")]
    Row {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// A label that the model does not know.
    #[error("label {label:?} is none of the model's classes ({classes})")]
    Label {
        /// The label.
        label: String,
        /// The classes.
        classes: String,
    },
    /// Too few rows to say anything.
    #[error("{got} rows; expected {min} or more")]
    Rows {
        /// Rows given.
        got: usize,
        /// Rows needed.
        min: usize,
    },
}

/// Collects what reference rows look like.
#[derive(Debug)]
pub struct Reference {
    engine: Engine,
    /// Edges and counts are made at the end.
    looks: Vec<FeatureProfile>,
    /// Values of each feature, row by row.
    columns: Vec<Vec<f64>>,
    /// Of features that are categories, instead: how often each was seen.
    categories: BTreeMap<usize, BTreeMap<String, u64>>,
    confidence: Vec<f64>,
    entropy: Vec<f64>,
    classes: Vec<Option<usize>>,
    /// Scores of the classes, and the right one, of rows with a label.
    labelled: Vec<(Vec<f64>, usize)>,
    names: Vec<String>,
    segments: Option<Segments>,
    rows: usize,
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// The profile.
    pub profile: Profile,
    /// What its reader should know.
    pub notes: Vec<String>,
}

impl Reference {
    /// Of the bundle staged in a folder, with whatever profile it has left aside. `names` are the
    /// elements of the only input, where they have names.
    ///
    /// # Errors
    /// The bundle cannot be loaded.
    pub fn open(
        slot: &Path,
        names: &[String],
        segments: Option<Segments>,
    ) -> Result<Self, ReferenceError> {
        let engine = Engine::load(slot)?;
        let looks = looks(&engine, names);
        Ok(Self {
            columns: vec![Vec::new(); looks.len()],
            categories: BTreeMap::new(),
            confidence: Vec::new(),
            entropy: Vec::new(),
            classes: Vec::new(),
            labelled: Vec::new(),
            names: engine.manifest().labels.clone(),
            segments,
            rows: 0,
            engine,
            looks,
        })
    }

    /// What a row has to have, in order.
    #[must_use]
    pub fn inputs(&self) -> Vec<TensorSpec> {
        let inputs = self.engine.plan().inputs().iter();
        inputs.map(|input| input.spec.clone()).collect()
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row: values by tensor, and the right class, if it is known, by name or number.
    ///
    /// # Errors
    /// What does not fit; nothing was added.
    pub fn add(
        &mut self,
        row: &BTreeMap<String, GoldenValues>,
        label: Option<&str>,
    ) -> Result<(), ReferenceError> {
        let sent = self.sent(row)?;
        let (inference, _) = self.engine.run(&sent, self.engine.initial_state())?;
        let seen = Observation::of(&self.engine, &sent, &inference);
        let scores: Vec<f64> = inference
            .observed()
            .map_or_else(Vec::new, |v| v.iter_f64().collect());
        let right = label.map(|label| self.class(label, scores.len()));
        let right = right.transpose()?;
        for (at, feature) in self.looks.iter().enumerate() {
            if feature.categories.is_some() {
                let inputs = self.engine.plan().inputs().iter();
                let mut named = inputs.map(|i| &i.spec.name).zip(&sent);
                let values = named.find(|(name, _)| **name == feature.tensor);
                if let Some(text) = values.and_then(|(_, v)| text(v, feature.index)) {
                    let seen = self.categories.entry(at).or_default();
                    *seen.entry(text).or_default() += 1;
                }
            } else {
                self.columns[at].push(look(&self.engine, &sent, &inference, feature));
            }
        }
        self.classes.push(seen.class());
        self.confidence.push(seen.confidence());
        self.entropy.push(seen.entropy());
        if let Some(right) = right {
            self.labelled.push((scores, right));
        }
        self.rows += 1;
        Ok(())
    }

    /// The profile.
    ///
    /// # Errors
    /// No row, or a profile whose windows would be too large to be sent.
    pub fn finish(self) -> Result<Made, ReferenceError> {
        if self.rows == 0 {
            return Err(ReferenceError::Rows { got: 0, min: 1 });
        }
        let mut notes = Vec::new();
        let mut features = self.looks;
        for (at, feature) in features.iter_mut().enumerate() {
            match self.categories.get(&at) {
                Some(seen) => by_categories(feature, seen, &mut notes),
                None => by_bins(feature, &self.columns[at], &mut notes),
            }
        }
        let named = self.names.len();
        let known = self.classes.iter().flatten().max().map_or(0, |n| n + 1);
        let classes = (0..named.max(known)).map(|n| match self.names.get(n) {
            Some(name) => name.clone(),
            None => format!("class_{n}"),
        });
        let classes: Vec<String> = classes.collect();
        let mut mix = vec![0; classes.len()];
        for class in self.classes.iter().flatten() {
            mix[*class] += 1;
        }
        let calibration = match self.labelled.len() {
            0 => None,
            n if n < CALIBRATION_ROWS_MIN => {
                notes.push(format!(
                    "no calibration: {n} rows have a label, expected {CALIBRATION_ROWS_MIN} or more"
                ));
                None
            }
            _ => calibration(&self.labelled, classes.len()).map_or_else(
                |why| {
                    notes.push(format!("no calibration: {why}"));
                    None
                },
                Some,
            ),
        };
        let profile = Profile {
            schema: "dunlin.profile/1".to_owned(),
            rows: self.rows as u64,
            features,
            outputs: ClassProfile {
                classes,
                counts: mix,
            },
            confidence: output(&self.confidence),
            entropy: output(&self.entropy),
            calibration,
            segments: self.segments,
        };
        check_window_size(self.engine.manifest(), &profile)?;
        Ok(Made { profile, notes })
    }

    fn sent(&self, row: &BTreeMap<String, GoldenValues>) -> Result<Vec<Values>, ReferenceError> {
        let inputs = self.engine.plan().inputs().iter().map(|input| {
            let spec = &input.spec;
            let problem = |problem: String| ReferenceError::Row {
                tensor: spec.name.clone(),
                problem,
            };
            match row.get(&spec.name) {
                Some(GoldenValues::Numbers(numbers)) => {
                    Values::from_f64(spec.dtype, numbers).map_err(problem)
                }
                Some(GoldenValues::Bytes(list)) => Ok(Values::BYTES(list.clone())),
                None => Err(problem("the row has no value".to_owned())),
            }
        });
        inputs.collect()
    }

    fn class(&self, label: &str, scores: usize) -> Result<usize, ReferenceError> {
        let named = self.names.iter().position(|name| name == label);
        let number = || label.parse().ok().filter(|n: &usize| *n < scores);
        named.or_else(number).ok_or_else(|| ReferenceError::Label {
            label: label.to_owned(),
            classes: match self.names.is_empty() {
                true => format!("0 to {}", scores.saturating_sub(1)),
                false => self.names.join(", "),
            },
        })
    }
}

/// What is worth looking at: elements of small tensors, statistics of large ones, categories of texts;
/// where texts are pictures or sound, what the steps made of them.
fn looks(engine: &Engine, names: &[String]) -> Vec<FeatureProfile> {
    let placeless = |name: String, tensor: &str| FeatureProfile {
        name,
        tensor: tensor.to_owned(),
        after_steps: false,
        index: 0,
        statistic: None,
        axis: None,
        categories: None,
        edges: Edges::default(),
        counts: vec![0],
    };
    let mut all = Vec::new();
    let inputs = engine.plan().inputs();
    let is_only = inputs.len() == 1;
    for input in inputs {
        let (spec, is_bytes) = (&input.spec, input.spec.dtype.as_str() == "BYTES");
        let elements = spec.elements();
        if is_bytes && input.bytes_max > CATEGORY_MAX_BYTES {
            // A file: nothing to see before it is decoded.
            let graph = engine.manifest().inputs.iter();
            all.extend(graph.flat_map(|spec| statistics(spec, true, &placeless)));
        } else if elements > ELEMENTS_MAX {
            all.extend(statistics(spec, false, &placeless));
        } else {
            all.extend((0..elements).map(|index| {
                let name = match names.get(index).filter(|_| is_only) {
                    Some(name) => name.clone(),
                    None if elements == 1 => spec.name.clone(),
                    None => format!("{}[{index}]", spec.name),
                };
                FeatureProfile {
                    index,
                    categories: is_bytes.then(Vec::new),
                    ..placeless(name, &spec.name)
                }
            }));
        }
    }
    all
}

/// Texts that may be longer than this are files.
const CATEGORY_MAX_BYTES: usize = 1024;

fn statistics(
    spec: &TensorSpec,
    after_steps: bool,
    placeless: &dyn Fn(String, &str) -> FeatureProfile,
) -> Vec<FeatureProfile> {
    let of = |statistic: Statistic, at: Option<(usize, usize)>| {
        let place = at.map_or_else(String::new, |(_, n)| format!("[{n}]"));
        let name = format!("{}{place} {}", spec.name, statistic.as_str());
        FeatureProfile {
            after_steps,
            statistic: Some(statistic),
            axis: at.map(|(axis, _)| axis),
            index: at.map_or(0, |(_, n)| n),
            ..placeless(name, &spec.name)
        }
    };
    let colours = colours(spec);
    // One row of numbers is a signal, several are a picture.
    let is_signal = spec.shape.iter().filter(|n| **n > 1).count() < 2;
    let whole: &[Statistic] = if is_signal {
        use Statistic::{ClippedShare, CrossingShare, Mean, Rms, StepMean};
        &[Mean, Rms, StepMean, CrossingShare, ClippedShare]
    } else {
        use Statistic::{ClippedShare, Mean, Std, StepMean};
        &[Mean, Std, StepMean, ClippedShare]
    };
    let whole = whole.iter().map(|statistic| of(*statistic, None));
    let means = colours.map(|at| of(Statistic::Mean, Some(at)));
    whole.chain(means).collect()
}

/// Dimension and place of each colour of a picture, if it has three.
fn colours(spec: &TensorSpec) -> impl Iterator<Item = (usize, usize)> {
    let axis = match (spec.layout.as_deref(), spec.shape.as_slice()) {
        (Some(layout), _) => layout.find('C'),
        (None, [_, 3, h, w]) if *h > 3 && *w > 3 => Some(1),
        (None, [_, h, w, 3]) if *h > 3 && *w > 3 => Some(3),
        _ => None,
    };
    let axis = axis.filter(|axis| spec.shape.get(*axis) == Some(&3));
    axis.into_iter()
        .flat_map(|axis| (0..3).map(move |n| (axis, n)))
}

fn text(values: &Values, index: usize) -> Option<String> {
    match values {
        Values::BYTES(list) => String::from_utf8(list.get(index)?.clone()).ok(),
        _ => None,
    }
}

/// The commonest get a bin each.
fn by_categories(
    feature: &mut FeatureProfile,
    seen: &BTreeMap<String, u64>,
    notes: &mut Vec<String>,
) {
    let mut by_count: Vec<(&String, &u64)> = seen.iter().collect();
    by_count.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    if by_count.len() > CATEGORIES_MAX {
        notes.push(format!(
            "{}: {} categories; the {CATEGORIES_MAX} commonest get a bin, the others count as unseen",
            feature.name,
            by_count.len()
        ));
        by_count.truncate(CATEGORIES_MAX);
    }
    #[allow(clippy::cast_precision_loss)] // at most a hundred
    let edges = (0..=by_count.len()).map(|n| n as f64).collect::<Vec<_>>();
    let Ok(edges) = Edges::try_from(edges) else {
        return;
    };
    feature.edges = edges;
    feature.counts = by_count.iter().map(|(_, n)| **n).collect();
    let names = by_count.into_iter().map(|(name, _)| name.clone());
    feature.categories = Some(names.collect());
}

fn by_bins(feature: &mut FeatureProfile, column: &[f64], notes: &mut Vec<String>) {
    let Some(edges) = edges(column) else {
        notes.push(format!("{}: no row has a number here", feature.name));
        return;
    };
    if edges.bins() == 1 {
        notes.push(format!("{}: the same in every row", feature.name));
    }
    feature.counts = counts(&edges, column);
    feature.edges = edges;
}

fn output(column: &[f64]) -> OutputProfile {
    let edges = edges(column).unwrap_or_default();
    OutputProfile {
        counts: counts(&edges, column),
        edges,
    }
}

fn counts(edges: &Edges, column: &[f64]) -> Vec<u64> {
    let mut histogram = Histogram::new(edges.bins());
    for value in column {
        histogram.add(edges, *value);
    }
    histogram.counts
}

/// Edges by the finite numbers of a column; none if there is none.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
#[allow(
    clippy::cast_sign_loss,
    reason = "places in a list, which are small and not negative"
)]
fn edges(column: &[f64]) -> Option<Edges> {
    let mut sorted: Vec<f64> = column.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = *sorted.last()?;
    let mut edges = Vec::new();
    for n in 0..QUANTILES {
        // Between the two rows that the quantile falls between, as most libraries have it.
        let place = n as f64 / QUANTILES as f64 * (sorted.len() - 1) as f64;
        let (below, part) = (place.floor() as usize, place.fract());
        let above = sorted.get(below + 1).copied().unwrap_or(last);
        edges.push(sorted[below] + (above - sorted[below]) * part);
    }
    for atom in sorted.chunk_by(|a, b| a == b) {
        if atom.len() * QUANTILES > sorted.len() {
            edges.extend([atom[0], atom[0].next_up()]);
        }
    }
    edges.push(last.next_up());
    // Zero has two signs.
    let edges = edges.into_iter().filter(|e| e.is_finite()).map(|e| e + 0.0);
    let mut edges: Vec<f64> = edges.collect();
    edges.sort_by(f64::total_cmp);
    edges.dedup();
    Edges::try_from(edges).ok()
}

#[cfg(test)]
mod tests;

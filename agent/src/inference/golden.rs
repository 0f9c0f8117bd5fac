//! A trial of a staged bundle: does it load here, meet its golden cases and keep its latency budget.

use super::engine::{Engine, EngineError, read_blob};
use super::mend::Mend;
use super::steps::{Shaped, State};
use super::tensor::Values;
use crate::pipe::TrialReport;
use dunlin_protocol::bundle::{DOCUMENT_MAX_BYTES, GoldenCase, GoldenSet, GoldenValues};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Loads the bundle staged in a folder and runs every golden case through the steps and the graph,
/// after one run to warm up. The same code judges a bundle when it is packed and on the device.
#[must_use]
pub fn trial(slot: &Path) -> TrialReport {
    examine(slot).report
}

/// A trial, and what the model was mended by to be loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Examined {
    /// What the trial found.
    pub report: TrialReport,
    /// Empty if the graph was taken as it is.
    pub mends: Vec<Mend>,
}

/// As [`trial`], for whoever packs the bundle.
#[must_use]
pub fn examine(slot: &Path) -> Examined {
    match Engine::load(slot) {
        Ok(engine) => Examined {
            report: check(slot, &engine),
            mends: engine.mends().to_vec(),
        },
        Err(error) => Examined {
            report: failed("load", error.to_string()),
            mends: Vec::new(),
        },
    }
}

fn failed(code: &str, detail: String) -> TrialReport {
    TrialReport::Failed {
        code: code.to_owned(),
        detail,
    }
}

fn check(slot: &Path, engine: &Engine) -> TrialReport {
    let set = match read_set(slot, engine) {
        Ok(set) => set,
        Err(problem) => return failed("golden", problem),
    };
    let cases = match prepare(&set, engine) {
        Ok(cases) => cases,
        Err(problem) => return failed("golden", problem),
    };
    // Not measured: first use of the weights' pages.
    if let Some((case, inputs)) = cases.first()
        && let Err(error) = engine.run(inputs, engine.initial_state())
    {
        return failed("golden", format!("case {:?}: {error}", case.name));
    }
    let tolerance = engine.manifest().limits.tolerance_abs;
    let mut difference_max = 0.0_f64;
    let mut times = Vec::with_capacity(cases.len());
    let mut streams: BTreeMap<&str, State> = BTreeMap::new();
    for (case, inputs) in &cases {
        let stream = case.stream.as_deref();
        let begun = stream.and_then(|name| streams.get(name));
        let start = Instant::now();
        let outputs = engine.run(inputs, begun.unwrap_or(engine.initial_state()));
        times.push(start.elapsed());
        let (outputs, next) = match outputs {
            Ok((inference, next)) => (inference.into_outputs(), next),
            Err(error) => return failed("golden", format!("case {:?}: {error}", case.name)),
        };
        if let Some(name) = stream {
            streams.insert(name, next);
        }
        let names = engine.plan().outputs().iter().map(|o| o.name.as_str());
        let worst = match compare(case, names, &outputs) {
            Ok(worst) => worst,
            Err(problem) => return failed("golden", problem),
        };
        // A NaN is no small difference.
        if worst.difference.is_nan() || worst.difference > tolerance {
            return failed("golden", worst.describe(case, tolerance));
        }
        difference_max = difference_max.max(worst.difference);
    }
    let median = median(&mut times);
    let budget = Duration::from_millis(engine.manifest().limits.latency_budget_ms);
    if median > budget {
        return failed(
            "latency",
            format!("the median golden case took {median:.1?}, the budget is {budget:.1?}"),
        );
    }
    TrialReport::Passed {
        cases: cases.len(),
        difference_max,
        latency_median_us: u64::try_from(median.as_micros()).unwrap_or(u64::MAX),
    }
}

fn read_set(slot: &Path, engine: &Engine) -> Result<GoldenSet, String> {
    let blob = &engine.manifest().files.golden;
    let bytes = read_blob(slot, "golden.json", blob, DOCUMENT_MAX_BYTES)
        .map_err(|e: EngineError| e.to_string())?;
    GoldenSet::parse(&bytes, engine.manifest()).map_err(|e| e.to_string())
}

type Prepared<'a> = (&'a GoldenCase, Vec<Values>);

fn prepare<'a>(set: &'a GoldenSet, engine: &Engine) -> Result<Vec<Prepared<'a>>, String> {
    set.cases
        .iter()
        .map(|case| {
            let inputs = engine.plan().inputs().iter().map(|input| {
                let spec = &input.spec;
                // `GoldenSet::parse` has checked that every tensor is there and of its kind.
                match case.inputs.get(&spec.name) {
                    Some(GoldenValues::Numbers(numbers)) => Values::from_f64(spec.dtype, numbers)
                        .map_err(|e| format!("case {:?}: input {:?}: {e}", case.name, spec.name)),
                    Some(GoldenValues::Bytes(list)) => Ok(Values::BYTES(list.clone())),
                    None => Ok(Values::FP64(Vec::new())),
                }
            });
            Ok((case, inputs.collect::<Result<_, _>>()?))
        })
        .collect()
}

/// The element that is furthest from what was expected.
struct Worst {
    output: String,
    index: usize,
    expected: f64,
    got: f64,
    difference: f64,
}

impl Worst {
    fn describe(&self, case: &GoldenCase, tolerance: f64) -> String {
        format!(
            "case {:?}: output {:?}[{}]: expected {}, got {}: the difference {} is beyond the tolerance {tolerance}",
            case.name, self.output, self.index, self.expected, self.got, self.difference
        )
    }
}

/// The largest difference of numbers; other lengths and other texts are no small difference.
fn compare<'a>(
    case: &GoldenCase,
    names: impl Iterator<Item = &'a str>,
    outputs: &[Shaped],
) -> Result<Worst, String> {
    let mut worst = Worst {
        output: String::new(),
        index: 0,
        expected: 0.0,
        got: 0.0,
        difference: 0.0,
    };
    for (name, output) in names.zip(outputs) {
        let values = &output.values;
        let expected = match (case.outputs.get(name), values) {
            (None, _) => continue,
            (Some(expected), _) if expected.len() != values.len() => {
                return Err(format!(
                    "case {:?}: output {name:?}: expected {} values, got {}",
                    case.name,
                    expected.len(),
                    values.len()
                ));
            }
            (Some(GoldenValues::Numbers(expected)), _) => expected,
            (Some(GoldenValues::Bytes(expected)), Values::BYTES(got)) => {
                compare_texts(case, name, expected, got)?;
                continue;
            }
            (Some(GoldenValues::Bytes(_)), _) => continue,
        };
        for (index, (&expected, got)) in expected.iter().zip(values.iter_f64()).enumerate() {
            // Equal infinities differ by nothing, though their difference is NaN; and so do two NaNs.
            #[allow(clippy::float_cmp)]
            let difference = if expected == got || (expected.is_nan() && got.is_nan()) {
                0.0
            } else {
                (expected - got).abs()
            };
            if difference.is_nan() || difference > worst.difference {
                worst = Worst {
                    output: name.to_owned(),
                    index,
                    expected,
                    got,
                    difference,
                };
                if difference.is_nan() {
                    return Ok(worst);
                }
            }
        }
    }
    Ok(worst)
}

fn compare_texts(
    case: &GoldenCase,
    name: &str,
    expected: &[Vec<u8>],
    got: &[Vec<u8>],
) -> Result<(), String> {
    let differs = |(expected, got): &(&Vec<u8>, &Vec<u8>)| expected != got;
    match expected
        .iter()
        .zip(got)
        .enumerate()
        .find(|(_, pair)| differs(pair))
    {
        None => Ok(()),
        Some((index, (expected, got))) => Err(format!(
            "case {:?}: output {name:?}[{index}]: expected {:?}, got {:?}",
            case.name,
            String::from_utf8_lossy(expected),
            String::from_utf8_lossy(got)
        )),
    }
}

/// The upper median; zero of nothing.
fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    fn worst(expected: Vec<f64>, got: Vec<f32>) -> Worst {
        let case = case(GoldenValues::Numbers(expected));
        let output = Shaped::new(vec![got.len()], Values::FP32(got));
        compare(&case, ["y"].into_iter(), &[output]).unwrap()
    }

    fn case(expected: GoldenValues) -> GoldenCase {
        GoldenCase {
            name: "a".to_owned(),
            stream: None,
            inputs: [].into(),
            outputs: [("y".to_owned(), expected)].into(),
        }
    }

    #[test]
    fn other_texts_and_other_lengths_are_told() {
        let texts = |all: &[&str]| {
            all.iter()
                .map(|t| t.as_bytes().to_vec())
                .collect::<Vec<_>>()
        };
        let got = Shaped::new(vec![2], Values::BYTES(texts(&["cat", "dog"])));
        let compare = |expected: &[&str]| {
            let case = case(GoldenValues::Bytes(texts(expected)));
            compare(&case, ["y"].into_iter(), std::slice::from_ref(&got)).map(|w| w.difference)
        };
        assert_eq!(compare(&["cat", "dog"]), Ok(0.0));
        let error = compare(&["cat", "cow"]).unwrap_err();
        assert!(
            error.contains("\"y\"[1]: expected \"cow\", got \"dog\""),
            "{error}"
        );
        assert!(
            compare(&["cat"])
                .unwrap_err()
                .contains("expected 1 values, got 2")
        );
    }

    #[test]
    fn the_largest_difference_counts_and_nan_beats_all() {
        let w = worst(vec![1.0, 2.0, 3.0], vec![1.5, 2.0, 2.0]);
        assert_eq!((w.index, w.difference), (2, 1.0));
        assert!(
            worst(vec![1.0, 2.0], vec![f32::NAN, 9.0])
                .difference
                .is_nan()
        );
        assert_eq!(
            worst(vec![f64::INFINITY], vec![f32::INFINITY]).difference,
            0.0
        );
        assert_eq!(worst(vec![f64::NAN], vec![f32::NAN]).difference, 0.0);
        assert!(worst(vec![f64::NAN], vec![1.0]).difference.is_nan());
    }

    #[test]
    fn the_median_is_the_middle() {
        let mut times = [3, 1, 2].map(Duration::from_millis);
        assert_eq!(median(&mut times), Duration::from_millis(2));
        assert_eq!(median(&mut []), Duration::ZERO);
    }
}

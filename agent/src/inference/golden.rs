//! A trial of a staged bundle: does it load here, meet its golden cases and keep its latency budget.

use super::engine::{Engine, EngineError, read_blob};
use super::tensor::Values;
use crate::pipe::TrialReport;
use dunlin_protocol::bundle::{DOCUMENT_MAX_BYTES, GoldenCase, GoldenSet, TensorSpec};
use std::path::Path;
use std::time::{Duration, Instant};

/// Loads the bundle staged in a folder and runs every golden case through the steps and the graph,
/// after one run to warm up. The same code judges a bundle when it is packed and on the device.
#[must_use]
pub fn trial(slot: &Path) -> TrialReport {
    match Engine::load(slot) {
        Ok(engine) => check(slot, &engine),
        Err(error) => failed("load", error.to_string()),
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
        && let Err(error) = engine.infer(inputs)
    {
        return failed("golden", format!("case {:?}: {error}", case.name));
    }
    let tolerance = engine.manifest().limits.tolerance_abs;
    let mut difference_max = 0.0_f64;
    let mut times = Vec::with_capacity(cases.len());
    for (case, inputs) in &cases {
        let start = Instant::now();
        let outputs = engine.infer(inputs);
        times.push(start.elapsed());
        let worst = match outputs {
            Ok(outputs) => compare(case, &engine.manifest().outputs, &outputs),
            Err(error) => return failed("golden", format!("case {:?}: {error}", case.name)),
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
            let inputs = engine.manifest().inputs.iter().map(|spec| {
                // `GoldenSet::parse` has checked that every tensor is there.
                let numbers = case.inputs.get(&spec.name).map_or(&[][..], Vec::as_slice);
                Values::from_f64(spec.dtype, numbers)
                    .map_err(|e| format!("case {:?}: input {:?}: {e}", case.name, spec.name))
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

fn compare(case: &GoldenCase, specs: &[TensorSpec], outputs: &[Values]) -> Worst {
    let mut worst = Worst {
        output: String::new(),
        index: 0,
        expected: 0.0,
        got: 0.0,
        difference: 0.0,
    };
    for (spec, values) in specs.iter().zip(outputs) {
        let Some(expected) = case.outputs.get(&spec.name) else {
            continue;
        };
        for (index, (&expected, got)) in expected.iter().zip(values.iter_f64()).enumerate() {
            // Equal infinities differ by nothing, though their difference is NaN.
            #[allow(clippy::float_cmp)]
            let difference = if expected == got {
                0.0
            } else {
                (expected - got).abs()
            };
            if difference.is_nan() || difference > worst.difference {
                worst = Worst {
                    output: spec.name.clone(),
                    index,
                    expected,
                    got,
                    difference,
                };
                if difference.is_nan() {
                    return worst;
                }
            }
        }
    }
    worst
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
    use dunlin_protocol::bundle::DType;

    fn worst(expected: Vec<f64>, got: Vec<f32>) -> Worst {
        let case = GoldenCase {
            name: "a".to_owned(),
            inputs: [].into(),
            outputs: [("y".to_owned(), expected)].into(),
        };
        let spec = TensorSpec {
            name: "y".to_owned(),
            dtype: DType::FP32,
            shape: vec![got.len()],
            layout: None,
        };
        compare(&case, &[spec], &[Values::FP32(got)])
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
    }

    #[test]
    fn the_median_is_the_middle() {
        let mut times = [3, 1, 2].map(Duration::from_millis);
        assert_eq!(median(&mut times), Duration::from_millis(2));
        assert_eq!(median(&mut []), Duration::ZERO);
    }
}

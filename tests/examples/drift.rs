//! `drift FILE`: runs cases of Dunlin's statistics, one JSON document a line, and prints what each gives,
//! one a line. For `tests/peers/drift`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use dunlin_agent::detect::adwin::Adwin;
use dunlin_agent::detect::page_hinkley::PageHinkley;
use dunlin_protocol::calibration::{Calibration, ExpectedConfusion, add_answer};
use dunlin_protocol::distinct::{Distinct, STANDARD_ERROR, hash};
use dunlin_protocol::sketch::{Edges, Histogram};
use dunlin_server::drift::statistics::estimated::estimate;
use dunlin_server::drift::statistics::multiplicity::benjamini_hochberg;
use dunlin_server::drift::statistics::ordered::{OrderedComparison, std_of_middles};
use dunlin_server::drift::statistics::paired::Disagreements;
use dunlin_server::drift::statistics::range::RangeComparison;
use dunlin_server::drift::statistics::sequential::MixtureTest;
use dunlin_server::drift::statistics::{Comparison, Sensitivity, Status};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Case {
    Counts {
        reference: Vec<u64>,
        current: Vec<u64>,
        alpha: f64,
    },
    Ordered {
        edges: Edges,
        reference: Vec<f64>,
        current: Vec<f64>,
        /// Times each value is counted.
        times: u64,
        reference_std: f64,
    },
    Range {
        rows: u64,
        reference_outside: u64,
        inside: u64,
        outside: u64,
        margin: f64,
        alpha: f64,
    },
    Distinct {
        /// What each device saw.
        devices: Vec<Vec<String>>,
    },
    Together {
        p_values: Vec<f64>,
        alpha: f64,
    },
    Looks {
        variance: f64,
        effect_variance: f64,
        looks: Vec<(u64, f64)>,
    },
    Paired {
        wins: u64,
        losses: u64,
        margin: f64,
    },
    Unlabelled {
        calibration: Calibration,
        scores: Vec<Vec<f64>>,
        predicted: Vec<usize>,
    },
    Stream {
        values: Vec<f64>,
    },
}

fn main() {
    let file = std::env::args_os().nth(1).expect("usage: drift FILE");
    for line in std::fs::read_to_string(file).unwrap().lines() {
        println!("{}", run(serde_json::from_str(line).unwrap()));
    }
}

fn run(case: Case) -> Value {
    match case {
        Case::Counts {
            reference,
            current,
            alpha,
        } => counts(&reference, &current, alpha),
        Case::Ordered {
            edges,
            reference,
            current,
            times,
            reference_std,
        } => {
            let counted = |values: &[f64]| {
                let mut histogram = Histogram::new(edges.bins());
                for value in values {
                    (0..times).for_each(|_| histogram.add(&edges, *value));
                }
                histogram
            };
            ordered(
                &edges,
                &counted(&reference),
                &counted(&current),
                reference_std,
            )
        }
        Case::Range {
            rows,
            reference_outside,
            inside,
            outside,
            margin,
            alpha,
        } => {
            let current = Histogram {
                counts: vec![inside],
                under: outside / 3,
                over: outside - outside / 3,
                ..Histogram::default()
            };
            let reference = [rows - reference_outside];
            let range = RangeComparison::new(&reference, rows, &current, margin);
            let judged = range.score(alpha, None);
            json!({
                "p_value": judged.p_value,
                "lower": judged.lower,
                "allowed": judged.allowed,
                "bound": judged.score.bound,
                "threshold": judged.score.threshold,
                "is_alarm": judged.score.status == Status::Alarm,
                "chance": range.chance(alpha),
            })
        }
        Case::Distinct { devices } => distinct(&devices),
        Case::Together { p_values, alpha } => {
            let found = benjamini_hochberg(&p_values, alpha);
            let discoveries = p_values.iter().filter(|p| **p <= found.level).count();
            json!({"adjusted": found.adjusted, "discoveries": discoveries})
        }
        Case::Looks {
            variance,
            effect_variance,
            looks,
        } => {
            let mut test = MixtureTest::new(variance, effect_variance).unwrap();
            let ratios: Vec<f64> = looks
                .iter()
                .map(|(n, mean)| test.likelihood_ratio(*n, *mean))
                .collect();
            let p: Vec<f64> = looks.iter().map(|(n, mean)| test.look(*n, *mean)).collect();
            json!({"likelihood_ratio": ratios, "p_value": p})
        }
        Case::Paired {
            wins,
            losses,
            margin,
        } => {
            let pairs = Disagreements { wins, losses };
            json!({"differ": pairs.differ(), "not_inferior": pairs.not_inferior(margin)})
        }
        Case::Unlabelled {
            calibration,
            scores,
            predicted,
        } => unlabelled(&calibration, &scores, &predicted),
        Case::Stream { values } => stream(&values),
    }
}

/// Sketches as devices send them, merged as the server merges them.
fn distinct(devices: &[Vec<String>]) -> Value {
    let mut merged = Distinct::default();
    for values in devices {
        let mut sketch = Distinct::default();
        let hashes = values.iter().map(|value| hash(value.as_bytes()));
        hashes.for_each(|hash| sketch.add(hash));
        let sent = serde_json::to_string(&sketch).unwrap();
        merged.merge(&serde_json::from_str(&sent).unwrap());
    }
    let estimate = merged.estimate();
    let slack = 5.0 * STANDARD_ERROR * estimate + 3.0;
    json!({"sketch": merged, "at_least": estimate - slack, "at_most": estimate + slack, "exact": null})
}

fn counts(reference: &[u64], current: &[u64], alpha: f64) -> Value {
    let sensitivity = Sensitivity { alpha, margin: 0.0 };
    let scores = Comparison::new(reference, current).unwrap();
    let (psi, chi) = (scores.psi(sensitivity), scores.chi_squared(sensitivity));
    json!({
        "psi": psi.value,
        "psi_bound": psi.bound,
        "jensen_shannon": scores.jensen_shannon(sensitivity).value,
        "hellinger": scores.hellinger(sensitivity).value,
        "total_variation": scores.total_variation(sensitivity).value,
        "l_infinity": scores.l_infinity(sensitivity).value,
        "chi_squared": chi.score.value,
        "chi_squared_p": chi.p_value,
        "chi_squared_bound": chi.score.bound,
    })
}

fn ordered(edges: &Edges, reference: &Histogram, current: &Histogram, std: f64) -> Value {
    let sensitivity = Sensitivity {
        alpha: 0.05,
        margin: 0.0,
    };
    let scores = OrderedComparison::new(edges, reference, current).unwrap();
    let ks = scores.kolmogorov_smirnov(sensitivity);
    let wasserstein = scores.wasserstein(std, sensitivity);
    json!({
        "ks_lower": ks.score.value,
        "ks_upper": ks.upper,
        "ks_p": ks.p_value,
        "wasserstein": wasserstein.estimate,
        "wasserstein_lower": wasserstein.score.value,
        "wasserstein_upper": wasserstein.upper,
        "std": std_of_middles(edges, &reference.counts),
    })
}

fn unlabelled(calibration: &Calibration, scores: &[Vec<f64>], predicted: &[usize]) -> Value {
    let classes = calibration.curves.len();
    calibration.check(classes).unwrap();
    // Over three devices, so that what is compared is a merge.
    let mut devices = vec![vec![0; classes * classes]; 3];
    for (at, (row, predicted)) in scores.iter().zip(predicted).enumerate() {
        let probabilities = calibration.probabilities(row.iter().copied()).unwrap();
        add_answer(&mut devices[at % 3], *predicted, &probabilities);
    }
    let mut all = ExpectedConfusion::new(classes);
    devices.iter().for_each(|one| all.add(one).unwrap());
    let sensitivity = Sensitivity {
        alpha: 0.05,
        margin: 0.0,
    };
    let estimate = estimate(&all, calibration, sensitivity).unwrap();
    let answers: f64 = estimate.confusion.iter().flatten().sum();
    let shares: Vec<f64> = estimate
        .confusion
        .iter()
        .flatten()
        .map(|n| n / answers)
        .collect();
    let of = |what: fn(&_) -> Option<f64>| -> Vec<f64> {
        let classes = estimate.classes.iter();
        classes.map(|class| what(class).unwrap_or(0.0)).collect()
    };
    json!({
        "accuracy": estimate.accuracy,
        "confusion": shares,
        "precision": of(|class: &dunlin_server::drift::statistics::estimated::EstimatedClass| class.precision),
        "recall": of(|class| class.recall),
        "f1": of(|class| class.f1),
    })
}

fn stream(values: &[f64]) -> Value {
    let (mut adwin, mut page_hinkley) = (Adwin::default(), PageHinkley::default());
    let (mut adwin_at, mut page_hinkley_at) = (Vec::new(), Vec::new());
    for (at, value) in values.iter().enumerate() {
        if adwin.update(*value) {
            adwin_at.push(at);
        }
        if page_hinkley.update(*value) {
            page_hinkley_at.push(at);
        }
    }
    json!({
        "adwin_at": adwin_at,
        "adwin_width": adwin.width(),
        "adwin_estimate": adwin.estimate(),
        "page_hinkley_at": page_hinkley_at,
    })
}

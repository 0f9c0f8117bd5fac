//! From what is known to a verdict for each subject of a rule. Pure.

use super::rule::{Quantile, When};
use super::track::Verdict;
use crate::drift::query::Drift;
use crate::drift::statistics::range::OutOfRange;
use crate::drift::statistics::{Score, Status};
use dunlin_protocol::id::DeviceId;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Where a number that passed its limit counts as over: at so much of it.
const OVER_SHARE: f64 = 0.8;

/// What one look says of one subject.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Short.
    pub verdict: Verdict,
    /// The numbers it rests on.
    pub seen: Value,
}

/// A device, as far as its silence goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its id.
    pub device: DeviceId,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Connected now.
    pub online: bool,
    /// When it was last heard of, or enrolled, in milliseconds since 1970.
    pub last_ms: i64,
}

/// Verdicts by version for the rules about a family. `drift` are its versions' scores within the look
/// back, `serving` the versions that any device serves.
#[must_use]
pub fn of_family(when: &When, drift: &[Drift], serving: &BTreeSet<u64>) -> BTreeMap<u64, Reading> {
    let mut readings = BTreeMap::new();
    for version in serving {
        let scores = drift.iter().find(|d| d.version == *version);
        let reading = match (when, scores) {
            (When::MissingData { inferences_min, .. }, scores) => {
                let inferences = scores.map_or(0, |d| d.inferences);
                missing(inferences, *inferences_min)
            }
            (_, None) => open(json!({"inferences": 0})),
            (When::Drift { .. }, Some(d)) => drifted(when, d),
            (
                When::Confidence {
                    below,
                    inferences_min,
                    ..
                },
                Some(d),
            ) => confidence(d, *below, *inferences_min),
            (
                When::Accuracy {
                    below,
                    inferences_min,
                    ..
                },
                Some(d),
            ) => accuracy(d, *below, *inferences_min),
            (
                When::Errors {
                    above_permille,
                    requests_min,
                    ..
                },
                Some(d),
            ) => errors(d, *above_permille, *requests_min),
            (
                When::Latency {
                    quantile, above_us, ..
                },
                Some(d),
            ) => latency(d, *quantile, *above_us),
            (When::Silence { .. }, Some(_)) => continue,
        };
        readings.insert(*version, reading);
    }
    readings
}

/// Verdicts by device.
#[must_use]
pub fn of_devices(
    after_s: u64,
    labels: &BTreeMap<String, String>,
    devices: &[Heard],
    now_ms: i64,
) -> BTreeMap<DeviceId, Reading> {
    let limit_ms = i64::try_from(after_s).unwrap_or(i64::MAX / 1000) * 1000;
    let is_meant = |heard: &&Heard| labels.iter().all(|(k, v)| heard.labels.get(k) == Some(v));
    let reading = |heard: &Heard| {
        let silent_ms = now_ms.saturating_sub(heard.last_ms).max(0);
        let is_silent = !heard.online && silent_ms > limit_ms;
        let verdict = if is_silent {
            Verdict::Bad
        } else {
            Verdict::Good
        };
        let seen = json!({"online": heard.online, "last_seen_ms": heard.last_ms});
        (heard.device.clone(), Reading { verdict, seen })
    };
    devices.iter().filter(is_meant).map(reading).collect()
}

fn open(seen: Value) -> Reading {
    Reading {
        verdict: Verdict::Open,
        seen,
    }
}

fn missing(inferences: u64, inferences_min: u64) -> Reading {
    let verdict = if inferences < inferences_min {
        Verdict::Bad
    } else {
        Verdict::Good
    };
    let seen = json!({"inferences": inferences, "expected_min": inferences_min});
    Reading { verdict, seen }
}

/// Bad above the limit, good below the share of it that counts as over.
fn above(value: f64, limit: f64) -> Verdict {
    if value > limit {
        Verdict::Bad
    } else if value <= limit * OVER_SHARE {
        Verdict::Good
    } else {
        Verdict::Open
    }
}

fn confidence(drift: &Drift, below: f64, inferences_min: u64) -> Reading {
    let seen = json!({
        "confidence_mean": drift.confidence_mean, "below": below, "inferences": drift.inferences,
    });
    let verdict = match drift.confidence_mean {
        Some(mean) if drift.inferences >= inferences_min => above(1.0 - mean, 1.0 - below),
        _ => Verdict::Open,
    };
    Reading { verdict, seen }
}

fn accuracy(drift: &Drift, below: f64, inferences_min: u64) -> Reading {
    let estimate = drift.estimated_accuracy.as_ref();
    let verdict = match estimate {
        Some(e) if drift.inferences >= inferences_min => above(1.0 - e.accuracy, 1.0 - below),
        _ => Verdict::Open,
    };
    let seen = json!({
        "estimated_accuracy": estimate.map(|e| e.accuracy),
        "reference_accuracy": estimate.map(|e| e.reference),
        "below": below, "inferences": drift.inferences,
    });
    Reading { verdict, seen }
}

fn errors(drift: &Drift, above_permille: u32, requests_min: u64) -> Reading {
    let requests = drift.inferences.saturating_add(drift.errors);
    let permille = drift.errors as f64 * 1000.0 / requests.max(1) as f64;
    let verdict = if requests >= requests_min {
        above(permille, f64::from(above_permille))
    } else {
        Verdict::Open
    };
    let seen = json!({"errors": drift.errors, "requests": requests, "errors_permille": permille});
    Reading { verdict, seen }
}

fn latency(drift: &Drift, quantile: Quantile, above_us: f64) -> Reading {
    let latency = &drift.latency;
    let value = match quantile {
        Quantile::P50 => latency.p50_us,
        Quantile::P90 => latency.p90_us,
        Quantile::P99 => latency.p99_us,
    };
    let verdict = value.map_or(Verdict::Open, |us| above(us, above_us));
    let seen = json!({"latency_us": latency, "above_us": above_us});
    Reading { verdict, seen }
}

/// What one signal says.
struct Signal<'a> {
    name: &'a str,
    psi: Option<Score>,
    out_of_range: Option<&'a OutOfRange>,
}

impl Signal<'_> {
    fn is_drifted(&self) -> bool {
        let range = self.out_of_range.map(|range| range.score);
        let both = self.psi.into_iter().chain(range);
        both.into_iter().any(|score| score.status == Status::Alarm)
    }

    /// Whether a score is still near its practical margin.
    fn is_near(&self, margin: f64, out_of_range_margin: f64) -> bool {
        let is_over = |score: Score, margin: f64| score.value > margin * OVER_SHARE;
        let is_out = |range: &OutOfRange| {
            let margin = range.allowed + out_of_range_margin;
            range.score.status != Status::Insufficient && is_over(range.score, margin)
        };
        self.psi.is_some_and(|psi| is_over(psi, margin)) || self.out_of_range.is_some_and(is_out)
    }

    fn told(&self) -> Value {
        let mut told = json!({"signal": self.name, "psi": self.psi});
        let alarmed = |range: &&OutOfRange| range.score.status == Status::Alarm;
        if let Some(range) = self.out_of_range.filter(alarmed) {
            told["out_of_range"] = json!(range);
        }
        told
    }
}

fn signals_of(drift: &Drift) -> Vec<Signal<'_>> {
    let mix = drift.output_mix.as_ref().map(|mix| Signal {
        name: "output_mix",
        psi: mix.scores.psi,
        out_of_range: mix.out_of_range.as_ref(),
    });
    let outputs = drift.confidence.iter().chain(&drift.entropy);
    let columns = outputs.chain(&drift.features).map(|histogram| Signal {
        name: &histogram.name,
        psi: histogram.scores.psi,
        out_of_range: histogram.out_of_range.as_ref(),
    });
    let is_scored = |s: &Signal<'_>| s.psi.is_some() || s.out_of_range.is_some();
    mix.into_iter().chain(columns).filter(is_scored).collect()
}

fn drifted(when: &When, drift: &Drift) -> Reading {
    let When::Drift {
        signals,
        signals_min,
        margin,
        out_of_range_margin,
        ..
    } = when
    else {
        return open(Value::Null);
    };
    let mut all = signals_of(drift);
    all.retain(|signal| signals.is_empty() || signals.iter().any(|name| *name == signal.name));
    let needed = u64::from(*signals_min);
    let count = |is: &dyn Fn(&&Signal<'_>) -> bool| all.iter().filter(is).count() as u64;
    let drifted = count(&|signal| signal.is_drifted());
    let near = count(&|signal| signal.is_near(*margin, *out_of_range_margin));
    let is_unknown = |s: &Signal<'_>| s.psi.is_some_and(|p| p.status == Status::Insufficient);
    let verdict = if drifted >= needed {
        Verdict::Bad
    } else if all.iter().all(|s| s.psi.is_none()) || all.iter().any(is_unknown) || near >= needed {
        Verdict::Open
    } else {
        Verdict::Good
    };
    let psi = |signal: &Signal<'_>| signal.psi.map_or(0.0, |psi| psi.value);
    all.sort_by(|a, b| {
        let drifted_first = b.is_drifted().cmp(&a.is_drifted());
        drifted_first.then(psi(b).total_cmp(&psi(a)))
    });
    let told: Vec<Value> = all.iter().take(16).map(Signal::told).collect();
    let seen = json!({
        "drifted": drifted, "inferences": drift.inferences, "devices": drift.devices,
        "from_ms": drift.from_ms, "until_ms": drift.until_ms, "signals": told,
    });
    Reading { verdict, seen }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_to_fall_well_below_its_limit_to_be_over() {
        assert_eq!(above(101.0, 100.0), Verdict::Bad);
        assert_eq!(above(100.0, 100.0), Verdict::Open);
        assert_eq!(above(80.0, 100.0), Verdict::Good);
    }

    /// A version's scores: a feature whose bins are quiet, and whose values leave the range.
    fn leaving(outside: &str, share: f64) -> Drift {
        let score = |value: f64, status: &str| json!({"value": value, "n_ref": 1000, "n_cur": 500, "bound": 0.01, "threshold": 0.04, "status": status});
        serde_json::from_value(json!({
            "family": "pump", "version": 3, "cohort": "all", "devices": 3, "windows": 5, "left_out": {},
            "from_ms": 0, "until_ms": 1, "inferences": 500, "errors": 0, "confidence_mean": null,
            "entropy_mean": null, "latency": {"p50_us": null, "p90_us": null, "p99_us": null},
            "status": outside, "note": null, "output_mix": null, "confidence": null, "entropy": null,
            "features": [
                {"name": "speed", "psi": score(0.05, "quiet"), "outside": 0, "unusable": 0},
                {"name": "vibration", "psi": score(0.01, "quiet"), "outside": 25, "unusable": 0,
                 "out_of_range": {"score": score(share, outside), "lower": 0.03, "allowed": 0.002, "p_value": 1e-9}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn values_out_of_range_are_drift_by_themselves_and_are_over_well_below_the_margin() {
        let rule = |more: &str| -> When {
            serde_json::from_str(&format!(r#"{{"kind":"drift","family":"pump"{more}}}"#)).unwrap()
        };
        let verdict =
            |when: &When, drift: Drift| of_family(when, &[drift], &BTreeSet::from([3]))[&3].clone();
        let bad = verdict(&rule(""), leaving("alarm", 0.05));
        assert_eq!(bad.verdict, Verdict::Bad);
        let first = &bad.seen["signals"][0];
        assert_eq!(first["signal"], "vibration");
        assert_eq!(first["out_of_range"]["score"]["status"], "alarm");
        assert!(bad.seen["signals"][1].get("out_of_range").is_none());
        let of_speed = rule(r#","signals":["speed"]"#);
        assert_eq!(
            verdict(&of_speed, leaving("alarm", 0.05)).verdict,
            Verdict::Good
        );
        // Of .022 that matter, .0176 is where it is over.
        assert_eq!(
            verdict(&rule(""), leaving("quiet", 0.018)).verdict,
            Verdict::Open
        );
        assert_eq!(
            verdict(&rule(""), leaving("quiet", 0.017)).verdict,
            Verdict::Good
        );
        let aside = rule(r#","out_of_range_margin":1"#);
        assert_eq!(
            verdict(&aside, leaving("quiet", 0.05)).verdict,
            Verdict::Good
        );
    }

    #[test]
    fn silence_is_a_matter_of_time_labels_and_the_connection() {
        let heard = |name: &str, site: &str, online, last_ms| Heard {
            device: name.parse().unwrap(),
            labels: BTreeMap::from([("site".to_owned(), site.to_owned())]),
            online,
            last_ms,
        };
        let devices = [
            heard("a", "pier", false, 0),
            heard("b", "pier", true, 0),
            heard("c", "pier", false, 950_000),
            heard("d", "dock", false, 0),
            heard("e", "pier", false, 2_000_000),
        ];
        let pier = BTreeMap::from([("site".to_owned(), "pier".to_owned())]);
        let readings = of_devices(60, &pier, &devices, 1_000_000);
        let bad = readings.iter().filter(|(_, r)| r.verdict == Verdict::Bad);
        let bad: Vec<_> = bad.map(|(device, _)| device.to_string()).collect();
        assert_eq!((readings.len(), bad), (4, vec!["a".to_owned()]));
    }

    #[test]
    fn a_version_that_serves_and_sends_nothing_misses_data_and_is_open_otherwise() {
        let serving = BTreeSet::from([3]);
        let family = || "pump".parse().unwrap();
        let missing = When::MissingData {
            family: family(),
            inferences_min: 1,
        };
        assert_eq!(of_family(&missing, &[], &serving)[&3].verdict, Verdict::Bad);
        let slow = When::Latency {
            family: family(),
            quantile: Quantile::P99,
            above_us: 5.0,
        };
        assert_eq!(of_family(&slow, &[], &serving)[&3].verdict, Verdict::Open);
        assert!(of_family(&slow, &[], &BTreeSet::new()).is_empty());
    }
}

//! From what is known to a verdict for each subject of a rule. Pure.

use super::rule::{Quantile, When};
use super::track::Verdict;
use crate::drift::query::Drift;
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

fn scores(drift: &Drift) -> Vec<(String, Score)> {
    let mut scores: Vec<(String, Score)> = Vec::new();
    let mix = drift.output_mix.as_ref().and_then(|mix| mix.scores.psi);
    scores.extend(mix.map(|score| ("output_mix".to_owned(), score)));
    let outputs = drift.confidence.iter().chain(&drift.entropy);
    for histogram in outputs.chain(&drift.features) {
        scores.extend(
            histogram
                .scores
                .psi
                .map(|score| (histogram.name.clone(), score)),
        );
    }
    scores
}

fn drifted(when: &When, drift: &Drift) -> Reading {
    let When::Drift {
        signals,
        signals_min,
        margin,
        ..
    } = when
    else {
        return open(Value::Null);
    };
    let mut all = scores(drift);
    all.retain(|(name, _)| signals.is_empty() || signals.contains(name));
    let is = |status: Status| all.iter().filter(|(_, s)| s.status == status).count() as u64;
    let drifted = is(Status::Alarm);
    let is_near = |(_, score): &&(String, Score)| score.value > margin * OVER_SHARE;
    let near = all.iter().filter(is_near).count() as u64;
    let verdict = if drifted >= u64::from(*signals_min) {
        Verdict::Bad
    } else if all.is_empty() || is(Status::Insufficient) > 0 || near >= u64::from(*signals_min) {
        Verdict::Open
    } else {
        Verdict::Good
    };
    all.sort_by(|a, b| b.1.value.total_cmp(&a.1.value));
    let told: Vec<Value> = all
        .iter()
        .take(16)
        .map(|(name, score)| json!({"signal": name, "psi": score}))
        .collect();
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

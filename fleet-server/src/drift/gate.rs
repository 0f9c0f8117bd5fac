//! The gate: have the canaries fallen behind the devices that stayed on the version before?
//!
//! The device is the unit. Each device is compared with *its own* time on the version before, so
//! that what makes devices differ (place, light, clientele) cancels out; canaries are compared
//! with controls *at the same time*, so that what happens to everybody (nightfall, a holiday)
//! cancels out too. Two metrics:
//! * `confidence`: change of the mean top-1 confidence, after − before; a fall counts.
//! * `output_mix`: total-variation distance between the mixes of predicted classes before and
//!   after, less the distance that sampling alone would give so many inferences (without that, a
//!   device with fewer inferences would look as if it had moved further); a rise counts.
//!
//! For each, a one-sided permutation test over devices ([`permutation`]) at alpha/2. The gate
//! stops only if a test is significant *and* the effect is beyond the practical margin: a new
//! version that is rightly a little different is not stopped for being different.
//!
//! Too little data ⇒ hold, never pass. All arithmetic that decides is on integers (10⁻⁹ units)
//! over devices in order of their ids: the same input gives the same bytes, in any order, on
//! any machine.

use super::permutation::{self, PValue};
use crate::rollout::policy::GatePolicy;
use crate::rollout::ratio::Ratio;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One in the fixed-point unit in which devices are compared.
const NANO: u64 = 1_000_000_000;
/// 2/π in that unit, for the mean absolute value of a normal variable.
const TWO_OVER_PI_NANO: u128 = 636_619_772;
/// Metrics tested together, among which alpha is shared.
const METRICS: u32 = 2;
/// Most devices named in a sentence.
const NAMED_MAX: usize = 5;

/// What the gate is judged by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct GateInput {
    /// Devices on the new version.
    pub canaries: Vec<DeviceSample>,
    /// Devices still on the version before, over the same time.
    pub controls: Vec<DeviceSample>,
}

/// One device's two periods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceSample {
    /// Device id.
    pub device: String,
    /// On the version before, up to the rollout's first assignment.
    pub before: Period,
    /// Since the stage's last success: on the new version for a canary, on the version before
    /// for a control.
    pub after: Period,
}

/// Sums over one device's inferences in one period; exact under merging.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Period {
    /// Number of inferences.
    pub inferences: u64,
    /// Sum of the top-1 confidences, in units of 10⁻⁶.
    pub confidence_sum_micro: u64,
    /// Inferences by predicted class, in the model's order of classes.
    pub outputs: Vec<u64>,
}

impl Period {
    fn outputs_total(&self) -> u64 {
        self.outputs
            .iter()
            .fold(0, |total, count| total.saturating_add(*count))
    }

    /// Inferences with both confidence and class, which is what both metrics need.
    pub(crate) fn usable(&self) -> u64 {
        self.inferences.min(self.outputs_total())
    }

    /// Mean confidence, 0 to 10⁹.
    pub(crate) fn confidence_nano(&self) -> i64 {
        let sum = u128::from(self.confidence_sum_micro) * 1000;
        let mean = sum / u128::from(self.inferences.max(1));
        i64::try_from(mean.min(u128::from(NANO))).unwrap_or(0)
    }
}

/// What the gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Nothing speaks against going on.
    Pass,
    /// A metric fell behind, significantly and beyond its margin.
    Stop,
    /// Too little data to say either.
    Hold,
}

/// A decision with everything it rests on. Its JSON is the same for the same input and policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// The decision.
    pub decision: Decision,
    /// One sentence with the numbers.
    pub reason: String,
    /// Both metrics; empty on hold, since outcomes are not looked at before the data suffice.
    pub metrics: Vec<MetricVerdict>,
    /// Ids of the canaries judged.
    pub canaries: Vec<String>,
    /// Ids of the controls judged.
    pub controls: Vec<String>,
    /// Devices without enough data: a canary makes the gate hold, a control is left out.
    pub shortages: Vec<Shortage>,
    /// Lower-case hexadecimal SHA-256 of the input in its canonical order.
    pub input_sha256: String,
}

/// One metric's comparison of canaries with controls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricVerdict {
    /// `confidence` or `output_mix`.
    pub name: String,
    /// Mean change of the canaries.
    pub canary_mean: f64,
    /// Mean change of the controls.
    pub control_mean: f64,
    /// `canary_mean − control_mean`: worse is negative for confidence, positive for the mix.
    pub effect: f64,
    /// Tolerable size of the effect in the worse direction.
    pub margin: f64,
    /// The p-value, to nine decimals.
    pub p_value: f64,
    /// The p-value, exact.
    pub p: PValue,
    /// The level of this test: the gate's alpha shared among the metrics.
    pub alpha: Ratio,
    /// Whether all assignments were enumerated; else they were drawn, by a seed from the input.
    pub exact: bool,
    /// p ≤ alpha.
    pub is_significant: bool,
    /// The effect is strictly beyond the margin, in the worse direction.
    pub is_beyond_margin: bool,
}

/// A device without enough data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Shortage {
    /// Device id.
    pub device: String,
    /// Whether it is a canary (else a control).
    pub is_canary: bool,
    /// Usable inferences before.
    pub before: u64,
    /// Usable inferences after.
    pub after: u64,
    /// Inferences needed in each period.
    pub needed: u64,
}

impl Shortage {
    fn sentence(&self) -> String {
        let Self {
            device,
            before,
            after,
            needed,
            ..
        } = self;
        if *before == 0 {
            format!("{device} has no inferences on the version before")
        } else if before < needed {
            format!("{device} has {before} of {needed} inferences on the version before")
        } else {
            format!("{device} has {after} of {needed} inferences")
        }
    }
}

/// Judges; total for every input, without panics.
#[must_use]
pub fn judge(policy: &GatePolicy, input: &GateInput) -> Verdict {
    let canaries = sorted(&input.canaries);
    let controls = sorted(&input.controls);
    let (canaries, mut shortages) = split(canaries, true, policy.min_inferences);
    let (controls, short_controls) = split(controls, false, policy.min_inferences);
    shortages.extend(short_controls);
    let digest = digest(input);
    let ids = |samples: &[&DeviceSample]| samples.iter().map(|s| s.device.clone()).collect();
    let mut verdict = Verdict {
        decision: Decision::Hold,
        reason: String::new(),
        metrics: Vec::new(),
        canaries: ids(&canaries),
        controls: ids(&controls),
        shortages,
        input_sha256: hex::encode(digest),
    };
    if let Some(reason) = why_hold(policy, input, &verdict) {
        verdict.reason = reason;
        return verdict;
    }
    let seed = digest
        .iter()
        .take(8)
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    let alpha = policy.alpha.divided_by(METRICS);
    let metrics = [
        Metric {
            name: "confidence",
            worse: -1,
            margin: policy.confidence_margin,
            change: |device| device.after.confidence_nano() - device.before.confidence_nano(),
        },
        Metric {
            name: "output_mix",
            worse: 1,
            margin: policy.mix_margin,
            change: |device| mix_distance_nano(&device.before.outputs, &device.after.outputs),
        },
    ];
    verdict.metrics = metrics
        .iter()
        .map(|metric| metric.compare(&canaries, &controls, alpha, seed))
        .collect();
    let is_stop = verdict
        .metrics
        .iter()
        .any(|m| m.is_significant && m.is_beyond_margin);
    verdict.decision = if is_stop {
        Decision::Stop
    } else {
        Decision::Pass
    };
    verdict.reason = reason(&verdict);
    verdict
}

fn sorted(samples: &[DeviceSample]) -> Vec<&DeviceSample> {
    let mut sorted: Vec<&DeviceSample> = samples.iter().collect();
    sorted.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
    sorted
}

fn sort_key(sample: &DeviceSample) -> (&str, [u64; 4], [&[u64]; 2]) {
    let DeviceSample {
        device,
        before,
        after,
    } = sample;
    let sums = [
        before.inferences,
        before.confidence_sum_micro,
        after.inferences,
        after.confidence_sum_micro,
    ];
    (device, sums, [&before.outputs, &after.outputs])
}

fn split(
    samples: Vec<&DeviceSample>,
    is_canary: bool,
    needed: u64,
) -> (Vec<&DeviceSample>, Vec<Shortage>) {
    // A device with nothing in a period has nothing to compare, whatever the policy says.
    let needed = needed.max(1);
    let (mut enough, mut short) = (Vec::new(), Vec::new());
    for sample in samples {
        let (before, after) = (sample.before.usable(), sample.after.usable());
        if before >= needed && after >= needed {
            enough.push(sample);
        } else {
            short.push(Shortage {
                device: sample.device.clone(),
                is_canary,
                before,
                after,
                needed,
            });
        }
    }
    (enough, short)
}

fn why_hold(policy: &GatePolicy, input: &GateInput, verdict: &Verdict) -> Option<String> {
    let mut seen = BTreeMap::<&str, u32>::new();
    for sample in input.canaries.iter().chain(&input.controls) {
        *seen.entry(&sample.device).or_default() += 1;
    }
    if let Some((device, times)) = seen.iter().find(|(_, times)| **times > 1) {
        return Some(format!(
            "{device} is in the comparison {times} times, expected once"
        ));
    }
    let given = input.canaries.len() as u64;
    if given < u64::from(policy.min_canaries) {
        return Some(format!(
            "{given} canaries, the policy needs {}",
            policy.min_canaries
        ));
    }
    let short: Vec<String> = verdict
        .shortages
        .iter()
        .filter(|s| s.is_canary)
        .map(Shortage::sentence)
        .collect();
    if !short.is_empty() {
        return Some(format!("canary {}", name_some(&short, "; ")));
    }
    let (canaries, controls) = (verdict.canaries.len() as u64, verdict.controls.len() as u64);
    let smallest = permutation::smallest_p(canaries, controls);
    let alpha = policy.alpha.divided_by(METRICS);
    if smallest.at_most(alpha) {
        return None;
    }
    let left_out: Vec<String> = verdict.shortages.iter().map(Shortage::sentence).collect();
    let why = if left_out.is_empty() {
        "more devices are needed".to_owned()
    } else {
        format!("left out: {}", name_some(&left_out, "; "))
    };
    Some(format!(
        "{canaries} canaries against {controls} controls reach no p below {smallest}, {alpha} is needed; {why}"
    ))
}

/// Joins the first few texts and says how many more there are.
pub(crate) fn name_some(texts: &[String], separator: &str) -> String {
    let named = texts
        .iter()
        .take(NAMED_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(separator);
    match texts.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named}{separator}and {more} more"),
    }
}

/// Total-variation distance less its expectation under sampling from one common mix, in 10⁻⁹.
///
/// The difference of a class's two shares is about normal with variance p(1−p)(1/A+1/B), whose
/// mean absolute value is √(2/π) standard deviations.
fn mix_distance_nano(before: &[u64], after: &[u64]) -> i64 {
    let total = |counts: &[u64]| {
        counts
            .iter()
            .fold(0_u64, |sum, count| sum.saturating_add(*count))
    };
    let (size_before, size_after) = (u128::from(total(before)), u128::from(total(after)));
    if size_before == 0 || size_after == 0 {
        return 0;
    }
    let unit = u128::from(NANO);
    let sizes = size_before + size_after;
    let (mut distance, mut expected) = (0_u128, 0_u128);
    for class in 0..before.len().max(after.len()) {
        let count = |counts: &[u64]| u128::from(counts.get(class).copied().unwrap_or(0));
        let (a, b) = (count(before), count(after));
        let (share_a, share_b) = (a * unit / size_before, b * unit / size_after);
        distance += share_a.abs_diff(share_b);
        let pooled = ((a + b) * unit / sizes).min(unit);
        let spread = pooled * (unit - pooled) / unit * TWO_OVER_PI_NANO;
        // spread/unit · (1/A + 1/B), in 10⁻¹⁸, so that its root is in 10⁻⁹.
        expected += (spread * sizes / size_before / size_after).isqrt();
    }
    let half = |sum: u128| i64::try_from(sum / 2).unwrap_or(i64::MAX);
    half(distance) - half(expected)
}

/// One metric: its name, the sign of the worse direction, its margin and how a device's change is
/// measured (in 10⁻⁹).
struct Metric {
    name: &'static str,
    worse: i64,
    margin: f64,
    change: fn(&DeviceSample) -> i64,
}

impl Metric {
    fn compare(
        &self,
        canaries: &[&DeviceSample],
        controls: &[&DeviceSample],
        alpha: Ratio,
        seed: u64,
    ) -> MetricVerdict {
        let changes =
            |samples: &[&DeviceSample]| samples.iter().map(|s| (self.change)(s)).collect();
        let (canary, control): (Vec<i64>, Vec<i64>) = (changes(canaries), changes(controls));
        let as_falls =
            |values: &[i64]| values.iter().map(|v| -self.worse * v).collect::<Vec<i64>>();
        let test = permutation::falls(&as_falls(&canary), &as_falls(&control), seed);
        let (canary_mean, control_mean) = (mean(&canary), mean(&control));
        let effect = canary_mean - control_mean;
        MetricVerdict {
            name: self.name.to_owned(),
            canary_mean: plain(canary_mean),
            control_mean: plain(control_mean),
            effect: plain(effect),
            margin: self.margin,
            p_value: test.p.to_f64(),
            p: test.p,
            alpha,
            exact: test.is_exact,
            is_significant: test.p.at_most(alpha),
            is_beyond_margin: plain(self.worse * effect) > self.margin,
        }
    }
}

/// Mean of values in 10⁻⁹, towards zero.
fn mean(values: &[i64]) -> i64 {
    let sum: i128 = values.iter().map(|value| i128::from(*value)).sum();
    i64::try_from(sum / values.len().max(1) as i128).unwrap_or(i64::MAX)
}

/// 10⁻⁹ as a plain number.
#[allow(
    clippy::cast_precision_loss,
    reason = "changes are at most 1 and so below 2^53 nano"
)]
fn plain(nano: i64) -> f64 {
    nano as f64 / NANO as f64
}

fn reason(verdict: &Verdict) -> String {
    let (canaries, controls) = (verdict.canaries.len(), verdict.controls.len());
    let metric = |m: &MetricVerdict| {
        let name = if m.name == "confidence" {
            "confidence"
        } else {
            "output mix"
        };
        format!(
            "{name} {:+.3} against {:+.3} (effect {:+.3}, margin {:.2}, p {} {} {})",
            m.canary_mean,
            m.control_mean,
            m.effect,
            m.margin,
            m.p,
            if m.is_significant { "<=" } else { ">" },
            m.alpha
        )
    };
    let metrics: Vec<String> = verdict.metrics.iter().map(metric).collect();
    let left_out = verdict.shortages.len();
    let without = if left_out == 0 {
        String::new()
    } else {
        format!(", {left_out} controls left out")
    };
    format!(
        "{canaries} canaries against {controls} controls{without}: {}",
        metrics.join("; ")
    )
}

/// SHA-256 over the samples in canonical order, every number and length 8 bytes big-endian.
fn digest(input: &GateInput) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"dunlin-gate-v1");
    for side in [&input.canaries, &input.controls] {
        hash.update((side.len() as u64).to_be_bytes());
        for sample in sorted(side) {
            hash.update((sample.device.len() as u64).to_be_bytes());
            hash.update(sample.device.as_bytes());
            for period in [&sample.before, &sample.after] {
                hash.update(period.inferences.to_be_bytes());
                hash.update(period.confidence_sum_micro.to_be_bytes());
                hash.update((period.outputs.len() as u64).to_be_bytes());
                period
                    .outputs
                    .iter()
                    .for_each(|count| hash.update(count.to_be_bytes()));
            }
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;

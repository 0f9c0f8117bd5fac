//! The early look: have the canaries fallen so far behind that waiting for the end of the soak
//! would be wrong? A mixture sequential probability ratio test (mSPRT; Robbins 1970; Johari, Pekelis
//! & Walsh 2015) that may be looked at after every device.
//!
//! Its unit is a *pair*: one canary and one control, put together by the draw before either has
//! shown anything, each measured from the same moment, each once ([`member_change`]). Of a pair
//! counts the difference of the changes of mean confidence, D = canary − control.
//!
//! **Why pairs.** Which of the two became the canary is an accident of the draw. So if the version
//! changes nothing, D is as likely to be −x as +x, whatever the devices are like, however unequal
//! they are, and whatever the pairs before have shown. For such a sequence
//! exp(λΣD − λ²ΣD²/2) is a supermartingale for every λ (de la Peña 1999, "A general class of
//! exponential inequalities for martingales and ratios"), hence so is its mean over λ ~ N(0, 1/m²):
//!
//! > Λ = √(v/(v+τ²))·exp(δ̂²τ²/(2v(v+τ²))), δ̂ = ΣD/n, V = ΣD²/n, v = V/n, τ = V/m
//!
//! which is the mSPRT with the pairs' second moment for their variance. By Ville's inequality Λ
//! reaches 1/alpha with probability at most alpha at *any* of the looks: exactly, not for many
//! devices only, and with nothing estimated beforehand. (With variances estimated in two separate
//! arms, v = s²/n + s²/n, that holds for many devices only, and no order in which two arms of
//! unequal pace grow gives independent increments.)
//!
//! **Why τ = V/m.** The λ that finds an effect μ fastest is μ/(V + μ²), at most 1/μ; effects that
//! may stop a rollout lie beyond the margin m, so their λ are all within 1/m, one standard
//! deviation of what is mixed over.
//!
//! **Why [`PAIRS_MIN`].** Λ of n pairs is at most about e^(n/2)/√(n+1), so that below 15 no data
//! whatever reach 1/200. Below 20 a single site could be half of the canaries. Smaller stages are
//! left to the gate, which is exact for the smallest.

use super::gate::Period;
use super::permutation::PValue;
use super::statistics::sequential::MixtureTest;
use crate::rollout::policy::GatePolicy;
use crate::rollout::ratio::Ratio;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

/// Fewest pairs that are looked at.
pub const PAIRS_MIN: u64 = 20;
/// One in the unit of changes and p-values.
const NANO: u64 = 1_000_000_000;
/// Least margin that the mixture is scaled by; a margin of zero would mix over nothing but infinity.
const SCALE_MIN: f64 = 0.01;
/// Where evidence is cut: JSON knows no infinity.
const EVIDENCE_MAX: f64 = 1e12;

/// What the early look is judged by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct EarlyInput {
    /// Pairs that the draw gave the stage.
    pub drawn: u64,
    /// Canaries that have shown enough, with or without their control.
    pub canaries: u64,
    /// Controls that have shown enough, with or without their canary.
    pub controls: u64,
    /// Pairs of which both have, in the order in which they were complete.
    pub pairs: Vec<PairChange>,
}

/// What one pair shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PairChange {
    /// The device on the new version.
    pub canary: String,
    /// The device on the version before.
    pub control: String,
    /// The canary's change of mean confidence, after − before, in 10⁻⁹.
    pub canary_nano: i64,
    /// The control's.
    pub control_nano: i64,
}

impl PairChange {
    fn difference_nano(&self) -> i64 {
        let limit = NANO.cast_signed();
        let change = |nano: i64| nano.clamp(-limit, limit);
        change(self.canary_nano) - change(self.control_nano)
    }
}

/// One device's change of mean confidence, after − before, in 10⁻⁹; `None` if either period has
/// fewer than `needed` usable inferences.
#[must_use]
pub fn member_change(before: &Period, after: &Period, needed: u64) -> Option<i64> {
    let needed = needed.max(1);
    let is_enough = before.usable() >= needed && after.usable() >= needed;
    is_enough.then(|| after.confidence_nano() - before.confidence_nano())
}

/// What an early look says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EarlyDecision {
    /// The canaries fell behind, beyond doubt and beyond the margin.
    Stop,
    /// Not enough speaks for that; it is looked at again.
    GoOn,
    /// Too few devices for an early look.
    Insufficient,
}

/// An early look with everything it rests on. Its JSON is the same for the same input and policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EarlyVerdict {
    /// What it says.
    pub decision: EarlyDecision,
    /// One sentence with the numbers.
    pub reason: String,
    /// Pairs looked at.
    pub pairs: u64,
    /// Fewest pairs that are looked at.
    pub pairs_min: u64,
    /// Canaries that have shown enough.
    pub canaries: u64,
    /// Controls that have shown enough.
    pub controls: u64,
    /// The numbers; none while there are too few pairs, since outcomes are not looked at then.
    pub evidence: Option<EarlyEvidence>,
    /// Lower-case hexadecimal SHA-256 of the input.
    pub input_sha256: String,
}

/// The numbers of an early look at the mean confidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EarlyEvidence {
    /// Mean change of the paired canaries.
    pub canary_mean: f64,
    /// Mean change of the paired controls.
    pub control_mean: f64,
    /// `canary_mean − control_mean`; a fall is negative.
    pub effect: f64,
    /// Tolerable size of a fall.
    pub margin: f64,
    /// Λ of all pairs, at most 10¹².
    pub likelihood_ratio: f64,
    /// Least 1/Λ of all looks so far at which the effect was a fall, to nine decimals, rounded up.
    pub p_value: f64,
    /// The same, exact.
    pub p: PValue,
    /// This look's share of the gate's alpha.
    pub alpha: Ratio,
    /// p ≤ alpha.
    pub is_significant: bool,
    /// The fall is strictly beyond the margin.
    pub is_beyond_margin: bool,
}

/// Whether a stage of so many pairs is looked at early under this policy. Decided by the draw alone,
/// since the fixed look has all of alpha otherwise.
#[must_use]
pub fn applies(policy: &GatePolicy, drawn: u64) -> bool {
    policy.early.is_some() && drawn >= PAIRS_MIN
}

/// Judges; `None` if the policy wants no early look. Total for every input, without panics.
#[must_use]
pub fn judge(policy: &GatePolicy, input: &EarlyInput) -> Option<EarlyVerdict> {
    let alpha = policy.early.as_ref()?.alpha;
    let pairs = input.pairs.len() as u64;
    let mut verdict = EarlyVerdict {
        decision: EarlyDecision::Insufficient,
        reason: String::new(),
        pairs,
        pairs_min: PAIRS_MIN,
        canaries: input.canaries,
        controls: input.controls,
        evidence: None,
        input_sha256: hex::encode(digest(input)),
    };
    if input.drawn < PAIRS_MIN {
        let drawn = input.drawn;
        verdict.reason = format!(
            "too few devices for an early look: {drawn} of {PAIRS_MIN} pairs of canary and control; the gate decides after the soak"
        );
        return Some(verdict);
    }
    if pairs < PAIRS_MIN {
        verdict.reason = format!(
            "too few devices for an early look: {pairs} of {PAIRS_MIN} pairs ({} canaries and {} controls have shown enough)",
            input.canaries, input.controls
        );
        return Some(verdict);
    }
    let evidence = weigh(policy.confidence_margin, alpha, &input.pairs);
    if evidence.is_significant && evidence.is_beyond_margin {
        verdict.decision = EarlyDecision::Stop;
    } else {
        verdict.decision = EarlyDecision::GoOn;
    }
    verdict.reason = sentence(pairs, &evidence);
    verdict.evidence = Some(evidence);
    Some(verdict)
}

/// Sums over a sequence of pairs: integers, so that they are the same on every machine.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    pairs: u64,
    canary_nano: i128,
    control_nano: i128,
    difference_nano: i128,
    /// In 10⁻¹⁸; 4·10¹⁸ a pair at most.
    square: u128,
}

impl Sums {
    fn add(&mut self, pair: &PairChange) {
        let difference = pair.difference_nano();
        self.pairs += 1;
        self.canary_nano += i128::from(pair.canary_nano);
        self.control_nano += i128::from(pair.control_nano);
        self.difference_nano += i128::from(difference);
        self.square += u128::from(difference.unsigned_abs()).pow(2);
    }

    /// Mean of the differences, towards zero.
    fn effect(&self) -> f64 {
        plain(self.mean_nano(self.difference_nano))
    }

    fn mean_nano(&self, sum: i128) -> i64 {
        i64::try_from(sum / i128::from(self.pairs.max(1))).unwrap_or(0)
    }

    /// Λ for a mixture of scale 1/`margin`; 1 if no pair differs.
    #[allow(
        clippy::cast_precision_loss,
        reason = "a float's precision is enough for evidence"
    )]
    fn likelihood_ratio(&self, margin: f64) -> f64 {
        let second_moment = self.square as f64 / self.pairs.max(1) as f64 / 1e18;
        let effect_deviation = second_moment / margin.max(SCALE_MIN);
        let test = MixtureTest::new(second_moment, effect_deviation * effect_deviation);
        test.map_or(1.0, |test| test.likelihood_ratio(self.pairs, self.effect()))
            .min(EVIDENCE_MAX)
    }
}

fn weigh(margin: f64, alpha: Ratio, pairs: &[PairChange]) -> EarlyEvidence {
    let mut sums = Sums::default();
    let mut p_nano = NANO;
    for pair in pairs {
        sums.add(pair);
        if sums.pairs >= PAIRS_MIN && sums.difference_nano < 0 {
            p_nano = p_nano.min(reciprocal_nano(sums.likelihood_ratio(margin)));
        }
    }
    let p = PValue {
        num: p_nano,
        den: NANO,
    };
    let effect = sums.effect();
    EarlyEvidence {
        canary_mean: plain(sums.mean_nano(sums.canary_nano)),
        control_mean: plain(sums.mean_nano(sums.control_nano)),
        effect,
        margin,
        likelihood_ratio: sums.likelihood_ratio(margin),
        p_value: p.to_f64(),
        p,
        alpha,
        is_significant: p.at_most(alpha),
        is_beyond_margin: -effect > margin,
    }
}

/// 1/Λ in 10⁻⁹, rounded up, 1 to 10⁹.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "clamped before"
)]
fn reciprocal_nano(ratio: f64) -> u64 {
    (NANO as f64 / ratio).ceil().clamp(1.0, NANO as f64) as u64
}

/// 10⁻⁹ as a plain number.
#[allow(
    clippy::cast_precision_loss,
    reason = "means of changes, below 2^53 nano"
)]
fn plain(nano: i64) -> f64 {
    nano as f64 / NANO as f64
}

fn sentence(pairs: u64, evidence: &EarlyEvidence) -> String {
    let EarlyEvidence {
        canary_mean,
        control_mean,
        effect,
        margin,
        likelihood_ratio,
        p_value,
        alpha,
        is_significant,
        ..
    } = evidence;
    let relation = if *is_significant { "<=" } else { ">" };
    format!(
        "{pairs} pairs of canary and control: confidence {canary_mean:+.3} against {control_mean:+.3} (effect {effect:+.3}, margin {margin:.2}, Λ {likelihood_ratio:.1}, p {p_value:.4} {relation} {alpha})"
    )
}

/// SHA-256 over the input, every number and length 8 bytes big-endian.
fn digest(input: &EarlyInput) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"dunlin-early-v1");
    for count in [
        input.drawn,
        input.canaries,
        input.controls,
        input.pairs.len() as u64,
    ] {
        hash.update(count.to_be_bytes());
    }
    for pair in &input.pairs {
        for (device, change) in [
            (&pair.canary, pair.canary_nano),
            (&pair.control, pair.control_nano),
        ] {
            hash.update((device.len() as u64).to_be_bytes());
            hash.update(device.as_bytes());
            hash.update(change.to_be_bytes());
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
#[path = "early_tests.rs"]
mod tests;

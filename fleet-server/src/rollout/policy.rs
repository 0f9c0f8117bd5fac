//! What an operator decides before a rollout starts: its stages, thresholds, deadline and gate.

use super::ratio::Ratio;
use crate::drift::{early, permutation};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use utoipa::ToSchema;

/// Most stages a policy may have.
pub const STAGES_MAX: usize = 32;
/// Longest soak and longest silence, in milliseconds (30 days).
pub const DURATION_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// Shortest silence deadline, in milliseconds.
pub const SILENCE_MS_MIN: u64 = 1000;
/// Fewest canaries a gate can be asked to judge.
pub const CANARIES_MIN: u32 = 3;
/// Name of the stage that is added when the written ones do not reach the whole fleet.
pub const REST: &str = "rest";

/// A rollout's policy, frozen when the rollout is created.
///
/// # Published semantics
/// * **Denominators** are the devices that a stage held when the rollout was created (plus, in
///   the last stage, those that joined later). A deleted device stays in its stage as
///   `cancelled`: no denominator ever shrinks.
/// * **Order of evaluation** at each tick: silence, errors of every started stage, early look,
///   assignment, completeness, success, soak, gate, advance.
/// * **Errors** are failed + rejected + rolled back + timed out. `errors/total > error` stops the
///   rollout and takes every device that was given the version back to the one before
///   (strictly greater: with `10%`, one of ten is tolerated).
/// * **Success** is `succeeded/total >= success`, looked at only when every device of the stage is
///   in a terminal state. Complete but below ⇒ pause, never on.
/// * **Not started** (offline since before the assignment) and **cancelled** are neither errors
///   nor successes; both stay in the denominator.
/// * **No data ⇒ hold.** An empty stage is skipped with a report and counts as nothing.
/// * The **gate** of a stage is looked at once: when the stage is complete, successful and its
///   fixed soak, counted from its last success, has passed. A gate without enough data holds;
///   what it holds for is counts alone, never outcomes, so that holding is not a second look.
///   A stage after which no device is left on the version before has no concurrent control and
///   hence no gate; its thresholds and soak apply all the same.
/// * The **early look** ([`early`]) does see outcomes, at every tick while the stage runs, soaks or
///   is paused, since its test stays valid however often and whenever it is looked at. It stops as
///   the gate stops. It needs a stage for which the draw gives at least
///   [`early::PAIRS_MIN`] pairs of a canary and a control; there it takes its share of the
///   gate's alpha, and the gate's one look has the rest. A smaller stage has the gate alone, with
///   all of alpha.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// In order; see [`StageSize`] for what sizes mean. A last stage `rest` is added unless the
    /// last one already is `rest` or 100 %.
    #[serde(default = "default_stages")]
    pub stages: Vec<Stage>,
    /// Least share of a stage's devices that must succeed, default 90 %.
    #[serde(default = "default_success")]
    pub success: Threshold,
    /// Share of a stage's devices above which errors stop the rollout, default 10 %.
    #[serde(default = "default_error")]
    pub error: Threshold,
    /// The one deadline for silence, in milliseconds: a device that was given the version and is
    /// not heard of for longer is timed out (or not started, if never heard of since).
    #[serde(default = "default_silence_ms")]
    pub silence_ms: u64,
    /// `null` switches the gate off; default on.
    #[serde(default = "default_gate")]
    pub gate: Option<GatePolicy>,
    /// Seed of the draw of the stages, committed to when the rollout is created.
    pub seed: u64,
}

/// A share of devices that decides something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Threshold(pub Ratio);

/// One step of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// 1 to 64 characters, unique in the policy.
    pub name: String,
    /// How many devices.
    pub size: StageSize,
    /// Fixed wait after the stage's last success before it may be left, in milliseconds.
    pub soak_ms: u64,
}

/// How many devices a stage takes from the front of the draw's remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StageSize {
    /// This many more devices (or what is left, if fewer).
    Count(u32),
    /// Brings the total of all stages so far up to ceil(share × fleet); adds none if earlier
    /// stages already reach it.
    Percent(Ratio),
    /// All that remain.
    Rest,
}

/// When a stage's devices may be believed to do as well as before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GatePolicy {
    /// Probability that the gate of a stage stops a version without regression, over both metrics
    /// together and the early look included. Default 1/50. At its one look each metric is tested at
    /// half of what the early look leaves. A rollout of g gated stages stops wrongly with
    /// probability at most g × alpha.
    #[serde(default = "default_alpha")]
    pub alpha: Ratio,
    /// Fewest canaries that are judged; at least 3, which is the default.
    #[serde(default = "default_canaries_min")]
    pub min_canaries: u32,
    /// Fewest inferences of a device in each period; default 100.
    #[serde(default = "default_inferences_min")]
    pub min_inferences: u64,
    /// Fall of the mean confidence against the controls that still is tolerable, absolute;
    /// default .05.
    #[serde(default = "default_confidence_margin")]
    pub confidence_margin: f64,
    /// Change of the output mix against the controls that still is tolerable, in total-variation
    /// distance (0 to 1); default .10.
    #[serde(default = "default_mix_margin")]
    pub mix_margin: f64,
    /// The early look; `null`: none, the fixed look has all of alpha. A new rollout that says
    /// nothing about it has one ([`Policy::of_new`]); a stored policy that says nothing is from
    /// before there was one and has none.
    #[serde(default)]
    pub early: Option<EarlyPolicy>,
}

/// When a stage of many devices is stopped before its soak is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyPolicy {
    /// Probability that any of the early looks at a stage stops a version without regression: a
    /// share of the gate's alpha, and less than it. Default a quarter.
    pub alpha: Ratio,
}

impl EarlyPolicy {
    /// The default share of a gate's alpha: most of it stays with the fixed look, which sees both
    /// metrics and smaller falls.
    #[must_use]
    pub fn of_gate(alpha: Ratio) -> Self {
        Self {
            alpha: alpha.divided_by(4),
        }
    }
}

fn default_stages() -> Vec<Stage> {
    let soak_ms = 600_000;
    let stage = |name: &str, size| Stage {
        name: name.to_owned(),
        size,
        soak_ms,
    };
    vec![
        stage("canary", StageSize::Count(3)),
        stage("half", StageSize::Percent(Ratio::percent(50))),
        stage(REST, StageSize::Rest),
    ]
}
fn default_success() -> Threshold {
    Threshold(Ratio::percent(90))
}
fn default_error() -> Threshold {
    Threshold(Ratio::percent(10))
}
fn default_silence_ms() -> u64 {
    600_000
}
#[allow(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn default_gate() -> Option<GatePolicy> {
    Some(GatePolicy::default())
}
fn default_alpha() -> Ratio {
    Ratio::percent(2)
}
fn default_canaries_min() -> u32 {
    CANARIES_MIN
}
fn default_inferences_min() -> u64 {
    100
}
fn default_confidence_margin() -> f64 {
    0.05
}
fn default_mix_margin() -> f64 {
    0.10
}

impl Default for GatePolicy {
    fn default() -> Self {
        Self {
            alpha: default_alpha(),
            min_canaries: default_canaries_min(),
            min_inferences: default_inferences_min(),
            confidence_margin: default_confidence_margin(),
            mix_margin: default_mix_margin(),
            early: Some(EarlyPolicy::of_gate(default_alpha())),
        }
    }
}

impl GatePolicy {
    /// By what the gate of a stage is judged at its one look, if the draw gives the stage so many
    /// pairs: with the alpha that the early look leaves.
    #[must_use]
    pub fn at_fixed_look(&self, pairs: u64) -> Self {
        let taken = self.early.filter(|_| early::applies(self, pairs));
        let left = taken.and_then(|early| self.alpha.less(early.alpha));
        Self {
            alpha: left.unwrap_or(self.alpha),
            ..self.clone()
        }
    }
}

/// One thing wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PolicyProblem {
    /// Path of the field, for example `stages[1].size`.
    pub field: String,
    /// What is wrong, what was got, what is expected.
    pub problem: String,
}

impl fmt::Display for PolicyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// Everything wrong with a policy, at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rollout policy: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct PolicyError(pub Vec<PolicyProblem>);

#[derive(Default)]
struct Problems(Vec<PolicyProblem>);

impl Problems {
    fn check(&mut self, holds: bool, field: impl Into<String>, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(PolicyProblem {
                field: field.into(),
                problem: problem(),
            });
        }
    }
}

impl Policy {
    /// Reads the policy of a new rollout. Where it has a gate that says nothing about the early
    /// look, the look takes its default share of that gate's alpha.
    ///
    /// # Errors
    /// It is no policy.
    pub fn of_new(given: Value) -> Result<Self, serde_json::Error> {
        let gate = given.get("gate").and_then(Value::as_object);
        let is_unsaid = gate.is_some_and(|gate| !gate.contains_key("early"));
        let mut policy: Self = serde_json::from_value(given)?;
        if let Some(gate) = policy.gate.as_mut().filter(|_| is_unsaid) {
            gate.early = Some(EarlyPolicy::of_gate(gate.alpha));
        }
        Ok(policy)
    }

    /// The default policy (three canaries, half, the rest; ten minutes' soak) with this seed.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Self {
            stages: default_stages(),
            success: default_success(),
            error: default_error(),
            silence_ms: default_silence_ms(),
            gate: default_gate(),
            seed,
        }
    }

    /// The stages that are executed: the written ones, and a last `rest` with the soak of the
    /// last written one unless that already takes everyone.
    #[must_use]
    pub fn effective_stages(&self) -> Vec<Stage> {
        let mut stages = self.stages.clone();
        let takes_everyone = stages.last().is_some_and(|stage| match stage.size {
            StageSize::Rest => true,
            StageSize::Percent(share) => share >= Ratio::ONE,
            StageSize::Count(_) => false,
        });
        if !takes_everyone {
            let soak_ms = stages.last().map_or(0, |stage| stage.soak_ms);
            stages.push(Stage {
                name: REST.to_owned(),
                size: StageSize::Rest,
                soak_ms,
            });
        }
        stages
    }

    /// Checks everything that can be checked without knowing the fleet.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let mut problems = Problems::default();
        problems.check(
            (1..=STAGES_MAX).contains(&self.stages.len()),
            "stages",
            || {
                format!(
                    "expected 1 to {STAGES_MAX} stages, got {}",
                    self.stages.len()
                )
            },
        );
        self.check_stages(&mut problems);
        let (success, error) = (self.success.0, self.error.0);
        problems.check(
            success > Ratio::ZERO && success <= Ratio::ONE,
            "success",
            || format!("expected more than 0 and at most 1, got {success}"),
        );
        problems.check(error < Ratio::ONE, "error", || {
            format!("expected less than 1, got {error}: no number of errors would stop the rollout")
        });
        let silence_range = SILENCE_MS_MIN..=DURATION_MS_MAX;
        problems.check(
            silence_range.contains(&self.silence_ms),
            "silence_ms",
            || {
                format!(
                    "expected {SILENCE_MS_MIN} to {DURATION_MS_MAX} ms, got {}",
                    self.silence_ms
                )
            },
        );
        if let Some(gate) = &self.gate {
            self.check_gate(gate, &mut problems);
        }
        if problems.0.is_empty() {
            Ok(())
        } else {
            Err(PolicyError(problems.0))
        }
    }

    fn check_stages(&self, problems: &mut Problems) {
        let mut names = BTreeSet::new();
        let mut reached = Ratio::ZERO;
        for (index, stage) in self.stages.iter().take(STAGES_MAX).enumerate() {
            let field = |name: &str| format!("stages[{index}].{name}");
            let is_last = index + 1 == self.stages.len();
            let name_length = stage.name.chars().count();
            problems.check((1..=64).contains(&name_length), field("name"), || {
                format!("expected 1 to 64 characters, got {name_length}")
            });
            problems.check(names.insert(&stage.name), field("name"), || {
                format!("{:?} names two stages", stage.name)
            });
            problems.check(
                stage.name != REST || stage.size == StageSize::Rest,
                field("name"),
                || format!("{REST:?} is kept for a stage of size \"rest\""),
            );
            problems.check(stage.soak_ms <= DURATION_MS_MAX, field("soak_ms"), || {
                format!(
                    "expected at most {DURATION_MS_MAX} ms, got {}",
                    stage.soak_ms
                )
            });
            match stage.size {
                StageSize::Count(count) => {
                    problems.check(count > 0, field("size"), || {
                        "a count must be at least 1".to_owned()
                    });
                }
                StageSize::Percent(share) => {
                    problems.check(
                        share > Ratio::ZERO && share <= Ratio::ONE,
                        field("size"),
                        || format!("expected more than 0 % and at most 100 %, got {share}"),
                    );
                    problems.check(share > reached, field("size"), || {
                        format!(
                            "{share} adds no device: an earlier stage already reaches {reached}"
                        )
                    });
                    reached = reached.max(share);
                }
                StageSize::Rest => problems.check(is_last, field("size"), || {
                    "\"rest\" takes everyone, so it must be the last stage".to_owned()
                }),
            }
        }
    }

    fn check_gate(&self, gate: &GatePolicy, problems: &mut Problems) {
        problems.check(
            gate.alpha > Ratio::ZERO && gate.alpha <= Ratio::percent(50),
            "gate.alpha",
            || format!("expected more than 0 and at most 1/2, got {}", gate.alpha),
        );
        problems.check(
            gate.min_canaries >= CANARIES_MIN,
            "gate.min_canaries",
            || {
                format!(
                    "expected at least {CANARIES_MIN}, got {}",
                    gate.min_canaries
                )
            },
        );
        problems.check(gate.min_inferences >= 1, "gate.min_inferences", || {
            "expected at least 1, got 0: a gate without data would pass everything".to_owned()
        });
        for (field, margin) in [
            ("gate.confidence_margin", gate.confidence_margin),
            ("gate.mix_margin", gate.mix_margin),
        ] {
            problems.check((0.0..=1.0).contains(&margin), field, || {
                format!("expected 0 to 1, got {margin}")
            });
        }
        if let Some(EarlyPolicy { alpha }) = gate.early {
            let is_share = alpha > Ratio::ZERO
                && gate
                    .alpha
                    .less(alpha)
                    .is_some_and(|left| left > Ratio::ZERO);
            problems.check(is_share, "gate.early.alpha", || {
                format!(
                    "expected more than 0 and less than gate.alpha = {}, got {alpha}, or the two leave no fraction that can be written",
                    gate.alpha
                )
            });
        }
        if let Some(Stage {
            size: StageSize::Count(count),
            ..
        }) = self.stages.first()
        {
            problems.check(*count >= gate.min_canaries, "stages[0].size", || {
                format!(
                    "{count} devices can never satisfy gate.min_canaries = {}: the gate would hold for ever",
                    gate.min_canaries
                )
            });
        }
    }

    /// Whether the gate of each stage can ever decide on a fleet drawn into stages of these
    /// sizes (devices per effective stage). To be asked when a rollout is created: a gate that
    /// cannot decide holds for ever.
    #[must_use]
    pub fn check_feasible(&self, stage_sizes: &[u32]) -> Vec<PolicyProblem> {
        let Some(gate) = &self.gate else {
            return Vec::new();
        };
        let total: u32 = stage_sizes.iter().sum();
        let mut problems = Problems::default();
        let mut canaries = 0;
        for (index, size) in stage_sizes.iter().enumerate() {
            canaries += size;
            let controls = total - canaries;
            if *size == 0 || controls == 0 {
                continue;
            }
            let field = || format!("stages[{index}].size");
            problems.check(canaries >= gate.min_canaries, field(), || {
                format!(
                    "the gate needs {} canaries, the stage brings {canaries}",
                    gate.min_canaries
                )
            });
            let smallest = permutation::smallest_p(canaries.into(), controls.into());
            let pairs = u64::from((*size).min(controls));
            let alpha = gate.at_fixed_look(pairs).alpha.divided_by(2);
            problems.check(smallest.at_most(alpha), field(), || {
                format!(
                    "{canaries} canaries against {controls} controls reach no p below {smallest}, the gate \
                     needs {alpha}: take more devices, a larger alpha, or no gate"
                )
            });
        }
        problems.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn stage(name: &str, size: StageSize) -> Stage {
        Stage {
            name: name.to_owned(),
            size,
            soak_ms: 1000,
        }
    }

    #[test]
    fn the_default_policy_is_valid_and_survives_json() {
        let policy = Policy::with_seed(7);
        policy.validate().unwrap();
        let json = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        assert_eq!(
            serde_json::from_str::<Policy>("{\"seed\":7}").unwrap(),
            policy
        );
        assert!(serde_json::from_str::<Policy>("{\"seed\":7,\"sucess\":\"1/2\"}").is_err());
    }

    #[test]
    fn a_rest_is_added_only_when_it_is_missing() {
        let mut policy = Policy::with_seed(7);
        assert_eq!(policy.effective_stages().len(), 3);
        policy.stages.pop();
        assert_eq!(
            policy.effective_stages()[2],
            Stage {
                name: REST.into(),
                size: StageSize::Rest,
                soak_ms: 600_000
            }
        );
        policy
            .stages
            .push(stage("all", StageSize::Percent(Ratio::ONE)));
        assert_eq!(policy.effective_stages().len(), 3);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let policy = Policy {
            stages: vec![
                stage("a", StageSize::Count(0)),
                stage("a", StageSize::Rest),
                stage("b", StageSize::Percent(Ratio::percent(120))),
                stage(REST, StageSize::Percent(Ratio::percent(10))),
            ],
            success: Threshold(Ratio::ZERO),
            error: Threshold(Ratio::ONE),
            silence_ms: 3,
            gate: Some(GatePolicy {
                alpha: Ratio::ZERO,
                min_canaries: 1,
                min_inferences: 0,
                confidence_margin: f64::NAN,
                mix_margin: -1.0,
                early: Some(EarlyPolicy {
                    alpha: Ratio::percent(1),
                }),
            }),
            seed: 1,
        };
        let error = policy.validate().unwrap_err();
        let fields: Vec<&str> = error
            .0
            .iter()
            .map(|problem| problem.field.as_str())
            .collect();
        assert_eq!(
            fields,
            [
                "stages[0].size",
                "stages[1].name",
                "stages[1].size",
                "stages[2].size",
                "stages[3].name",
                "stages[3].size",
                "success",
                "error",
                "silence_ms",
                "gate.alpha",
                "gate.min_canaries",
                "gate.min_inferences",
                "gate.confidence_margin",
                "gate.mix_margin",
                "gate.early.alpha",
                "stages[0].size",
            ]
        );
    }

    #[test]
    fn a_new_rollout_looks_early_and_a_stored_one_from_before_does_not() {
        let old = serde_json::json!({"seed": 7, "gate": {"alpha": "1/10", "min_canaries": 3,
            "min_inferences": 100, "confidence_margin": 0.05, "mix_margin": 0.1}});
        let stored: Policy = serde_json::from_value(old.clone()).unwrap();
        let gate = stored.gate.unwrap();
        assert_eq!(gate.early, None);
        assert_eq!(gate.at_fixed_look(500).alpha, Ratio::percent(10));
        let new = Policy::of_new(old.clone()).unwrap();
        let gate = new.gate.clone().unwrap();
        assert_eq!(gate.early.unwrap().alpha, Ratio::new(1, 40).unwrap());
        assert_eq!(gate.at_fixed_look(19).alpha, Ratio::percent(10));
        assert_eq!(gate.at_fixed_look(20).alpha, Ratio::new(3, 40).unwrap());
        let again: Policy = serde_json::from_value(serde_json::to_value(&new).unwrap()).unwrap();
        assert_eq!(again, new, "stored, it says so");
        let mut off = old;
        off["gate"]["early"] = Value::Null;
        let off = Policy::of_new(off).unwrap();
        assert_eq!(off.gate.as_ref().unwrap().early, None);
        let again = Policy::of_new(serde_json::to_value(&off).unwrap()).unwrap();
        assert_eq!(
            again, off,
            "what is switched off stays off when it is sent on"
        );
        let usual = Policy::of_new(serde_json::json!({"seed": 7})).unwrap();
        assert_eq!(usual, Policy::with_seed(7));
        let wrong = serde_json::json!({"seed": 7, "gate": {"early": {"alfa": "1/200"}}});
        assert!(Policy::of_new(wrong).is_err());
    }

    #[test]
    fn the_early_looks_share_is_less_than_the_whole() {
        let mut policy = Policy::with_seed(7);
        for (alpha, is_valid) in [
            ("1/200", true),
            ("0%", false),
            ("1/50", false),
            ("1/40", false),
        ] {
            let alpha = alpha.parse().unwrap();
            policy.gate.as_mut().unwrap().early = Some(EarlyPolicy { alpha });
            assert_eq!(policy.validate().is_ok(), is_valid, "{alpha}");
        }
    }

    #[test]
    fn a_gate_that_can_never_decide_is_told_beforehand() {
        let policy = Policy::with_seed(7);
        assert_eq!(policy.check_feasible(&[3, 3, 6]), []);
        let problems = policy.check_feasible(&[3, 1, 2]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].problem.contains("1/20"), "{}", problems[0]);
    }
}

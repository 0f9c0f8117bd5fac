//! Rollouts as the demo shows them: created, watched to their end, every verdict with its numbers.

use super::story::{POLL_MS, Story, millis};
use super::summary::RolloutSummary;
use crate::api::{CreateRollout, RolloutView};
use anyhow::ensure;
use dunlin_protocol::command::Probation;
use dunlin_server::drift::gate::{Decision, Verdict};
use dunlin_server::rollout::model::{RolloutState, StopReason};
use dunlin_server::rollout::policy::{GatePolicy, Policy, Stage, StageSize};
use dunlin_server::rollout::ratio::Ratio;
use dunlin_server::rollout::report::{ReasonCode, Report, StageReport};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SOAK_MS: u64 = 6_000;
const ROLLOUT_TIMEOUT_MS: u64 = 180_000;
pub(super) const CANARIES: u32 = 3;

impl Story {
    /// Creates a rollout and shows it until it ends; its id.
    pub(super) async fn roll_out(
        &mut self,
        version: u64,
        policy: Policy,
    ) -> anyhow::Result<String> {
        let begun = Instant::now();
        let request = CreateRollout {
            family: self.family.clone(),
            version,
            policy: Some(policy),
            selector: None,
            probation: Some(Probation {
                inferences: 20,
                time_ms: 1_000,
                errors_max: 0,
                deadline_ms: 60_000,
                ..Probation::default()
            }),
        };
        let client = self.session()?.client.clone();
        let id = client.create_rollout(&request).await?.id;
        let (mut last_stages, mut why) = (String::new(), String::new());
        let (mut told, mut judged) = (BTreeSet::new(), 0);
        loop {
            let view = client.rollout(&id).await?;
            if let Some(report) = &view.report {
                let stages = stages_line(report);
                if stages != last_stages {
                    self.say(&stages);
                    last_stages = stages;
                }
                self.tell_reasons(report, &mut told);
                report.headline().clone_into(&mut why);
            }
            let verdicts = verdicts_of(&view);
            verdicts
                .iter()
                .skip(judged)
                .for_each(|v| self.tell_verdict(v));
            judged = verdicts.len();
            if view.state.has_ended() || matches!(view.state, RolloutState::Paused { .. }) {
                return Ok(self.ended(&view, begun));
            }
            ensure!(
                begun.elapsed() < Duration::from_millis(ROLLOUT_TIMEOUT_MS),
                "rollout {id} did not end within {ROLLOUT_TIMEOUT_MS} ms: {why}"
            );
            tokio::time::sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// Each kind of reason once a stage; a verdict is told by its numbers.
    fn tell_reasons(&self, report: &Report, told: &mut BTreeSet<(String, ReasonCode)>) {
        for reason in &report.reasons {
            let stage = reason.sentence.split(':').next().unwrap_or_default();
            let by_verdict = matches!(
                reason.code,
                ReasonCode::GatePassed | ReasonCode::GateStopped
            );
            if !by_verdict && told.insert((stage.to_owned(), reason.code)) {
                self.say(&format!("  {}", reason.sentence));
            }
        }
    }

    fn tell_verdict(&self, verdict: &Verdict) {
        self.say(&format!(
            "  gate: {} canaries against {} controls",
            verdict.canaries.len(),
            verdict.controls.len()
        ));
        for m in &verdict.metrics {
            let failed = m.is_significant && m.is_beyond_margin;
            self.say(&format!(
                "    {:<11} canaries {:+.3}  controls {:+.3}  effect {:+.3} (margin {:.2})  p {}/{}  {}",
                m.name,
                m.canary_mean,
                m.control_mean,
                m.effect,
                m.margin,
                m.p.num,
                m.p.den,
                if failed { "STOP" } else { "pass" }
            ));
        }
    }

    fn ended(&mut self, view: &RolloutView, begun: Instant) -> String {
        let verdicts = verdicts_of(view);
        let outcome = outcome_of(&view.state);
        self.say(&format!("rollout of version {} {outcome}", view.version));
        self.rollouts.push(RolloutSummary {
            id: view.id.to_string(),
            version: view.version,
            outcome: outcome.to_owned(),
            canaries: verdicts
                .first()
                .map(|v| v.canaries.clone())
                .unwrap_or_default(),
            duration_ms: millis(begun),
            verdicts,
        });
        view.id.to_string()
    }

    pub(super) fn expect_outcome(&mut self, id: &str, version: u64, expected: &str) {
        let got = self.rollouts.iter().find(|r| r.id == id);
        let got = got.map_or("unknown", |r| r.outcome.as_str()).to_owned();
        self.check(
            &format!("rollout of version {version}"),
            expected.to_owned(),
            got,
        );
    }

    /// The gate, and nothing else, must have stopped the last rollout, at its first look.
    pub(super) fn expect_stopped_at_the_canaries(&mut self) {
        let got = match self.rollouts.last() {
            Some(r) => match r.verdicts.as_slice() {
                [v] if v.decision == Decision::Stop => {
                    format!("stopped by the gate, {} canaries", v.canaries.len())
                }
                other => format!("{} verdicts", other.len()),
            },
            None => "no rollout".to_owned(),
        };
        let expected = format!("stopped by the gate, {CANARIES} canaries");
        self.check("version 3 in the field", expected, got);
    }
}

/// All at once and without a gate: there is nothing to compare a first version with.
pub(super) fn policy_first(seed: u64) -> Policy {
    Policy {
        stages: vec![stage("all", StageSize::Rest, 0)],
        gate: None,
        ..Policy::with_seed(seed)
    }
}

pub(super) fn policy_gated(seed: u64) -> Policy {
    Policy {
        stages: vec![
            stage("canary", StageSize::Count(CANARIES), SOAK_MS),
            stage("half", StageSize::Percent(Ratio::percent(50)), SOAK_MS),
            stage("rest", StageSize::Rest, 1_000),
        ],
        gate: Some(GatePolicy::default()),
        ..Policy::with_seed(seed)
    }
}

fn stage(name: &str, size: StageSize, soak_ms: u64) -> Stage {
    Stage {
        name: name.to_owned(),
        size,
        soak_ms,
    }
}

fn outcome_of(state: &RolloutState) -> &'static str {
    match state {
        RolloutState::Running { .. } => "running",
        RolloutState::Paused { .. } => "paused",
        RolloutState::Stopped { why, .. } => match why {
            StopReason::Gate { .. } | StopReason::Early { .. } => "stopped",
            StopReason::Errors { .. } => "stopped by errors",
        },
        RolloutState::Finished => "finished",
        RolloutState::Aborted { .. } => "aborted",
    }
}

fn stages_line(report: &Report) -> String {
    let stage = |s: &StageReport| format!("{} {}/{}", s.name, s.counts.succeeded, s.total);
    report
        .stages
        .iter()
        .map(stage)
        .collect::<Vec<_>>()
        .join("   ")
}

fn verdicts_of(view: &RolloutView) -> Vec<Verdict> {
    let rows = view.other.get("verdicts").and_then(|v| v.as_array());
    rows.into_iter()
        .flatten()
        .filter_map(|row| serde_json::from_value(row["judged"]["verdict"].clone()).ok())
        .collect()
}

//! The early look within a plan.

use super::{Planner, ReasonCode, StopReason};
use crate::drift::early::{self, EarlyDecision, PAIRS_MIN};
use crate::rollout::pairs;

impl Planner<'_> {
    /// Looks at what the stage's pairs have shown; whether that stops the rollout.
    pub(super) fn stop_early(&mut self, stage: usize) -> bool {
        let (Some(policy), Some(input)) = (&self.input.policy.gate, self.input.early) else {
            return false;
        };
        let Some(verdict) = early::judge(policy, input) else {
            return false;
        };
        self.early = Some(verdict.clone());
        let is_stop = verdict.decision == EarlyDecision::Stop
            && early::applies(policy, pairs::drawn(&self.fleet, stage));
        if is_stop {
            let verdict = Box::new(verdict);
            self.stop(stage, StopReason::Early { verdict });
        }
        is_stop
    }

    /// Says, behind all else, what was seen; that a stage is too small for it is no news at every
    /// tick.
    pub(super) fn say_early(&mut self) {
        let shown = self.early.as_ref();
        let is_large = self
            .input
            .early
            .is_some_and(|input| input.drawn >= PAIRS_MIN);
        let sentence = shown.and_then(|verdict| match verdict.decision {
            EarlyDecision::Stop => None,
            EarlyDecision::GoOn => Some(format!("early look: {}", verdict.reason)),
            EarlyDecision::Insufficient => is_large.then(|| verdict.reason.clone()),
        });
        if let Some(sentence) = sentence {
            self.say(ReasonCode::EarlyLook, sentence);
        }
    }
}

//! A version in the shadow of the one that serves: on to its activation, or given up.

use super::Step;
use super::deaths::DEATHS_MAX;
use crate::device::{Effect, Phase};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::{Failure, ShadowReport, Waiting};

/// For reports.
pub(in crate::device) fn in_shadow(want: &DesiredBundle, so_far: &ShadowReport) -> Waiting {
    let rules = want.probation.shadow.unwrap_or_default();
    Waiting {
        code: "shadow".to_owned(),
        detail: format!(
            "in the shadow of the version that serves: {} of {} answers compared, {}",
            so_far.compared,
            rules.comparisons,
            in_words(so_far)
        ),
        until_ms: None,
    }
}

fn in_words(so_far: &ShadowReport) -> String {
    format!(
        "{} agree, {} won and {} lost by label, {} failed, {} passed over; median {} \u{b5}s, the serving version's {} \u{b5}s",
        so_far.agreed,
        so_far.won,
        so_far.lost,
        so_far.failed,
        so_far.passed_over,
        so_far.latency_us,
        so_far.serving_latency_us
    )
}

impl Step<'_> {
    /// Only where something serves whose shadow there is, and never on the way back to it.
    pub(super) fn is_to_be_shadowed(&self, want: &DesiredBundle) -> bool {
        let previous = self.model.previous.as_ref();
        let goes_back = previous.is_some_and(|h| h.bundle.digest == want.digest);
        want.probation.shadow.is_some() && self.model.kept.is_some() && !goes_back
    }

    pub(super) fn shadow(&mut self, want: DesiredBundle) {
        self.enter(Phase::Shadow {
            want,
            before: ShadowReport::default(),
            live: ShadowReport::default(),
            shadowed_ms: 0,
            looked_at_ms: self.now_ms,
            deaths: 0,
        });
        self.out.effects.extend(self.model.shadow(self.family));
    }

    /// The agent was started again; what to tell the worker is told with what serves.
    pub(super) fn shadow_goes_on(&mut self) {
        if let Phase::Shadow {
            before,
            live,
            looked_at_ms,
            ..
        } = &mut self.model.phase
        {
            *before = before.plus(&std::mem::take(live));
            *looked_at_ms = self.now_ms;
        }
        self.report();
    }

    pub(super) fn worker_died_of_shadow(&mut self, detail: &str, blamed: bool) {
        let Phase::Shadow {
            before,
            live,
            deaths,
            ..
        } = &mut self.model.phase
        else {
            return;
        };
        *before = before.plus(&std::mem::take(live));
        if blamed {
            *deaths += 1;
        }
        if *deaths >= DEATHS_MAX {
            let detail = format!("the worker died {deaths} times at work on it, last: {detail}");
            self.shadow_failed(Failure::new("crash_loop", detail));
        }
    }

    pub(super) fn shadowed(&mut self, digest: Digest, so_far: ShadowReport) {
        let Phase::Shadow {
            want, before, live, ..
        } = &mut self.model.phase
        else {
            return;
        };
        if want.digest != digest {
            return;
        }
        let needed = want.probation.shadow.unwrap_or_default().comparisons.max(1);
        let quarter = |live: &ShadowReport| {
            let compared = before.plus(live).compared.min(needed);
            compared.saturating_mul(4) / needed
        };
        let moved = quarter(&so_far) > quarter(live);
        *live = so_far;
        if moved {
            self.report();
        }
        self.judge_shadow();
    }

    pub(super) fn judge_shadow(&mut self) {
        let Phase::Shadow {
            want,
            before,
            live,
            shadowed_ms,
            ..
        } = &self.model.phase
        else {
            return;
        };
        let (rules, so_far) = (want.probation.shadow.unwrap_or_default(), before.plus(live));
        let done = so_far.compared >= rules.comparisons;
        let needed = u128::from(so_far.compared.max(rules.comparisons));
        let differ = u128::from(so_far.compared - so_far.agreed.min(so_far.compared));
        // One that can no longer be kept is broken at once.
        let broken = |min: u64| {
            let may = 1000_u128.saturating_sub(u128::from(min));
            differ * 1000 > needed * may
        };
        let net_losses = so_far.lost.saturating_sub(so_far.won);
        let words = in_words(&so_far);
        if let Some(min) = rules.agreement_permille_min.filter(|min| broken(*min)) {
            let detail = format!(
                "of {} answers compared {words}; at least {min} \u{2030} of {needed} have to agree",
                so_far.compared
            );
            self.shadow_failed(Failure::new("shadow_disagrees", detail));
        } else if let Some(max) = rules.net_losses_max.filter(|max| done && net_losses > *max) {
            let detail = format!("{words}; at most {max} more may be lost than won");
            self.shadow_failed(Failure::new("shadow_loses", detail));
        } else if done {
            self.shadow_passed(so_far);
        } else if *shadowed_ms >= rules.deadline_ms {
            let detail = format!(
                "{} of {} answers compared after {shadowed_ms} ms",
                so_far.compared, rules.comparisons
            );
            self.shadow_failed(Failure::new("shadow_deadline", detail));
        }
    }

    fn shadow_passed(&mut self, so_far: ShadowReport) {
        let Phase::Shadow { want, .. } = self.model.phase.clone() else {
            return;
        };
        let detail = format!(
            "version {}: {} answers compared: {}",
            want.version,
            so_far.compared,
            in_words(&so_far)
        );
        self.event("shadow_passed", &detail, Some(want.digest));
        self.end_shadow();
        self.model.shadowed = Some(so_far);
        // The shell asks for consent next.
        self.enter(Phase::Waiting { want, why: None });
    }

    pub(super) fn shadow_failed(&mut self, failure: Failure) {
        let Phase::Shadow {
            want, before, live, ..
        } = self.model.phase.clone()
        else {
            return;
        };
        self.end_shadow();
        self.model.shadowed = Some(before.plus(&live));
        if failure.code != super::SLOT_DAMAGED {
            self.remember(want.digest, want.version, &failure.code);
        }
        self.fail(&want, failure);
    }

    /// Has the worker drop it, if there is one.
    pub(super) fn end_shadow(&mut self) {
        if matches!(self.model.phase, Phase::Shadow { .. }) {
            let family = self.family.clone();
            self.out.effects.push(Effect::EndShadow { family });
        }
    }
}

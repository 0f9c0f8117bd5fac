//! A version that serves and is watched: kept or rolled back.

use super::deaths::DEATHS_MAX;
use super::{LOADING_MAX_MS, SLOT_DAMAGED, Step};
use crate::device::{Count, Held, Phase, Slot, installed};
use dunlin_protocol::command::SLOW_PERMILLE_MAX;
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::{Failure, Progress};

impl Step<'_> {
    pub(super) fn activated(&mut self, digest: Digest) {
        if let Phase::Probation {
            want,
            looked_at_ms,
            activated,
            loading_ms,
            ..
        } = &mut self.model.phase
            && want.digest == digest
            && !*activated
        {
            (*activated, *loading_ms, *looked_at_ms) = (true, 0, self.now_ms);
            self.judge();
        }
    }

    /// What is not about a version that serves, or should, is late news of one that was given up.
    pub(super) fn activate_failed(&mut self, slot: Slot, digest: Digest, failure: Failure) {
        if let Phase::Probation { want, .. } = &self.model.phase {
            if want.digest == digest && slot == self.model.spare() {
                self.roll_back(failure);
            }
            return;
        }
        if let Phase::Shadow { want, .. } = &self.model.phase
            && want.digest == digest
            && slot == self.model.spare()
        {
            return self.shadow_failed(failure);
        }
        if let Some(held) = self
            .model
            .kept
            .take_if(|h| h.slot == slot && h.bundle.digest == digest)
        {
            self.kept_broke(&held, &failure.detail);
        }
    }

    /// The worker died; `blamed`: for all that is known, this version may be the cause.
    pub(super) fn worker_died(&mut self, detail: &str, blamed: bool) {
        let mut rolled = None;
        if let Phase::Probation {
            before,
            live,
            deaths,
            activated,
            ..
        } = &mut self.model.phase
        {
            *activated = false;
            *before = before.plus(std::mem::take(live));
            if blamed {
                *deaths += 1;
            }
            if *deaths >= DEATHS_MAX {
                rolled = Some(format!("the worker died {deaths} times, last: {detail}"));
            }
        }
        if let Some(detail) = rolled {
            self.roll_back(Failure::new("crash_loop", detail));
        }
        self.worker_died_of_shadow(detail, blamed);
    }

    pub(super) fn counted(&mut self, digest: Digest, count: Count) {
        if let Phase::Probation {
            want, before, live, ..
        } = &mut self.model.phase
            && want.digest == digest
        {
            let needed = want.probation.inferences.max(1);
            let quarter = |live: Count| {
                let answered = before.plus(live).inferences.min(needed);
                answered.saturating_mul(4) / needed
            };
            let moved = quarter(count) > quarter(*live);
            *live = count;
            self.judge();
            // Whoever watches sees it move, four times a probation at most.
            if moved && matches!(self.model.phase, Phase::Probation { .. }) {
                self.report();
            }
        }
    }

    pub(super) fn judge(&mut self) {
        let Phase::Probation {
            want,
            served_ms,
            activated,
            loading_ms,
            before,
            live,
            ..
        } = &self.model.phase
        else {
            return;
        };
        let (rules, count) = (want.probation, before.plus(*live));
        if rules.forbids_errors(count.errors, count.inferences) {
            let allowed = match rules.errors_permille_max {
                Some(permille) => format!("{} and {permille} \u{2030}", rules.errors_max),
                None => rules.errors_max.to_string(),
            };
            let detail = format!(
                "{} failed inferences of {}, at most {allowed} are allowed",
                count.errors,
                count.errors.saturating_add(count.inferences),
            );
            self.roll_back(Failure::new("errors", detail));
        } else if rules.forbids_slow(count.slow, count.inferences) {
            let permille = rules.slow_permille_max.unwrap_or(SLOW_PERMILLE_MAX);
            let detail = format!(
                "{} of {} inferences took longer than the latency budget, at most {permille} \u{2030} \
                 of {} may",
                count.slow,
                count.inferences,
                count.inferences.max(rules.inferences)
            );
            self.roll_back(Failure::new("latency", detail));
        } else if !*activated {
            if *loading_ms >= LOADING_MAX_MS {
                let detail = format!("the worker did not serve it within {loading_ms} ms");
                self.roll_back(Failure::new("load", detail));
            }
        } else if count.inferences >= rules.inferences && *served_ms >= rules.time_ms {
            self.keep();
        } else if *served_ms >= rules.deadline_ms {
            let detail = format!(
                "{} of {} inferences after {} ms",
                count.inferences, rules.inferences, served_ms
            );
            self.roll_back(Failure::new("probation_deadline", detail));
        }
    }

    pub(super) fn keep(&mut self) {
        let Phase::Probation { want, .. } = &self.model.phase else {
            return;
        };
        let (held, digest) = (
            Held {
                slot: self.model.spare(),
                bundle: installed(want),
            },
            want.digest,
        );
        let detail = format!("version {} is kept", want.version);
        self.model.previous = self.model.kept.replace(held);
        self.forget(digest);
        self.event("update_succeeded", &detail, Some(digest));
        self.idle(Progress::Succeeded);
    }

    pub(super) fn roll_back(&mut self, failure: Failure) {
        if let Phase::Probation { want, .. } = self.model.phase.clone() {
            self.event(
                "update_rolled_back",
                &format!("{}: {}", failure.code, failure.detail),
                Some(want.digest),
            );
            if failure.code != SLOT_DAMAGED {
                self.remember(want.digest, want.version, &failure.code);
            }
            self.model.phase = Phase::RollingBack {
                want,
                failure: failure.clone(),
            };
            self.rolled_back(failure);
        }
    }

    pub(super) fn rolled_back(&mut self, failure: Failure) {
        self.serve_kept();
        self.idle(Progress::RolledBack(failure.clone()));
        self.give_way(failure);
    }
}

//! The worker died: whose doing that was, as far as it can be told.
//!
//! A version on probation is the newest change and is blamed for every death, unless another one
//! was at work, or none was and a signal came from outside. A kept version is blamed only if it alone was at work in two deaths within
//! [`IN_A_ROW_MS`], and not for a signal that comes from outside: it goes back to the version kept
//! before. Without one it is given up only where other models serve, which it would take along again
//! and again.

use super::Step;
use super::device::Whole;
use crate::device::{Deaths, Phase};
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::{Failure, Progress};

/// Deaths that make a version go back.
pub(super) const DEATHS_MAX: u32 = 2;
/// Deaths further apart have nothing to do with each other.
const IN_A_ROW_MS: i64 = 600_000;

impl Whole {
    pub(super) fn worker_died(
        &mut self,
        detail: &str,
        listened: bool,
        killed: bool,
        at_work: Option<Vec<Digest>>,
    ) {
        let active: Vec<Digest> = self.state.active().iter().map(|a| a.digest).collect();
        let from_outside = killed && at_work.as_ref().is_some_and(Vec::is_empty);
        let said = at_work.filter(|at_work| !at_work.is_empty());
        let suspects = said.clone().unwrap_or_else(|| active.clone());
        let only = |of: &[Digest]| (of.len() == 1).then(|| of[0]);
        self.out.event("worker_died", detail, only(&suspects));
        self.each(|model| {
            // In the shadow of another it is the newest change too.
            let newest = model.model.under_way().map(|want| want.digest);
            let suspected = match (&said, newest) {
                (None, _) => true,
                (Some(said), Some(newest)) => said.contains(&newest),
                (Some(_), None) => false,
            };
            model.worker_died(detail, listened && suspected && !from_outside);
        });
        if !listened || killed {
            return;
        }
        let deaths = self.count(suspects);
        let Some(culprit) = only(&deaths.suspects).filter(|_| deaths.count >= DEATHS_MAX) else {
            return;
        };
        let others = active.len() > 1;
        self.each(|model| model.killed_the_worker(culprit, others, detail));
    }

    fn count(&mut self, suspects: Vec<Digest>) -> Deaths {
        let before = std::mem::take(&mut self.state.deaths);
        let since_ms = self.now_ms.saturating_sub(before.at_ms);
        let both: Vec<Digest> = suspects
            .iter()
            .copied()
            .filter(|digest| before.suspects.contains(digest))
            .collect();
        let in_a_row = (0..IN_A_ROW_MS).contains(&since_ms) && !both.is_empty();
        self.state.deaths = Deaths {
            count: if in_a_row {
                before.count.saturating_add(1)
            } else {
                1
            },
            at_ms: self.now_ms,
            suspects: if in_a_row { both } else { suspects },
        };
        self.state.deaths.clone()
    }
}

impl Step<'_> {
    /// A kept version was alone at work when the worker died, and not for the first time.
    fn killed_the_worker(&mut self, culprit: Digest, others: bool, detail: &str) {
        let is_it = self
            .model
            .kept
            .as_ref()
            .is_some_and(|h| h.bundle.digest == culprit);
        if !is_it || !matches!(self.model.phase, Phase::Idle { .. }) {
            return;
        }
        let previous = self.model.previous.take();
        if previous.is_none() && !others {
            return;
        }
        let Some(fell) = std::mem::replace(&mut self.model.kept, previous) else {
            return;
        };
        let version = fell.bundle.version;
        let way = match &self.model.kept {
            Some(held) => format!("version {} serves again", held.bundle.version),
            None => {
                "no version was kept before it: it serves no more, for the others' sake".to_owned()
            }
        };
        let detail = format!(
            "the worker died {DEATHS_MAX} times at work on version {version}, last: {detail}; {way}"
        );
        self.event("version_went_back", &detail, Some(culprit));
        let failure = Failure::new("crash_loop", detail);
        self.remember(culprit, version, &failure.code);
        self.serve_kept();
        self.idle(Progress::RolledBack(failure));
    }
}

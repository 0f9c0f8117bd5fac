//! What concerns the device as a whole, and what each of its families makes of an event.

use super::{Out, Step};
use crate::device::{Consent, Effect, Event, MODELS_MAX, Model, State};
use dunlin_protocol::command::{Desired, DesiredBundle};
use dunlin_protocol::id::Family;
use dunlin_protocol::report::Failure;
use std::collections::BTreeMap;

/// Code of a roll-back because the slot is not whole: this device's own fault.
use super::SLOT_DAMAGED;

/// One step. `now_ms` is the device's clock in milliseconds since 1970.
#[must_use]
pub fn step(state: State, event: Event, now_ms: i64) -> (State, Vec<Effect>) {
    let mut next = Whole {
        state,
        out: Out::default(),
        now_ms,
    };
    match event {
        Event::Started => next.started(),
        Event::Desired(desired) => next.desired(desired),
        Event::Install { id, want } => next.install(id, want),
        Event::Received { digest, result } => {
            next.each(|model| model.received(digest, result.clone()));
        }
        Event::TrialDone { digest, report } => {
            next.each(|model| model.trial_done(digest, report.clone()));
        }
        Event::Activated { digest } => next.each(|model| model.activated(digest)),
        Event::ActivateFailed {
            slot,
            digest,
            detail,
        } => {
            let failure = Failure::new("load", detail);
            next.each(|model| model.activate_failed(slot, digest, failure.clone()));
        }
        Event::SlotDamaged {
            slot,
            digest,
            detail,
        } => {
            let failure = Failure::new(SLOT_DAMAGED, detail);
            next.each(|model| model.activate_failed(slot, digest, failure.clone()));
        }
        Event::WorkerDied {
            detail,
            listened,
            killed,
            at_work,
        } => next.worker_died(&detail, listened, killed, at_work),
        Event::Shadowed { digest, so_far } => next.each(|model| model.shadowed(digest, so_far)),
        Event::Counted { digest, count } => next.each(|model| model.counted(digest, count)),
        Event::Consent(consent) => next.consent(&consent),
        Event::Tick => next.each(|model| model.tick()),
    }
    next.end()
}

/// The whole device's part of a step.
pub(super) struct Whole {
    pub(super) state: State,
    pub(super) out: Out,
    pub(super) now_ms: i64,
}

impl Whole {
    fn end(mut self) -> (State, Vec<Effect>) {
        self.state.models.retain(|_, model| !model.is_blank());
        if self.out.told {
            self.state.sequence = self.state.sequence.saturating_add(1);
            self.out.effects.push(Effect::Report);
        }
        (self.state, self.out.effects)
    }

    /// Every family's part. What is not about a version of its own, it passes over.
    pub(super) fn each(&mut self, mut part: impl FnMut(&mut Step<'_>)) {
        let jitter_seed = self.state.jitter_seed;
        for (family, model) in &mut self.state.models {
            part(&mut Step {
                family,
                model,
                now_ms: self.now_ms,
                jitter_seed,
                out: &mut self.out,
            });
        }
    }

    /// One family's part.
    fn of(&mut self, family: &Family, part: impl FnOnce(&mut Step<'_>)) {
        let model = self.state.models.entry(family.clone()).or_default();
        part(&mut Step {
            family,
            model,
            now_ms: self.now_ms,
            jitter_seed: self.state.jitter_seed,
            out: &mut self.out,
        });
    }

    fn started(&mut self) {
        let cleanly = std::mem::take(&mut self.state.ended_cleanly);
        self.each(|model| model.started(cleanly));
        self.out.told = true;
    }

    fn consent(&mut self, consent: &Consent) {
        if self.state.hold != consent.hold {
            self.state.hold.clone_from(&consent.hold);
            self.out.told = true;
        }
        self.each(|model| model.consent(consent));
    }

    fn desired(&mut self, desired: Desired) {
        self.out.told = true;
        let accepted = self.state.revision;
        if desired.revision < accepted {
            let revision = desired.revision;
            let detail = format!("desired state {revision} is older than the accepted {accepted}");
            return self.out.event("stale_desired", &detail, None);
        }
        if desired.revision == accepted {
            return self.each(|model| model.heard());
        }
        self.state.revision = desired.revision;
        let mut wanted = self.by_family(desired);
        let known: Vec<Family> = self.state.models.keys().cloned().collect();
        for family in known {
            let want = wanted.remove(&family);
            let asked = want.as_ref().and_then(|want| want.asked);
            let is_news = self
                .state
                .models
                .get(&family)
                .is_some_and(|model| model.asked != asked);
            self.of(&family, |model| {
                if is_news {
                    model.desired(asked, want);
                } else {
                    model.heard();
                }
            });
        }
        for (family, want) in wanted {
            self.of(&family, |model| model.desired(want.asked, Some(want)));
        }
    }

    /// What is wanted of each family, each with the desired state that asked for it first. What is
    /// more than a device may have of them is left out, and told.
    fn by_family(&mut self, desired: Desired) -> BTreeMap<Family, DesiredBundle> {
        let mut wanted = BTreeMap::new();
        for mut want in desired.bundles {
            want.asked = Some(want.asked.unwrap_or(desired.revision));
            if wanted.contains_key(&want.family) {
                let detail = format!("{} is asked for twice: the first counts", want.family);
                self.out.event("desired_twice", &detail, Some(want.digest));
            } else if self.has_room(&want.family, wanted.keys()) {
                wanted.insert(want.family.clone(), want);
            } else {
                let detail = format!(
                    "{} version {} is passed over: a device runs at most {MODELS_MAX} model families",
                    want.family, want.version
                );
                self.out
                    .event("too_many_models", &detail, Some(want.digest));
            }
        }
        wanted
    }

    /// Whether one more family may be known. Those of which nothing is here any more give way.
    fn has_room<'a>(&mut self, family: &Family, wanted: impl Iterator<Item = &'a Family>) -> bool {
        let wanted: Vec<&Family> = wanted.collect();
        if self.state.models.contains_key(family) {
            return true;
        }
        let is_gone = |model: &Model| model.kept.is_none() && model.under_way().is_none();
        let new = |known: &BTreeMap<Family, Model>| {
            let new = wanted.iter().filter(|f| !known.contains_key(**f));
            known.len() + new.count()
        };
        if new(&self.state.models) < MODELS_MAX {
            return true;
        }
        let gone = |(known, model): (&Family, &Model)| {
            (is_gone(model) && !wanted.contains(&known)).then(|| known.clone())
        };
        let gone = self.state.models.iter().find_map(gone);
        match gone {
            Some(gone) => {
                self.state.models.remove(&gone);
                true
            }
            None => false,
        }
    }

    /// Somebody at the device wants a bundle; the accepted revision stays.
    fn install(&mut self, id: String, want: DesiredBundle) {
        if self.state.install.as_ref() == Some(&id) {
            return;
        }
        self.state.install = Some(id);
        if !self.has_room(&want.family, std::iter::empty()) {
            let detail = format!(
                "{} version {}: a device runs at most {MODELS_MAX} model families",
                want.family, want.version
            );
            return self
                .out
                .event("too_many_models", &detail, Some(want.digest));
        }
        let family = want.family.clone();
        self.of(&family, |model| model.install(want));
    }
}

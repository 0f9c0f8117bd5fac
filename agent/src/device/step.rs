//! The transitions. Each is named and reads on its own.

mod deaths;
mod device;
mod probation;
mod shadow;
mod wanted;

pub use device::step;
pub(super) use shadow::in_shadow;

use super::backoff::{BACKOFF_MAX_MS, backoff_ms};
use super::{
    ByHand, Consent, Count, Effect, Held, Model, Phase, ReceiveFailure, ReceiveFailureKind, Slot,
    window,
};
use crate::pipe::TrialReport;
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::{Failure, Progress, Waiting};

/// Code of an update that was given up for want of a link.
pub(super) const UNREACHABLE: &str = "unreachable";
/// Failed fetches in a row without a byte before the update counts as failed, if any is kept.
pub(super) const ATTEMPTS_MAX: u32 = 20;
/// Trials begun before a model that never finishes one is given up.
const TRIAL_STARTS_MAX: u32 = 2;
/// Supervisor starts in one probation, clean ends left out, that are borne: the model may take the whole device down.
const RESTARTS_MAX: u32 = 5;
/// Longest span one tick counts as time in service: clock jumps and suspends count no more.
const TICK_MAX_MS: i64 = 5_000;
/// Longest time from a passed trial to service, worker restarts included: a slow disk has to read a
/// large model twice.
pub(super) const LOADING_MAX_MS: u64 = 600_000;
/// Codes of trials that ended badly by this device's own fault, not by the bundle's.
const DEVICE_FAULTS: [&str; 2] = ["staged", "trial_start"];
/// Code of a roll-back because the slot is not whole: this device's own fault too.
const SLOT_DAMAGED: &str = "slot_damaged";
/// Longest detail of an event, in characters.
const DETAIL_MAX_CHARS: usize = 500;

/// One family's part of a step.
struct Step<'a> {
    family: &'a Family,
    model: &'a mut Model,
    now_ms: i64,
    jitter_seed: u64,
    out: &'a mut Out,
}

/// What a step brings about.
#[derive(Default)]
struct Out {
    effects: Vec<Effect>,
    /// Whether there is something to tell the server.
    told: bool,
}

impl Out {
    fn event(&mut self, code: &'static str, detail: &str, bundle: Option<Digest>) {
        let detail = detail.chars().take(DETAIL_MAX_CHARS).collect();
        self.effects.push(Effect::Event {
            code,
            detail,
            bundle,
        });
    }
}

impl Step<'_> {
    fn report(&mut self) {
        self.out.told = true;
    }

    fn event(&mut self, code: &'static str, detail: &str, bundle: Option<Digest>) {
        self.out.event(code, detail, bundle);
    }

    fn cancel(&mut self) {
        let family = self.family.clone();
        self.out.effects.push(Effect::Cancel { family });
    }

    fn serve(&mut self, slot: Slot, digest: Digest) {
        let family = self.family.clone();
        self.out.effects.push(Effect::Serve {
            family,
            slot,
            digest,
        });
    }

    fn serve_nothing(&mut self) {
        let family = self.family.clone();
        self.out.effects.push(Effect::ServeNothing { family });
    }

    fn enter(&mut self, phase: Phase) {
        self.model.phase = phase;
        self.report();
    }

    fn idle(&mut self, last: Progress) {
        if last == Progress::Succeeded
            && let Some(ByHand::Wanted { instead_of }) = &mut self.model.by_hand
        {
            *instead_of = None;
        }
        self.enter(Phase::Idle { last });
    }

    fn serve_kept(&mut self) {
        match &self.model.kept {
            Some(held) => self.serve(held.slot, held.bundle.digest),
            None => self.serve_nothing(),
        }
    }

    /// The supervisor has started; the one before ended cleanly or not.
    fn started(&mut self, cleanly: bool) {
        self.out.effects.extend(self.model.serve(self.family));
        match self.model.phase.clone() {
            Phase::Idle { .. } => self.report(),
            Phase::Receiving { want, .. } => self.receive(want, 0),
            Phase::Trial { want, starts } => {
                self.trial(want, starts.saturating_sub(u32::from(cleanly)));
            }
            Phase::Waiting { .. } => self.report(),
            Phase::Shadow { .. } => self.shadow_goes_on(),
            Phase::Probation { restarts: past, .. } => {
                let counted = past.saturating_add(u32::from(!cleanly));
                if let Phase::Probation {
                    restarts,
                    looked_at_ms,
                    before,
                    live,
                    activated,
                    ..
                } = &mut self.model.phase
                {
                    *activated = false;
                    *restarts = counted;
                    *looked_at_ms = self.now_ms;
                    *before = before.plus(std::mem::take(live));
                }
                if counted > RESTARTS_MAX {
                    let detail = format!("the agent was started again {counted} times");
                    self.roll_back(Failure::new("crash_loop", detail));
                } else {
                    self.report();
                }
            }
            Phase::RollingBack { failure, .. } => self.rolled_back(failure),
        }
    }

    fn receive(&mut self, want: DesiredBundle, attempts: u32) {
        let slot = self.model.spare();
        // Its slot is about to be written to.
        let other = |h: &mut Held| h.bundle.digest != want.digest;
        self.model.previous.take_if(other);
        self.out.effects.push(Effect::Receive {
            want: want.clone(),
            slot,
        });
        self.enter(Phase::Receiving {
            want,
            attempts,
            retry_at_ms: 0,
            busy: true,
        });
    }

    fn received(&mut self, digest: Digest, result: Result<(), ReceiveFailure>) {
        let Phase::Receiving { want, attempts, .. } = self.model.phase.clone() else {
            return;
        };
        if want.digest != digest {
            return;
        }
        match result {
            Ok(()) => self.trial(want, 0),
            Err(ReceiveFailure {
                kind,
                progressed,
                failure,
            }) => match kind {
                ReceiveFailureKind::Refused => self.refuse(&want, failure),
                ReceiveFailureKind::Failed => self.fail(&want, failure),
                ReceiveFailureKind::Transient
                    if !progressed && self.model.kept.is_some() && attempts + 1 >= ATTEMPTS_MAX =>
                {
                    let detail = format!("{} attempts, last: {}", attempts + 1, failure.detail);
                    self.fail(&want, Failure::new(UNREACHABLE, detail));
                }
                ReceiveFailureKind::Transient => {
                    let before = if progressed { 0 } else { attempts };
                    let attempts = (before + 1).min(ATTEMPTS_MAX);
                    let retry_at_ms = self
                        .now_ms
                        .saturating_add(backoff_ms(attempts, self.jitter_seed));
                    self.model.phase = Phase::Receiving {
                        want,
                        attempts,
                        retry_at_ms,
                        busy: false,
                    };
                }
            },
        }
    }

    fn trial(&mut self, want: DesiredBundle, starts: u32) {
        if starts >= TRIAL_STARTS_MAX {
            let detail = format!("the trial was begun {starts} times and never ended");
            self.remember(want.digest, want.version, "trial_interrupted");
            return self.fail(&want, Failure::new("trial_interrupted", detail));
        }
        self.out.effects.push(Effect::Trial {
            family: self.family.clone(),
            slot: self.model.spare(),
            digest: want.digest,
        });
        self.enter(Phase::Trial {
            want,
            starts: starts + 1,
        });
    }

    fn trial_done(&mut self, digest: Digest, report: TrialReport) {
        let Phase::Trial { want, .. } = self.model.phase.clone() else {
            return;
        };
        if want.digest != digest {
            return;
        }
        match report {
            TrialReport::Failed { code, detail } => {
                if !DEVICE_FAULTS.contains(&code.as_str()) {
                    self.remember(want.digest, want.version, &code);
                }
                self.fail(&want, Failure::new(&code, detail));
            }
            TrialReport::Passed { .. } if self.is_to_be_shadowed(&want) => self.shadow(want),
            // The shell asks for consent next, so that there is nothing to tell yet.
            TrialReport::Passed { .. } => self.model.phase = Phase::Waiting { want, why: None },
        }
    }

    fn consent(&mut self, consent: &Consent) {
        if let Phase::Waiting { want, why } = self.model.phase.clone() {
            match self.withheld(&want, consent) {
                None => self.activate(want),
                Some(new) if why.as_ref() != Some(&new) => {
                    let why = Some(new);
                    self.enter(Phase::Waiting { want, why });
                }
                Some(_) => {}
            }
        }
    }

    /// Why a version may not be activated now. Going back needs nobody's consent, and where nothing
    /// serves, the window has nothing to protect.
    fn withheld(&self, want: &DesiredBundle, consent: &Consent) -> Option<Waiting> {
        let previous = self.model.previous.as_ref();
        if previous.is_some_and(|h| h.bundle.digest == want.digest) {
            return None;
        }
        if let Some(hold) = &consent.hold {
            return Some(Waiting {
                code: "hold".to_owned(),
                detail: format!("held back at the device: {}", hold.reason),
                until_ms: hold.until_ms,
            });
        }
        let opens_ms = consent
            .window_opens_ms
            .filter(|_| self.model.kept.is_some())?;
        Some(Waiting {
            code: "window".to_owned(),
            detail: window::opens_in_words(opens_ms),
            until_ms: (opens_ms != i64::MAX).then_some(opens_ms),
        })
    }

    fn activate(&mut self, want: DesiredBundle) {
        self.serve(self.model.spare(), want.digest);
        self.enter(Phase::Probation {
            want,
            served_ms: 0,
            activated: false,
            loading_ms: 0,
            looked_at_ms: self.now_ms,
            before: Count::default(),
            live: Count::default(),
            deaths: 0,
            restarts: 0,
        });
    }

    /// Serving nothing is better than serving a version of which nobody knows that it serves: the
    /// worker may still run the one that was just rolled back.
    fn kept_broke(&mut self, held: &Held, detail: &str) {
        let detail = format!(
            "version {}, which is kept, cannot be served: {detail}",
            held.bundle.version
        );
        self.event("serve_failed", &detail, Some(held.bundle.digest));
        self.serve_nothing();
        match self.model.phase.clone() {
            // The slot to fill is another one now.
            Phase::Receiving {
                want,
                attempts,
                busy: true,
                ..
            } => {
                self.cancel();
                self.receive(want, attempts);
            }
            Phase::Trial { want, .. } => {
                self.cancel();
                self.receive(want, 0);
            }
            Phase::Waiting { want, .. } => self.receive(want, 0),
            Phase::Shadow { want, .. } => {
                self.end_shadow();
                self.receive(want, 0);
            }
            Phase::Idle { last } => {
                let wanted = self.model.wanted.clone();
                match wanted.filter(|w| w.digest == held.bundle.digest) {
                    Some(want) => self.receive(want, 0),
                    None if last == Progress::Succeeded => {
                        self.idle(Progress::Failed(Failure::new("serve_failed", detail)));
                    }
                    None => self.report(),
                }
            }
            Phase::Receiving { .. } | Phase::Probation { .. } | Phase::RollingBack { .. } => {
                self.report();
            }
        }
    }

    fn tick(&mut self) {
        match &mut self.model.phase {
            Phase::Receiving {
                want,
                attempts,
                retry_at_ms,
                busy: false,
            } if *retry_at_ms <= self.now_ms
                || retry_at_ms.saturating_sub(self.now_ms) > BACKOFF_MAX_MS * 2 =>
            {
                let (want, attempts) = (want.clone(), *attempts);
                self.receive(want, attempts);
            }
            Phase::Probation {
                served_ms,
                activated,
                loading_ms,
                looked_at_ms,
                ..
            } => {
                let passed = self
                    .now_ms
                    .saturating_sub(*looked_at_ms)
                    .clamp(0, TICK_MAX_MS);
                let counted = if *activated { served_ms } else { loading_ms };
                *counted = counted.saturating_add(passed.unsigned_abs());
                *looked_at_ms = self.now_ms;
                self.judge();
            }
            Phase::Shadow {
                shadowed_ms,
                looked_at_ms,
                ..
            } => {
                let passed = self.now_ms.saturating_sub(*looked_at_ms);
                let passed = passed.clamp(0, TICK_MAX_MS).unsigned_abs();
                *shadowed_ms = shadowed_ms.saturating_add(passed);
                *looked_at_ms = self.now_ms;
                self.judge_shadow();
            }
            _ => {}
        }
    }

    fn refuse(&mut self, want: &DesiredBundle, failure: Failure) {
        self.event(
            "update_refused",
            &format!("{}: {}", failure.code, failure.detail),
            Some(want.digest),
        );
        self.idle(Progress::Refused(failure.clone()));
        self.give_way(failure);
    }

    fn fail(&mut self, want: &DesiredBundle, failure: Failure) {
        self.event(
            "update_failed",
            &format!("{}: {}", failure.code, failure.detail),
            Some(want.digest),
        );
        self.idle(Progress::Failed(failure.clone()));
        self.give_way(failure);
    }
}

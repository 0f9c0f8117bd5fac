//! What is wanted: by the server, and by whoever stands at the device.

use super::Step;
use crate::device::{ByHand, Effect, NOT_HELD_MAX, NotHeld, Phase, installed};
use dunlin_protocol::command::{Desired, DesiredBundle};
use dunlin_protocol::id::Digest;
use dunlin_protocol::report::{Failure, Progress};

impl Step {
    pub(super) fn desired(&mut self, desired: Desired) {
        if desired.revision < self.state.revision {
            let detail = format!(
                "desired state {} is older than the accepted {}",
                desired.revision, self.state.revision
            );
            self.event("stale_desired", detail, None);
            return self.report();
        }
        if desired.revision == self.state.revision {
            let wanted = self.state.wanted.clone();
            // The server is heard again, so that it may be reached again.
            return match wanted.filter(|_| self.state.is_resumable()) {
                Some(want) => self.receive(want, 0),
                None => self.report(),
            };
        }
        self.state.revision = desired.revision;
        let mut bundles = desired.bundles.into_iter();
        let (want, more) = (bundles.next(), bundles.next());
        self.state.target = want.as_ref().map(installed);
        self.state.rollout = want.as_ref().and_then(|w| w.rollout.clone());
        self.state.wanted = if more.is_none() { want.clone() } else { None };
        self.state.by_hand = None;
        let busy = matches!(
            self.state.phase,
            Phase::Receiving { .. } | Phase::Trial { .. }
        );
        if busy {
            self.effects.push(Effect::Cancel);
        }
        match want {
            None => self.nothing_wanted(),
            Some(want) if more.is_some() => {
                self.leave_probation(&want);
                let failure = Failure::new("one_family", "this agent runs one model family");
                self.refuse(&want, failure);
            }
            Some(want) => self.wanted(want),
        }
    }

    /// Somebody at the device wants a bundle. The accepted revision stays, so that the server's same
    /// word, said again, changes nothing, and its next one wins. Floors hold as ever.
    pub(super) fn install(&mut self, id: String, want: DesiredBundle) {
        if self.state.install.as_ref() == Some(&id) {
            return;
        }
        self.state.install = Some(id);
        let detail = format!("version {} was brought by hand", want.version);
        self.event("install_requested", detail, Some(want.digest));
        let (servers, is_open) = match self.state.by_hand.take() {
            Some(ByHand::Wanted { instead_of }) => (instead_of, true),
            _ => (self.state.wanted.clone(), self.state.is_unfinished()),
        };
        let want = match servers {
            // What the server wants too stays the server's, with its rollout and its probation.
            Some(servers) if servers.digest == want.digest => servers,
            servers => {
                let instead_of = servers.filter(|_| is_open);
                self.state.by_hand = Some(ByHand::Wanted { instead_of });
                want
            }
        };
        self.state.target = Some(installed(&want));
        self.state.rollout = want.rollout.clone();
        self.state.wanted = Some(want.clone());
        if matches!(
            self.state.phase,
            Phase::Receiving { .. } | Phase::Trial { .. }
        ) {
            self.effects.push(Effect::Cancel);
        }
        self.wanted(want);
    }

    /// What was brought by hand did not hold: what the server asked for meanwhile is taken up again,
    /// for it may say nothing new for a long time.
    pub(super) fn give_way(&mut self, failure: Failure) {
        let Some(ByHand::Wanted { instead_of }) = &mut self.state.by_hand else {
            return;
        };
        let Some(want) = instead_of.take() else {
            return;
        };
        let detail = format!(
            "what was brought by hand did not hold ({}): version {} of the server's is taken up again",
            failure.code, want.version
        );
        self.event("install_gave_way", detail, Some(want.digest));
        self.state.by_hand = Some(ByHand::GaveWay { failure });
        self.state.target = Some(installed(&want));
        self.state.rollout = want.rollout.clone();
        self.state.wanted = Some(want.clone());
        self.wanted(want);
    }

    /// Nothing is asked for: what is kept goes on serving, an unkept version is given up.
    pub(super) fn nothing_wanted(&mut self) {
        if matches!(self.state.phase, Phase::Probation { .. }) {
            self.serve_kept();
        }
        self.idle(Progress::Idle);
    }

    pub(super) fn wanted(&mut self, want: DesiredBundle) {
        // The same bundle under a newer revision goes on where it is.
        if let Phase::Waiting { want: on, .. } | Phase::Probation { want: on, .. } =
            &mut self.state.phase
            && on.digest == want.digest
        {
            *on = want;
            return self.report();
        }
        self.leave_probation(&want);
        let kept = self.state.kept.as_ref();
        if kept.is_some_and(|h| h.bundle.digest == want.digest) {
            return self.idle(Progress::Succeeded);
        }
        if !want.probation.retry_rolled_back
            && let Some(failure) = self.rolled_back_before(&want)
        {
            return self.refuse(&want, failure);
        }
        self.receive(want, 0);
    }

    pub(super) fn rolled_back_before(&self, want: &DesiredBundle) -> Option<Failure> {
        let mut not_held = self.state.not_held.iter();
        let before = not_held.find(|n| n.digest == want.digest)?;
        let detail = format!(
            "version {} did not hold on this device before ({}); it is tried again only if that is \
             asked for explicitly",
            before.version, before.code
        );
        Some(Failure::new("rolled_back_before", detail))
    }

    /// Remembers a version that did not hold, so that it is not tried again by itself.
    pub(super) fn remember(&mut self, want: &DesiredBundle, code: &str) {
        self.forget(want.digest);
        let not_held = &mut self.state.not_held;
        if not_held.len() >= NOT_HELD_MAX {
            not_held.remove(0);
        }
        not_held.push(NotHeld {
            digest: want.digest,
            version: want.version,
            code: code.to_owned(),
        });
    }

    pub(super) fn forget(&mut self, digest: Digest) {
        self.state.not_held.retain(|n| n.digest != digest);
    }

    /// An unkept version gives way to what is wanted now; the kept one serves meanwhile.
    pub(super) fn leave_probation(&mut self, want: &DesiredBundle) {
        if let Phase::Probation { want: old, .. } = &self.state.phase {
            let detail = format!(
                "version {} gave way in its probation: version {} is wanted",
                old.version, want.version
            );
            let digest = old.digest;
            self.event("probation_ended", detail, Some(digest));
            self.serve_kept();
        }
    }
}

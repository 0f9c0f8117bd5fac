//! What is wanted: by the server, and by whoever stands at the device.

use super::Step;
use crate::device::{ByHand, NOT_HELD_MAX, NotHeld, Phase, installed};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::{Digest, Revision};
use dunlin_protocol::report::{Failure, Progress};

impl Step<'_> {
    /// The server's newer word about this family, said in the desired state `asked`.
    pub(super) fn desired(&mut self, asked: Option<Revision>, want: Option<DesiredBundle>) {
        self.model.asked = asked;
        self.ask_for(want.as_ref());
        self.model.by_hand = None;
        self.interrupt();
        match want {
            None => self.nothing_wanted(),
            Some(want) => self.wanted(want),
        }
    }

    /// The server is heard again, so that it may be reached again.
    pub(super) fn heard(&mut self) {
        let wanted = self.model.wanted.clone();
        if let Some(want) = wanted.filter(|_| self.model.is_resumable()) {
            self.receive(want, 0);
        }
    }

    fn ask_for(&mut self, want: Option<&DesiredBundle>) {
        self.model.target = want.map(installed);
        self.model.rollout = want.and_then(|w| w.rollout.clone());
        self.model.wanted = want.cloned();
    }

    /// Gives up a fetch or a trial under way.
    fn interrupt(&mut self) {
        self.model.shadowed = None;
        let phase = &self.model.phase;
        if matches!(phase, Phase::Receiving { .. } | Phase::Trial { .. }) {
            self.cancel();
        }
    }

    /// Somebody at the device wants a bundle. What the server asked for stays accepted, so that its
    /// same word, said again, changes nothing, and its next one wins. Floors hold as ever.
    pub(super) fn install(&mut self, want: DesiredBundle) {
        let detail = format!("version {} was brought by hand", want.version);
        self.event("install_requested", &detail, Some(want.digest));
        let (servers, is_open) = match self.model.by_hand.take() {
            Some(ByHand::Wanted { instead_of }) => (instead_of.map(|want| *want), true),
            _ => (self.model.wanted.clone(), self.model.is_unfinished()),
        };
        let want = match servers {
            // What the server wants too stays the server's, with its rollout and its probation.
            Some(servers) if servers.digest == want.digest => servers,
            servers => {
                let instead_of = servers.filter(|_| is_open).map(Box::new);
                self.model.by_hand = Some(ByHand::Wanted { instead_of });
                want
            }
        };
        self.ask_for(Some(&want));
        self.interrupt();
        self.wanted(want);
    }

    /// What was brought by hand did not hold: what the server asked for meanwhile is taken up again,
    /// for it may say nothing new for a long time.
    pub(super) fn give_way(&mut self, failure: Failure) {
        let Some(ByHand::Wanted { instead_of }) = &mut self.model.by_hand else {
            return;
        };
        let Some(want) = instead_of.take() else {
            return;
        };
        let want = *want;
        let detail = format!(
            "what was brought by hand did not hold ({}): version {} of the server's is taken up again",
            failure.code, want.version
        );
        self.event("install_gave_way", &detail, Some(want.digest));
        self.model.by_hand = Some(ByHand::GaveWay { failure });
        self.ask_for(Some(&want));
        self.wanted(want);
    }

    /// Nothing is asked for: what is kept goes on serving, an unkept version is given up.
    pub(super) fn nothing_wanted(&mut self) {
        if matches!(self.model.phase, Phase::Probation { .. }) {
            self.serve_kept();
        }
        self.end_shadow();
        self.idle(Progress::Idle);
    }

    pub(super) fn wanted(&mut self, want: DesiredBundle) {
        // The same bundle under a newer revision goes on where it is.
        if let Phase::Waiting { want: on, .. }
        | Phase::Shadow { want: on, .. }
        | Phase::Probation { want: on, .. } = &mut self.model.phase
            && on.digest == want.digest
        {
            *on = want;
            return self.report();
        }
        self.leave_probation(&want);
        self.end_shadow();
        let kept = self.model.kept.as_ref();
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
        let mut not_held = self.model.not_held.iter();
        let before = not_held.find(|n| n.digest == want.digest)?;
        let detail = format!(
            "version {} did not hold on this device before ({}); it is tried again only if that is \
             asked for explicitly",
            before.version, before.code
        );
        Some(Failure::new("rolled_back_before", detail))
    }

    /// Remembers a version that did not hold, so that it is not tried again by itself.
    pub(super) fn remember(&mut self, digest: Digest, version: u64, code: &str) {
        self.forget(digest);
        let not_held = &mut self.model.not_held;
        if not_held.len() >= NOT_HELD_MAX {
            not_held.remove(0);
        }
        not_held.push(NotHeld {
            digest,
            version,
            code: code.to_owned(),
        });
    }

    pub(super) fn forget(&mut self, digest: Digest) {
        self.model.not_held.retain(|n| n.digest != digest);
    }

    /// An unkept version gives way to what is wanted now; the kept one serves meanwhile.
    pub(super) fn leave_probation(&mut self, want: &DesiredBundle) {
        if let Phase::Probation { want: old, .. } = &self.model.phase {
            let detail = format!(
                "version {} gave way in its probation: version {} is wanted",
                old.version, want.version
            );
            let digest = old.digest;
            self.event("probation_ended", &detail, Some(digest));
            self.serve_kept();
        }
    }
}

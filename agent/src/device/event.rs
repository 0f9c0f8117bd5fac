//! What happens to a device, and what it has to do about it.

use super::{Count, Slot};
use crate::pipe::TrialReport;
use dunlin_protocol::command::{Desired, DesiredBundle, Shadow};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::{Failure, Hold, ShadowReport};

/// What the device's owner has to say about activating a version now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Consent {
    /// Held back by hand.
    pub hold: Option<Hold>,
    /// Outside the maintenance window, which opens then (milliseconds since 1970; `i64::MAX`: never).
    pub window_opens_ms: Option<i64>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The supervisor has started; the worker serves nothing yet.
    Started,
    /// The server says what it wants.
    Desired(Desired),
    /// Somebody at the device wants a bundle that was brought by hand.
    Install {
        /// Of the request: the same one counts once.
        id: String,
        /// What is wanted.
        want: DesiredBundle,
    },
    /// A fetch ended.
    Received {
        /// The bundle it was for.
        digest: Digest,
        /// Staged, or why not.
        result: Result<(), ReceiveFailure>,
    },
    /// A trial ended.
    TrialDone {
        /// The bundle it was for.
        digest: Digest,
        /// What it found.
        report: TrialReport,
    },
    /// The worker serves a bundle now.
    Activated {
        /// The bundle.
        digest: Digest,
    },
    /// The worker could not load a bundle that was to be served.
    ActivateFailed {
        /// The slot.
        slot: Slot,
        /// The bundle that was asked for.
        digest: Digest,
        /// Why.
        detail: String,
    },
    /// A bundle that was to be served is not whole on disk: the device's fault, not the bundle's.
    SlotDamaged {
        /// The slot.
        slot: Slot,
        /// The bundle that should be in it.
        digest: Digest,
        /// Why.
        detail: String,
    },
    /// The worker died; the shell starts another and has it do what
    /// [`State::serve`](super::State::serve) says.
    WorkerDied {
        /// Exit status in words.
        detail: String,
        /// Whether it had opened its sockets: before that, no model can be the cause.
        listened: bool,
        /// Whether a signal that only others send ended it, such as the kernel's when memory is short.
        killed: bool,
        /// What it said that it loads or computes at that moment; none: it did not say.
        at_work: Option<Vec<Digest>>,
    },
    /// Totals of this worker life for a bundle.
    Counted {
        /// The bundle.
        digest: Digest,
        /// Its totals.
        count: Count,
    },
    /// What a version in the shadow did in this worker life.
    Shadowed {
        /// The bundle.
        digest: Digest,
        /// Its totals.
        so_far: ShadowReport,
    },
    /// What the device's owner has to say, as of now; asked for while a version waits, and told
    /// whenever a hold begins or ends.
    Consent(Consent),
    /// Time passed.
    Tick,
}

/// Why a fetch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveFailure {
    /// Whether trying again may help.
    pub kind: ReceiveFailureKind,
    /// Whether it brought bytes that the next attempt goes on from.
    pub progressed: bool,
    /// Code and detail.
    pub failure: Failure,
}

/// What a failed fetch means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveFailureKind {
    /// Never to be installed as it is.
    Refused,
    /// This device could not.
    Failed,
    /// The network or the server could not; try again.
    Transient,
}

/// What the shell must do, in order. Every effect may be repeated.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Fetch, verify and stage into the slot; answer with [`Event::Received`].
    Receive {
        /// What.
        want: DesiredBundle,
        /// Where to; never the slot that serves.
        slot: Slot,
    },
    /// Give up a fetch or trial of a family that is under way.
    Cancel {
        /// The family.
        family: Family,
    },
    /// Run the golden cases of a slot in a process of its own; answer with [`Event::TrialDone`].
    Trial {
        /// The family.
        family: Family,
        /// Which slot.
        slot: Slot,
        /// The bundle in it.
        digest: Digest,
    },
    /// Point the family's `current` at the slot, check that it is whole, tell the worker to serve it;
    /// answer with [`Event::SlotDamaged`] if it is not. Gives up an earlier one under way.
    Serve {
        /// The family.
        family: Family,
        /// Which of its slots.
        slot: Slot,
        /// The bundle in it.
        digest: Digest,
    },
    /// Check that the slot is whole, tell the worker to run it in the shadow of what serves; answer
    /// with [`Event::SlotDamaged`] or [`Event::ActivateFailed`] if it cannot be.
    Shadow {
        /// The family.
        family: Family,
        /// Which of its slots.
        slot: Slot,
        /// The bundle in it.
        digest: Digest,
        /// How.
        rules: Shadow,
    },
    /// Tell the worker to drop what runs in the shadow.
    EndShadow {
        /// The family.
        family: Family,
    },
    /// Nothing of a family is fit to serve: take its `current` away and have the worker drop it.
    ServeNothing {
        /// The family.
        family: Family,
    },
    /// Publish the reported state.
    Report,
    /// Record an event for the server.
    Event {
        /// Short and stable.
        code: &'static str,
        /// For people.
        detail: String,
        /// The bundle it is about.
        bundle: Option<Digest>,
    },
}

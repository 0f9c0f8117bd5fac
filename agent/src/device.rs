//! The device's update state machine, pure: `step(state, event, now) -> (state, effects)`.
//!
//! A device runs any number of model families up to [`MODELS_MAX`]. Each goes its own way through
//! the phases below and knows nothing of the others; what they share (the accepted revision, the
//! hold, the worker and its deaths) is the device's.
//!
//! The shell persists the new state *before* it carries out the effects, and carries out every
//! effect as if it might be the second time: after a cut at any moment, [`Event::Started`] asks
//! for what the persisted state still needs.
//!
//! ```text
//!            Desired           Received          Passed            Consent
//!   Idle ─────────────▶ Receiving ──────▶ Trial ─────────▶ Waiting ─────────▶ Probation
//!    ▲                   │  ▲ retry,       │        window, │  ▲               │   │
//!    │  refused, failed  └──┘ backoff      │ golden,  hold  └──┘               │   │ inferences
//!    ├───────────────────┴─────────────────┘ load, latency                     │   │ and time
//!    │   errors, slow, two deaths, five restarts, deadline, or the server      │   │ reached
//!    ├── RollingBack ◀── wants another version ────────────────────────────────┘   │
//!    │       (previous version serves again)                                       │
//!    └─────────────────────────────────────────────────────────────── kept ◀───────┘
//! ```
//!
//! `docs/update-states.md` has every transition; a test keeps it so.
//!
//! The slot that serves is never the slot that is written to. A version is kept only after the
//! worker said that it serves. A kept version that can no longer be served is kept no more: the
//! worker is emptied, the server is told, and the version is received again if it is still wanted.

mod backoff;
mod event;
mod state;
mod step;
pub mod window;

pub use event::{Consent, Effect, Event, ReceiveFailure, ReceiveFailureKind};
pub use state::{
    ByHand, Count, Deaths, Held, MODELS_MAX, Model, NOT_HELD_MAX, NotHeld, Phase, Slot, State,
};
pub use step::step;

use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::report::Installed;

fn installed(want: &DesiredBundle) -> Installed {
    Installed {
        family: want.family.clone(),
        version: want.version,
        digest: want.digest,
    }
}

#[cfg(test)]
mod tests;

//! Desired state on its way to devices.

pub mod deliver;
pub mod outbox;

//! Alerts: what is looked at, when it counts, and who is told.
//!
//! `rule (what an operator asked for) → reading (pure: numbers into verdicts) → track (pure: how long it
//! has been so) → watch (the loop: one transaction a look) → webhook (signed, retried, or dead)`.
//!
//! A look reads, decides and stores tracks, alerts and deliveries together, so that a kill between
//! two looks neither forgets an alert nor tells it twice under two ids.

pub mod reading;
pub mod rule;
pub mod track;
pub mod watch;
pub mod webhook;

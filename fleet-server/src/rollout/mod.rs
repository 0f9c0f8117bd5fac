//! Staged rollouts: the policy an operator writes, the draw of its stages, and the planner that
//! says what to do next and why nothing moves. Everything in these modules is pure: no clock, no
//! I/O, no randomness; the time is an argument and effects are values.
//!
//! Flow: `Policy` → [`draw::Cohorts`] (frozen when the rollout is created) → at each tick
//! [`plan::plan`] → `Plan` (to be executed, may be repeated) and `Report` (to be shown).

pub mod draw;
pub mod execute;
pub mod model;
pub mod observe;
pub mod pairs;
pub mod plan;
pub mod policy;
pub mod ratio;
pub mod report;
pub mod shadowed;

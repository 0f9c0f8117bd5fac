//! Dunlin's device agent.
//!
//! `dunlin-agent run` is the light supervisor: identity, trust, updates, telemetry buffer, sync.
//! Its child `dunlin-agent infer` alone runs models; it holds no key and may die.

pub mod account;
pub mod bundle;
pub mod capture;
pub mod cli;
pub mod clients;
pub mod clock;
pub mod config;
pub mod detect;
pub mod device;
pub mod enroll;
pub mod files;
mod health;
pub mod hold;
pub mod http;
pub mod identity;
pub mod inbox;
pub mod inference;
pub mod install;
pub mod ledger;
pub mod mqtt;
pub mod pipe;
pub mod pipeline;
pub mod renew;
pub mod shell;
pub mod telemetry;
pub mod throttle;
pub mod worker;

/// This agent's version, as bundles' `agent_min` and reports know it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

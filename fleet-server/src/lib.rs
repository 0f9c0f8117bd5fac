//! Dunlin's fleet server: admin API, enrolment and downloads, embedded broker, telemetry ingest,
//! rollouts and drift, in one process.
//!
//! ```text
//! operator ─▶ api ─▶ store ◀─ rollout::execute (pure planner inside)
//!                      │ ▲
//!   command::deliver ◀─┘ └─ telemetry::ingest
//!          └────▶ mqtt ◀────────┘
//!                  │
//!               broker (embedded, or elsewhere) ◀─▶ devices ─▶ enroll, downloads
//! ```
//! [`Server::start`] wires it, [`main_with`] is the program around it.

pub mod acl;
pub mod alert;
pub mod api;
pub mod blobs;
pub mod broker;
pub mod clock;
pub mod command;
pub mod config;
pub mod consumer;
pub mod drift;
pub mod enroll;
pub mod export;
pub mod exposition;
mod files;
mod listener;
pub mod mqtt;
pub mod patches;
pub mod pki;
mod program;
pub mod repository;
mod resign;
pub mod rollout;
mod server;
pub mod store;
pub mod telemetry;

pub use config::Settings;
pub use program::main_with;
pub use server::{RunningServer, Server, StartError};

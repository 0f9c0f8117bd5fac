//! The inference worker: loads staged bundles, serves them by the Open Inference Protocol v2, and
//! turns what it sees into windows. The only part of Dunlin that knows tract.
//!
//! A request's way: `listen → serve → api → steps → graph → steps → observe → api`; a window's:
//! `observe → models → worker → pipe`. It holds no key, and it may die without harming the rest.

mod api;
mod at_work;
mod capture;
pub mod confine;
pub mod engine;
mod exact;
mod fast;
pub mod fuzz;
pub mod golden;
pub mod graph;
#[cfg(feature = "grpc")]
mod grpc;
mod listen;
mod loading;
pub mod mend;
mod ml;
mod models;
mod observe;
mod observe_bench;
mod ops;
pub mod reference;
mod segment;
mod serve;
mod shadow;
mod statistics;
pub mod steps;
pub mod tensor;
pub mod turns;
mod watching;
mod worker;
#[cfg(test)]
mod written;

pub use capture::CaptureCharge;
pub use engine::{Engine, EngineError, Inference};
pub use golden::trial;
pub use listen::{GrpcAddress, ListenError};
pub use observe_bench::ObserveBench;
pub use worker::{ModelRules, WorkerArgs, WorkerError, main, run};

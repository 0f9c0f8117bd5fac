//! The inference worker: loads staged bundles, serves them by the Open Inference Protocol v2, and
//! turns what it sees into windows. The only part of Dunlin that knows tract.
//!
//! `source → serve → steps → engine → observe → window → pipe`; it holds no key and may die.

pub mod confine;
pub mod engine;
pub mod golden;
pub mod graph;
mod models;
mod observe;
mod steps;
pub mod tensor;

pub use engine::{Engine, EngineError};
pub use golden::trial;

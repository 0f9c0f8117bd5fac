//! Drift: scores between a reference and a current distribution, and the gate that compares
//! canaries with concurrent controls. Pure: counts in, verdicts out.

mod beta;
pub mod chi_squared;
pub mod gate;
pub mod permutation;
pub mod plausible;
pub mod plot;
pub mod query;
pub mod rollup;
pub mod statistics;

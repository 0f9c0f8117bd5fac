//! Drift: scores between a reference and a current distribution, and the gate that compares
//! canaries with concurrent controls: once, and early where there are enough of them. Pure: counts
//! in, verdicts out.

mod beta;
pub mod chi_squared;
pub mod early;
pub mod gate;
pub mod permutation;
pub mod plausible;
pub mod plot;
pub mod query;
pub mod rollup;
pub mod statistics;

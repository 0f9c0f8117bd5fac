//! Puts operators of our own where tract's, or what tract makes of them, give other numbers.
//!
//! A graph comes here before it is simplified. [`integers`] keeps every digit of integers, and
//! [`behind_convolutions`] the order of what is subtracted or divided there; [`wrapping`], [`reduce`],
//! [`sums`] and [`ordered`] compute.

mod behind_convolutions;
mod integers;
mod ordered;
mod reduce;
mod sums;
mod wrapping;

#[cfg(test)]
mod tests;

use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_hir::internal::*;

/// Prepares a graph that tract has not simplified yet, and the bodies of its loops.
///
/// # Errors
/// The graph is not consistent.
pub(super) fn exact(model: &mut TypedModel) -> TractResult<()> {
    for node in &mut model.nodes {
        if let Some(scan) = node.op_as_mut::<Scan>() {
            exact(&mut scan.body)?;
        }
    }
    behind_convolutions::keep_order(model)?;
    integers::keep_digits(model)
}

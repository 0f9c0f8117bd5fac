//! Differences and quotients that tract takes for neither.
#![allow(unreachable_pub, missing_docs)]

use tract_onnx::tract_core::bin_to_super_type;
use tract_onnx::tract_core::tract_linalg;
use tract_onnx::tract_hir::internal::*;

bin_to_super_type!(difference, Difference,
    linalg: Sub,
    is_commutative: false,
    neutral_element: 0,
    [f32, f16, f64] => |c, a, b| *c = *a - *b);

bin_to_super_type!(quotient, Quotient,
    is_commutative: false,
    neutral_element: 1,
    [f32, f16, f64] => |c, a, b| *c = *a / *b);

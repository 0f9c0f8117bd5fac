//! `Softplus` and `Mish`; tract takes the logarithm of 1 + exp(x), which is infinite from 89 on and zero
//! below −17.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

pub(super) fn softplus(_: &ParsingContext, _: &NodeProto) -> Parsed {
    Ok((smooth_ramp().into_hir(), vec![]))
}

pub(super) fn mish(_: &ParsingContext, _: &NodeProto) -> Parsed {
    Ok((gated_ramp().into_hir(), vec![]))
}

/// ln(1 + exp(x)), by a power that is at most one.
fn ramp(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn ramp_of_double(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn of_each<T: Copy>(values: &mut [T], by: impl Fn(T) -> T) {
    for value in values {
        *value = by(*value);
    }
}

element_wise!(smooth_ramp, Softplus,
    [f32] => |_, xs| { of_each(xs, ramp); Ok(()) },
    [f64] => |_, xs| { of_each(xs, ramp_of_double); Ok(()) },
    [f16] => |_, xs| { of_each(xs, |x| f16::from_f32(ramp(x.to_f32()))); Ok(()) }
);

element_wise!(gated_ramp, Mish,
    [f32] => |_, xs| { of_each(xs, |x| x * ramp(x).tanh()); Ok(()) },
    [f64] => |_, xs| { of_each(xs, |x| x * ramp_of_double(x).tanh()); Ok(()) },
    [f16] => |_, xs| {
        of_each(xs, |x| {
            let x = x.to_f32();
            f16::from_f32(x * ramp(x).tanh())
        });
        Ok(())
    }
);

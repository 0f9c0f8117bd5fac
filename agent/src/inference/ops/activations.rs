//! `Celu`, `Gelu` by the hyperbolic tangent, `Asinh` and `Acosh`; tract leaves out a factor of the first,
//! has a tangent that is not quite −1, and squares what the last two are of.

use super::tracts::{Parsed, boxed, read};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LN_2};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

pub(super) fn celu(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let alpha = node.get_attr_opt("alpha")?.unwrap_or(1.0);
    Ok((continuous(alpha).into_hir(), vec![]))
}

/// The exact one is tract's.
pub(super) fn gelu(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    match node.get_attr_opt::<&str>("approximate")? {
        Some("tanh") => Ok((by_tangent().into_hir(), vec![])),
        None | Some("none") => Ok((boxed(read(ctx, node)?), vec![])),
        Some(other) => bail!("Gelu: approximate {other}: expected none or tanh"),
    }
}

pub(super) fn asinh(_: &ParsingContext, _: &NodeProto) -> Parsed {
    Ok((area_sine().into_hir(), vec![]))
}

pub(super) fn acosh(_: &ParsingContext, _: &NodeProto) -> Parsed {
    Ok((area_cosine().into_hir(), vec![]))
}

/// Beyond it the root of x² ± 1 is x; the square of much more would be infinite.
const LARGE: f64 = 1e100;

fn celu_of(x: f64, alpha: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0)
}

fn gelu_of(x: f64) -> f64 {
    let slope = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
    0.5 * x * (1.0 + (slope * (x + 0.044_715 * x * x * x)).tanh())
}

fn asinh_of(x: f64) -> f64 {
    if x.abs() < LARGE {
        return x.asinh();
    }
    (x.abs().ln() + LN_2).copysign(x)
}

fn acosh_of(x: f64) -> f64 {
    if x < LARGE {
        return x.acosh();
    }
    x.ln() + LN_2
}

fn of_each<T: Copy>(values: &mut [T], by: impl Fn(T) -> T) {
    for value in values {
        *value = by(*value);
    }
}

/// The nearest number in single precision.
#[expect(clippy::cast_possible_truncation, reason = "the digits that it holds")]
fn single(x: f64) -> f32 {
    x as f32
}

fn half(x: f64) -> f16 {
    f16::from_f64(x)
}

element_wise!(continuous, Celu { alpha: f32 },
    [f32] => |op, xs| { of_each(xs, |x| single(celu_of(x.into(), op.alpha.into()))); Ok(()) },
    [f64] => |op, xs| { of_each(xs, |x| celu_of(x, op.alpha.into())); Ok(()) },
    [f16] => |op, xs| { of_each(xs, |x| half(celu_of(x.into(), op.alpha.into()))); Ok(()) }
);

element_wise!(by_tangent, GeluByTangent,
    [f32] => |_, xs| { of_each(xs, |x| single(gelu_of(x.into()))); Ok(()) },
    [f64] => |_, xs| { of_each(xs, gelu_of); Ok(()) },
    [f16] => |_, xs| { of_each(xs, |x| half(gelu_of(x.into()))); Ok(()) }
);

element_wise!(area_sine, AreaSine,
    [f32] => |_, xs| { of_each(xs, |x| single(asinh_of(x.into()))); Ok(()) },
    [f64] => |_, xs| { of_each(xs, asinh_of); Ok(()) },
    [f16] => |_, xs| { of_each(xs, |x| half(asinh_of(x.into()))); Ok(()) }
);

element_wise!(area_cosine, AreaCosine,
    [f32] => |_, xs| { of_each(xs, |x| single(acosh_of(x.into()))); Ok(()) },
    [f64] => |_, xs| { of_each(xs, acosh_of); Ok(()) },
    [f16] => |_, xs| { of_each(xs, |x| half(acosh_of(x.into()))); Ok(()) }
);

//! Standard operators that tract has not, or understands otherwise than the ONNX specification.
//!
//! [`corrected`] turns what tract reads wrongly into what it reads right, as do [`grid_sample`],
//! [`pooling`], [`resize`] and [`slice`](mod@slice); [`numbers`] and [`doubles`] keep the digits that it
//! loses, as do [`log_sum_exp`] and [`softplus`]; [`extract`] gives its results the right shape;
//! [`indices`] and [`pad`] take numbers that are negative; [`activations`], [`lp_pool`], [`one_hot`] and
//! [`transposed`] keep to the formula, [`by_way`] to whole numbers; [`gemm`], [`quantised`], [`reverse`]
//! and [`only_if`] compute.

mod activations;
mod by_way;
mod corrected;
mod doubles;
mod extract;
mod gemm;
mod grid_sample;
mod indices;
mod log_sum_exp;
mod lp_pool;
mod numbers;
mod one_hot;
mod only_if;
mod pad;
mod pooling;
mod quantised;
mod resize;
mod reverse;
mod slice;
mod softplus;
mod tracts;
mod transposed;

pub(super) use only_if::ONLY_IF;
pub(super) use reverse::REVERSE;
use tract_onnx::Onnx;

/// Puts our operators in the place of tract's, or beside them.
pub(super) fn register(engine: &mut Onnx) {
    corrected::register(engine);
    let operators = &mut engine.op_register;
    operators.insert("Acosh", activations::acosh);
    operators.insert("ArrayFeatureExtractor", extract::extract);
    operators.insert("Asinh", activations::asinh);
    operators.insert("Celu", activations::celu);
    operators.insert("Gemm", gemm::gemm);
    operators.insert("GlobalLpPool", lp_pool::global_lp_pool);
    operators.insert(ONLY_IF, only_if::only_if);
    operators.insert("DequantizeLinear", quantised::dequantize);
    operators.insert("Gather", indices::gather);
    operators.insert("GatherElements", indices::gather_elements);
    operators.insert("GatherND", indices::gather_nd);
    operators.insert("Mish", softplus::mish);
    operators.insert("Pad", pad::pad);
    operators.insert("QuantizeLinear", quantised::quantize);
    operators.insert("ReduceLogSumExp", log_sum_exp::reduce_log_sum_exp);
    operators.insert(REVERSE, reverse::reverse);
    operators.insert("ReverseSequence", reverse::reverse_sequence);
    operators.insert("Scatter", indices::scatter_elements);
    operators.insert("ScatterElements", indices::scatter_elements);
    operators.insert("ScatterND", indices::scatter_nd);
    operators.insert("Softplus", softplus::softplus);
}

#[cfg(test)]
mod differing_tests;
#[cfg(test)]
mod index_tests;
#[cfg(test)]
mod number_tests;
#[cfg(test)]
mod pad_tests;
#[cfg(test)]
mod range_tests;
#[cfg(test)]
mod tests;

//! Standard operators that tract has not, or understands otherwise than the ONNX specification.
//!
//! [`corrected`] turns what tract reads wrongly into what it reads right; [`numbers`] keeps the digits
//! that it loses; [`extract`] gives its results the right shape; [`quantised`], [`reverse`] and
//! [`only_if`] compute.

mod corrected;
mod extract;
mod numbers;
mod only_if;
mod quantised;
mod reverse;

pub(super) use only_if::ONLY_IF;
pub(super) use reverse::REVERSE;
use tract_onnx::Onnx;

/// Puts our operators in the place of tract's, or beside them.
pub(super) fn register(engine: &mut Onnx) {
    corrected::register(engine);
    let operators = &mut engine.op_register;
    operators.insert("ArrayFeatureExtractor", extract::extract);
    operators.insert(ONLY_IF, only_if::only_if);
    operators.insert("DequantizeLinear", quantised::dequantize);
    operators.insert("QuantizeLinear", quantised::quantize);
    operators.insert(REVERSE, reverse::reverse);
    operators.insert("ReverseSequence", reverse::reverse_sequence);
}

#[cfg(test)]
mod tests;

//! Standard operators that tract has not, or understands otherwise than the ONNX specification.
//!
//! [`corrected`] turns what tract reads wrongly into what it reads right, as do [`grid_sample`],
//! [`pooling`], [`resize`] and [`slice`](mod@slice); [`numbers`] and [`doubles`] keep the digits that it
//! loses; [`quantised`], [`reverse`] and [`only_if`] compute.

mod corrected;
mod doubles;
mod grid_sample;
mod numbers;
mod only_if;
mod pooling;
mod quantised;
mod resize;
mod reverse;
mod slice;
mod tracts;

pub(super) use only_if::ONLY_IF;
pub(super) use reverse::REVERSE;
use tract_onnx::Onnx;

/// Puts our operators in the place of tract's, or beside them.
pub(super) fn register(engine: &mut Onnx) {
    corrected::register(engine);
    let operators = &mut engine.op_register;
    operators.insert(ONLY_IF, only_if::only_if);
    operators.insert("DequantizeLinear", quantised::dequantize);
    operators.insert("QuantizeLinear", quantised::quantize);
    operators.insert(REVERSE, reverse::reverse);
    operators.insert("ReverseSequence", reverse::reverse_sequence);
}

#[cfg(test)]
mod differing_tests;
#[cfg(test)]
mod tests;

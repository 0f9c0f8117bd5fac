//! Standard operators that tract has not, or understands otherwise than the ONNX specification.
//!
//! [`corrected`] turns what tract reads wrongly into what it reads right; [`quantised`] computes.

mod corrected;
mod quantised;

use tract_onnx::Onnx;

/// Puts our operators in the place of tract's, or beside them.
pub(super) fn register(engine: &mut Onnx) {
    corrected::register(engine);
    let operators = &mut engine.op_register;
    operators.insert("DequantizeLinear", quantised::dequantize);
    operators.insert("QuantizeLinear", quantised::quantize);
}

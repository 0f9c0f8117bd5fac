//! `Gemm`, also in half precision: tract multiplies what it gives by factors in single precision, and
//! refuses what comes of it.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast as to_type;
use tract_onnx::tract_core::ops::change_axes::wire_with_rank_broadcast;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math::{add, mul};
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// α·A·B + β·C.
pub(super) fn gemm(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let factor = |name| -> TractResult<f32> { Ok(node.get_attr_opt(name)?.unwrap_or(1.0)) };
    let turned = |name| -> TractResult<bool> { Ok(node.get_attr_opt(name)?.unwrap_or(false)) };
    let gemm = Gemm {
        alpha: factor("alpha")?,
        beta: factor("beta")?,
        turned: [turned("transA")?, turned("transB")?],
    };
    Ok((expand(gemm), vec![]))
}

#[derive(Debug, Clone)]
struct Gemm {
    alpha: f32,
    beta: f32,
    /// Whether A and B are given with their axes the other way round.
    turned: [bool; 2],
}

impl Expansion for Gemm {
    fn name(&self) -> StaticName {
        "Gemm".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        ensure!(
            inputs.len() == 2 || inputs.len() == 3,
            "Gemm: expected 2 or 3 inputs, got {}",
            inputs.len()
        );
        check_output_arity(outputs, 1)?;
        for input in inputs {
            s.equals(&input.datum_type, &outputs[0].datum_type)?;
        }
        for matrix in [&inputs[0], &inputs[1], &outputs[0]] {
            s.equals(&matrix.rank, 2)?;
        }
        let [a, b] = self.turned.map(usize::from);
        s.equals(&inputs[0].shape[a], &outputs[0].shape[0])?;
        s.equals(&inputs[0].shape[1 - a], &inputs[1].shape[b])?;
        s.equals(&inputs[1].shape[1 - b], &outputs[0].shape[1])
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let kind = model.outlet_fact(inputs[0])?.datum_type;
        // Half precision is enough for the operands, not for their sums.
        let half = kind == DatumType::F16;
        let computed = if half { DatumType::F32 } else { kind };
        let mut wires: TVec<OutletId> = inputs.into();
        if half {
            for (at, wire) in wires.iter_mut().enumerate() {
                let name = format!("{prefix}.wide{at}");
                *wire = model.wire_node(name, to_type(computed), &[*wire])?[0];
            }
        }
        let name = |part: &str, last: bool| match last {
            true => prefix.to_owned(),
            false => format!("{prefix}.{part}"),
        };
        let scaled = |model: &mut TypedModel, part: &str, by: f32, wire, last| {
            if by == 1.0 {
                return TractResult::Ok(wire);
            }
            let factor = tensor0(by).cast_to_dt(computed)?.into_owned();
            let factor = model.add_const(format!("{prefix}.{part}.factor"), factor)?;
            let name = name(part, last);
            Ok(wire_with_rank_broadcast(name, model, mul(), &[factor, wire])?[0])
        };
        let c = wires.get(2).copied().filter(|_| self.beta != 0.0);
        let last = c.is_none() && !half;
        let [a, b] = self.turned;
        let axes = AxesMapping::for_numpy_matmul(2, a, b, false)?;
        let product = EinSum::new(axes, computed);
        let product_name = name("product", last && self.alpha == 1.0);
        let mut wire = model.wire_node(product_name, product, &wires[..2])?[0];
        wire = scaled(model, "alpha", self.alpha, wire, last)?;
        if let Some(c) = c {
            let c = scaled(model, "beta", self.beta, c, false)?;
            wire = wire_with_rank_broadcast(name("sum", !half), model, add(), &[wire, c])?[0];
        }
        match half {
            true => model.wire_node(prefix, to_type(kind), &[wire]),
            false => Ok(tvec![wire]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::inference::tensor::Values;
    use crate::inference::written::*;
    use dunlin_protocol::bundle::DType;
    use tract_onnx::pb::tensor_proto::DataType;
    use tract_onnx::tract_hir::internal::f16;

    fn halves(values: &[f32]) -> Vec<f16> {
        values.iter().map(|v| f16::from_f32(*v)).collect()
    }

    fn stored(name: &str, dims: &[i64], values: &[f32]) -> tract_onnx::pb::TensorProto {
        let raw: Vec<u8> = (halves(values).iter())
            .flat_map(|half| half.to_le_bytes())
            .collect();
        bytes(name, dims, DataType::Float16, &raw)
    }

    /// Expected values are ONNX Runtime's.
    #[test]
    fn half_precision_is_multiplied_and_summed_in_single_precision() {
        let (x, y) = (
            spec("x", DType::FP16, &[2, 2]),
            spec("y", DType::FP16, &[2, 3]),
        );
        let weights = stored("w", &[3, 2], &[1.0, 2.0, 0.5, -1.0, 3.0, 3.0]);
        let bias = stored("b", &[3], &[0.1, 0.2, 0.3]);
        let gemm = node("Gemm", &["x", "w", "b"], &["y"])
            .with(int("transB", 1))
            .with(float("alpha", 0.5))
            .with(float("beta", 2.0));
        let written = Written::new(
            13,
            vec![x.clone()],
            vec![gemm],
            vec![weights, bias],
            vec![y],
        );
        let values = Values::FP16(halves(&[1.0, 2.0, 3.0, 4.0]));
        let expected = [
            2.699_218_8,
            -0.350_097_66,
            5.101_562_5,
            5.699_218_8,
            -0.850_097_66,
            11.101_562_5,
        ];
        assert_eq!(
            written.answer(std::slice::from_ref(&values)),
            Values::FP16(halves(&expected))
        );
        let weights = stored("w", &[2, 2], &[1.0, 2.0, 0.5, -1.0]);
        let gemm = node("Gemm", &["x", "w"], &["y"]);
        let y = spec("y", DType::FP16, &[2, 2]);
        let written = Written::new(13, vec![x], vec![gemm], vec![weights], vec![y]);
        assert_eq!(
            written.answer(&[values]),
            Values::FP16(halves(&[2.0, 0.0, 5.0, 2.0]))
        );
        let (x, y) = (
            spec("x", DType::FP16, &[1, 4]),
            spec("y", DType::FP16, &[1, 1]),
        );
        let ones = stored("w", &[4, 1], &[1.0; 4]);
        let gemm = node("Gemm", &["x", "w", "b"], &["y"]);
        let one = stored("b", &[1], &[1.0]);
        let written = Written::new(13, vec![x], vec![gemm], vec![ones, one], vec![y]);
        assert_eq!(
            written.answer(&[Values::FP16(halves(&[2048.0, 1.0, 1.0, 1.0]))]),
            Values::FP16(halves(&[2052.0]))
        );
    }
}

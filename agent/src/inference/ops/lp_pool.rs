//! `GlobalLpPool`; tract takes the mean where the specification takes the sum, and the powers of numbers
//! below zero as they are.

use super::tracts::Parsed;
use crate::inference::ml::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

pub(super) fn global_lp_pool(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let p: i64 = node.get_attr_opt("p")?.unwrap_or(2);
    let p = i32::try_from(p).ok().filter(|p| *p > 0);
    let p = p.context("GlobalLpPool: p: expected 1 or more")?;
    Ok(plugged(GlobalLpPool { p }))
}

#[derive(Debug, Clone)]
struct GlobalLpPool {
    p: i32,
}

impl Operator for GlobalLpPool {
    fn name(&self) -> &'static str {
        "GlobalLpPool"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (kind, shape) = &inputs[0];
        ensure!(
            kind.is_float() && shape.len() >= 2,
            "GlobalLpPool of {kind:?}, rank {}: expected floats of rank 2 or more",
            shape.len()
        );
        let each = shape.iter().enumerate();
        let shape = each.map(|(axis, dim)| if axis < 2 { dim.clone() } else { 1.to_dim() });
        Ok(tvec![(*kind, shape.collect())])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for GlobalLpPool {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let given = inputs[0].cast_to::<f64>()?;
        let given = given.to_plain_array_view::<f64>()?;
        let mut shape: TVec<usize> = inputs[0].shape().into();
        let planes: usize = shape[..2].iter().product();
        shape[2..].fill(1);
        let mut sums = vec![0.0; planes];
        let each = given.len().checked_div(planes).unwrap_or(0).max(1);
        for (at, x) in given.iter().enumerate() {
            sums[at / each] += x.abs().powi(self.p);
        }
        let root = f64::from(self.p).recip();
        let roots: Vec<f64> = sums.into_iter().map(|sum| sum.powf(root)).collect();
        let tensor = tensor1(&roots).into_shape(&shape)?;
        let tensor = tensor.cast_to_dt(inputs[0].datum_type())?.into_owned();
        Ok(tvec![tensor.into_tvalue()])
    }
}

//! `OneHot`; tract writes outside the tensor for indices that are out of range, where the specification
//! wants nothing but the value for off.

use super::tracts::{Parsed, boxed, read};
use crate::inference::ml::plug::{self, Fact, Kernel, Operator};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

pub(super) fn one_hot(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let expansion = OneHot {
        tracts: read(ctx, node)?,
        axis: node.get_attr_opt("axis")?.unwrap_or(-1),
    };
    Ok((boxed(Box::new(expansion)), vec![]))
}

#[derive(Debug, Clone)]
struct OneHot {
    tracts: Box<dyn Expansion>,
    axis: i64,
}

impl Expansion for OneHot {
    fn name(&self) -> StaticName {
        self.tracts.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.given(&inputs[0].rank, move |_, rank| {
            let (axis, least) = (self.axis, -rank - 1);
            ensure!(
                (least..=rank).contains(&axis),
                "OneHot: axis {axis}: expected {least} to {rank}"
            );
            Ok(())
        })?;
        self.tracts.rules(s, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let known = |at: usize, what: &str| -> TractResult<Arc<Tensor>> {
            let known = model.outlet_fact(inputs[at])?.konst.clone();
            known.with_context(|| format!("OneHot: {what} not known when the model is loaded"))
        };
        let depth = known(1, "depth")?.cast_to::<i64>()?.into_owned();
        let depth = depth.to_plain_array_view::<i64>()?.iter().next().copied();
        let values = known(2, "values")?;
        let signed = i64::try_from(model.outlet_fact(inputs[0])?.rank())?;
        let axis = self.axis + if self.axis < 0 { signed + 1 } else { 0 };
        let kernel = Hot {
            axis: usize::try_from(axis)?,
            depth: usize::try_from(depth.context("OneHot: no depth")?)?,
            off: values.nth(0)?.into_arc_tensor(),
            on: values.nth(1)?.into_arc_tensor(),
        };
        plug::wire(kernel, prefix, model, &inputs[..1])
    }
}

#[derive(Debug, Clone)]
struct Hot {
    axis: usize,
    depth: usize,
    off: Arc<Tensor>,
    on: Arc<Tensor>,
}

impl Operator for Hot {
    fn name(&self) -> &'static str {
        "OneHot"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let mut shape = inputs[0].1.clone();
        shape.insert(self.axis, self.depth.to_dim());
        Ok(tvec![(self.off.datum_type(), shape)])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for Hot {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let indices = whole(&inputs[0])?;
        let shape = inputs[0].shape();
        let inner: usize = shape[self.axis..].iter().product();
        let outer: usize = shape[..self.axis].iter().product();
        let depth = i64::try_from(self.depth)?;
        let mut places = Vec::with_capacity(indices.len());
        for (at, &index) in indices.iter().enumerate() {
            let index = if index < 0 {
                index.saturating_add(depth)
            } else {
                index
            };
            if (0..depth).contains(&index) {
                let row = (at / inner) * self.depth + usize::try_from(index)?;
                places.push(row * inner + at % inner);
            }
        }
        let mut shape: TVec<usize> = shape.into();
        shape.insert(self.axis, self.depth);
        let length = outer * self.depth * inner;
        let filled = dispatch_datum!(filled(self.off.datum_type())(self, length, &places))?;
        Ok(tvec![filled.into_shape(&shape)?.into_tvalue()])
    }
}

/// Fractions are cut off.
#[expect(
    clippy::cast_possible_truncation,
    reason = "saturates, which is out of range"
)]
fn whole(indices: &Tensor) -> TractResult<Vec<i64>> {
    if indices.datum_type().is_float() {
        let given = indices.cast_to::<f64>()?;
        let given = given.to_plain_array_view::<f64>()?;
        return Ok(given.iter().map(|&index| index as i64).collect());
    }
    let given = indices.cast_to::<i64>()?;
    Ok(given
        .to_plain_array_view::<i64>()?
        .iter()
        .copied()
        .collect())
}

fn filled<T: Datum>(of: &Hot, length: usize, places: &[usize]) -> TractResult<Tensor> {
    let scalar = |tensor: &Tensor| -> TractResult<T> {
        let values = tensor.to_plain_array_view::<T>()?;
        values.iter().next().cloned().context("OneHot: no value")
    };
    let on = scalar(&of.on)?;
    let mut values = vec![scalar(&of.off)?; length];
    for &place in places {
        values[place] = on.clone();
    }
    Ok(tensor1(&values))
}

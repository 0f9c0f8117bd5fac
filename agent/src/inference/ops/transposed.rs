//! `ConvTranspose` with the lengths that it is to give. ONNX Runtime cuts off what is too much, the odd
//! one at the start, or adds what is too little at the end; tract looks at `pads`, and counts below zero.

use super::tracts::{Parsed, boxed, read};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::Slice;
use tract_onnx::tract_hir::internal::*;

pub(super) fn conv_transpose(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let to: Vec<usize> = node.get_attr_opt_vec("output_shape")?.unwrap_or_default();
    if to.is_empty() {
        return Ok((boxed(read(ctx, node)?), vec![]));
    }
    let auto_pad: &str = node.get_attr_opt("auto_pad")?.unwrap_or("NOTSET");
    let without = |names: &[&str]| {
        let mut node = node.clone();
        node.attribute.retain(|a| !names.contains(&a.name.as_str()));
        read(ctx, &node)
    };
    let expansion = ToLengths {
        whole: without(&["auto_pad", "pads", "output_shape"])?,
        longer: without(&["auto_pad", "pads", "output_padding"])?,
        odd_at_end: auto_pad == "SAME_UPPER",
        to,
        group: node.get_attr_opt("group")?.unwrap_or(1),
    };
    Ok((boxed(Box::new(expansion)), vec![]))
}

#[derive(Debug, Clone)]
struct ToLengths {
    /// With nothing cut off.
    whole: Box<dyn Expansion>,
    /// With zeros behind it.
    longer: Box<dyn Expansion>,
    odd_at_end: bool,
    to: Vec<usize>,
    group: i64,
}

impl Expansion for ToLengths {
    fn name(&self) -> StaticName {
        self.whole.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        ensure!(
            (2..=3).contains(&inputs.len()),
            "ConvTranspose: {} inputs, expected 2 or 3",
            inputs.len()
        );
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        s.equals(&inputs[1].rank, &outputs[0].rank)?;
        s.equals(&outputs[0].shape[0], &inputs[0].shape[0])?;
        s.equals(&outputs[0].shape[1], self.group * inputs[1].shape[1].bex())?;
        s.given(&inputs[0].rank, move |s, rank| {
            let given = self.to.len();
            ensure!(
                i64::try_from(given + 2)? == rank,
                "ConvTranspose: output_shape of {given} lengths: expected {}",
                rank - 2
            );
            for (axis, to) in self.to.iter().enumerate() {
                s.equals(&outputs[0].shape[axis + 2], to.to_dim())?;
            }
            Ok(())
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        // Tried on a copy, for its lengths.
        let mut copy = model.clone();
        let whole = self.whole.wire(prefix, &mut copy, inputs)?;
        let shape = copy.outlet_fact(whole[0])?.shape.clone();
        let lengths = shape.iter().skip(2).map(TDim::to_usize);
        let lengths: Vec<usize> = lengths
            .collect::<Result<_, _>>()
            .context("ConvTranspose: output_shape of lengths that are not known")?;
        let pairs = || lengths.iter().zip(&self.to);
        if pairs().all(|(from, to)| to >= from) {
            return self.longer.wire(prefix, model, inputs);
        }
        ensure!(
            pairs().all(|(from, to)| to <= from),
            "ConvTranspose: output_shape {:?} of {lengths:?}, longer and shorter, is not supported",
            self.to
        );
        let mut result = self.whole.wire(&format!("{prefix}.whole"), model, inputs)?;
        for (at, (from, to)) in pairs().enumerate() {
            let cut = from - to;
            let start = if self.odd_at_end {
                cut / 2
            } else {
                cut.div_ceil(2)
            };
            let slice = Slice::new(at + 2, start, start + to);
            let name = match at + 1 == lengths.len() {
                true => prefix.to_owned(),
                false => format!("{prefix}.cut_{at}"),
            };
            result = model.wire_node(name, slice, &result)?;
        }
        Ok(result)
    }
}

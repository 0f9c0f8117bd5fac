//! `ArrayFeatureExtractor`: elements of the last axis, by their places.
//!
//! tract gives the result the shape of the places in place of the last axis; by the specification it
//! is one axis of as many elements as there are places, and a vector counts as one row.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::Gather;
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

pub(super) fn extract(_: &ParsingContext, _: &NodeProto) -> Parsed {
    Ok((expand(Extract), vec![]))
}

#[derive(Debug, Clone)]
struct Extract;

fn shape(given: &[TDim], places: &[TDim]) -> TVec<TDim> {
    let rows = given.len().saturating_sub(1);
    let mut made: TVec<TDim> = given[..rows].into();
    if rows == 0 {
        made.push(1.to_dim());
    }
    made.push(places.iter().product());
    made
}

impl Expansion for Extract {
    fn name(&self) -> StaticName {
        "ArrayFeatureExtractor".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 2)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        s.equals(&inputs[1].datum_type, i64::datum_type())?;
        s.given_2(&inputs[0].shape, &inputs[1].shape, |s, given, places| {
            s.equals(&outputs[0].shape, shape(&given, &places))
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let [mut given, mut places] = *inputs else {
            bail!("{} inputs: expected 2", inputs.len());
        };
        let rank = model.outlet_fact(given)?.rank();
        ensure!(rank > 0, "elements of a number without axes");
        if rank == 1 {
            given = model.wire_node(format!("{prefix}.row"), AxisOp::Add(0), &[given])?[0];
        }
        let from = model.outlet_fact(places)?.shape.to_tvec();
        if from.len() != 1 {
            let all = tvec![from.iter().product()];
            let flat = AxisOp::Reshape(0, from, all);
            places = model.wire_node(format!("{prefix}.places"), flat, &[places])?[0];
        }
        let gather = Gather {
            axis: rank.max(2) - 1,
            output_type: None,
        };
        model.wire_node(prefix, gather, &[given, places])
    }
}

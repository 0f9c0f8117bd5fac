//! `Resize` where tract's coordinates are not ONNX Runtime's.

use super::tracts::{Parsed, boxed, read, written_out};
use crate::inference::ml::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto};
use tract_onnx::tract_core::ops::nn::resize::{
    AxisPlan, cubic_weights, linear_weights, plan_axis, resample_axis,
};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_ndarray::ArrayD;

pub(super) fn resize(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let coordinates: &str = node
        .get_attr_opt("coordinate_transformation_mode")?
        .unwrap_or("half_pixel");
    let antialias = node.get_attr_opt::<i64>("antialias")?.unwrap_or(0) != 0;
    let mode: &str = node.get_attr_opt("mode")?.unwrap_or("nearest");
    if ctx.onnx_operator_set_version == 10 && mode == "nearest" {
        return of_version_10(ctx, node);
    }
    let tracts = read(ctx, node)?;
    let between = match mode {
        "nearest" => Between::Nearest(round_up_from(node)?),
        "linear" => Between::Linear,
        "cubic" => Between::Cubic(node.get_attr_opt("cubic_coeff_a")?.unwrap_or(-0.75)),
        other => bail!("Resize: mode {other}"),
    };
    // Version 10 has no coordinates to choose from.
    let expansion: Box<dyn Expansion> = match coordinates {
        "align_corners" if ctx.onnx_operator_set_version > 10 => {
            ensure!(
                !antialias,
                "Resize: antialias with coordinate_transformation_mode align_corners is not supported"
            );
            // By scales the specification takes the length that they come to, a whole number or not.
            if node.input.get(2).is_some_and(|scales| !scales.is_empty()) {
                return Ok((boxed(tracts), vec![]));
            }
            Box::new(AlignCorners {
                tracts,
                between,
                exclude_outside: node.get_attr_opt::<i64>("exclude_outside")?.unwrap_or(0) != 0,
            })
        }
        "pytorch_half_pixel" if antialias || mode == "cubic" => Box::new(NotToOne { tracts }),
        _ => tracts,
    };
    Ok((boxed(expansion), vec![]))
}

/// Takes the pixel before, or the next one where there are fewer than before; later versions call that
/// "floor" and "ceil", and tract knows one of them for all axes.
fn of_version_10(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let mut node = node.clone();
    node.attribute.retain(|a| a.name != "nearest_mode");
    node.attribute.push(AttributeProto {
        name: "nearest_mode".to_owned(),
        r#type: AttributeType::String.into(),
        s: b"floor".to_vec(),
        ..AttributeProto::default()
    });
    let tracts = read(ctx, &node)?;
    Ok((boxed(Box::new(NotSmaller { tracts })), vec![]))
}

#[derive(Debug, Clone)]
struct NotSmaller {
    tracts: Box<dyn Expansion>,
}

impl Expansion for NotSmaller {
    fn name(&self) -> StaticName {
        self.tracts.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.tracts.rules(s, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let scales = model.outlet_fact(inputs[1])?.konst.clone();
        let scales = scales.context("Resize: scales not known")?;
        let given = scales.to_plain_array_view::<f32>()?;
        ensure!(
            given.iter().all(|&scale| scale >= 1.0),
            "Resize of version 10 to fewer pixels in mode nearest is not supported"
        );
        self.tracts.wire(prefix, model, inputs)
    }
}

/// From which fraction of a pixel on the next one is taken.
#[derive(Debug, Clone, Copy)]
enum RoundUp {
    Never,
    Above(f32),
    From(f32),
}

fn round_up_from(node: &NodeProto) -> TractResult<RoundUp> {
    let mode: Option<&str> = node.get_attr_opt("nearest_mode")?;
    Ok(match mode.unwrap_or("round_prefer_floor") {
        "floor" => RoundUp::Never,
        "ceil" => RoundUp::Above(0.0),
        "round_prefer_floor" => RoundUp::Above(0.5),
        "round_prefer_ceil" => RoundUp::From(0.5),
        other => bail!("Resize: nearest_mode {other}"),
    })
}

/// How values between pixels are found.
#[derive(Debug, Clone, Copy)]
enum Between {
    Nearest(RoundUp),
    Linear,
    Cubic(f32),
}

/// `pytorch_half_pixel` takes pixel 0 for a length of one, where tract asks for one at −½: the same
/// unless pixels farther away count.
#[derive(Debug, Clone)]
struct NotToOne {
    tracts: Box<dyn Expansion>,
}

impl Expansion for NotToOne {
    fn name(&self) -> StaticName {
        self.tracts.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.tracts.rules(s, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let outputs = self.tracts.wire(prefix, model, inputs)?;
        let from = model.outlet_fact(inputs[0])?.shape.clone();
        let to = &model.outlet_fact(outputs[0])?.shape;
        let one = 1.to_dim();
        ensure!(
            from.iter()
                .zip(to.iter())
                .all(|(from, to)| *to != one || *from == one),
            "Resize: coordinate_transformation_mode pytorch_half_pixel to a length of 1 is not \
             supported in mode cubic and with antialias"
        );
        Ok(outputs)
    }
}

/// The first and last pixels stay where they are. tract takes the length that a scale gives, which is
/// rounded where it is worked out from a size.
#[derive(Debug, Clone)]
struct AlignCorners {
    tracts: Box<dyn Expansion>,
    between: Between,
    exclude_outside: bool,
}

impl Expansion for AlignCorners {
    fn name(&self) -> StaticName {
        self.tracts.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.tracts.rules(s, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        // Tried on a copy, for the lengths that scales, sizes, axes and policies come to.
        let mut copy = model.clone();
        let outputs = self.tracts.wire(prefix, &mut copy, inputs)?;
        let to = copy.outlet_fact(outputs[0])?.shape.clone();
        let to = to.as_concrete().context("Resize: to lengths not known")?;
        let from = model.outlet_fact(inputs[0])?.shape.clone();
        let from = from
            .as_concrete()
            .context("Resize: from lengths not known")?;
        let lengths = from.iter().zip(to).enumerate();
        let plans = lengths
            .filter(|(_, (from, to))| from != to)
            .map(|(axis, (&from, &to))| (axis, Arc::new(self.plan(from, to))));
        let (resampled, _) = plugged(Resampled {
            plans: plans.collect(),
            to: to.into(),
        });
        written_out(&*resampled)?.wire(prefix, model, &inputs[..1])
    }
}

impl AlignCorners {
    fn plan(&self, from: usize, to: usize) -> AxisPlan {
        let coordinate = |at: usize| {
            Some(match to {
                1 => 0.0,
                _ => at as f32 * (from as f32 - 1.0) / (to as f32 - 1.0),
            })
        };
        let planned = |window, weights: &dyn Fn(f32, &mut [f32])| {
            plan_axis(from, to, window, self.exclude_outside, coordinate, weights)
        };
        match self.between {
            Between::Nearest(up) => planned(2, &|fraction, taps| {
                let next = match up {
                    RoundUp::Never => fraction == 1.0,
                    RoundUp::Above(least) => fraction > least,
                    RoundUp::From(least) => fraction >= least,
                };
                taps[0] = f32::from(!next);
                taps[1] = f32::from(next);
            }),
            Between::Linear => planned(2, &|fraction, taps| {
                linear_weights(fraction, 1.0, false, taps);
            }),
            Between::Cubic(a) => planned(4, &|fraction, taps| {
                cubic_weights(fraction, 1.0, a, false, taps);
            }),
        }
    }
}

/// A tensor resampled along axes, one after the other.
#[derive(Debug, Clone)]
struct Resampled {
    plans: Vec<(usize, Arc<AxisPlan>)>,
    to: TVec<usize>,
}

impl Operator for Resampled {
    fn name(&self) -> &'static str {
        "Resize"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let shape = self.to.iter().map(|length| length.to_dim());
        Ok(tvec![(inputs[0].0, shape.collect())])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for Resampled {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let given = inputs[0].cast_to::<f32>()?;
        let mut shape: TVec<usize> = given.shape().into();
        let given = given.to_plain_array_view::<f32>()?;
        let mut values: Vec<f32> = given.iter().copied().collect();
        for (axis, plan) in &self.plans {
            let mut along = shape.clone();
            along[*axis] = self.to[*axis];
            let mut resampled = vec![0.0; along.iter().product()];
            resample_axis(&values, &shape, *axis, plan, 0.0, &mut resampled);
            (values, shape) = (resampled, along);
        }
        let tensor = ArrayD::from_shape_vec(&*shape, values)?.into_tensor();
        let tensor = tensor.cast_to_dt(inputs[0].datum_type())?.into_owned();
        Ok(tvec![tensor.into_tvalue()])
    }
}

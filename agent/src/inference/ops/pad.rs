//! `Pad` as the specification has it: negative numbers cut off, and `wrap` goes on at the other end.
//! tract has neither.

use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::{Pad as Fill, PadMode, Slice, TypedConcat};
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// Most copies of a tensor that wrapping takes along one axis.
const COPIES_MAX: usize = 1024;

pub(super) fn pad(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    // Before version 11 everything is an attribute.
    let are_inputs = ctx.onnx_operator_set_version >= 11;
    let pads = match are_inputs {
        true => None,
        false => Some(node.get_attr_vec("pads")?),
    };
    let mode = match node.get_attr_opt("mode")? {
        None | Some("constant") => {
            let value: f32 = node.get_attr_opt("value")?.unwrap_or(0.0);
            Mode::Fill(PadMode::Constant(Arc::new(value.into())))
        }
        Some("reflect") => Mode::Fill(PadMode::Reflect),
        Some("edge") => Mode::Fill(PadMode::Edge),
        Some("wrap") => Mode::Wrap,
        Some(other) => bail!("Pad: mode {other}: expected constant, reflect, edge or wrap"),
    };
    let mut optional = optional_inputs(node).skip(2);
    let operator = Pad {
        mode,
        pads,
        value_at: optional.next().flatten(),
        axes_at: optional.next().flatten(),
    };
    Ok((expand(operator), vec![]))
}

#[derive(Debug, Clone)]
enum Mode {
    Fill(PadMode),
    Wrap,
}

#[derive(Debug, Clone)]
struct Pad {
    mode: Mode,
    /// None if they are the second input.
    pads: Option<Vec<i64>>,
    value_at: Option<usize>,
    axes_at: Option<usize>,
}

/// How many are put before and behind along each axis.
type Pads = Vec<(i64, i64)>;

/// All that come before, then all that come behind.
fn by_axis(rank: usize, pads: &[i64], axes: Option<&[i64]>) -> TractResult<Pads> {
    let signed = i64::try_from(rank)?;
    let axes = axes.map_or_else(|| (0..signed).collect(), <[i64]>::to_vec);
    ensure!(
        pads.len() == 2 * axes.len(),
        "Pad: expected {} pads for {} axes, got {}",
        2 * axes.len(),
        axes.len(),
        pads.len()
    );
    let (before, behind) = pads.split_at(axes.len());
    let mut all = vec![(0, 0); rank];
    for (axis, pair) in axes.iter().zip(before.iter().zip(behind)) {
        let at = if *axis < 0 { axis + signed } else { *axis };
        let place = usize::try_from(at).ok().and_then(|at| all.get_mut(at));
        let place =
            place.with_context(|| format!("Pad: axis {axis} of a tensor of rank {rank}"))?;
        *place = (*pair.0, *pair.1);
    }
    Ok(all)
}

fn whole_numbers(tensor: &Tensor) -> TractResult<Vec<i64>> {
    let cast = tensor.cast_to::<i64>()?;
    Ok(cast.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
}

fn shape_rules<'r, 'p: 'r>(
    s: &mut Solver<'r>,
    (input, output): (&'p TensorProxy, &'p TensorProxy),
    pads: &Pads,
) -> InferenceResult {
    for (axis, (before, behind)) in pads.iter().enumerate() {
        let more = before.to_dim() + behind.to_dim();
        s.equals(&output.shape[axis], input.shape[axis].bex() + more)?;
    }
    Ok(())
}

impl Expansion for Pad {
    fn name(&self) -> StaticName {
        "Pad".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let given = [
            self.pads.is_none(),
            self.value_at.is_some(),
            self.axes_at.is_some(),
        ];
        let given = given.into_iter().filter(|is_input| *is_input);
        check_input_arity(inputs, 1 + given.count())?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        if let Some(value) = self.value_at {
            s.equals(&inputs[0].datum_type, &inputs[value].datum_type)?;
        }
        let pair = (&inputs[0], &outputs[0]);
        if let Some(pads) = &self.pads {
            s.equals(&inputs[0].rank, i64::try_from(pads.len() / 2)?)?;
            return s.given(&inputs[0].rank, move |s, rank| {
                shape_rules(s, pair, &by_axis(usize::try_from(rank)?, pads, None)?)
            });
        }
        s.equals(&inputs[1].rank, 1)?;
        let pads = &inputs[1].value;
        if let Some(axes) = self.axes_at {
            s.equals(&inputs[axes].rank, 1)?;
            s.equals(&inputs[1].shape[0], 2 * inputs[axes].shape[0].bex())?;
            let axes = &inputs[axes].value;
            s.given_3(&inputs[0].rank, pads, axes, move |s, rank, pads, axes| {
                let (pads, axes) = (whole_numbers(&pads)?, whole_numbers(&axes)?);
                let pads = by_axis(usize::try_from(rank)?, &pads, Some(&axes))?;
                shape_rules(s, pair, &pads)
            })
        } else {
            s.equals(&inputs[1].shape[0], 2 * inputs[0].rank.bex().to_dim())?;
            s.given_2(&inputs[0].rank, pads, move |s, rank, pads| {
                let pads = by_axis(usize::try_from(rank)?, &whole_numbers(&pads)?, None)?;
                shape_rules(s, pair, &pads)
            })
        }
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let rank = model.outlet_fact(inputs[0])?.rank();
        let pads = match &self.pads {
            Some(pads) => pads.clone(),
            None => whole_numbers(&*known(model, inputs[1], "pads")?)?,
        };
        let axes = match self.axes_at {
            Some(at) => Some(whole_numbers(&*known(model, inputs[at], "axes")?)?),
            None => None,
        };
        let mut pads = by_axis(rank, &pads, axes.as_deref())?;
        if let Mode::Fill(PadMode::Constant(_)) = self.mode {
            crop_what_is_filled(&mut pads, &model.outlet_fact(inputs[0])?.shape);
        }
        let mut wire = cropped(prefix, model, inputs[0], &pads)?;
        // What is negative was cut off.
        let mut pads: Vec<(usize, usize)> = (pads.iter())
            .map(|&(a, b)| {
                (
                    usize::try_from(a).unwrap_or(0),
                    usize::try_from(b).unwrap_or(0),
                )
            })
            .collect();
        let mode = match &self.mode {
            Mode::Wrap => {
                wire = wrapped(prefix, model, wire, &pads)?;
                // Nothing is left to fill.
                pads.fill((0, 0));
                PadMode::default()
            }
            Mode::Fill(PadMode::Constant(otherwise)) => PadMode::Constant(
                self.value(model, inputs)?
                    .unwrap_or_else(|| otherwise.clone()),
            ),
            Mode::Fill(from_within) => {
                check_room(from_within, &model.outlet_fact(wire)?.shape, &pads)?;
                from_within.clone()
            }
        };
        model.wire_node(prefix, Fill { pads, mode }, &[wire])
    }
}

impl Pad {
    fn value(&self, model: &TypedModel, inputs: &[OutletId]) -> TractResult<Option<Arc<Tensor>>> {
        let Some(at) = self.value_at else {
            return Ok(None);
        };
        let value = known(model, inputs[at], "value")?;
        ensure!(
            value.len() == 1,
            "Pad: expected one value, got {}",
            value.len()
        );
        let scalar = value.into_tensor().into_shape(&[])?;
        Ok(Some(scalar.into_arc_tensor()))
    }
}

fn known(model: &TypedModel, input: OutletId, what: &str) -> TractResult<Arc<Tensor>> {
    let konst = model.outlet_fact(input)?.konst.clone();
    konst.with_context(|| format!("Pad: expected {what} that are constant"))
}

/// Where more is cut off than there is, the rest goes off what the other side is filled with.
fn crop_what_is_filled(pads: &mut [(i64, i64)], shape: &ShapeFact) {
    for ((before, behind), dimension) in pads.iter_mut().zip(shape.iter()) {
        let Ok(length) = dimension.to_i64() else {
            continue;
        };
        let left = before.saturating_add(length).saturating_add(*behind);
        if left < 0 {
            continue;
        }
        if *before < -length {
            (*before, *behind) = (-length, left);
        } else if *behind < -length {
            (*before, *behind) = (left, -length);
        }
    }
}

/// Cuts off as many as pads are negative.
fn cropped(
    prefix: &str,
    model: &mut TypedModel,
    mut wire: OutletId,
    pads: &Pads,
) -> TractResult<OutletId> {
    for (axis, &(before, behind)) in pads.iter().enumerate() {
        let (start, cut) = (
            before.min(0).saturating_neg(),
            behind.min(0).saturating_neg(),
        );
        if start == 0 && cut == 0 {
            continue;
        }
        let length = model.outlet_fact(wire)?.shape[axis].clone();
        let end = length.clone() - cut;
        if let (Ok(length), Ok(end)) = (length.to_i64(), end.to_i64()) {
            ensure!(
                start <= end,
                "Pad: {before} and {behind} cut more off than a dimension of {length} has"
            );
        }
        let slice = Slice::new(axis, start, end);
        wire = model.wire_node(format!("{prefix}.crop_{axis}"), slice, &[wire])?[0];
    }
    Ok(wire)
}

/// Whether there are as many elements as are to be repeated.
fn check_room(mode: &PadMode, shape: &ShapeFact, pads: &[(usize, usize)]) -> TractResult<()> {
    for (dimension, &(before, behind)) in shape.iter().zip(pads) {
        let most = before.max(behind);
        let Ok(length) = dimension.to_usize() else {
            continue;
        };
        let has_room = match mode {
            PadMode::Reflect => most < length,
            _ => length > 0,
        };
        ensure!(
            most == 0 || has_room,
            "Pad: {mode:?} of {before} and {behind} at a dimension of {length}"
        );
    }
    Ok(())
}

/// Goes on at the other end.
fn wrapped(
    prefix: &str,
    model: &mut TypedModel,
    mut wire: OutletId,
    pads: &[(usize, usize)],
) -> TractResult<OutletId> {
    for (axis, &(before, behind)) in pads.iter().enumerate() {
        if before == 0 && behind == 0 {
            continue;
        }
        let length = model.outlet_fact(wire)?.shape[axis].to_usize()?;
        ensure!(length > 0, "Pad: nothing to wrap at a dimension of 0");
        let copies = (before / length).saturating_add(behind / length);
        ensure!(
            copies <= COPIES_MAX,
            "Pad: wrap of {before} and {behind} at a dimension of {length}: expected at most \
             {COPIES_MAX} copies"
        );
        let (mut at, mut left) = (
            (length - before % length) % length,
            before + length + behind,
        );
        let mut parts = tvec![];
        while left > 0 {
            let taken = left.min(length - at);
            let name = format!("{prefix}.wrap_{axis}_{}", parts.len());
            let slice = Slice::new(axis, at, at + taken);
            parts.push(model.wire_node(name, slice, &[wire])?[0]);
            (at, left) = (0, left - taken);
        }
        let name = format!("{prefix}.wrap_{axis}");
        wire = model.wire_node(name, TypedConcat::new(axis), &parts)?[0];
    }
    Ok(wire)
}

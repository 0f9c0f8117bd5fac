//! `Slice`, whose starts and ends beyond the tensor tract does not clamp as the specification says.

use super::tracts::Parsed;
use tract_onnx::model::{ParsingContext, optional_inputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::{Slice as Range, StridedSlice};
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_hir::internal::*;

pub(super) fn slice(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let bounds = if ctx.onnx_operator_set_version < 10 {
        Bounds::Given(Given {
            starts: node.get_attr_vec("starts")?,
            ends: node.get_attr_vec("ends")?,
            axes: node.get_attr_opt_vec("axes")?,
            steps: None,
        })
    } else {
        let mut inputs = optional_inputs(node).skip(1);
        let mut next = || inputs.next().flatten();
        let starts = next().context("Slice: starts are missing")?;
        let ends = next().context("Slice: ends are missing")?;
        let (axes, steps) = (next(), next());
        Bounds::Inputs {
            starts,
            ends,
            axes,
            steps,
            tracts: StridedSlice {
                optional_axes_input: axes,
                optional_steps_input: steps,
                begin_mask: 0,
                end_mask: 0,
                shrink_axis_mask: 0,
            },
        }
    };
    Ok((expand(Slice { bounds }), vec![]))
}

#[derive(Debug, Clone)]
struct Slice {
    bounds: Bounds,
}

#[derive(Debug, Clone)]
enum Bounds {
    Given(Given),
    Inputs {
        starts: usize,
        ends: usize,
        axes: Option<usize>,
        steps: Option<usize>,
        /// For bounds that are computed at each call.
        tracts: StridedSlice,
    },
}

#[derive(Debug, Clone)]
struct Given {
    starts: Vec<i64>,
    ends: Vec<i64>,
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
}

const INT32_MAX: i64 = i32::MAX as i64;

/// What is taken along an axis: so many, from one on, so far from each other.
#[derive(Debug, PartialEq)]
struct Span {
    axis: usize,
    begin: i64,
    count: i64,
    step: i64,
}

impl Span {
    /// Negative bounds count from the end; what lies beyond it on either side is clamped. The largest
    /// numbers as end mean to the last element in the step's direction, as in ONNX Runtime.
    fn new(axis: usize, length: i64, (start, end): (i64, i64), step: i64) -> TractResult<Self> {
        ensure!(step != 0, "Slice: the step along axis {axis} is 0");
        let (wide, far) = (i128::from(length), i128::from(step));
        // Backwards the first that can be taken is the last, and −1 ends before the first.
        let (lowest, highest) = if step > 0 { (0, wide) } else { (-1, wide - 1) };
        let clamped = |bound: i64| {
            let bound = i128::from(bound);
            let bound = if bound < 0 { bound + wide } else { bound };
            bound.clamp(lowest, highest)
        };
        let begin = clamped(start).max(0);
        let end = match end {
            i64::MAX | INT32_MAX if step < 0 => -1,
            end => clamped(end),
        };
        let between = end - begin;
        let steps = (between + far - far.signum()) / far;
        let count = if length > 0 { steps.max(0) } else { 0 };
        Ok(Self {
            axis,
            begin: i64::try_from(begin)?,
            count: i64::try_from(count)?,
            step,
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, from: OutletId) -> TractResult<OutletId> {
        let (mut low, mut high) = (0, 0);
        if self.count > 0 {
            let last = self.begin + (self.count - 1) * self.step;
            (low, high) = (self.begin.min(last), self.begin.max(last) + 1);
        }
        let name = format!("{prefix}.slice-axis-{}", self.axis);
        let mut wire = model.wire_node(name, Range::new(self.axis, low, high), &[from])?[0];
        if self.count > 1 && self.step != 1 {
            let name = format!("{prefix}.stride-axis-{}", self.axis);
            let stride = Downsample::new(self.axis, isize::try_from(self.step)?, 0);
            wire = model.wire_node(name, stride, &[wire])?[0];
        }
        Ok(wire)
    }
}

impl Given {
    fn spans(&self, shape: &[TDim]) -> TractResult<Vec<Span>> {
        let (rank, count) = (shape.len(), self.starts.len());
        let fits = |values: Option<&Vec<i64>>| values.is_none_or(|v| v.len() == count);
        ensure!(
            fits(Some(&self.ends)) && fits(self.axes.as_ref()) && fits(self.steps.as_ref()),
            "Slice: numbers of starts, ends, axes and steps differ: {self:?}"
        );
        let spans = (0..count).map(|at| {
            let axis = match &self.axes {
                Some(axes) if axes[at] < 0 => axes[at] + i64::try_from(rank)?,
                Some(axes) => axes[at],
                None => i64::try_from(at)?,
            };
            let axis = usize::try_from(axis).ok().filter(|&axis| axis < rank);
            let axis = axis.with_context(|| format!("Slice: {self:?} of {rank} dimensions"))?;
            let step = self.steps.as_ref().map_or(1, |steps| steps[at]);
            let bounds = (self.starts[at], self.ends[at]);
            Span::new(axis, shape[axis].to_i64()?, bounds, step)
        });
        spans.collect()
    }

    fn shape(&self, shape: &[TDim]) -> TractResult<TVec<TDim>> {
        let mut sliced: TVec<TDim> = shape.into();
        for span in self.spans(shape)? {
            sliced[span.axis] = span.count.to_dim();
        }
        Ok(sliced)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        from: OutletId,
    ) -> TractResult<TVec<OutletId>> {
        let shape: TVec<TDim> = model.outlet_fact(from)?.shape.dims().into();
        let mut wire = from;
        for span in self.spans(&shape)? {
            wire = span.wire(prefix, model, wire)?;
        }
        model.rename_node(wire.node, prefix)?;
        Ok(tvec![wire])
    }
}

impl Bounds {
    /// The inputs that hold the bounds.
    fn inputs(&self) -> Vec<usize> {
        match self {
            Bounds::Given(_) => vec![],
            Bounds::Inputs {
                starts,
                ends,
                axes,
                steps,
                ..
            } => [Some(*starts), Some(*ends), *axes, *steps]
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    /// What is sliced, if it is known: of each input of [`Bounds::inputs`] its value.
    fn known(&self, values: &[Arc<Tensor>]) -> Option<Given> {
        let (axes, steps) = match self {
            Bounds::Given(given) => return Some(given.clone()),
            Bounds::Inputs { axes, steps, .. } => (axes, steps),
        };
        let mut values = values.iter().map(|value| {
            let value = value.cast_to::<i64>().ok()?;
            let view = value.to_plain_array_view::<i64>().ok()?;
            Some(view.iter().copied().collect::<Vec<i64>>())
        });
        let mut next = || values.next().flatten();
        let (starts, ends) = (next()?, next()?);
        let axes = match axes {
            Some(_) => Some(next()?),
            None => None,
        };
        let steps = match steps {
            Some(_) => Some(next()?),
            None => None,
        };
        Some(Given {
            starts,
            ends,
            axes,
            steps,
        })
    }
}

fn are_numbers(shape: &[TDim]) -> bool {
    shape.iter().all(|length| length.to_i64().is_ok())
}

impl Expansion for Slice {
    fn name(&self) -> StaticName {
        "Slice".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        if let Bounds::Inputs {
            axes: Some(axes), ..
        } = &self.bounds
        {
            s.given_2(
                &inputs[0].shape,
                &inputs[*axes].value,
                move |s, shape, axes| {
                    let (rank, axes) = (i64::try_from(shape.len())?, axes.cast_to::<i64>()?);
                    let axes = axes.to_plain_array_view::<i64>()?;
                    for (axis, length) in (0_i64..).zip(shape) {
                        if !axes.iter().any(|&a| a == axis || a + rank == axis) {
                            s.equals(&outputs[0].shape[usize::try_from(axis)?], length)?;
                        }
                    }
                    Ok(())
                },
            )?;
        }
        s.given(&inputs[0].shape, move |s, shape| {
            let values = self.bounds.inputs();
            let values = values.into_iter().map(|at| &inputs[at].value);
            s.given_all(values, move |s, values| {
                match (self.bounds.known(&values), &self.bounds) {
                    (known, Bounds::Inputs { tracts, .. })
                        if known.is_none() || !are_numbers(&shape) =>
                    {
                        InferenceRulesOp::rules(tracts, s, inputs, outputs)
                    }
                    (Some(given), _) => s.equals(&outputs[0].shape, given.shape(&shape)?),
                    (None, _) => Ok(()),
                }
            })
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let bounds = self.bounds.inputs().into_iter();
        let values = bounds.map(|at| Ok(model.outlet_fact(inputs[at])?.konst.clone()));
        let values: Option<Vec<_>> = values
            .collect::<TractResult<Vec<_>>>()?
            .into_iter()
            .collect();
        let known = values.and_then(|values| self.bounds.known(&values));
        let shape = &model.outlet_fact(inputs[0])?.shape;
        match (known, &self.bounds) {
            (Some(given), _) if are_numbers(shape.dims()) => given.wire(prefix, model, inputs[0]),
            (_, Bounds::Inputs { tracts, .. }) => model.wire_node(prefix, tracts.clone(), inputs),
            (_, Bounds::Given(given)) => given.wire(prefix, model, inputs[0]),
        }
    }
}

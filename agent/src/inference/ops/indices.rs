//! Operators that take or put elements by indices. tract counts negative ones from the end in some of
//! them only, and takes some that are out of range for places of the next row; here each is brought into
//! its range before tract sees it, or refused.

use crate::inference::ml::plug::{self, Fact, Kernel, Operator};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast as to_type;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

pub(super) fn gather(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let axis = axis_of(node)?;
    counted(array::Gather::new(axis), Along::Axis(axis))
}

pub(super) fn gather_elements(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let axis = axis_of(node)?;
    counted(array::GatherElements::new(axis), Along::Axis(axis))
}

pub(super) fn scatter_elements(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let axis = axis_of(node)?;
    let tracts = array::ScatterElements::new(axis, reduction_of(node)?);
    counted(tracts, Along::Axis(axis))
}

pub(super) fn gather_nd(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let behind: usize = node.get_attr_opt("batch_dims")?.unwrap_or(0);
    let tracts = GatherNd(array::GatherNd::new(behind));
    counted(tracts, Along::Coordinates { behind })
}

pub(super) fn scatter_nd(_: &ParsingContext, node: &NodeProto) -> Parsed {
    let tracts = array::ScatterNd::new(reduction_of(node)?);
    counted(tracts, Along::Coordinates { behind: 0 })
}

fn axis_of(node: &NodeProto) -> TractResult<i64> {
    Ok(node.get_attr_opt("axis")?.unwrap_or(0))
}

fn reduction_of(node: &NodeProto) -> TractResult<array::ScatterReduction> {
    array::ScatterReduction::parse(node.get_attr_opt("reduction")?.unwrap_or("none"))
}

fn counted(tracts: impl Expansion, along: Along) -> Parsed {
    let tracts: Box<dyn Expansion> = Box::new(tracts);
    Ok((expand(Counted { tracts, along }), vec![]))
}

/// Which dimensions of the data indices are for.
#[derive(Debug, Clone, Copy)]
enum Along {
    /// Each is for this one.
    Axis(i64),
    /// Along their last dimension, one for each of the data's dimensions from this one on.
    Coordinates { behind: usize },
}

impl Along {
    fn dimensions<D: DimLike>(self, data: &[D], indices: &[D]) -> TractResult<TVec<D>> {
        let rank = data.len();
        let range = match self {
            Self::Axis(axis) => {
                let signed = i64::try_from(rank)?;
                let at = if axis < 0 { axis + signed } else { axis };
                let at = usize::try_from(at).ok();
                let at = at.with_context(|| format!("axis {axis} of a tensor of rank {rank}"))?;
                at..at + 1
            }
            Self::Coordinates { behind } => {
                let last = indices.last().context("indices have no dimension")?;
                behind..behind.saturating_add(last.to_usize()?)
            }
        };
        let named = data.get(range.clone());
        let named =
            named.with_context(|| format!("dimensions {range:?} of a tensor of rank {rank}"))?;
        Ok(named.into())
    }
}

/// tract's operator behind indices that are within their dimensions.
#[derive(Debug, Clone)]
struct Counted {
    tracts: Box<dyn Expansion>,
    along: Along,
}

impl Expansion for Counted {
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
        let mut inputs: TVec<OutletId> = inputs.into();
        let (data, indices) = (
            model.outlet_fact(inputs[0])?,
            model.outlet_fact(inputs[1])?.clone(),
        );
        let dimensions = (self.along).dimensions(data.shape.dims(), indices.shape.dims())?;
        let fixed: Option<TVec<usize>> = dimensions.iter().map(|d| d.to_usize().ok()).collect();
        let name = format!("{prefix}.indices");
        inputs[1] = match (indices.konst, fixed) {
            (Some(known), Some(dimensions)) => {
                model.add_const(name, within(&known, &dimensions)?.into_arc_tensor())?
            }
            (_, fixed) => {
                let whole = format!("{name}.cast");
                let whole = model.wire_node(whole, to_type(DatumType::I64), &inputs[1..2])?[0];
                let kernel = Within {
                    along: self.along,
                    dimensions: fixed,
                };
                let given = match kernel.dimensions {
                    Some(_) => tvec![whole],
                    None => tvec![whole, inputs[0]],
                };
                plug::wire(kernel, &name, model, &given)?[0]
            }
        };
        self.tracts.wire(prefix, model, &inputs)
    }
}

/// Indices counted from the start of their dimensions.
fn within(indices: &Tensor, dimensions: &[usize]) -> TractResult<Tensor> {
    let mut indices = indices.cast_to::<i64>()?.into_owned();
    let mut plain = indices.try_as_plain_ram_mut()?;
    let each = plain.as_slice_mut::<i64>()?.iter_mut();
    for (index, &dimension) in each.zip(dimensions.iter().cycle()) {
        let length = i64::try_from(dimension)?;
        ensure!(
            (-length..length).contains(index),
            "index {index} of a dimension of {length}: expected {} to {}",
            -length,
            length - 1
        );
        if *index < 0 {
            *index += length;
        }
    }
    Ok(indices)
}

/// Inputs: indices, and the data if its shape is known only when it is there.
#[derive(Debug, Clone)]
struct Within {
    along: Along,
    dimensions: Option<TVec<usize>>,
}

impl Operator for Within {
    /// No operator of ONNX has a dot in its name.
    fn name(&self) -> &'static str {
        "dunlin.Within"
    }

    fn inputs(&self) -> Option<usize> {
        Some(if self.dimensions.is_some() { 1 } else { 2 })
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec![(DatumType::I64, inputs[0].1.clone())])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for Within {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let indices = &inputs[0];
        let dimensions = match (&self.dimensions, inputs.get(1)) {
            (Some(dimensions), _) => dimensions.clone(),
            (None, Some(data)) => self.along.dimensions(data.shape(), indices.shape())?,
            (None, None) => bail!("expected indices and the data"),
        };
        Ok(tvec![within(indices, &dimensions)?.into_tvalue()])
    }
}

/// tract's operator of this name, which is no [`Expansion`].
#[derive(Debug, Clone)]
struct GatherNd(array::GatherNd);

impl Expansion for GatherNd {
    fn name(&self) -> StaticName {
        "GatherND".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        InferenceRulesOp::rules(&self.0, s, inputs, outputs)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let mut inputs: TVec<OutletId> = inputs.into();
        let mut operator = self.0.clone();
        // One row of constants, tract looks up along the first axis even if that is of batches.
        let known = model.outlet_fact(inputs[1])?.konst.clone();
        if let Some(row) = known.filter(|known| known.rank() == 2 && known.shape()[0] == 1)
            && operator.batch_dims == 1
        {
            let batch = Tensor::zero::<i64>(&[1, 1])?;
            let row = Tensor::stack_tensors(1, &[&batch, &*row])?;
            inputs[1] = model.add_const(format!("{prefix}.row"), row.into_arc_tensor())?;
            operator.batch_dims = 0;
        }
        model.wire_node(prefix, operator, &inputs)
    }
}

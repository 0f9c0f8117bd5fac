//! Tensors turned around along time: `ReverseSequence`, and what recurrent operators that run backwards
//! are written with.

use crate::inference::ml::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// Turns the whole tensor around along its attribute `axis`; no operator of ONNX has a dot in its name.
pub(in crate::inference) const REVERSE: &str = "dunlin.Reverse";

pub(super) fn reverse(_: &ParsingContext, node: &NodeProto) -> Parsed {
    Ok(plugged(Reverse {
        axis: axis_of(node, "axis", None)?,
    }))
}

/// Inputs: the tensor, and of each sequence in it how many of its steps are turned around.
pub(super) fn reverse_sequence(_: &ParsingContext, node: &NodeProto) -> Parsed {
    Ok(plugged(ReverseSequence {
        time: axis_of(node, "time_axis", Some(0))?,
        batch: axis_of(node, "batch_axis", Some(1))?,
    }))
}

fn axis_of(node: &NodeProto, name: &str, otherwise: Option<usize>) -> TractResult<usize> {
    let given: Option<i64> = node.get_attr_opt(name)?;
    match (given, otherwise) {
        (None, Some(axis)) => Ok(axis),
        (None, None) => bail!("{name} is missing"),
        (Some(axis), _) => usize::try_from(axis).with_context(|| format!("{name}: {axis}")),
    }
}

fn check_axis(axis: usize, input: &Fact) -> TractResult<()> {
    let rank = input.1.len();
    ensure!(axis < rank, "axis {axis} of a tensor of {rank} dimensions");
    Ok(())
}

/// The first `length` steps along the axis in the opposite order, the others behind them.
fn turned(tensor: &Tensor, axis: usize, length: usize) -> TractResult<Tensor> {
    let steps = tensor.shape()[axis];
    let order = (0..length).rev().chain(length..steps);
    let parts = order.map(|at| tensor.slice(axis, at, at + 1));
    let parts = parts.collect::<TractResult<Vec<Tensor>>>()?;
    Tensor::stack_tensors(axis, &parts)
}

#[derive(Debug, Clone)]
struct Reverse {
    axis: usize,
}

impl Operator for Reverse {
    fn name(&self) -> &'static str {
        REVERSE
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_axis(self.axis, &inputs[0])?;
        Ok(tvec![inputs[0].clone()])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for Reverse {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let steps = inputs[0].shape()[self.axis];
        Ok(tvec![turned(&inputs[0], self.axis, steps)?.into_tvalue()])
    }
}

#[derive(Debug, Clone)]
struct ReverseSequence {
    time: usize,
    batch: usize,
}

impl Operator for ReverseSequence {
    fn name(&self) -> &'static str {
        "ReverseSequence"
    }

    fn inputs(&self) -> Option<usize> {
        Some(2)
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        check_axis(self.time, &inputs[0])?;
        check_axis(self.batch, &inputs[0])?;
        ensure!(
            self.time != self.batch,
            "time_axis and batch_axis are both {}",
            self.time
        );
        let (batch, lengths) = (&inputs[0].1[self.batch], &inputs[1].1);
        ensure!(
            lengths.len() == 1 && lengths[0] == *batch,
            "lengths of shape {lengths:?} for {batch} sequences"
        );
        Ok(tvec![inputs[0].clone()])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for ReverseSequence {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let steps = inputs[0].shape()[self.time];
        let lengths = inputs[1].cast_to::<i64>()?;
        let lengths = lengths.try_as_plain_ram()?;
        let mut sequences = Vec::new();
        for (at, &length) in lengths.as_slice::<i64>()?.iter().enumerate() {
            let length = usize::try_from(length).ok().filter(|l| *l <= steps);
            let length = length
                .with_context(|| format!("sequence {at}: its length is not within {steps}"))?;
            let sequence = inputs[0].slice(self.batch, at, at + 1)?;
            sequences.push(turned(&sequence, self.time, length)?);
        }
        let together = Tensor::stack_tensors(self.batch, &sequences)?;
        Ok(tvec![together.into_tvalue()])
    }
}

//! What is done to each number of an operator's result while it is still in the cache: biases,
//! activations, scales, a sum with another tensor.

use super::simd::Lanes;
use pulp::Simd;
use std::sync::Arc;

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Add(Operand),
    Mul(Operand),
    /// Not below.
    Max(Operand),
    /// Not above.
    Min(Operand),
    /// Keeps the numbers as they are now for [`Operand::Kept`].
    Keep,
}

/// The other operand of a step.
#[derive(Debug, Clone)]
pub(super) enum Operand {
    /// The same everywhere.
    One(f32),
    /// One a row (for an image: a channel).
    Row(Arc<[f32]>),
    /// One a column.
    Column(Arc<[f32]>),
    /// The tensor of this index among the operator's further inputs, of the result's shape.
    Tensor(usize),
    /// What [`Step::Keep`] kept.
    Kept,
}

/// Steps in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct Chain(pub(super) Vec<Step>);

/// A piece of one row of the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    pub(super) column: usize,
    /// Where the piece begins in the whole result.
    pub(super) offset: usize,
}

/// Longest piece that is worked on at once, numbers: it and what is kept stay in the first cache.
pub(super) const PIECE_MAX: usize = 1024;

/// Room for what [`Step::Keep`] keeps.
pub(super) type Kept = [f32; PIECE_MAX];

impl Chain {
    /// Does the steps to a piece of a row. Operands are as long as the rewrite checked that they are.
    #[inline(always)]
    pub(super) fn apply<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        place: Place,
        tensors: &[&[f32]],
        values: &mut [f32],
        kept: &mut Kept,
    ) {
        if self.0.is_empty() {
            return;
        }
        let mut at = 0;
        for piece in values.chunks_mut(PIECE_MAX) {
            let place = Place {
                column: place.column + at,
                offset: place.offset + at,
                ..place
            };
            at += piece.len();
            for step in &self.0 {
                step.apply(lanes, place, tensors, piece, kept);
            }
        }
    }
}

impl Step {
    #[inline(always)]
    fn apply<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        place: Place,
        tensors: &[&[f32]],
        values: &mut [f32],
        kept: &mut Kept,
    ) {
        let count = values.len();
        let operand = match self {
            Self::Keep => {
                kept[..count].copy_from_slice(values);
                return;
            }
            Self::Add(o) | Self::Mul(o) | Self::Max(o) | Self::Min(o) => o,
        };
        let many: &[f32] = match operand {
            Operand::One(value) => return self.each(lanes, *value, values),
            Operand::Row(list) => return self.each(lanes, list[place.row], values),
            Operand::Column(list) => &list[place.column..][..count],
            Operand::Tensor(index) => &tensors[*index][place.offset..][..count],
            Operand::Kept => &kept[..count],
        };
        match self {
            Self::Add(_) => pairs(lanes, values, many, |l, v, o| l.add(v, o)),
            Self::Mul(_) => pairs(lanes, values, many, |l, v, o| l.mul(v, o)),
            Self::Max(_) => pairs(lanes, values, many, |l, v, o| l.max(o, v)),
            Self::Min(_) => pairs(lanes, values, many, |l, v, o| l.min(o, v)),
            Self::Keep => {}
        }
    }

    #[inline(always)]
    fn each<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        operand: f32,
        values: &mut [f32],
    ) {
        let operand = lanes.splat(operand);
        match self {
            Self::Add(_) => all(lanes, values, |l, v| l.add(v, operand)),
            Self::Mul(_) => all(lanes, values, |l, v| l.mul(v, operand)),
            Self::Max(_) => all(lanes, values, |l, v| l.max(operand, v)),
            Self::Min(_) => all(lanes, values, |l, v| l.min(operand, v)),
            Self::Keep => {}
        }
    }
}

#[inline(always)]
fn all<S: Simd, const FUSED: bool>(
    lanes: Lanes<S, FUSED>,
    values: &mut [f32],
    compute: impl Fn(Lanes<S, FUSED>, S::f32s) -> S::f32s,
) {
    let (whole, rest) = S::as_mut_simd_f32s(values);
    for value in whole {
        *value = compute(lanes, *value);
    }
    if !rest.is_empty() {
        let value = compute(lanes, lanes.load(rest));
        lanes.store(rest, value);
    }
}

#[inline(always)]
fn pairs<S: Simd, const FUSED: bool>(
    lanes: Lanes<S, FUSED>,
    values: &mut [f32],
    others: &[f32],
    compute: impl Fn(Lanes<S, FUSED>, S::f32s, S::f32s) -> S::f32s,
) {
    let (whole, rest) = S::as_mut_simd_f32s(values);
    let (others, other_rest) = S::as_simd_f32s(others);
    for (value, other) in whole.iter_mut().zip(others) {
        *value = compute(lanes, *value, *other);
    }
    if !rest.is_empty() {
        let value = compute(lanes, lanes.load(rest), lanes.load(other_rest));
        lanes.store(rest, value);
    }
}

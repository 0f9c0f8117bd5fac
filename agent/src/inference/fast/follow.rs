//! What follows a convolution or product in a graph and can be done to each number at once.

use super::chain::{Chain, Operand, Step};
use super::shape::{Found, concrete};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::math::{Add, Max, Min, Mul, Sub};
use tract_onnx::tract_hir::internal::*;

/// Most steps behind one kernel.
const STEPS_MAX: usize = 32;

/// Steps that follow, up to an outlet.
pub(super) struct Followed {
    pub(super) steps: Vec<Step>,
    /// What the steps' tensors are.
    pub(super) tensors: TVec<OutletId>,
    pub(super) end: OutletId,
}

struct Follower<'a> {
    model: &'a TypedModel,
    found: &'a Found,
    tensors: TVec<OutletId>,
}

/// Follows the graph from a kernel's outlet for as long as nothing else reads what lies between.
pub(super) fn follow(model: &TypedModel, found: &Found, from: OutletId) -> Followed {
    let tensors = TVec::new();
    let mut follower = Follower {
        model,
        found,
        tensors,
    };
    let (mut steps, mut end) = (Vec::new(), from);
    while steps.len() < STEPS_MAX && !model.outputs.contains(&end) {
        let Some((more, next)) = follower.next(end) else {
            break;
        };
        steps.extend(more);
        end = next;
    }
    let tensors = follower.tensors;
    Followed {
        steps,
        tensors,
        end,
    }
}

impl Follower<'_> {
    /// What is done next, and where that leads.
    fn next(&mut self, from: OutletId) -> Option<(Vec<Step>, OutletId)> {
        match self.model.outlet_successors(from) {
            [one] => {
                let (step, end) = self.step(*one, true)?;
                Some((step, end))
            }
            [one, other] => {
                let (one, other) = (*one, *other);
                self.rejoined(from, one, other)
                    .or_else(|| self.rejoined(from, other, one))
            }
            _ => None,
        }
    }

    /// As in `x · hard_sigmoid(x)`: a way from the outlet that ends where the outlet itself is read.
    fn rejoined(
        &mut self,
        from: OutletId,
        way: InletId,
        join: InletId,
    ) -> Option<(Vec<Step>, OutletId)> {
        let mut steps = vec![Step::Keep];
        let (mut inlet, mut count) = (way, 0);
        while inlet.node != join.node {
            let (more, end) = self.step(inlet, false)?;
            steps.extend(more);
            count += 1;
            if count > STEPS_MAX || self.model.outputs.contains(&end) {
                return None;
            }
            let [next] = self.model.outlet_successors(end) else {
                return None;
            };
            inlet = *next;
        }
        if count == 0 || inlet.slot == join.slot {
            return None;
        }
        debug_assert_eq!(self.model.node(join.node).inputs[join.slot], from);
        let operation = self.operation(join.node)?;
        let last = match operation {
            Operation::Add => Step::Add(Operand::Kept),
            Operation::Mul => Step::Mul(Operand::Kept),
            _ => return None,
        };
        steps.push(last);
        Some((steps, join.node.into()))
    }

    /// What a node does to what it reads at an inlet.
    fn step(&mut self, at: InletId, tensors: bool) -> Option<(Vec<Step>, OutletId)> {
        let operation = self.operation(at.node)?;
        let node = self.model.node(at.node);
        let [_, _] = node.inputs.as_slice() else {
            return None;
        };
        let other = node.inputs[1 - at.slot];
        let operand = self.operand(other, tensors)?;
        let steps = match operation {
            Operation::Add => vec![Step::Add(operand)],
            Operation::Mul => vec![Step::Mul(operand)],
            Operation::Max => vec![Step::Max(operand)],
            Operation::Min => vec![Step::Min(operand)],
            Operation::Sub if at.slot == 0 => vec![Step::Add(operand.negative()?)],
            Operation::Sub => vec![Step::Mul(Operand::One(-1.0)), Step::Add(operand)],
        };
        Some((steps, at.node.into()))
    }

    /// What a node computes, if its result is of the kernel's shape.
    fn operation(&self, node: usize) -> Option<Operation> {
        let node = self.model.node(node);
        let operation = &node.op_as::<TypedBinOp>()?.0;
        let shape = concrete(&node.outputs.first()?.fact)?;
        if shape != self.found.shape {
            return None;
        }
        Some(if operation.is::<Add>() {
            Operation::Add
        } else if operation.is::<Mul>() {
            Operation::Mul
        } else if operation.is::<Max>() {
            Operation::Max
        } else if operation.is::<Min>() {
            Operation::Min
        } else if operation.is::<Sub>() {
            Operation::Sub
        } else {
            return None;
        })
    }

    fn operand(&mut self, outlet: OutletId, tensors: bool) -> Option<Operand> {
        let fact = self.model.outlet_fact(outlet).ok()?;
        let shape = concrete(fact)?;
        if let Some(tensor) = &fact.konst {
            let view = tensor.try_as_plain_ram().ok()?;
            let numbers = view.as_slice::<f32>().ok()?;
            if let [one] = numbers {
                return Some(Operand::One(*one));
            }
            let along = |(at, &size): (usize, &usize)| size == 1 || at == self.found.axis;
            let same_rank = shape.len() == self.found.shape.len();
            if same_rank
                && numbers.len() == self.found.channels
                && shape.iter().enumerate().all(along)
            {
                let numbers = numbers.into();
                return Some(if self.found.is_dense() {
                    Operand::Column(numbers)
                } else {
                    Operand::Row(numbers)
                });
            }
        }
        if !tensors || shape != self.found.shape {
            return None;
        }
        self.tensors.push(outlet);
        Some(Operand::Tensor(self.tensors.len() - 1))
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Add,
    Mul,
    Max,
    Min,
    Sub,
}

impl Operand {
    fn negative(self) -> Option<Self> {
        let negated = |list: &[f32]| list.iter().map(|v| -v).collect();
        Some(match self {
            Self::One(value) => Self::One(-value),
            Self::Row(list) => Self::Row(negated(&list)),
            Self::Column(list) => Self::Column(negated(&list)),
            Self::Tensor(_) | Self::Kept => return None,
        })
    }
}

impl Found {
    /// Takes steps into the weights and the bias for as long as they go.
    pub(super) fn absorb(&mut self, steps: Vec<Step>) -> Chain {
        let mut steps = steps.into_iter().peekable();
        while let Some(step) = steps.next_if(|s| self.absorbs(s)) {
            let (Step::Add(operand) | Step::Mul(operand)) = &step else {
                continue;
            };
            let each = self.weights.len() / self.channels;
            let weights = self.weights.chunks_exact_mut(each);
            for (at, (weights, bias)) in weights.zip(&mut self.bias).enumerate() {
                let value = match operand {
                    Operand::One(value) => *value,
                    Operand::Row(list) | Operand::Column(list) => list[at],
                    Operand::Tensor(_) | Operand::Kept => continue,
                };
                if matches!(step, Step::Add(_)) {
                    *bias += value;
                } else {
                    *bias *= value;
                    weights.iter_mut().for_each(|w| *w *= value);
                }
            }
        }
        let mut steps: Vec<Step> = steps.collect();
        if self.is_dense() && self.bias.iter().any(|b| *b != 0.0) {
            let bias = std::mem::take(&mut self.bias);
            steps.insert(0, Step::Add(Operand::Column(bias.into())));
        }
        Chain(steps)
    }

    fn absorbs(&self, step: &Step) -> bool {
        let (Step::Add(operand) | Step::Mul(operand)) = step else {
            return false;
        };
        match operand {
            Operand::One(value) => value.is_finite(),
            Operand::Row(list) | Operand::Column(list) => list.iter().all(|v| v.is_finite()),
            Operand::Tensor(_) | Operand::Kept => false,
        }
    }
}

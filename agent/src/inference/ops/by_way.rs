//! Whole numbers in operators that tract has for floats: by way of doubles, or in halves that floats hold.

use super::resize;
use super::tracts::{Parsed, boxed, read, written_out};
use crate::inference::ml::plug::{self, Fact, Kernel, Operator};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast as to_type;
use tract_onnx::tract_hir::internal::*;

/// The logarithm of a sum of whole numbers is cut off to one.
pub(super) fn reduce_log_sum(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let by_way = ByWay {
        tracts: read(ctx, node)?,
        of: Way::Doubles,
    };
    Ok((boxed(Box::new(by_way)), vec![]))
}

/// Floats hold no more than 24 bits of the 32 that the nearest pixel may have.
pub(super) fn resize(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let (operator, more) = resize::resize(ctx, node)?;
    let mode: &str = node.get_attr_opt("mode")?.unwrap_or("nearest");
    if mode != "nearest" {
        return Ok((operator, more));
    }
    let by_way = ByWay {
        tracts: written_out(&*operator)?,
        of: Way::Halves,
    };
    Ok((boxed(Box::new(by_way)), more))
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Doubles,
    Halves,
}

#[derive(Debug, Clone)]
struct ByWay {
    tracts: Box<dyn Expansion>,
    of: Way,
}

impl Expansion for ByWay {
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
        let kind = model.outlet_fact(inputs[0])?.datum_type;
        let mut given: TVec<OutletId> = inputs.into();
        match self.of {
            Way::Doubles if kind.is_integer() => {
                let doubles = to_type(DatumType::F64);
                given[0] = model.wire_node(format!("{prefix}.given"), doubles, &inputs[..1])?[0];
                let result = self
                    .tracts
                    .wire(&format!("{prefix}.double"), model, &given)?;
                model.wire_node(prefix, to_type(kind), &result)
            }
            Way::Halves if kind == DatumType::I32 => {
                let mut halves = tvec![];
                for half in [Half::High, Half::Low] {
                    let name = format!("{prefix}.{half:?}");
                    given[0] = plug::wire(half, &format!("{name}.given"), model, &inputs[..1])?[0];
                    halves.push(self.tracts.wire(&name, model, &given)?[0]);
                }
                plug::wire(Joined, prefix, model, &halves)
            }
            _ => self.tracts.wire(prefix, model, inputs),
        }
    }
}

const HALF_BITS: u32 = 16;

/// 16 bits of 32 as a float, the high ones with their sign.
#[derive(Debug, Clone, Copy)]
enum Half {
    High,
    Low,
}

impl Operator for Half {
    /// No operator of ONNX has a dot in its name.
    fn name(&self) -> &'static str {
        "dunlin.Half"
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec![(DatumType::F32, inputs[0].1.clone())])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(*self))
    }
}

impl Kernel for Half {
    #[expect(clippy::cast_precision_loss, reason = "17 bits at most")]
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let given = inputs[0].to_plain_array_view::<i32>()?;
        let half = given.mapv(|x| match self {
            Half::High => (x >> HALF_BITS) as f32,
            Half::Low => (x & 0xffff) as f32,
        });
        Ok(tvec![half.into_tensor().into_tvalue()])
    }
}

/// Both halves, put together again.
#[derive(Debug, Clone)]
struct Joined;

impl Operator for Joined {
    fn name(&self) -> &'static str {
        "dunlin.Joined"
    }

    fn inputs(&self) -> Option<usize> {
        Some(2)
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec![(DatumType::I32, inputs[0].1.clone())])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for Joined {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole numbers of 17 bits at most"
    )]
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let high = inputs[0].to_plain_array_view::<f32>()?;
        let low = inputs[1].to_plain_array_view::<f32>()?;
        let mut joined = high.mapv(|half| (half as i32) << HALF_BITS);
        joined.zip_mut_with(&low, |joined, half| *joined |= *half as i32);
        Ok(tvec![joined.into_tensor().into_tvalue()])
    }
}

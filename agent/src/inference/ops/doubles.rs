//! Functions of single numbers in double precision, which tract has in single precision only.

use super::tracts::{Parsed, boxed, read, written_out};
use crate::inference::ml::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// The operators that are read here.
pub(super) const OPERATORS: [&str; 6] = [
    "HardSwish",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Round",
    "Sigmoid",
];

#[derive(Debug, Clone, Copy)]
enum Function {
    HardSwish,
    IsInf { positive: bool, negative: bool },
    IsNaN,
    LeakyRelu { slope: f64 },
    Round,
    Sigmoid,
}

/// What is FP64 is computed here, the rest as ever.
pub(super) fn of_any_precision(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let sign =
        |name: &str| -> TractResult<bool> { Ok(node.get_attr_opt::<i64>(name)?.unwrap_or(1) != 0) };
    let function = match node.op_type.as_str() {
        "HardSwish" => Function::HardSwish,
        "IsInf" => Function::IsInf {
            positive: sign("detect_positive")?,
            negative: sign("detect_negative")?,
        },
        "IsNaN" => Function::IsNaN,
        "LeakyRelu" => Function::LeakyRelu {
            slope: node.get_attr_opt::<f32>("alpha")?.unwrap_or(0.01).into(),
        },
        "Round" => Function::Round,
        "Sigmoid" => Function::Sigmoid,
        other => bail!("{other} is not computed in double precision"),
    };
    let (double, _) = plugged(function);
    let either = Either {
        single: read(ctx, node)?,
        double: written_out(&*double)?,
    };
    Ok((boxed(Box::new(either)), vec![]))
}

#[derive(Debug, Clone)]
struct Either {
    single: Box<dyn Expansion>,
    double: Box<dyn Expansion>,
}

impl Either {
    fn of(&self, given: DatumType) -> &dyn Expansion {
        match given {
            DatumType::F64 => &*self.double,
            _ => &*self.single,
        }
    }
}

impl Expansion for Either {
    fn name(&self) -> StaticName {
        self.single.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)?;
        s.given(&inputs[0].datum_type, move |s, given| {
            self.of(given).rules(s, inputs, outputs)
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let given = model.outlet_fact(inputs[0])?.datum_type;
        self.of(given).wire(prefix, model, inputs)
    }
}

impl Operator for Function {
    fn name(&self) -> &'static str {
        match self {
            Function::HardSwish => "HardSwish",
            Function::IsInf { .. } => "IsInf",
            Function::IsNaN => "IsNaN",
            Function::LeakyRelu { .. } => "LeakyRelu",
            Function::Round => "Round",
            Function::Sigmoid => "Sigmoid",
        }
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let datum_type = match self {
            Function::IsInf { .. } | Function::IsNaN => DatumType::Bool,
            _ => inputs[0].0,
        };
        Ok(tvec![(datum_type, inputs[0].1.clone())])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(*self))
    }
}

impl Kernel for Function {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let x = &inputs[0];
        match *self {
            Function::HardSwish => mapped(x, |x: f64| {
                // The specification's slope is a number in single precision.
                x * (f64::from(1.0_f32 / 6.0) * x + 0.5).clamp(0.0, 1.0)
            }),
            Function::IsInf { positive, negative } => mapped(x, |x: f64| {
                (positive && x == f64::INFINITY) || (negative && x == f64::NEG_INFINITY)
            }),
            Function::IsNaN => mapped(x, f64::is_nan),
            Function::LeakyRelu { slope } => {
                mapped(x, |x: f64| if x < 0.0 { slope * x } else { x })
            }
            Function::Round => mapped(x, f64::round_ties_even),
            Function::Sigmoid => mapped(x, |x: f64| 1.0 / (1.0 + (-x).exp())),
        }
    }
}

fn mapped<T: Datum>(tensor: &Tensor, function: impl Fn(f64) -> T) -> TractResult<TVec<TValue>> {
    let given = tensor.to_plain_array_view::<f64>()?;
    Ok(tvec![given.mapv(function).into_tensor().into_tvalue()])
}

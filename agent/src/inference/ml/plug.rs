//! How operators of our own become operators of tract.

use std::fmt::Debug;
use std::sync::Arc;
use tract_onnx::tract_hir::internal::*;

/// An element type and a shape.
pub(in crate::inference) type Fact = (DatumType, TVec<TDim>);

/// An operator as the file describes it.
pub(in crate::inference) trait Operator:
    Debug + Send + Sync + 'static
{
    /// The name that ONNX gives it.
    fn name(&self) -> &'static str;

    /// Number of inputs; none if any number will do.
    fn inputs(&self) -> Option<usize> {
        Some(1)
    }

    /// Number of outputs.
    fn outputs(&self) -> usize {
        1
    }

    /// What it gives for such inputs.
    ///
    /// # Errors
    /// It cannot take them; expected and got.
    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>>;

    /// Makes it ready for such inputs, once when the graph is loaded.
    ///
    /// # Errors
    /// It cannot take them, or its description is wrong.
    fn prepare(&self, inputs: &[Fact]) -> TractResult<Box<dyn Kernel>>;
}

/// An operator ready to run; any number of threads may run it at once.
pub(in crate::inference) trait Kernel: Debug + Send + Sync + 'static {
    /// Computes the outputs.
    ///
    /// # Errors
    /// Inputs that are not those it was made ready for.
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>>;
}

/// What tract's parser wants of an operator.
pub(in crate::inference) fn plugged(
    operator: impl Operator,
) -> (Box<dyn InferenceOp>, Vec<String>) {
    (expand(Described(Arc::new(operator))), vec![])
}

/// Puts an operator into a graph whose types and shapes are worked out.
///
/// # Errors
/// It cannot take such inputs.
pub(in crate::inference) fn wire(
    operator: impl Operator,
    name: &str,
    model: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<TVec<OutletId>> {
    Described(Arc::new(operator)).wire(name, model, inputs)
}

/// An operator in the graph while types and shapes are worked out.
#[derive(Debug, Clone)]
struct Described(Arc<dyn Operator>);

impl Expansion for Described {
    fn name(&self) -> StaticName {
        self.0.name().into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.0.outputs())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        match self.0.inputs() {
            Some(count) => check_input_arity(inputs, count)?,
            None => ensure!(!inputs.is_empty(), "expected inputs, got none"),
        }
        check_output_arity(outputs, self.0.outputs())?;
        let types = inputs.iter().map(|i| &i.datum_type);
        s.given_all(types, move |s, types| {
            let shapes = inputs.iter().map(|i| &i.shape);
            s.given_all(shapes, move |s, shapes| {
                let types = types.iter().map(|t| plain(*t));
                let given: Vec<Fact> = types.zip(shapes).collect();
                for (output, (datum_type, shape)) in outputs.iter().zip(self.0.facts(&given)?) {
                    s.equals(&output.datum_type, datum_type)?;
                    s.equals(&output.shape, shape)?;
                }
                Ok(())
            })
        })
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let facts = inputs
            .iter()
            .map(|&i| model.outlet_fact(i).map(fact_of))
            .collect::<TractResult<Vec<_>>>()?;
        let kernel = self.0.prepare(&facts)?;
        let ready = Ready(Arc::new((self.0.clone(), kernel)));
        model.wire_node(prefix, ready, inputs)
    }
}

fn fact_of(fact: &TypedFact) -> Fact {
    (plain(fact.datum_type), fact.shape.dims().into())
}

/// tract computes some 64-bit integers in a symbolic type of its own.
fn plain(datum_type: DatumType) -> DatumType {
    match datum_type {
        DatumType::TDim => DatumType::I64,
        other => other,
    }
}

/// An operator in the graph that is run.
#[derive(Debug, Clone)]
struct Ready(Arc<(Arc<dyn Operator>, Box<dyn Kernel>)>);

/// The same operator, not merely an equal one: comparing whole forests would be dear.
impl PartialEq for Ready {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Ready {}

impl Op for Ready {
    fn name(&self) -> StaticName {
        self.0.0.name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for Ready {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        for input in &mut inputs {
            if input.datum_type() == DatumType::TDim {
                *input = input.cast_to::<i64>()?.into_owned().into_tvalue();
            }
        }
        self.0.1.run(&inputs)
    }
}

impl TypedOp for Ready {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let given: Vec<Fact> = inputs.iter().map(|f| fact_of(f)).collect();
        let facts = self.0.0.facts(&given)?;
        Ok(facts.into_iter().map(|(t, shape)| t.fact(shape)).collect())
    }

    as_op!();
}

//! The kernels as operators of tract.

use super::chain::Chain;
use super::convolution::Convolution;
use super::dense::Dense;
use super::depthwise::Depthwise;
use std::sync::Arc;
use tract_onnx::tract_hir::internal::*;

/// What is computed, before the chain.
#[derive(Debug)]
pub(super) enum Kernel {
    Convolution(Convolution),
    Depthwise(Depthwise),
    Dense(Dense),
}

impl Kernel {
    fn input(&self) -> usize {
        match self {
            Self::Convolution(kernel) => kernel.input(),
            Self::Depthwise(kernel) => kernel.input(),
            Self::Dense(kernel) => kernel.input(),
        }
    }

    /// Whether it can compute from what stands where its result goes.
    fn overwrites(&self) -> bool {
        self.input() == self.output()
            && match self {
                Self::Convolution(kernel) => kernel.overwrites(),
                Self::Depthwise(kernel) => kernel.overwrites(),
                Self::Dense(_) => true,
            }
    }

    /// Computes, from what stands in `out` if nothing is given.
    fn run(&self, given: Option<&[f32]>, chain: &Chain, tensors: &[&[f32]], out: &mut [f32]) {
        match self {
            Self::Convolution(kernel) => kernel.run(given, chain, tensors, out),
            Self::Depthwise(kernel) => kernel.run(given, chain, tensors, out),
            Self::Dense(kernel) => kernel.run(given, chain, tensors, out),
        }
    }

    fn output(&self) -> usize {
        match self {
            Self::Convolution(kernel) => kernel.output(),
            Self::Depthwise(kernel) => kernel.output(),
            Self::Dense(kernel) => kernel.output(),
        }
    }
}

/// A kernel, the chain behind it and the result's shape. Its inputs are what the kernel computes on
/// and the chain's tensors.
#[derive(Debug, Clone)]
pub(super) struct Fused(pub(super) Arc<Parts>);

#[derive(Debug)]
pub(super) struct Parts {
    pub(super) kernel: Kernel,
    pub(super) chain: Chain,
    pub(super) shape: TVec<usize>,
}

/// The same operator, not merely an equal one: comparing weights would be dear.
impl PartialEq for Fused {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Fused {}

impl Op for Fused {
    fn name(&self) -> StaticName {
        match self.0.kernel {
            Kernel::Convolution(_) => "FusedConvolution".into(),
            Kernel::Depthwise(_) => "FusedDepthwise".into(),
            Kernel::Dense(_) => "FusedDense".into(),
        }
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{} steps", self.0.chain.0.len())])
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for Fused {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let Parts { kernel, shape, .. } = &*self.0;
        let Some(given) = inputs.first() else {
            bail!("expected inputs, got none");
        };
        ensure!(given.datum_type() == f32::datum_type());
        // Nobody else reads it, and the result fits: no other memory is needed.
        let over = kernel.overwrites() && given.is_exclusive() && given.shape() == shape.as_slice();
        let (mut out, others) = if over {
            (inputs.remove(0).into_tensor(), inputs.as_slice())
        } else {
            (Tensor::zero::<f32>(shape)?, &inputs[1..])
        };
        let given = inputs.first().filter(|_| !over);
        let given = given.map(|g| g.try_as_plain_ram()).transpose()?;
        let given = given.as_ref().map(|g| g.as_slice::<f32>()).transpose()?;
        let views: TVec<_> = others
            .iter()
            .map(|i| i.try_as_plain_ram())
            .collect::<TractResult<_>>()?;
        let tensors: TVec<&[f32]> = views
            .iter()
            .map(|v| v.as_slice::<f32>())
            .collect::<TractResult<_>>()?;
        self.0
            .run(given, &tensors, out.try_as_plain_ram_mut()?.as_slice_mut()?)?;
        Ok(tvec!(out.into_tvalue()))
    }
}

impl Parts {
    /// Computes one image, or lot of rows, after the other; from what stands in `out` if nothing is
    /// given.
    fn run(&self, given: Option<&[f32]>, tensors: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let (input, output) = (self.kernel.input(), self.kernel.output());
        let times = out.len() / output.max(1);
        let length = given.map_or(out.len(), <[f32]>::len);
        ensure!(
            length == times * input && out.len() == times * output,
            "expected {} numbers, got {length}",
            times * input
        );
        if let Some(other) = tensors.iter().find(|t| t.len() != out.len()) {
            bail!("expected {} numbers, got {}", out.len(), other.len());
        }
        for (at, out) in out.chunks_exact_mut(output).enumerate() {
            let given = given.map(|g| &g[at * input..][..input]);
            let tensors = tensors.iter().map(|t| &t[at * output..][..output]);
            let tensors: TVec<&[f32]> = tensors.collect();
            self.kernel.run(given, &self.chain, &tensors, out);
        }
        Ok(())
    }
}

impl TypedOp for Fused {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.0.shape)))
    }

    as_op!();
}

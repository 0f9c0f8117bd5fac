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

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let Parts {
            kernel,
            chain,
            shape,
        } = &*self.0;
        let views: TVec<_> = inputs
            .iter()
            .map(|i| i.try_as_plain_ram())
            .collect::<TractResult<_>>()?;
        let slices: TVec<&[f32]> = views
            .iter()
            .map(|v| v.as_slice::<f32>())
            .collect::<TractResult<_>>()?;
        let Some((given, tensors)) = slices.split_first() else {
            bail!("expected inputs, got none");
        };
        let mut out = Tensor::zero::<f32>(shape)?;
        let mut view = out.try_as_plain_ram_mut()?;
        let results = view.as_slice_mut::<f32>()?;
        let (input, output) = (kernel.input(), kernel.output());
        let times = results.len() / output.max(1);
        ensure!(
            given.len() == times * input && results.len() == times * output,
            "expected {} numbers, got {}",
            times * input,
            given.len()
        );
        if let Some(other) = tensors.iter().find(|t| t.len() != results.len()) {
            bail!("expected {} numbers, got {}", results.len(), other.len());
        }
        let each = given
            .chunks_exact(input)
            .zip(results.chunks_exact_mut(output));
        for (at, (given, out)) in each.enumerate() {
            let tensors = tensors.iter().map(|t| &t[at * output..][..output]);
            let tensors: TVec<&[f32]> = tensors.collect();
            match kernel {
                Kernel::Convolution(kernel) => kernel.run(given, chain, &tensors, out),
                Kernel::Depthwise(kernel) => kernel.run(given, chain, &tensors, out),
                Kernel::Dense(kernel) => kernel.run(given, chain, &tensors, out),
            }
        }
        Ok(tvec!(out.into_tvalue()))
    }
}

impl TypedOp for Fused {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.0.shape)))
    }

    as_op!();
}

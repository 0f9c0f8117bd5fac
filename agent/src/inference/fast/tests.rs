//! The kernels against tract's own, on random cases.
#![allow(clippy::unwrap_used)]

use super::operator::Fused;
use super::optimised;
use super::simd::narrow;
use proptest::prelude::*;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::logic::IfThenElse;
use tract_onnx::tract_core::ops::math::{add, max, min, mul, sub};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::internal::*;

/// Numbers that look random, between -1 and 1; the same for the same seed.
fn numbers(seed: u64, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        f32::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
    };
    let numbers: Vec<f32> = std::iter::repeat_with(next).take(count).collect();
    Tensor::from_shape(shape, &numbers).unwrap()
}

/// Runs a model as tract would and as we do, with each instruction set; `fused` is the number of our
/// operators in it.
fn compare(model: TypedModel, inputs: &[Tensor], fused: std::ops::RangeInclusive<usize>) {
    let run = |model: TypedModel| {
        let inputs = inputs.iter().map(|i| i.clone().into_tvalue()).collect();
        model.into_runnable().unwrap().run(inputs).unwrap()
    };
    let theirs = run(model.clone().into_optimized().unwrap());
    for &set in narrow::Set::ALL {
        let ours = narrow::with(set, || {
            let ours = optimised(model.clone()).unwrap();
            let found = ours.nodes().iter().filter(|n| n.op_is::<Fused>()).count();
            assert!(fused.contains(&found), "{found} of {fused:?}: {ours}");
            run(ours)
        });
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            close(set, ours, theirs);
        }
    }
}

fn close(set: narrow::Set, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.shape(), theirs.shape());
    let ours = ours.to_plain_array_view::<f32>().unwrap();
    let theirs = theirs.to_plain_array_view::<f32>().unwrap();
    for (at, (ours, theirs)) in ours.iter().zip(theirs.iter()).enumerate() {
        let close = (ours - theirs).abs() <= 1e-4 * (1.0 + theirs.abs());
        let equal = close || ours.is_nan() && theirs.is_nan();
        assert!(equal, "{set:?}: {at}: {ours}, not {theirs}");
    }
}

/// A random convolution.
#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    group: usize,
    /// Channels of the image and of the result in a group.
    channels: (usize, usize),
    image: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    before: [usize; 2],
    after: [usize; 2],
    seed: u64,
}

impl Case {
    fn wire(&self, model: &mut TypedModel) -> OutletId {
        let (inputs, outputs) = (self.channels.0 * self.group, self.channels.1 * self.group);
        let shape = [self.batch, inputs, self.image[0], self.image[1]];
        let image = model.add_source("image", f32::fact(shape)).unwrap();
        let kernel = [outputs, self.channels.0, self.kernel[0], self.kernel[1]];
        let weights = model
            .add_const("weights", numbers(self.seed, &kernel))
            .unwrap();
        let bias = model
            .add_const("bias", numbers(self.seed + 1, &[outputs]))
            .unwrap();
        let conv = Conv {
            pool_spec: PoolSpec {
                data_format: DataFormat::NCHW,
                kernel_shape: self.kernel.as_slice().into(),
                padding: PaddingSpec::Explicit(
                    self.before.as_slice().into(),
                    self.after.as_slice().into(),
                ),
                dilations: Some(self.dilations.as_slice().into()),
                strides: Some(self.strides.as_slice().into()),
                input_channels: inputs,
                output_channels: outputs,
            },
            kernel_fmt: KernelFormat::OIHW,
            group: self.group,
            q_params: None,
        };
        model
            .wire_node("conv", conv, &[image, weights, bias])
            .unwrap()[0]
    }

    fn image(&self) -> Tensor {
        let inputs = self.channels.0 * self.group;
        numbers(
            self.seed + 2,
            &[self.batch, inputs, self.image[0], self.image[1]],
        )
    }

    /// How many of our operators it becomes. Of a stride over a single tap tract makes a choice of places
    /// and a product; with one channel that is no product worth an operator.
    fn fused(&self) -> std::ops::RangeInclusive<usize> {
        let downsampled = (0..2).any(|side| self.strides[side] > 1);
        let least = usize::from(!(downsampled && self.channels.0 == 1));
        least..=1
    }

    /// Whether the kernel fits into the image with its borders.
    fn fits(&self) -> bool {
        (0..2).all(|side| {
            let image = self.image[side] + self.before[side] + self.after[side];
            image > (self.kernel[side] - 1) * self.dilations[side]
        })
    }
}

fn cases(group: impl Strategy<Value = (usize, (usize, usize))>) -> impl Strategy<Value = Case> {
    let side = || {
        (
            1..24usize,
            1..6usize,
            1..4usize,
            1..3usize,
            0..3usize,
            0..3usize,
        )
    };
    let batch = prop_oneof![Just(1usize), Just(2usize)];
    (group, batch, side(), side(), any::<u16>()).prop_filter_map(
        "the kernel does not fit",
        |((group, channels), batch, y, x, seed)| {
            let case = Case {
                batch,
                group,
                channels,
                image: [y.0, x.0],
                kernel: [y.1, x.1],
                strides: [y.2, x.2],
                dilations: [y.3, x.3],
                before: [y.4, x.4],
                after: [y.5, x.5],
                seed: u64::from(seed),
            };
            case.fits().then_some(case)
        },
    )
}

fn constant(model: &mut TypedModel, name: &str, tensor: Tensor) -> OutletId {
    model.add_const(name, tensor).unwrap()
}

fn one(value: f32) -> Tensor {
    Tensor::from_shape(&[1, 1, 1, 1], &[value]).unwrap()
}

/// A scale and a shift a channel, then `x · clip(x + 3, 0, 6) / 6`.
fn hard_swish(model: &mut TypedModel, from: OutletId, channels: usize) -> OutletId {
    let scale = constant(model, "scale", numbers(7, &[1, channels, 1, 1]));
    let shift = constant(model, "shift", numbers(8, &[1, channels, 1, 1]));
    let [zero, three, six, sixth] =
        [0.0, 3.0, 6.0, 1.0 / 6.0].map(|v| constant(model, &format!("c{v}"), one(v)));
    let scaled = model.wire_node("scaled", mul(), &[from, scale]).unwrap()[0];
    let x = model.wire_node("shifted", add(), &[scaled, shift]).unwrap()[0];
    let above = model.wire_node("above", add(), &[x, three]).unwrap()[0];
    let low = model.wire_node("low", max(), &[above, zero]).unwrap()[0];
    let gate = model.wire_node("gate", min(), &[low, six]).unwrap()[0];
    let gated = model.wire_node("gated", mul(), &[x, gate]).unwrap()[0];
    model.wire_node("sixth", mul(), &[gated, sixth]).unwrap()[0]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_convolution_is_tracts(case in cases((1..40usize, 1..40usize).prop_map(|c| (1, c)))) {
        let mut model = TypedModel::default();
        let out = case.wire(&mut model);
        model.select_output_outlets(&[out]).unwrap();
        compare(model, &[case.image()], case.fused());
    }

    #[test]
    fn a_depthwise_convolution_is_tracts(
        case in cases((2..20usize, 1..3usize).prop_map(|(group, to)| (group, (1, to)))),
    ) {
        let mut model = TypedModel::default();
        let out = case.wire(&mut model);
        model.select_output_outlets(&[out]).unwrap();
        compare(model, &[case.image()], case.fused());
    }

    #[test]
    fn what_follows_is_fused(case in cases((1..20usize, 1..20usize).prop_map(|c| (1, c)))) {
        let mut model = TypedModel::default();
        let out = case.wire(&mut model);
        let end = hard_swish(&mut model, out, case.channels.1);
        let shape = model.outlet_fact(end).unwrap().shape.as_concrete().unwrap().to_vec();
        let other = model.add_source("other", f32::fact(&shape)).unwrap();
        let sum = model.wire_node("sum", add(), &[other, end]).unwrap()[0];
        model.select_output_outlets(&[sum]).unwrap();
        let other = numbers(case.seed + 3, &shape);
        let nodes = optimised(model.clone()).unwrap().nodes().len();
        // Two sources and what does all the rest; and what a stride over a single tap makes tract do.
        let downsampled = (0..2).any(|s| case.strides[s] > 1);
        prop_assert!(downsampled || nodes <= 5, "{nodes}");
        compare(model, &[case.image(), other], case.fused());
    }

    #[test]
    fn a_product_over_channels_is_tracts(
        channels in 2..300usize, places in 2..300usize, kernels in 2..60usize, seed: u16,
    ) {
        let seed = u64::from(seed);
        let mut model = TypedModel::default();
        let given = model.add_source("given", f32::fact([channels, places])).unwrap();
        let weights = constant(&mut model, "weights", numbers(seed, &[kernels, channels]));
        let product = EinSum::new("in,oi->on".parse().unwrap(), f32::datum_type());
        let out = model.wire_node("product", product, &[given, weights]).unwrap()[0];
        let zero = Tensor::from_shape(&[1, 1], &[0.0f32]).unwrap();
        let zero = constant(&mut model, "zero", zero);
        let out = model.wire_node("relu", max(), &[out, zero]).unwrap()[0];
        model.select_output_outlets(&[out]).unwrap();
        compare(model, &[numbers(seed + 2, &[channels, places])], 1..=1);
    }

    #[test]
    fn a_product_with_weights_is_tracts(
        rows in 1..40usize, inner in 2..600usize, columns in 2..90usize,
        transposed: bool, first: bool, seed: u16,
    ) {
        let seed = u64::from(seed);
        let mut model = TypedModel::default();
        let given = model.add_source("given", f32::fact([rows, inner])).unwrap();
        let shape = if transposed { [columns, inner] } else { [inner, columns] };
        let weights = constant(&mut model, "weights", numbers(seed, &shape));
        let (matrix, made) = (if transposed { "nk" } else { "kn" }, "mn");
        let (axes, inputs) = if first {
            (format!("{matrix},mk->{made}"), [weights, given])
        } else {
            (format!("mk,{matrix}->{made}"), [given, weights])
        };
        let product = EinSum::new(axes.parse().unwrap(), f32::datum_type());
        let product = model.wire_node("product", product, &inputs).unwrap()[0];
        let bias = constant(&mut model, "bias", numbers(seed + 1, &[1, columns]));
        let out = model.wire_node("sum", sub(), &[product, bias]).unwrap()[0];
        model.select_output_outlets(&[out]).unwrap();
        compare(model, &[numbers(seed + 2, &[rows, inner])], 1..=1);
    }
}

#[test]
fn what_others_read_as_well_stays() {
    let case = Case {
        batch: 1,
        group: 1,
        channels: (3, 5),
        image: [8, 8],
        kernel: [3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        before: [1, 1],
        after: [1, 1],
        seed: 1,
    };
    let mut model = TypedModel::default();
    let out = case.wire(&mut model);
    let zero = constant(&mut model, "zero", one(0.0));
    let relu = model.wire_node("relu", max(), &[out, zero]).unwrap()[0];
    model.select_output_outlets(&[out, relu]).unwrap();
    compare(model, &[case.image()], case.fused());
}

/// A graph that computes `x · factor + x`, for the sides of an `If`.
fn side(factor: f32) -> TypedModel {
    let mut model = TypedModel::default();
    let x = model.add_source("x", f32::fact([3])).unwrap();
    let factor = Tensor::from_shape(&[1], &[factor]).unwrap();
    let factor = model.add_const("factor", factor).unwrap();
    let product = model.wire_node("product", mul(), &[x, factor]).unwrap()[0];
    let sum = model.wire_node("sum", add(), &[product, x]).unwrap()[0];
    model.select_output_outlets(&[sum]).unwrap();
    model
}

#[test]
fn a_condition_chooses_its_side() {
    let mut model = TypedModel::default();
    let condition = model
        .add_source("condition", bool::fact([0usize; 0]))
        .unwrap();
    let x = model.add_source("x", f32::fact([3])).unwrap();
    let choice = IfThenElse {
        then_body: side(2.0),
        then_input_mapping: vec![1],
        else_body: side(-3.0),
        else_input_mapping: vec![1],
    };
    let out = model.wire_node("if", choice, &[condition, x]).unwrap()[0];
    model.select_output_outlets(&[out]).unwrap();
    let plan = optimised(model).unwrap().into_runnable().unwrap();
    for (condition, factor) in [(true, 3.0f32), (false, -2.0)] {
        let condition = Tensor::from(condition).into_tvalue();
        let x = Tensor::from_shape(&[3], &[1.0f32, -2.0, 0.5]).unwrap();
        let out = plan.run(tvec![condition, x.into_tvalue()]).unwrap();
        let out = out[0].to_plain_array_view::<f32>().unwrap();
        let out: Vec<f32> = out.iter().copied().collect();
        assert_eq!(out, [factor, -2.0 * factor, 0.5 * factor]);
    }
}

#[test]
fn not_a_number_stays_so() {
    let mut model = TypedModel::default();
    let given = model.add_source("given", f32::fact([1, 4])).unwrap();
    let weights = constant(&mut model, "weights", numbers(1, &[4, 3]));
    let product = EinSum::new("mk,kn->mn".parse().unwrap(), f32::datum_type());
    let out = model
        .wire_node("product", product, &[given, weights])
        .unwrap()[0];
    model.select_output_outlets(&[out]).unwrap();
    let given = Tensor::from_shape(&[1, 4], &[1.0, f32::NAN, 0.0, 0.0]).unwrap();
    compare(model, &[given], 1..=1);
}

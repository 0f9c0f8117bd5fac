//! What of a prepared graph the kernels can compute: convolutions and products with weights that
//! are known.

use super::convolution::Convolution;
use super::dense::{Dense, Rows};
use super::depthwise::Depthwise;
use super::operator::Kernel;
use super::spread::{Side, Spread};
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::internal::*;

/// Most numbers of an operator's weights that are copied into panels; tract keeps larger ones.
const WEIGHTS_MAX: usize = 1 << 26;

/// A convolution or product found in a graph.
pub(super) struct Found {
    pub(super) input: OutletId,
    /// The result's.
    pub(super) shape: TVec<usize>,
    /// Which of the result's axes the weights make.
    pub(super) axis: usize,
    /// Numbers of that axis.
    pub(super) channels: usize,
    /// As many numbers for each of them.
    pub(super) weights: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) form: Form,
}

pub(super) enum Form {
    /// Kernels that see all `channels` of an image.
    Image { spread: Spread, channels: usize },
    /// Kernels that see one channel each, `multiplier` kernels a channel.
    Depthwise { spread: Spread, multiplier: usize },
    /// Rows of `inner` numbers, one every `pitch` of the `given` ones.
    Dense {
        rows: usize,
        inner: usize,
        pitch: usize,
        given: usize,
    },
}

impl Found {
    pub(super) fn is_dense(&self) -> bool {
        matches!(self.form, Form::Dense { .. })
    }

    pub(super) fn into_kernel(self) -> Kernel {
        let (weights, bias) = (self.weights.as_slice(), self.bias);
        match self.form {
            Form::Image { spread, channels } => {
                Kernel::Convolution(Convolution::new(spread, channels, weights, bias))
            }
            Form::Depthwise { spread, multiplier } => {
                Kernel::Depthwise(Depthwise::new(spread, multiplier, weights, bias))
            }
            Form::Dense {
                rows,
                inner,
                pitch,
                given,
            } => {
                let rows = Rows {
                    rows,
                    inner,
                    pitch,
                    given,
                };
                Kernel::Dense(Dense::new(rows, self.channels, weights))
            }
        }
    }
}

/// What the node is for the kernels, if anything.
pub(super) fn find(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Found>> {
    if let Some(conv) = node.op_as::<Conv>() {
        return convolution(model, node, conv);
    }
    if let Some(sum) = node.op_as::<EinSum>() {
        return product(model, node, sum);
    }
    Ok(None)
}

/// Shape of a tensor of 32-bit floats whose shape is known and not empty.
pub(super) fn concrete(fact: &TypedFact) -> Option<TVec<usize>> {
    let shape = fact.shape.as_concrete()?;
    let known = fact.datum_type == f32::datum_type() && shape.iter().all(|&d| d > 0);
    known.then(|| shape.into())
}

/// Numbers of a tensor of 32-bit floats that is known.
fn constant(fact: &TypedFact) -> Option<Vec<f32>> {
    let tensor = fact.konst.as_ref()?;
    if tensor.datum_type() != f32::datum_type() || tensor.len() > WEIGHTS_MAX {
        return None;
    }
    let view = tensor.try_as_plain_ram().ok()?;
    view.as_slice::<f32>().ok().map(<[f32]>::to_vec)
}

fn convolution(model: &TypedModel, node: &TypedNode, conv: &Conv) -> TractResult<Option<Found>> {
    let pool = &conv.pool_spec;
    rule_if!(conv.q_params.is_none() && node.inputs.len() == 3);
    rule_if!(matches!(pool.rank(), 1 | 2) && conv.kernel_fmt == KernelFormat::OIHW);
    let facts = model.node_input_facts(node.id)?;
    rule_if_some!(image = concrete(facts[0]));
    rule_if_some!(shape = concrete(&node.outputs[0].fact));
    let data = pool.data_format.shape(&image)?;
    let (inputs, channels) = (pool.input_channels, pool.output_channels);
    let sides: TVec<Side> = pool
        .computed_padding(data.hw_dims())
        .iter()
        .enumerate()
        .map(|(axis, padded)| Side {
            input: data.hw_dims()[axis],
            output: padded.convoluted,
            kernel: pool.kernel_shape[axis],
            stride: pool.stride(axis),
            dilation: pool.dilation(axis),
            before: padded.pad_before,
        })
        .collect();
    rule_if!(
        sides
            .iter()
            .all(|s| s.kernel > 0 && s.stride > 0 && s.dilation > 0)
    );
    let (rows, columns) = match *sides.as_slice() {
        [columns] => (Side::ONE, columns),
        [rows, columns] => (rows, columns),
        _ => return Ok(None),
    };
    let spread = Spread { rows, columns };
    let taps = rows.kernel * columns.kernel;
    let axis = data.c_axis();
    rule_if!(image[axis] == inputs && shape[axis] == channels && inputs % conv.group == 0);
    let positions = rows.output * columns.output;
    rule_if!(positions * channels * data.n().unwrap_or(&1) == shape.iter().product::<usize>());
    rule_if_some!(bias = constant(facts[2]));
    rule_if_some!(mut weights = constant(facts[1]));
    let bias = if bias.len() == 1 {
        vec![bias[0]; channels]
    } else {
        bias
    };
    rule_if!(weights.len() == channels * taps * (inputs / conv.group) && bias.len() == channels);
    let form = if data.fmt.c_is_last() {
        // Side by side are the channels of a position and those of the next: rows that overlap.
        let overlapping = conv.group == 1 && rows == Side::ONE && data.n().unwrap_or(&1) == &1;
        rule_if!(overlapping && columns.dilation == 1 && columns.before == 0);
        rule_if!((positions - 1) * columns.stride + taps <= columns.input);
        let inner = taps * inputs;
        let at = |i: usize| weights[i - i % inner + i % inner % inputs * taps + i % inner / inputs];
        weights = (0..weights.len()).map(at).collect();
        let pitch = columns.stride * inputs;
        Form::Dense {
            rows: positions,
            inner,
            pitch,
            given: columns.input * inputs,
        }
    } else if conv.group == 1 {
        Form::Image {
            spread,
            channels: inputs,
        }
    } else if conv.group == inputs && channels % inputs == 0 {
        Form::Depthwise {
            spread,
            multiplier: channels / inputs,
        }
    } else {
        return Ok(None);
    };
    let input = node.inputs[0];
    Ok(Some(Found {
        input,
        shape,
        axis,
        channels,
        weights,
        bias,
        form,
    }))
}

/// Axes of a product with a matrix of weights.
struct Axes {
    /// Places of the axis that is summed over, in what comes and in the weights.
    inner: (usize, usize),
    /// Places of the weights' own axis, in the weights and in the result.
    own: (usize, usize),
    /// Places of the axes that stay, in what comes and in the result.
    kept: TVec<(usize, usize)>,
}

fn product(model: &TypedModel, node: &TypedNode, sum: &EinSum) -> TractResult<Option<Found>> {
    rule_if!(sum.q_params.is_none() && node.inputs.len() == 2);
    rule_if!(sum.operating_dt == f32::datum_type());
    let facts = model.node_input_facts(node.id)?;
    let slot = usize::from(facts[0].konst.is_none());
    rule_if_some!(given = concrete(facts[1 - slot]));
    rule_if_some!(matrix = concrete(facts[slot]));
    rule_if_some!(shape = concrete(&node.outputs[0].fact));
    rule_if_some!(axes = axes(sum, slot, &given, &matrix, &shape));
    let (inner, channels) = (given[axes.inner.0], shape[axes.own.1]);
    // Rows before and numbers behind, in the same order on both sides.
    let is_before = |&&(from, to): &&(usize, usize)| from < axes.inner.0 && to < axes.own.1;
    let is_behind = |&&(from, to): &&(usize, usize)| from > axes.inner.0 && to > axes.own.1;
    let before: usize = axes
        .kept
        .iter()
        .filter(is_before)
        .map(|a| given[a.0])
        .product();
    let behind: usize = axes
        .kept
        .iter()
        .filter(is_behind)
        .map(|a| given[a.0])
        .product();
    rule_if!(axes.kept.is_sorted() && axes.kept.is_sorted_by_key(|a| a.1));
    rule_if!(before * behind * inner == given.iter().product::<usize>());
    rule_if!(before * behind * channels == shape.iter().product::<usize>());
    rule_if_some!(numbers = constant(facts[slot]));
    rule_if!(numbers.len() == inner * channels);
    // With but two axes that are longer than one, either the first or the second comes first.
    let weights = if axes.own.0 < axes.inner.1 {
        numbers
    } else {
        let at = |i: usize| numbers[i % inner * channels + i / inner];
        (0..numbers.len()).map(at).collect()
    };
    let form = if behind == 1 {
        Form::Dense {
            rows: before,
            inner,
            pitch: inner,
            given: before * inner,
        }
    } else {
        let columns = Side {
            input: behind,
            output: behind,
            ..Side::ONE
        };
        Form::Image {
            spread: Spread {
                rows: Side::ONE,
                columns,
            },
            channels: inner,
        }
    };
    let (input, axis) = (node.inputs[1 - slot], axes.own.1);
    let bias = vec![0.0; channels];
    Ok(Some(Found {
        input,
        shape,
        axis,
        channels,
        weights,
        bias,
        form,
    }))
}

/// Which axis is which, if there is one of each.
fn axes(
    sum: &EinSum,
    slot: usize,
    given: &[usize],
    matrix: &[usize],
    shape: &[usize],
) -> Option<Axes> {
    let (mut inner, mut own, mut kept) = (None, None, TVec::new());
    for axis in sum.axes.iter_all_axes() {
        let at = |places: &TVec<usize>| match places.as_slice() {
            [] => Some(None),
            [one] => Some(Some(*one)),
            _ => None,
        };
        let from = at(&axis.inputs[1 - slot])?;
        let weight = at(&axis.inputs[slot])?;
        let to = at(&axis.outputs[0])?;
        match (from, weight, to) {
            (Some(from), None, Some(to)) if given[from] == shape[to] => kept.push((from, to)),
            (Some(from), Some(weight), None) if given[from] == matrix[weight] => {
                if inner.is_none_or(|(_, w)| matrix[w] == 1) {
                    inner = Some((from, weight));
                } else if matrix[weight] > 1 {
                    return None;
                }
            }
            (None, Some(weight), Some(to)) if matrix[weight] == shape[to] => {
                if own.is_none_or(|(w, _)| matrix[w] == 1) {
                    own = Some((weight, to));
                } else if matrix[weight] > 1 {
                    return None;
                }
            }
            // Of length one, an axis makes no difference.
            (from, weight, to) => {
                let long = from.is_some_and(|a| given[a] > 1)
                    || weight.is_some_and(|a| matrix[a] > 1)
                    || to.is_some_and(|a| shape[a] > 1);
                if long {
                    return None;
                }
            }
        }
    }
    kept.retain(|&mut (from, _): &mut (usize, usize)| given[from] > 1);
    kept.sort_unstable();
    Some(Axes {
        inner: inner?,
        own: own?,
        kept,
    })
}

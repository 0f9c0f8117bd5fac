//! Graphs in which tract would move a stride or a broadcast to where it is wrong. The expected
//! numbers are ONNX Runtime's.
#![allow(clippy::unwrap_used, clippy::panic)]

use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;
use tract_onnx::pb::{NodeProto, TensorProto};

/// Quarters between -5/4 and 5/4, in no order, from the given place on.
fn quarters(from: usize, count: usize) -> Vec<f32> {
    (from..from + count)
        .map(|at| (f32::from(u8::try_from(at * 7 % 11).unwrap()) - 5.0) / 4.0)
        .collect()
}

fn weights(name: &str, dims: &[i64]) -> TensorProto {
    let count = usize::try_from(dims.iter().product::<i64>()).unwrap();
    floats(name, dims, &quarters(3, count))
}

fn check(
    given: &[usize],
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    made: &[usize],
    expected: &[f32],
) {
    let x = spec("x", DType::FP32, given);
    let y = spec("y", DType::FP32, made);
    let x_values = Values::FP32(quarters(0, x.elements()));
    let written = Written::new(13, vec![x], nodes, constants, vec![y]);
    let Values::FP32(answer) = written.answer(&[x_values]) else {
        panic!("not FP32");
    };
    let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
    assert!(
        answer.len() == expected.len() && answer.iter().zip(expected).all(close),
        "{answer:?}, not {expected:?}"
    );
}

#[test]
fn an_expanded_axis_is_summed_over() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("MatMul", &["e", "w"], &["y"]),
    ];
    let constants = vec![ints("s", &[4, 8]), weights("w", &[8, 3])];
    let y = [
        -3.75, 2.8125, -0.9375, 1.5, -1.125, 0.375, -1.5, 1.125, -0.375, 3.75, -2.8125, 0.9375,
    ];
    check(&[4, 1], nodes, constants, &[4, 3], &y);
}

#[test]
fn an_expanded_right_side_is_summed_over() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("MatMul", &["w", "e"], &["y"]),
    ];
    let constants = vec![ints("s", &[8, 4]), weights("w", &[3, 8])];
    let y = [
        -1.5625, 0.625, -0.625, 1.5625, -0.625, 0.25, -0.25, 0.625, 0.3125, -0.125, 0.125, -0.3125,
    ];
    check(&[1, 4], nodes, constants, &[3, 4], &y);
}

#[test]
fn a_tiled_axis_of_a_batch_is_summed_over() {
    let nodes = vec![
        node("Tile", &["x", "s"], &["e"]),
        node("MatMul", &["w", "e"], &["y"]),
    ];
    let constants = vec![ints("s", &[1, 2, 1]), weights("w", &[2, 1, 2])];
    let y = [-1.875, 0.75, -0.75, 0.3125, 0.0625, -0.1875];
    check(&[2, 1, 3], nodes, constants, &[2, 1, 3], &y);
}

#[test]
fn expanded_rows_stay() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("MatMul", &["e", "w"], &["y"]),
    ];
    let constants = vec![ints("s", &[4, 8]), weights("w", &[8, 2])];
    let y = [
        -0.6875, -1.1875, -0.6875, -1.1875, -0.6875, -1.1875, -0.6875, -1.1875,
    ];
    check(&[1, 8], nodes, constants, &[4, 2], &y);
}

#[test]
fn expanded_columns_of_weights_stay() {
    let nodes = vec![
        node("Expand", &["w", "s"], &["e"]),
        node("MatMul", &["x", "e"], &["y"]),
    ];
    let constants = vec![ints("s", &[4, 5]), weights("w", &[4, 1])];
    let y = [
        0.1875, 0.1875, 0.1875, 0.1875, 0.1875, -0.625, -0.625, -0.625, -0.625, -0.625,
    ];
    check(&[2, 4], nodes, constants, &[2, 5], &y);
}

#[test]
fn an_expanded_axis_goes_into_gemm() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("Gemm", &["e", "w", "b"], &["y"]),
    ];
    let constants = vec![
        ints("s", &[4, 8]),
        weights("w", &[8, 3]),
        weights("b", &[3]),
    ];
    let y = [
        -2.5, 3.0625, -1.6875, 2.75, -0.875, -0.375, -0.25, 1.375, -1.125, 5.0, -2.5625, 0.1875,
    ];
    check(&[4, 1], nodes, constants, &[4, 3], &y);
}

#[test]
fn an_expanded_axis_goes_into_einsum() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("Einsum", &["e", "w"], &["y"]).with(text("equation", "ij,jk->ik")),
    ];
    let constants = vec![ints("s", &[4, 8]), weights("w", &[8, 3])];
    let y = [
        -3.75, 2.8125, -0.9375, 1.5, -1.125, 0.375, -1.5, 1.125, -0.375, 3.75, -2.8125, 0.9375,
    ];
    check(&[4, 1], nodes, constants, &[4, 3], &y);
}

#[test]
fn tiled_channels_go_into_a_convolution() {
    let nodes = vec![
        node("Tile", &["x", "s"], &["e"]),
        node("Conv", &["e", "w"], &["y"]),
    ];
    let constants = vec![ints("s", &[1, 3, 1, 1]), weights("w", &[1, 3, 1, 1])];
    let y = [-0.9375, 0.375, -0.375, 0.9375];
    check(&[1, 1, 2, 2], nodes, constants, &[1, 1, 2, 2], &y);
}

#[test]
fn expanded_channels_go_into_a_convolution() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("Conv", &["e", "w"], &["y"]),
    ];
    let constants = vec![ints("s", &[1, 3, 2, 2]), weights("w", &[1, 3, 1, 1])];
    let y = [-0.9375, 0.375, -0.375, 0.9375];
    check(&[1, 1, 2, 2], nodes, constants, &[1, 1, 2, 2], &y);
}

#[test]
fn tiled_channels_go_over_an_activation() {
    let nodes = vec![
        node("Tile", &["x", "s"], &["e"]),
        node("Relu", &["e"], &["r"]),
        node("Conv", &["r", "w"], &["y"]),
    ];
    let constants = vec![ints("s", &[1, 3, 1, 1]), weights("w", &[1, 3, 1, 1])];
    let y = [0.0, 0.375, 0.0, 0.9375];
    check(&[1, 1, 2, 2], nodes, constants, &[1, 1, 2, 2], &y);
}

#[test]
fn an_expanded_part_is_summed_over() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("Concat", &["e", "z"], &["c"]).with(int("axis", 1)),
        node("MatMul", &["c", "w"], &["y"]),
    ];
    let constants = vec![
        ints("s", &[4, 6]),
        weights("z", &[4, 2]),
        weights("w", &[8, 2]),
    ];
    let y = [
        1.1875, -3.125, 0.5625, 1.4375, -0.75, -0.875, -0.6875, 1.625,
    ];
    check(&[4, 1], nodes, constants, &[4, 2], &y);
}

#[test]
fn an_expanded_mean_is_summed_over() {
    let nodes = vec![
        node("ReduceMean", &["x"], &["m"])
            .with(all_ints("axes", &[1]))
            .with(int("keepdims", 1)),
        node("Expand", &["m", "s"], &["e"]),
        node("MatMul", &["e", "w"], &["y"]),
    ];
    let constants = vec![ints("s", &[2, 3]), weights("w", &[3, 2])];
    let y = [-0.208333, -0.104167, 0.125, 0.0625];
    check(&[2, 3], nodes, constants, &[2, 2], &y);
}

#[test]
fn an_expanded_axis_is_transposed() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("Transpose", &["e"], &["t"]).with(all_ints("perm", &[1, 0])),
        node("MatMul", &["w", "t"], &["y"]),
    ];
    let constants = vec![ints("s", &[4, 8]), weights("w", &[2, 8])];
    let y = [-1.5625, 0.625, -0.625, 1.5625, -0.625, 0.25, -0.25, 0.625];
    check(&[4, 1], nodes, constants, &[2, 4], &y);
}

#[test]
fn an_expanded_axis_is_scaled() {
    let nodes = vec![
        node("Expand", &["x", "s"], &["e"]),
        node("Mul", &["e", "two"], &["m"]),
        node("MatMul", &["m", "w"], &["y"]),
    ];
    let constants = vec![
        ints("s", &[4, 8]),
        weights("w", &[8, 2]),
        floats("two", &[1], &[2.0]),
    ];
    let y = [-1.875, -2.5, 0.75, 1.0, -0.75, -1.0, 1.875, 2.5];
    check(&[4, 1], nodes, constants, &[4, 2], &y);
}

#[test]
fn a_choice_that_is_known_is_summed_over() {
    let nodes = vec![
        node("Less", &["zero", "one"], &["c"]),
        node("Where", &["c", "x", "z"], &["e"]),
        node("MatMul", &["e", "w"], &["y"]),
    ];
    let constants = vec![
        floats("zero", &[1, 1], &[0.0]),
        floats("one", &[1, 1], &[1.0]),
        floats("z", &[1, 8], &quarters(5, 8)),
        weights("w", &[8, 3]),
    ];
    let y = [
        -3.75, 2.8125, -0.9375, 1.5, -1.125, 0.375, -1.5, 1.125, -0.375, 3.75, -2.8125, 0.9375,
    ];
    check(&[4, 1], nodes, constants, &[4, 3], &y);
}

#[test]
fn a_stride_stays_behind_softmax() {
    let nodes = vec![
        node("Softmax", &["x"], &["p"]).with(int("axis", -1)),
        node("Conv", &["p", "w"], &["y"])
            .with(all_ints("kernel_shape", &[1]))
            .with(all_ints("strides", &[2])),
    ];
    let constants = vec![weights("w", &[1, 3, 1])];
    let y = [
        -0.157806, 0.118987, 0.097784, 0.207008, 0.144072, 0.15398, 0.325975, 0.087384,
    ];
    check(&[2, 3, 7], nodes, constants, &[2, 1, 4], &y);
}

#[test]
fn a_stride_stays_behind_log_softmax_and_more() {
    let nodes = vec![
        node("LogSoftmax", &["x"], &["p"]).with(int("axis", -1)),
        node("Abs", &["p"], &["r"]),
        node("Conv", &["r", "w"], &["y"])
            .with(all_ints("kernel_shape", &[1]))
            .with(all_ints("strides", &[2])),
    ];
    let constants = vec![weights("w", &[1, 2, 1])];
    let y = [4.981956, 3.856956, 3.419456, 2.294456];
    check(&[1, 2, 7], nodes, constants, &[1, 1, 4], &y);
}

#[test]
fn steps_stay_behind_softmax_and_a_slice() {
    let nodes = vec![
        node("Softmax", &["x"], &["p"]).with(int("axis", 1)),
        node("Slice", &["p", "a", "b", "ax"], &["q"]),
        node("Slice", &["q", "c", "b", "ax", "st"], &["y"]),
    ];
    let constants = vec![
        ints("a", &[3]),
        ints("b", &[9]),
        ints("c", &[2]),
        ints("ax", &[1]),
        ints("st", &[2]),
    ];
    let y = [0.039779, 0.084213];
    check(&[1, 9], nodes, constants, &[1, 2], &y);
}

#[test]
fn steps_follow_reshape() {
    let nodes = vec![
        node("Reshape", &["x", "s"], &["r"]),
        node("Slice", &["r", "a", "b", "ax", "st"], &["y"]),
    ];
    let constants = vec![
        ints("s", &[6, 4]),
        ints("a", &[0]),
        ints("b", &[6]),
        ints("ax", &[0]),
        ints("st", &[2]),
    ];
    let y = [
        -1.25, 0.5, -0.5, 1.25, -1.0, 0.75, -0.25, -1.25, -0.75, 1.0, 0.0, -1.0,
    ];
    check(&[2, 3, 4], nodes, constants, &[3, 4], &y);
}

#[test]
fn steps_follow_flatten() {
    let nodes = vec![
        node("Flatten", &["x"], &["r"]),
        node("Slice", &["r", "a", "b", "ax", "st"], &["y"]),
    ];
    let constants = vec![
        ints("a", &[1]),
        ints("b", &[6]),
        ints("ax", &[1]),
        ints("st", &[3]),
    ];
    let y = [0.5, 0.25, 0.0, -0.25];
    check(&[2, 3, 2], nodes, constants, &[2, 2], &y);
}

#[test]
fn a_stride_follows_reshape() {
    let nodes = vec![
        node("Reshape", &["x", "s"], &["r"]),
        node("Conv", &["r", "w"], &["y"])
            .with(all_ints("kernel_shape", &[1]))
            .with(all_ints("strides", &[2])),
    ];
    let constants = vec![ints("s", &[1, 3, 4]), weights("w", &[2, 3, 1])];
    let y = [-0.75, -0.1875, -0.25, -0.25];
    check(&[2, 6], nodes, constants, &[1, 2, 2], &y);
}

#[test]
fn a_stride_follows_unsqueeze() {
    let nodes = vec![
        node("Unsqueeze", &["x", "s"], &["r"]),
        node("Conv", &["r", "w"], &["y"])
            .with(all_ints("kernel_shape", &[1, 1]))
            .with(all_ints("strides", &[2, 2])),
    ];
    let constants = vec![ints("s", &[0, 2]), weights("w", &[2, 2, 1, 1])];
    let y = [-1.75, -0.625, 0.5, 0.1875, 0.375, 0.5625];
    check(&[2, 5], nodes, constants, &[1, 2, 1, 3], &y);
}

#[test]
fn steps_stay_behind_cumsum() {
    let nodes = vec![
        node("CumSum", &["x", "along"], &["c"]),
        node("Slice", &["c", "a", "b", "ax", "st"], &["y"]),
    ];
    let mut along = ints("along", &[1]);
    along.dims.clear();
    let constants = vec![
        along,
        ints("a", &[1]),
        ints("b", &[7]),
        ints("ax", &[1]),
        ints("st", &[2]),
    ];
    let y = [-0.75, 0.0, -0.5];
    check(&[1, 7], nodes, constants, &[1, 3], &y);
}

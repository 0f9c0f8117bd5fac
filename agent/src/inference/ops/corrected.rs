//! Operators that tract has, but not as the specification says.

use super::{
    activations, by_way, doubles, grid_sample, numbers, one_hot, pooling, slice, tracts, transposed,
};
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// What tract's own readers are called beside ours; no operator of ONNX has a dot in its name.
const CAST: &str = "tract.Cast";
const CONSTANT_OF_SHAPE: &str = "tract.ConstantOfShape";
const SQUEEZE: &str = "tract.Squeeze";
const GRU: &str = "tract.GRU";
const LSTM: &str = "tract.LSTM";
const RNN: &str = "tract.RNN";

type Reader = fn(&ParsingContext, &NodeProto) -> Parsed;

pub(super) fn register(engine: &mut Onnx) {
    let operators = &mut engine.op_register;
    let corrected: [(&str, &str, Reader); 6] = [
        ("Cast", CAST, cast),
        ("ConstantOfShape", CONSTANT_OF_SHAPE, constant_of_shape),
        ("Squeeze", SQUEEZE, squeeze),
        ("GRU", GRU, gru),
        ("LSTM", LSTM, lstm),
        ("RNN", RNN, rnn),
    ];
    for (name, kept_as, ours) in corrected {
        if let Some(tracts) = operators.0.get(name).copied() {
            operators.insert(kept_as, tracts);
            operators.insert(name, ours);
        }
    }
    let mut before_tracts: Vec<(&str, tracts::Reader)> = vec![
        ("AveragePool", pooling::window),
        ("Conv", pooling::window),
        ("ConvTranspose", transposed::conv_transpose),
        ("Gelu", activations::gelu),
        ("GridSample", grid_sample::grid_sample),
        ("MaxPool", pooling::window),
        ("OneHot", one_hot::one_hot),
        ("ReduceLogSum", by_way::reduce_log_sum),
        ("Resize", by_way::resize),
        ("Selu", selu),
        ("Slice", slice::slice),
    ];
    before_tracts.extend(doubles::OPERATORS.map(|name| (name, doubles::of_any_precision as _)));
    for (name, ours) in before_tracts {
        if let Some(tracts) = operators.0.get(name).copied() {
            operators.0.insert(tracts::kept_as(name), tracts);
            operators.0.insert(name.to_owned(), ours);
        }
    }
    operators.insert("LogSoftmax", numbers::log_softmax);
    operators.insert("Upsample", upsample);
}

fn read_by(kept_as: &str, ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let tracts = ctx.framework.op_register.0.get(kept_as);
    tracts.with_context(|| format!("no {kept_as}"))?(ctx, node)
}

fn cast(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    match node.get_attr::<DatumType>("to")? {
        DatumType::I64 => numbers::cast_to_i64(),
        _ => read_by(CAST, ctx, node),
    }
}

/// Zeros are FP32 if the file does not say otherwise; tract takes FP64.
fn constant_of_shape(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    if node.attribute.iter().any(|a| a.name == "value") {
        return read_by(CONSTANT_OF_SHAPE, ctx, node);
    }
    let zero = TensorProto {
        dims: vec![1],
        data_type: DataType::Float.into(),
        float_data: vec![0.0],
        ..TensorProto::default()
    };
    let mut node = node.clone();
    node.attribute.push(AttributeProto {
        name: "value".to_owned(),
        r#type: AttributeType::Tensor.into(),
        t: Some(zero),
        ..AttributeProto::default()
    });
    read_by(CONSTANT_OF_SHAPE, ctx, &node)
}

/// Without axes, every dimension of one goes; before version 13 tract wants them named.
fn squeeze(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let mut ctx = ctx.clone();
    if !node.attribute.iter().any(|a| a.name == "axes") {
        ctx.onnx_operator_set_version = ctx.onnx_operator_set_version.max(13);
    }
    read_by(SQUEEZE, &ctx, node)
}

fn gru(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    check_recurrent(node, &["Sigmoid", "Tanh"])?;
    read_by(GRU, ctx, node)
}

fn lstm(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    check_recurrent(node, &["Sigmoid", "Tanh", "Tanh"])?;
    read_by(LSTM, ctx, node)
}

fn rnn(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    check_recurrent(node, &["Tanh"])?;
    read_by(RNN, ctx, node)
}

/// tract takes the usual activation functions and no limits, whatever the file says.
fn check_recurrent(node: &NodeProto, usual: &[&str]) -> TractResult<()> {
    let given = node.attribute.iter().find(|a| a.name == "activations");
    let given = given.map_or(&[][..], |a| &a.strings);
    let given: Vec<_> = given.iter().map(|s| String::from_utf8_lossy(s)).collect();
    let each = usual.iter().cycle();
    ensure!(
        given
            .iter()
            .zip(each)
            .all(|(got, want)| got.eq_ignore_ascii_case(want)),
        "{}: activations {given:?}: expected {usual:?} in each direction",
        node.op_type
    );
    let clip: Option<f32> = node.get_attr_opt("clip")?;
    ensure!(clip.is_none(), "{}: clip is not supported", node.op_type);
    let coupled: i64 = node.get_attr_opt("input_forget")?.unwrap_or(0);
    ensure!(
        coupled == 0,
        "{}: input_forget is not supported",
        node.op_type
    );
    Ok(())
}

/// The constants that tract takes have six digits.
fn selu(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let mut node = node.clone();
    for (name, usual) in [("alpha", 1.673_263_2), ("gamma", 1.050_701)] {
        if !node.attribute.iter().any(|a| a.name == name) {
            node.attribute.push(AttributeProto {
                name: name.to_owned(),
                r#type: AttributeType::Float.into(),
                f: usual,
                ..AttributeProto::default()
            });
        }
    }
    Ok((tracts::boxed(tracts::read(ctx, &node)?), vec![]))
}

/// What `Resize` was called before version 10: the same as its version 10.
fn upsample(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    ensure!(
        ctx.onnx_operator_set_version >= 9 && node.input.len() == 2,
        "Upsample of version {}: expected version 9 or newer, its scales as the second input",
        ctx.onnx_operator_set_version
    );
    let mut ctx = ctx.clone();
    ctx.onnx_operator_set_version = 10;
    let mut node = node.clone();
    node.op_type = "Resize".to_owned();
    // Version 10 takes the pixel before, which is what later versions call "floor".
    node.attribute.push(AttributeProto {
        name: "nearest_mode".to_owned(),
        r#type: AttributeType::String.into(),
        s: b"floor".to_vec(),
        ..AttributeProto::default()
    });
    read_by("Resize", &ctx, &node)
}

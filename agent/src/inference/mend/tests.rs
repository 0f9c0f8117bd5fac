#![allow(clippy::unwrap_used)]

use super::Mend;
use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{FunctionProto, NodeProto, OperatorSetIdProto};

/// Squeezes the last dimension of `x` if it is one; else gives `x`. The two branches use one name for
/// different tensors, and the graph behind them uses it too.
fn squeezes_if_it_can(shape: &[usize], out: &[usize]) -> Written {
    let then = body(
        vec![
            node("Neg", &["x"], &["t"]),
            node("Squeeze", &["t", "last"], &["squeezed"]),
        ],
        &["squeezed"],
    );
    let other = body(vec![node("Neg", &["x"], &["t"])], &["t"]);
    let nodes = vec![
        node("Shape", &["x"], &["shape"]),
        node("Gather", &["shape", "at"], &["length"]),
        node("Equal", &["length", "one"], &["is_one"]),
        node("If", &["is_one"], &["chosen"])
            .with(graph("then_branch", then))
            .with(graph("else_branch", other)),
        node("Neg", &["chosen"], &["t"]),
        node("Identity", &["t"], &["y"]),
    ];
    let weights = vec![ints("at", &[2]), ints("one", &[1]), ints("last", &[-1])];
    let x = spec("x", DType::FP32, shape);
    Written::new(
        16,
        vec![x],
        nodes,
        weights,
        vec![spec("y", DType::FP32, out)],
    )
}

#[test]
fn the_branch_that_shapes_choose_is_written_out() {
    let x = Values::FP32(vec![1.0, 2.0, 3.0]);
    let squeezed = squeezes_if_it_can(&[1, 3, 1], &[1, 3]);
    assert_eq!(squeezed.answer(std::slice::from_ref(&x)), x);
    assert_eq!(squeezed.load().unwrap().mends(), [Mend::Branches(1)]);
    let x = Values::FP32(vec![1.0, 2.0, 3.0, 4.0]);
    let kept = squeezes_if_it_can(&[1, 2, 2], &[1, 2, 2]);
    assert_eq!(kept.answer(std::slice::from_ref(&x)), x);
    assert_eq!(kept.load().unwrap().mends(), [Mend::Branches(1)]);
}

/// Which sample rate the branches are for is known only when the model is asked.
fn chooses_by_value(outer: bool) -> Written {
    // Sense for one column only.
    let then = body(vec![node("Squeeze", &["x", "last"], &["a"])], &["a"]);
    let other = body(
        vec![node("ReduceMax", &["x"], &["b"]).with(int("keepdims", 0))],
        &["b"],
    );
    let (then_branch, else_branch) = if outer { (then, other) } else { (other, then) };
    let nodes = vec![
        node("Equal", &["rate", "rate_then"], &["is_then"]),
        node("If", &["is_then"], &["y"])
            .with(graph("then_branch", then_branch))
            .with(graph("else_branch", else_branch)),
    ];
    let mut rate_then = ints("rate_then", &[16_000]);
    rate_then.dims.clear();
    let inputs = vec![
        spec("x", DType::FP32, &[1, 2]),
        spec("rate", DType::INT64, &[]),
    ];
    let weights = vec![rate_then, ints("last", &[-1])];
    Written::new(
        16,
        inputs,
        nodes,
        weights,
        vec![spec("y", DType::FP32, &[])],
    )
}

#[test]
fn a_branch_without_sense_is_left_and_its_condition_checked() {
    let x = Values::FP32(vec![1.0, 7.0]);
    for (outer, good, bad, got) in [
        (false, 16_000, 8_000, "false"),
        (true, 8_000, 16_000, "true"),
    ] {
        let graph = chooses_by_value(outer).load().unwrap();
        assert_eq!(graph.mends(), [Mend::OnlyBranches(1)]);
        let run = |rate: i64| graph.run(&[x.clone(), Values::INT64(vec![rate])]);
        assert_eq!(run(good).unwrap(), [Values::FP32(vec![7.0])]);
        let refused = run(bad).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("its condition is {got}, expected")),
            "{refused}"
        );
    }
}

#[test]
fn a_condition_inside_a_branch_is_folded_too() {
    let inner = squeezes_if_it_can(&[1, 3, 1], &[1, 3]).model.graph.unwrap();
    let then = body(inner.node[..4].to_vec(), &["chosen"]);
    let other = body(
        vec![node("Squeeze", &["x", "last"], &["plain"])],
        &["plain"],
    );
    let nodes = vec![
        node("If", &["flag"], &["y"])
            .with(graph("then_branch", then))
            .with(graph("else_branch", other)),
    ];
    let inputs = vec![
        spec("x", DType::FP32, &[1, 3, 1]),
        spec("flag", DType::BOOL, &[]),
    ];
    let y = spec("y", DType::FP32, &[1, 3]);
    let written = Written::new(16, inputs, nodes, inner.initializer, vec![y]);
    let graph = written.load().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(graph.mends(), [Mend::Branches(1)]);
    let x = Values::FP32(vec![1.0, 2.0, 3.0]);
    let run = |flag| graph.run(&[x.clone(), Values::BOOL(vec![flag])]).unwrap();
    assert_eq!(run(false), std::slice::from_ref(&x));
    assert_eq!(run(true), [Values::FP32(vec![-1.0, -2.0, -3.0])]);
}

fn function(name: &str, attribute: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("own".to_owned()),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        attribute: attribute.iter().map(|&n| n.to_owned()).collect(),
        node: nodes,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 16,
        }],
        ..FunctionProto::default()
    }
}

/// `leaky(x) + leaky(leaky(x))`, the slope given by the calls, all through functions.
fn calls_functions(attributes: &[&str]) -> Written {
    let leaky = node("LeakyRelu", &["a"], &["t"]).with(reference("alpha", "slope"));
    let leaky = function(
        "Leaky",
        attributes,
        vec![leaky, node("Identity", &["t"], &["b"])],
    );
    let inner = |of, gives, slope| {
        node("Leaky", &[of], &[gives])
            .of("own")
            .with(float("slope", slope))
    };
    let twice = vec![inner("a", "t", 0.5), inner("t", "b", 0.25)];
    let twice = function("Twice", &[], twice);
    let once = match attributes {
        [] => node("Leaky", &["x"], &["once"]).of("own"),
        _ => inner("x", "once", 0.5),
    };
    let nodes = vec![
        once,
        node("Twice", &["x"], &["twice"]).of("own"),
        node("Add", &["once", "twice"], &["y"]),
    ];
    let (x, y) = (spec("x", DType::FP32, &[2]), spec("y", DType::FP32, &[2]));
    let mut written = Written::new(16, vec![x], nodes, vec![], vec![y]);
    written.model.functions = vec![leaky, twice];
    written
}

#[test]
fn the_models_own_functions_are_written_out() {
    let written = calls_functions(&["slope"]);
    assert_eq!(written.load().unwrap().mends(), [Mend::Functions(4)]);
    let y = written.answer(&[Values::FP32(vec![-8.0, 1.0])]);
    assert_eq!(y, Values::FP32(vec![-4.0 - 1.0, 2.0]));
}

#[test]
fn a_function_whose_default_is_not_known_is_not_guessed() {
    let refused = calls_functions(&[]).load().unwrap_err().to_string();
    assert!(refused.contains("Leaky (node \"n_once\""), "{refused}");
}

#[test]
fn functions_of_other_operator_versions_stay() {
    let mut written = calls_functions(&["slope"]);
    written.model.functions[0].opset_import[0].version = 9;
    let refused = written.load().unwrap_err().to_string();
    assert!(refused.contains("Leaky"), "{refused}");
}

#[test]
fn functions_that_call_themselves_end() {
    let mut written = calls_functions(&["slope"]);
    let itself = vec![
        node("Twice", &["a"], &["t"]).of("own"),
        node("Twice", &["t"], &["b"]).of("own"),
    ];
    written.model.functions[1] = function("Twice", &[], itself);
    let refused = written.load().unwrap_err().to_string();
    assert!(refused.contains("Twice"), "{refused}");
}

/// Sums of the rows of `x` from the first on, and with each the number of its row: as often as there
/// are rows, or as `times` says.
fn sums_of_rows(version: i64, times: &str, goes_on: &str) -> Written {
    let unsqueezed = match version {
        13.. => node("Unsqueeze", &["row", "zero"], &["rows"]),
        _ => node("Identity", &["row"], &["rows"]),
    };
    let mut loop_body = body(
        vec![
            node("Identity", &["go"], &["on"]),
            node("Gather", &["x", "at"], &["picked"]).with(int("axis", 0)),
            node("Add", &["sum", "picked"], &["t"]),
            node("Cast", &["at"], &["row"]).with(int("to", 1)),
            unsqueezed,
        ],
        &["on", "t", "rows", "t"],
    );
    loop_body.input = body(vec![], &["at", "go", "sum"]).output;
    let nodes = vec![
        node("Shape", &["x"], &["shape"]),
        node("Gather", &["shape", "first"], &["length"]),
        node(
            "Loop",
            &[times, goes_on, "none"],
            &["total", "rows_all", "sums"],
        )
        .with(graph("body", loop_body)),
        // The name that the body uses for another tensor.
        node("Neg", &["sums"], &["t"]),
        node("Neg", &["t"], &["y"]),
    ];
    let mut first = ints("first", &[0]);
    first.dims.clear();
    let weights = vec![first, ints("zero", &[0]), floats("none", &[2], &[0.0, 0.0])];
    let inputs = vec![
        spec("x", DType::FP32, &[3, 2]),
        spec("often", DType::INT64, &[]),
    ];
    let outputs = vec![
        spec("y", DType::FP32, &[3, 2]),
        spec("total", DType::FP32, &[2]),
        spec(
            "rows_all",
            DType::FP32,
            if version < 13 { &[3] } else { &[3, 1] },
        ),
    ];
    Written::new(version, inputs, nodes, weights, outputs)
}

#[test]
fn loops_whose_rounds_shapes_decide_are_written_out() {
    for version in [11, 13] {
        let graph = sums_of_rows(version, "length", "").load();
        let graph = graph.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(graph.mends(), [Mend::Loops(1)]);
        let x = Values::FP32(vec![1.0, 10.0, 2.0, 20.0, 4.0, 40.0]);
        let answers = graph.run(&[x, Values::INT64(vec![9])]).unwrap();
        let sums = Values::FP32(vec![1.0, 10.0, 3.0, 30.0, 7.0, 70.0]);
        assert_eq!(answers[0], sums);
        assert_eq!(answers[1], Values::FP32(vec![7.0, 70.0]));
        assert_eq!(answers[2], Values::FP32(vec![0.0, 1.0, 2.0]));
    }
}

#[test]
fn loops_whose_rounds_an_input_decides_are_refused() {
    let refused = sums_of_rows(13, "often", "")
        .load()
        .unwrap_err()
        .to_string();
    assert!(refused.contains("Loop (node \"n_total\")"), "{refused}");
    assert!(refused.contains("Loops whose rounds"), "{refused}");
}

/// Scales and zero points of `a`, `b` and the result.
fn quantisation() -> Vec<tract_onnx::pb::TensorProto> {
    let scale = |name, value| floats(name, &[], &[value]);
    let zero = |name, value| bytes(name, &[], DataType::Uint8, &[value]);
    vec![
        scale("a_s", 0.5),
        zero("a_z", 10),
        scale("b_s", 0.25),
        zero("b_z", 0),
        scale("y_s", 1.0),
        zero("y_z", 100),
    ]
}

fn quantised(nodes: Vec<NodeProto>, shape: &[usize], out: &[usize]) -> Written {
    let inputs = vec![
        spec("a", DType::UINT8, shape),
        spec("b", DType::UINT8, shape),
    ];
    let y = spec("y", DType::UINT8, out);
    Written::new(13, inputs, nodes, quantisation(), vec![y])
}

#[test]
fn operators_of_the_quantiser_are_written_as_standard_ones() {
    let operands = ["a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"];
    let of = |operator| node(operator, &operands, &["y"]).of("com.microsoft");
    // (12 - 10) / 2 = 1 and (250 - 10) / 2 = 120; 8 / 4 = 2 and 200 / 4 = 50.
    let inputs = [Values::UINT8(vec![12, 250]), Values::UINT8(vec![8, 200])];
    for (operator, expected) in [("QLinearAdd", [103, 255]), ("QLinearMul", [102, 255])] {
        let written = quantised(vec![of(operator)], &[2], &[2]);
        assert_eq!(written.load().unwrap().mends(), [Mend::Contributed(1)]);
        assert_eq!(written.answer(&inputs), Values::UINT8(expected.to_vec()));
    }
    let joined = ["y_s", "y_z", "a", "a_s", "a_z", "b", "b_s", "b_z"];
    let joined = node("QLinearConcat", &joined, &["y"])
        .of("com.microsoft")
        .with(int("axis", 0));
    let written = quantised(vec![joined], &[2], &[4]);
    assert_eq!(
        written.answer(&inputs),
        Values::UINT8(vec![101, 220, 102, 150])
    );
    let product = ["a", "a_s", "a_z", "b", "b_s", "b_z", "c", "y_s", "y_z"];
    let product = node("QGemm", &product, &["y"])
        .of("com.microsoft")
        .with(int("transB", 1));
    let mut written = quantised(vec![product], &[1, 2], &[1, 1]);
    let mut c = bytes("c", &[1], DataType::Int32, &[]);
    c.raw_data = (-47_200_i32).to_le_bytes().to_vec();
    written.model.graph.as_mut().unwrap().initializer.push(c);
    // 1 × 2 + 120 × 50 - 47,200 / 8 = 102.
    assert_eq!(written.answer(&inputs), Values::UINT8(vec![202]));
}

/// The quantised product and convolution are those of the floats that they stand for, rounded once.
#[test]
fn standard_operators_on_integers_are_computed_on_floats() {
    let product = ["a", "a_s", "a_z", "b", "b_s", "b_z", "y_s", "y_z"];
    let nodes = vec![node("QLinearMatMul", &product, &["y"])];
    let mut written = quantised(nodes, &[1, 2], &[1, 1]);
    let graph = written.model.graph.as_mut().unwrap();
    graph.input.truncate(1);
    let b = bytes("b", &[2, 1], DataType::Uint8, &[8, 200]);
    graph.initializer.push(b);
    written.inputs.truncate(1);
    // (13 - 10) / 2 = 1.5 and 0; 1.5 × 2 + 0 × 50 = 3.
    let y = written.answer(&[Values::UINT8(vec![13, 10])]);
    assert_eq!(y, Values::UINT8(vec![103]));
    assert!(written.load().unwrap().mends().is_empty());

    let inputs = ["a", "a_s", "a_z", "w", "w_s", "w_z", "y_s", "y_z", "bias"];
    let nodes = vec![node("QLinearConv", &inputs, &["y"])];
    let mut written = quantised(nodes, &[1, 1, 1, 2], &[1, 2, 1, 2]);
    let graph = written.model.graph.as_mut().unwrap();
    graph.input.truncate(1);
    let mut bias = bytes("bias", &[2], DataType::Int32, &[]);
    bias.raw_data = [0_i32, 40].iter().flat_map(|b| b.to_le_bytes()).collect();
    graph.initializer.extend([
        bytes("w", &[2, 1, 1, 1], DataType::Int8, &[3, 0xff]),
        floats("w_s", &[2], &[0.5, 0.1]),
        bytes("w_z", &[2], DataType::Int8, &[0, 0]),
        bias,
    ]);
    written.inputs.truncate(1);
    // Of 1 and 2.5: 1.5 and 3.75, rounded to even; the other channel -0.1 + 2 and -0.25 + 2.
    let y = written.answer(&[Values::UINT8(vec![12, 15])]);
    assert_eq!(y, Values::UINT8(vec![102, 104, 102, 102]));
}

/// `h = tanh(x + h of the step behind)`.
#[test]
fn what_runs_backwards_begins_at_the_end() {
    for layout in [0, 1] {
        let node = node("RNN", &["x", "w", "r"], &["y", "last"])
            .with(text("direction", "reverse"))
            .with(int("hidden_size", 1))
            .with(int("layout", layout));
        let one = |name| floats(name, &[1, 1, 1], &[1.0]);
        let shape = if layout == 0 { [3, 1, 1] } else { [1, 3, 1] };
        let out = [shape[0], if layout == 0 { 1 } else { 3 }, 1, 1];
        let outputs = vec![
            spec("y", DType::FP32, &out),
            spec("last", DType::FP32, &[1, 1, 1]),
        ];
        let x = spec("x", DType::FP32, &shape);
        let written = Written::new(14, vec![x], vec![node], vec![one("w"), one("r")], outputs);
        let graph = written.load().unwrap_or_else(|e| panic!("{e}"));
        let answers = graph.run(&[Values::FP32(vec![0.1, 0.2, 0.4])]).unwrap();
        let third = 0.4_f64.tanh();
        let second = (0.2 + third).tanh();
        let first = (0.1 + second).tanh();
        let near = |got: &Values, expected: &[f64]| {
            let pairs = got.iter_f64().zip(expected);
            assert_eq!(got.len(), expected.len());
            pairs.for_each(|(g, e)| assert!((g - e).abs() < 1e-6, "{got:?}, layout {layout}"));
        };
        near(&answers[0], &[first, second, third]);
        near(&answers[1], &[first]);
    }
}

#[test]
fn what_is_refused_is_named_with_what_was_tried() {
    let nodes = vec![
        node("Neg", &["x"], &["t"]),
        node("Pool2000", &["t"], &["y"]),
    ];
    let (x, y) = (spec("x", DType::FP32, &[2]), spec("y", DType::FP32, &[2]));
    let unknown = Written::new(13, vec![x.clone()], nodes, vec![], vec![y.clone()]);
    let refused = unknown.load().unwrap_err().to_string();
    assert!(refused.contains("Pool2000 (node \"n_y\")"), "{refused}");
    assert!(
        refused.contains("tried: ") && refused.contains("found none of these: "),
        "{refused}"
    );

    let nodes = vec![
        node("Neg", &["x"], &["t"]),
        node("MatMul", &["t", "w"], &["y"]),
    ];
    let w = vec![floats("w", &[3, 1], &[1.0, 2.0, 3.0])];
    let wrong = Written::new(13, vec![x], nodes, w, vec![y]);
    let refused = wrong.load().unwrap_err().to_string();
    assert!(refused.contains("at MatMul (node \"n_y\"): "), "{refused}");
}

#[test]
fn what_was_done_is_told_when_it_does_not_help() {
    let mut written = squeezes_if_it_can(&[1, 3, 1], &[1, 3]);
    let graph = written.model.graph.as_mut().unwrap();
    graph.node[5] = node("Pool2000", &["t"], &["y"]);
    let refused = written.load().unwrap_err().to_string();
    assert!(refused.contains("Pool2000 (node \"n_y\")"), "{refused}");
    assert!(
        refused.contains(
            "replaced 1 If whose condition the inputs' shapes decide by the branch taken"
        ),
        "{refused}"
    );
}

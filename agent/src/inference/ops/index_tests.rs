//! Expected numbers are ONNX Runtime's (1.32.0).
#![allow(clippy::unwrap_used)]

use crate::inference::graph::GraphError;
use crate::inference::tensor::Values;
use crate::inference::written::*;
use dunlin_protocol::bundle::DType;
use tract_onnx::pb::NodeProto;

/// Indices and their shape, updates and theirs, and the shape of the output.
struct Case<'a> {
    node: NodeProto,
    indices: (&'a [i64], &'a [usize]),
    updates: (&'a [f32], &'a [usize]),
    to: &'a [usize],
}

impl Case<'_> {
    /// Of `[[1, 2, 3], [4, 5, 6]]`, with indices in the file or in the request.
    fn run(&self, in_file: bool) -> Result<Values, GraphError> {
        let y = spec("y", DType::FP32, self.to);
        let mut inputs = vec![spec("x", DType::FP32, &[2, 3])];
        let mut given = vec![Values::FP32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])];
        let (indices, dims) = self.indices;
        let mut weights = vec![];
        if in_file {
            let mut constant = ints("i", indices);
            constant.dims = dims.iter().map(|d| i64::try_from(*d).unwrap()).collect();
            weights.push(constant);
        } else {
            inputs.push(spec("i", DType::INT64, dims));
            given.push(Values::INT64(indices.to_vec()));
        }
        let (updates, dims) = self.updates;
        if !updates.is_empty() {
            inputs.push(spec("u", DType::FP32, dims));
            given.push(Values::FP32(updates.to_vec()));
        }
        let version = if self.node.op_type == "Scatter" {
            10
        } else {
            18
        };
        let written = Written::new(version, inputs, vec![self.node.clone()], weights, vec![y]);
        Ok(written.load()?.run(&given)?.remove(0))
    }

    fn gives(&self, expected: &[f32]) {
        for in_file in [true, false] {
            let got = self.run(in_file).unwrap();
            let what = format!("{}, in the file: {in_file}", self.node.op_type);
            assert_eq!(got, Values::FP32(expected.to_vec()), "{what}");
        }
    }

    fn is_refused(&self, reason: &str) {
        for in_file in [true, false] {
            let refused = self.run(in_file).unwrap_err().to_string();
            assert!(
                refused.contains(reason),
                "in the file: {in_file}: {refused}"
            );
        }
    }
}

fn gather<'a>(
    node: NodeProto,
    indices: &'a [i64],
    shape: &'a [usize],
    to: &'a [usize],
) -> Case<'a> {
    Case {
        node,
        indices: (indices, shape),
        updates: (&[], &[]),
        to,
    }
}

fn gathers(operator: &str, axis: i64) -> NodeProto {
    node(operator, &["x", "i"], &["y"]).with(int("axis", axis))
}

fn gathers_nd() -> NodeProto {
    node("GatherND", &["x", "i"], &["y"])
}

#[test]
fn gathering_by_coordinates_counts_from_the_end() {
    gather(gathers_nd(), &[-1, -1, 0, -3], &[2, 2], &[2]).gives(&[6.0, 1.0]);
    gather(gathers_nd(), &[-1, -2], &[1, 2], &[1]).gives(&[5.0]);
    gather(gathers_nd(), &[-1], &[1, 1], &[1, 3]).gives(&[4.0, 5.0, 6.0]);
    let in_batches = gathers_nd().with(int("batch_dims", 1));
    gather(in_batches, &[-1, -2], &[2, 1], &[2]).gives(&[3.0, 5.0]);
    gather(gathers_nd(), &[-3], &[1, 1], &[1, 3]).is_refused("index -3 of a dimension of 2");
    gather(gathers_nd(), &[0, 3], &[1, 2], &[1]).is_refused("index 3 of a dimension of 3");
}

#[test]
fn one_row_of_constants_may_be_a_batch() {
    let (x, y) = (
        spec("x", DType::FP32, &[1, 3]),
        spec("y", DType::FP32, &[1]),
    );
    let mut last = ints("i", &[-1]);
    last.dims = vec![1, 1];
    let nodes = vec![gathers_nd().with(int("batch_dims", 1))];
    let written = Written::new(18, vec![x], nodes, vec![last], vec![y]);
    let answer = written.answer(&[Values::FP32(vec![1.0, 2.0, 3.0])]);
    assert_eq!(answer, Values::FP32(vec![3.0]));
}

#[test]
fn scattering_by_coordinates_counts_from_the_end() {
    let reductions = [
        ("none", [-20.0, 2.0, 3.0, 4.0, 5.0, 10.0]),
        ("add", [-19.0, 2.0, 3.0, 4.0, 5.0, 16.0]),
        ("mul", [-20.0, 2.0, 3.0, 4.0, 5.0, 60.0]),
        ("min", [-20.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ("max", [1.0, 2.0, 3.0, 4.0, 5.0, 10.0]),
    ];
    for (reduction, expected) in reductions {
        let node = node("ScatterND", &["x", "i", "u"], &["y"]).with(text("reduction", reduction));
        let case = |indices: &'static [i64]| Case {
            node: node.clone(),
            indices: (indices, &[2, 2]),
            updates: (&[10.0, -20.0], &[2]),
            to: &[2, 3],
        };
        case(&[-1, -1, 0, -3]).gives(&expected);
        case(&[-1, -1, 0, -4]).is_refused("index -4 of a dimension of 3");
    }
    let rows = Case {
        node: node("ScatterND", &["x", "i", "u"], &["y"]),
        indices: (&[-1], &[1, 1]),
        updates: (&[10.0, 20.0, 30.0], &[1, 3]),
        to: &[2, 3],
    };
    rows.gives(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
}

#[test]
fn gathering_along_an_axis_counts_from_the_end() {
    let rows = [4.0, 5.0, 6.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
    gather(gathers("Gather", 0), &[-1, 0, -2], &[3], &[3, 3]).gives(&rows);
    let columns = [3.0, 1.0, 2.0, 6.0, 4.0, 5.0];
    for axis in [1, -1] {
        gather(gathers("Gather", axis), &[-1, 0, -2], &[3], &[2, 3]).gives(&columns);
    }
    let each = |axis| gathers("GatherElements", axis);
    gather(each(0), &[-1, 0, 0, -2], &[2, 2], &[2, 2]).gives(&[4.0, 2.0, 1.0, 2.0]);
    gather(each(1), &[-1, 0, 0, -2], &[2, 2], &[2, 2]).gives(&[3.0, 1.0, 4.0, 5.0]);
}

/// Of the first row, the place behind its end is the second's first.
#[test]
fn an_index_behind_a_row_is_not_the_next_row() {
    let reason = "index 3 of a dimension of 3: expected -3 to 2";
    gather(gathers("Gather", 1), &[3], &[1], &[2, 1]).is_refused(reason);
    gather(gathers("GatherElements", 1), &[3], &[1, 1], &[1, 1]).is_refused(reason);
    let before = "index -4 of a dimension of 3";
    gather(gathers("Gather", 1), &[-4], &[1], &[2, 1]).is_refused(before);
}

#[test]
fn scattering_along_an_axis_counts_from_the_end() {
    for operator in ["ScatterElements", "Scatter"] {
        let case = |axis, indices: &'static [i64]| Case {
            node: node(operator, &["x", "i", "u"], &["y"]).with(int("axis", axis)),
            indices: (indices, &[2, 2]),
            updates: (&[10.0, 20.0, 30.0, 40.0], &[2, 2]),
            to: &[2, 3],
        };
        case(0, &[-1, 0, 0, -1]).gives(&[30.0, 20.0, 3.0, 10.0, 40.0, 6.0]);
        case(1, &[-1, 0, 0, -1]).gives(&[20.0, 2.0, 10.0, 30.0, 5.0, 40.0]);
        case(1, &[3, 0, 0, -1]).is_refused("index 3 of a dimension of 3");
    }
}

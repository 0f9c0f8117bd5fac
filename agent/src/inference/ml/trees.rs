//! `TreeEnsembleClassifier` and `TreeEnsembleRegressor` (versions 1 and 3): reads what the file says
//! and runs [`Forest`] over tensors.

use super::forest::{
    Aggregate, Description, Forest, ForestError, Mode, NodeDescription, Number, PostTransform,
    Task, Weight,
};
use super::labels::Labels;
use super::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;

type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

pub(super) fn classifier(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let labels = Labels::read(node, "classlabels_int64s")?;
    let description = Description {
        targets: labels.len(),
        weights: weights(ctx, node, "class")?,
        aggregate: Aggregate::Sum,
        ..description(ctx, node, Task::Classification)?
    };
    Ok(plugged(Trees {
        description,
        labels: Some(labels),
    }))
}

pub(super) fn regressor(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let targets: i64 = node.get_attr("n_targets")?;
    let description = Description {
        targets: usize::try_from(targets).unwrap_or(0),
        weights: weights(ctx, node, "target")?,
        ..description(ctx, node, Task::Regression)?
    };
    Ok(plugged(Trees {
        description,
        labels: None,
    }))
}

/// What both operators have: everything but targets and weights.
fn description(ctx: &ParsingContext, node: &NodeProto, task: Task) -> TractResult<Description> {
    let ids = integers(node, "nodes_nodeids")?;
    let count = ids.len();
    let same = |what, got| same_length(what, count, got);
    let trees = integers(node, "nodes_treeids")?;
    same("nodes_treeids", trees.len())?;
    let features = integers(node, "nodes_featureids")?;
    same("nodes_featureids", features.len())?;
    let truth = integers(node, "nodes_truenodeids")?;
    same("nodes_truenodeids", truth.len())?;
    let falsehood = integers(node, "nodes_falsenodeids")?;
    same("nodes_falsenodeids", falsehood.len())?;
    let modes = node.get_attr_tvec::<&str>("nodes_modes")?;
    same("nodes_modes", modes.len())?;
    let values = floats(ctx, node, "nodes_values")?;
    same("nodes_values", values.len())?;
    let missing = integers(node, "nodes_missing_value_tracks_true")?;
    if !missing.is_empty() {
        same("nodes_missing_value_tracks_true", missing.len())?;
    }
    let nodes = (0..count).map(|at| {
        Ok(NodeDescription {
            tree: trees[at],
            id: ids[at],
            mode: mode(modes[at])?,
            feature: features[at],
            value: values[at],
            true_child: truth[at],
            false_child: falsehood[at],
            missing_is_true: missing.get(at) == Some(&1),
        })
    });
    Ok(Description {
        nodes: nodes.collect::<TractResult<_>>()?,
        weights: Vec::new(),
        targets: 0,
        base_values: floats(ctx, node, "base_values")?,
        aggregate: aggregate(node.get_attr_opt("aggregate_function")?.unwrap_or("SUM"))?,
        post_transform: post_transform(node.get_attr_opt("post_transform")?.unwrap_or("NONE"))?,
        task,
    })
}

fn weights(ctx: &ParsingContext, node: &NodeProto, of: &str) -> TractResult<Vec<Weight>> {
    let targets = integers(node, &format!("{of}_ids"))?;
    let trees = integers(node, &format!("{of}_treeids"))?;
    same_length("the weights' tree ids", targets.len(), trees.len())?;
    let nodes = integers(node, &format!("{of}_nodeids"))?;
    same_length("the weights' node ids", targets.len(), nodes.len())?;
    let values = floats(ctx, node, &format!("{of}_weights"))?;
    same_length("the weights", targets.len(), values.len())?;
    let weights = (0..targets.len()).map(|at| Weight {
        tree: trees[at],
        node: nodes[at],
        target: targets[at],
        value: values[at],
    });
    Ok(weights.collect())
}

fn same_length(what: &'static str, expected: usize, got: usize) -> Result<(), ForestError> {
    if expected == got {
        return Ok(());
    }
    Err(ForestError::Length {
        what,
        expected,
        got,
    })
}

fn integers<'a>(node: &'a NodeProto, name: &str) -> TractResult<&'a [i64]> {
    Ok(node.get_attr_opt_slice::<i64>(name)?.unwrap_or_default())
}

/// A list of 32-bit floats, or the tensor that version 3 may have in its place for 64-bit ones.
fn floats(ctx: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<Vec<f64>> {
    let list = node.get_attr_opt_slice::<f32>(name)?.unwrap_or_default();
    let tensor = node.get_attr_opt::<&TensorProto>(&format!("{name}_as_tensor"))?;
    match tensor {
        Some(tensor) if list.is_empty() => {
            let tensor = ctx.load_tensor(tensor)?;
            let tensor = tensor.cast_to::<f64>()?;
            Ok(tensor.try_as_plain_ram()?.as_slice::<f64>()?.to_vec())
        }
        Some(_) => bail!("both {name} and {name}_as_tensor are given"),
        None => Ok(list.iter().map(|&x| f64::from(x)).collect()),
    }
}

fn mode(name: &str) -> TractResult<Mode> {
    Ok(match name {
        "BRANCH_LEQ" => Mode::LessOrEqual,
        "BRANCH_LT" => Mode::Less,
        "BRANCH_GTE" => Mode::GreaterOrEqual,
        "BRANCH_GT" => Mode::Greater,
        "BRANCH_EQ" => Mode::Equal,
        "BRANCH_NEQ" => Mode::NotEqual,
        "LEAF" => Mode::Leaf,
        other => bail!("nodes_modes: expected BRANCH_… or LEAF, got {other:?}"),
    })
}

fn aggregate(name: &str) -> TractResult<Aggregate> {
    Ok(match name {
        "SUM" => Aggregate::Sum,
        "AVERAGE" => Aggregate::Average,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => bail!("aggregate_function: expected SUM, AVERAGE, MIN or MAX, got {other:?}"),
    })
}

pub(super) fn post_transform(name: &str) -> TractResult<PostTransform> {
    Ok(match name {
        "NONE" => PostTransform::None,
        "SOFTMAX" => PostTransform::Softmax,
        "LOGISTIC" => PostTransform::Logistic,
        "SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
        "PROBIT" => PostTransform::Probit,
        other => bail!(
            "post_transform: expected NONE, SOFTMAX, LOGISTIC, SOFTMAX_ZERO or PROBIT, got {other:?}"
        ),
    })
}

/// An ensemble as the file describes it.
#[derive(Debug)]
struct Trees {
    description: Description,
    /// A classifier's.
    labels: Option<Labels>,
}

impl Operator for Trees {
    fn name(&self) -> &'static str {
        match self.labels {
            Some(_) => "TreeEnsembleClassifier",
            None => "TreeEnsembleRegressor",
        }
    }

    fn outputs(&self) -> usize {
        if self.labels.is_some() { 2 } else { 1 }
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (rows, _) = table_fact(&inputs[0].1)?;
        let scores = (
            DatumType::F32,
            tvec![rows.clone(), self.description.targets.to_dim()],
        );
        Ok(match &self.labels {
            Some(labels) => tvec![(labels.datum_type(), tvec![rows]), scores],
            None => tvec![scores],
        })
    }

    fn prepare(&self, inputs: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        let (datum_type, shape) = &inputs[0];
        let width = shape.last().and_then(|w| w.to_usize().ok());
        match datum_type {
            DatumType::F64 => self.kernel::<f64>(width),
            // Integers are compared as 32-bit floats, as ONNX Runtime does.
            DatumType::F32 | DatumType::I64 | DatumType::I32 => self.kernel::<f32>(width),
            other => bail!("expected FP32, FP64, INT64 or INT32, got {other:?}"),
        }
    }
}

impl Trees {
    fn kernel<T: Number + Datum>(&self, width: Option<usize>) -> TractResult<Box<dyn Kernel>> {
        let forest = Forest::<T>::build(&self.description)?;
        if let Some(width) = width {
            forest.check_width(width)?;
        }
        let labels = match &self.labels {
            Some(Labels::Numbers(_)) if forest.labels_are_literal() => {
                Some(Labels::Numbers(vec![0, 1]))
            }
            Some(labels) => Some(labels.clone().for_one_score()?),
            None => None,
        };
        Ok(Box::new(ReadyTrees { forest, labels }))
    }
}

#[derive(Debug)]
struct ReadyTrees<T> {
    forest: Forest<T>,
    labels: Option<Labels>,
}

impl<T: Number + Datum> Kernel for ReadyTrees<T> {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let (rows, width) = table_of(&inputs[0])?;
        let input = inputs[0].cast_to::<T>()?;
        let input = input.try_as_plain_ram()?.as_slice::<T>()?;
        let mut scores = Tensor::zero::<f32>(&[rows, self.forest.targets()])?;
        let mut view = scores.try_as_plain_ram_mut()?;
        let out = view.as_slice_mut::<f32>()?;
        let Some(labels) = &self.labels else {
            self.forest.regress(input, width, out)?;
            return Ok(tvec![scores.into_tvalue()]);
        };
        let labels = match labels {
            Labels::Numbers(numbers) => {
                let mut labels = Tensor::zero::<i64>(&[rows])?;
                let mut chosen = labels.try_as_plain_ram_mut()?;
                let chosen = chosen.as_slice_mut::<i64>()?;
                let choose = |row: usize, class: usize| chosen[row] = numbers[class];
                self.forest.classify(input, width, out, choose)?;
                labels
            }
            Labels::Texts(texts) => {
                let mut chosen = vec![String::new(); rows];
                let choose = |row: usize, class: usize| chosen[row].clone_from(&texts[class]);
                self.forest.classify(input, width, out, choose)?;
                tensor1(&chosen)
            }
        };
        Ok(tvec![labels.into_tvalue(), scores.into_tvalue()])
    }
}

/// Rows and columns of an input: a vector is one row.
pub(super) fn table_of(input: &Tensor) -> TractResult<(usize, usize)> {
    match *input.shape() {
        [width] => Ok((1, width)),
        [rows, width] => Ok((rows, width)),
        ref shape => bail!("expected a table, got {} dimensions", shape.len()),
    }
}

/// As [`table_of`], of a shape that may not be known.
pub(super) fn table_fact(shape: &[TDim]) -> TractResult<(TDim, TDim)> {
    match shape {
        [width] => Ok((1.to_dim(), width.clone())),
        [rows, width] => Ok((rows.clone(), width.clone())),
        shape => bail!("expected a table, got {} dimensions", shape.len()),
    }
}

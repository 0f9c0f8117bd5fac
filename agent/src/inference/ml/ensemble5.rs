//! `TreeEnsemble` (version 5), which describes what the two older operators do in another way:
//! branches and leaves are numbered apart, over all trees, and a branch may ask whether a value is
//! in a set. It is told in the words of the older ones here.

use super::forest::{Aggregate, Description, Mode, NodeDescription, PostTransform, Task, Weight};
use super::plug::plugged;
use super::trees::{Parsed, Trees, integers, same_length};
use std::collections::HashSet;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::*;

pub(super) fn ensemble(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let listed = Listed::read(ctx, node)?;
    let targets: i64 = node.get_attr("n_targets")?;
    let mut description = Description {
        nodes: Vec::new(),
        weights: Vec::new(),
        targets: usize::try_from(targets).unwrap_or(0),
        base_values: Vec::new(),
        aggregate: match node.get_attr_opt::<i64>("aggregate_function")?.unwrap_or(1) {
            0 => Aggregate::Average,
            1 => Aggregate::Sum,
            2 => Aggregate::Min,
            3 => Aggregate::Max,
            other => bail!("aggregate_function: expected 0 to 3, got {other}"),
        },
        // ONNX's text gives 1 to SOFTMAX and 2 to LOGISTIC; ONNX Runtime reads it so.
        post_transform: match node.get_attr_opt::<i64>("post_transform")?.unwrap_or(0) {
            0 => PostTransform::None,
            1 => PostTransform::Logistic,
            2 => PostTransform::Softmax,
            3 => PostTransform::SoftmaxZero,
            4 => PostTransform::Probit,
            other => bail!("post_transform: expected 0 to 4, got {other}"),
        },
        task: Task::Regression,
    };
    for (tree, &root) in integers(node, "tree_roots")?.iter().enumerate() {
        listed.tell_tree(i64::try_from(tree)?, root, &mut description)?;
    }
    Ok(plugged(Trees::version_5(description)))
}

/// What the file lists.
struct Listed<'a> {
    features: &'a [i64],
    modes: Vec<i64>,
    splits: Vec<f64>,
    truth: &'a [i64],
    truth_is_leaf: &'a [i64],
    falsehood: &'a [i64],
    falsehood_is_leaf: &'a [i64],
    missing: &'a [i64],
    /// For each branch, the set that it asks about; empty unless its mode is 6.
    members: Vec<Vec<f64>>,
    leaf_targets: &'a [i64],
    leaf_weights: Vec<f64>,
    /// Most nodes that all of this can be told with; trees that share nodes need more.
    told_max: usize,
}

impl<'a> Listed<'a> {
    fn read(ctx: &ParsingContext, node: &'a NodeProto) -> TractResult<Self> {
        let features = integers(node, "nodes_featureids")?;
        let count = features.len();
        let list = |name: &'static str| {
            let list = integers(node, name)?;
            same_length(name, count, list.len())?;
            TractResult::Ok(list)
        };
        let modes = tensor::<i64>(ctx, node, "nodes_modes")?;
        same_length("nodes_modes", count, modes.len())?;
        let splits = tensor::<f64>(ctx, node, "nodes_splits")?;
        same_length("nodes_splits", count, splits.len())?;
        let missing = integers(node, "nodes_missing_value_tracks_true")?;
        if !missing.is_empty() {
            same_length("nodes_missing_value_tracks_true", count, missing.len())?;
        }
        let leaf_targets = integers(node, "leaf_targetids")?;
        let leaf_weights = tensor::<f64>(ctx, node, "leaf_weights")?;
        same_length("leaf_weights", leaf_targets.len(), leaf_weights.len())?;
        let values = tensor::<f64>(ctx, node, "membership_values")?;
        // One set after the other, NaN between them.
        let mut sets = values.split(|v| v.is_nan());
        let members = modes.iter().map(|&mode| match mode {
            6 => sets.next().unwrap_or_default().to_vec(),
            _ => Vec::new(),
        });
        Ok(Self {
            told_max: 2 * (count + leaf_targets.len() + values.len() + 1),
            members: members.collect(),
            features,
            modes,
            splits,
            truth: list("nodes_truenodeids")?,
            truth_is_leaf: list("nodes_trueleafs")?,
            falsehood: list("nodes_falsenodeids")?,
            falsehood_is_leaf: list("nodes_falseleafs")?,
            missing,
            leaf_targets,
            leaf_weights,
        })
    }

    /// Adds the nodes that a root leads to. A branch keeps its number; leaves are numbered behind
    /// the branches, and the questions about a set's other members behind the leaves.
    fn tell_tree(&self, tree: i64, root: i64, told: &mut Description) -> TractResult<()> {
        let mut seen = HashSet::new();
        let mut open = vec![self.child(root, 0)?];
        let mut questions = i64::try_from(self.features.len() + self.leaf_targets.len())?;
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            ensure!(
                told.nodes.len() <= self.told_max,
                "trees share too many nodes"
            );
            let at = usize::try_from(id).unwrap_or(usize::MAX);
            if let Some(leaf) = at.checked_sub(self.features.len()) {
                let target = self.leaf_targets.get(leaf).copied();
                let target = target.with_context(|| format!("no leaf {leaf}"))?;
                told.nodes.push(leaf_node(tree, id));
                told.weights.push(Weight {
                    tree,
                    node: id,
                    target,
                    value: self.leaf_weights[leaf],
                });
                continue;
            }
            let true_child = self.child(self.truth[at], self.truth_is_leaf[at])?;
            let false_child = self.child(self.falsehood[at], self.falsehood_is_leaf[at])?;
            let mut node = NodeDescription {
                tree,
                id,
                mode: mode(self.modes[at])?,
                feature: self.features[at],
                value: self.splits[at],
                true_child,
                false_child,
                missing_is_true: self.missing.get(at) == Some(&1),
            };
            if let Some((&last, others)) = self.members[at].split_last() {
                for &member in others {
                    node.value = member;
                    node.false_child = questions;
                    told.nodes.push(node.clone());
                    node.id = questions;
                    questions += 1;
                }
                node.value = last;
                node.false_child = false_child;
            } else if self.modes[at] == 6 {
                bail!("branch {id} asks about an empty set");
            }
            told.nodes.push(node);
            open.extend([true_child, false_child]);
        }
        Ok(())
    }

    fn child(&self, id: i64, is_leaf: i64) -> TractResult<i64> {
        let (count, first) = if is_leaf == 1 {
            (self.leaf_targets.len(), self.features.len())
        } else {
            (self.features.len(), 0)
        };
        let known = usize::try_from(id).is_ok_and(|id| id < count);
        ensure!(known, "a child is number {id} of {count}");
        Ok(id + i64::try_from(first)?)
    }
}

fn leaf_node(tree: i64, id: i64) -> NodeDescription {
    NodeDescription {
        tree,
        id,
        mode: Mode::Leaf,
        feature: 0,
        value: 0.0,
        true_child: 0,
        false_child: 0,
        missing_is_true: false,
    }
}

fn mode(number: i64) -> TractResult<Mode> {
    Ok(match number {
        0 => Mode::LessOrEqual,
        1 => Mode::Less,
        2 => Mode::GreaterOrEqual,
        3 => Mode::Greater,
        // A set's members are asked for one by one.
        4 | 6 => Mode::Equal,
        5 => Mode::NotEqual,
        other => bail!("nodes_modes: expected 0 to 6, got {other}"),
    })
}

fn tensor<T: Datum + Copy>(
    ctx: &ParsingContext,
    node: &NodeProto,
    name: &str,
) -> TractResult<Vec<T>> {
    match node.get_attr_opt::<&TensorProto>(name)? {
        None => Ok(Vec::new()),
        Some(tensor) => {
            let tensor = ctx.load_tensor(tensor)?;
            let tensor = tensor.cast_to::<T>()?;
            Ok(tensor.try_as_plain_ram()?.as_slice::<T>()?.to_vec())
        }
    }
}

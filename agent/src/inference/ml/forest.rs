//! Ensembles of decision trees, as ONNX's `ai.onnx.ml` operators describe them: what a file says
//! ([`Description`]), checked and laid out once ([`Forest`]), then walked for every row.
//!
//! Results are those of ONNX Runtime on one thread, special cases and all, since that is what a
//! model was checked with when it was exported. Pure: knows neither tract nor ONNX's encoding.

mod layout;
mod number;
mod scores;
mod walk;

pub(super) use number::Number;
pub(super) use scores::{Aggregate, PostTransform, transform};

use layout::Node;
use scores::Binary;

/// How a node compares its feature with its threshold; true goes to the true child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// `x <= threshold`
    LessOrEqual,
    /// `x < threshold`
    Less,
    /// `x >= threshold`
    GreaterOrEqual,
    /// `x > threshold`
    Greater,
    /// `x == threshold`
    Equal,
    /// `x != threshold`, which holds for NaN
    NotEqual,
    /// No comparison: the walk ends here.
    Leaf,
}

/// One node as the file lists it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NodeDescription {
    pub tree: i64,
    /// Unique within its tree.
    pub id: i64,
    pub mode: Mode,
    pub feature: i64,
    /// Threshold; in a leaf without weights of a forest with one target, its value.
    pub value: f64,
    pub true_child: i64,
    pub false_child: i64,
    /// Whether a NaN goes to the true child whatever the comparison says.
    pub missing_is_true: bool,
}

/// What a leaf adds to one target (regression) or class (classification).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Weight {
    pub tree: i64,
    pub node: i64,
    pub target: i64,
    pub value: f64,
}

/// An ensemble as a file describes it, nothing checked. The first node of each tree is its root.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Description {
    pub nodes: Vec<NodeDescription>,
    pub weights: Vec<Weight>,
    /// Number of targets or classes.
    pub targets: usize,
    pub base_values: Vec<f64>,
    pub aggregate: Aggregate,
    pub post_transform: PostTransform,
    pub task: Task,
}

/// What the scores are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Regression,
    Classification,
}

/// Why a described ensemble is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ForestError {
    #[error("the ensemble has no node")]
    NoNode,
    #[error("the ensemble has no {0}")]
    NoTarget(&'static str),
    #[error("more than {max} {what}: {got}")]
    TooMany {
        what: &'static str,
        max: usize,
        got: usize,
    },
    #[error("tree {tree}: node {node} is listed twice")]
    Duplicate { tree: i64, node: i64 },
    #[error("tree {tree}: its nodes are not listed together")]
    Scattered { tree: i64 },
    #[error("tree {tree}: node {node} leads to node {child}, which is not there")]
    NoChild { tree: i64, node: i64, child: i64 },
    #[error("tree {tree}: a walk from node {node} comes back to it")]
    Cycle { tree: i64, node: i64 },
    #[error("tree {tree}: nothing leads to node {node}")]
    Unreachable { tree: i64, node: i64 },
    #[error("tree {tree}: node {node} asks for feature {feature}, expected 0 to {max}")]
    Feature {
        tree: i64,
        node: i64,
        feature: i64,
        max: u32,
    },
    #[error("a weight is given to node {node} of tree {tree}, which is not there")]
    NoSuchLeaf { tree: i64, node: i64 },
    #[error("a weight is given to target {target}, expected 0 to {}", targets - 1)]
    Target { target: i64, targets: usize },
    #[error("{got} base values for {targets} targets or classes, expected {expected}")]
    BaseValues {
        got: usize,
        targets: usize,
        expected: &'static str,
    },
    #[error("a row has {got} features, the ensemble needs {needed} at least")]
    Width { needed: usize, got: usize },
    #[error("{what}: expected {expected}, got {got}")]
    Length {
        what: &'static str,
        expected: usize,
        got: usize,
    },
}

/// A checked ensemble, laid out to be walked; any number of threads may use it at once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Forest<T> {
    /// The nodes of all trees; the two children of a node are neighbours, the true one first.
    nodes: Vec<Node<T>>,
    /// Where each tree begins in `nodes`.
    roots: Vec<u32>,
    /// For each leaf, where its weights begin; one more entry ends the last. Empty with one target.
    leaf_starts: Vec<u32>,
    weight_targets: Vec<u32>,
    weight_values: Vec<T>,
    /// Every leaf weighs every target, in order.
    dense: bool,
    uniform: walk::Uniform,
    features: usize,
    targets: usize,
    base_values: Vec<T>,
    aggregate: Aggregate,
    post_transform: PostTransform,
    binary: Binary,
}

impl<T: Number> Forest<T> {
    /// Checks a description and lays it out. Thresholds and weights are rounded to `T`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub(super) fn build(description: &Description) -> Result<Self, ForestError> {
        check_numbers(description)?;
        let laid = layout::lay_out::<T>(description)?;
        let many = description.targets > 1;
        let all = |x: &[u32]| x.iter().copied().eq(0..u32_of(description.targets));
        let dense = many
            && laid.leaf_starts.windows(2).all(|range| {
                let targets = laid
                    .weight_targets
                    .get(range[0] as usize..range[1] as usize);
                targets.is_some_and(all)
            });
        Ok(Self {
            uniform: walk::Uniform::of(&laid.nodes),
            nodes: laid.nodes,
            roots: laid.roots,
            leaf_starts: laid.leaf_starts,
            weight_targets: laid.weight_targets,
            weight_values: laid.weight_values,
            dense,
            features: laid.features,
            targets: description.targets,
            base_values: description
                .base_values
                .iter()
                .map(|&v| T::from_f64(v))
                .collect(),
            aggregate: description.aggregate,
            post_transform: description.post_transform,
            binary: Binary::of(description),
        })
    }

    /// Number of targets or classes.
    pub(super) fn targets(&self) -> usize {
        self.targets
    }

    /// Whether rows of so many features can be walked.
    ///
    /// # Errors
    /// They have too few.
    pub(super) fn check_width(&self, width: usize) -> Result<(), ForestError> {
        if width < self.features {
            return Err(ForestError::Width {
                needed: self.features,
                got: width,
            });
        }
        Ok(())
    }

    /// Whether class 0 and class 1 are the labels 0 and 1, whatever the file calls its classes; see
    /// [`Binary::No`].
    pub(super) fn labels_are_literal(&self) -> bool {
        self.targets <= 2 && self.binary == Binary::No
    }
}

fn u32_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn check_numbers(description: &Description) -> Result<(), ForestError> {
    let Description { targets, task, .. } = *description;
    let given = description.base_values.len();
    if description.nodes.is_empty() {
        return Err(ForestError::NoNode);
    }
    if targets == 0 {
        return Err(ForestError::NoTarget(match task {
            Task::Regression => "target",
            Task::Classification => "class",
        }));
    }
    let (fits, expected) = match task {
        Task::Classification if targets == 2 => (given <= 2, "none, one or two"),
        _ => (given == 0 || given == targets, "none or one for each"),
    };
    if !fits {
        return Err(ForestError::BaseValues {
            got: given,
            targets,
            expected,
        });
    }
    let mut known = description.weights.iter().map(|w| w.target);
    let bad = known.find(|&t| usize::try_from(t).map_or(true, |t| t >= targets));
    bad.map_or(Ok(()), |target| {
        Err(ForestError::Target { target, targets })
    })
}

#[cfg(test)]
#[path = "forest/tests.rs"]
mod tests;

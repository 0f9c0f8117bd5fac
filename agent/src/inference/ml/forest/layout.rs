//! From the file's list of nodes to one array that is walked.
//!
//! Each branch owns a pair of neighbouring entries for its children, so that a step is one addition
//! and siblings share a cache line; pairs follow each other in pre-order. Where two branches share a
//! child (converters write set membership so), each has an entry of its own for it, which leads on
//! to the same pair: the array is as long as the file's list plus the shared ones.

use super::{Description, ForestError, Mode, Number, u32_of};
use std::collections::HashMap;

const MODE_SHIFT: u32 = 28;
const MISSING_IS_TRUE: u32 = 1 << 27;
/// The largest feature index that fits beside the flags.
pub(super) const FEATURE_MAX: u32 = MISSING_IS_TRUE - 1;
/// Most entries of a forest.
const ENTRIES_MAX: usize = u32::MAX as usize;

/// One entry of the array.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Node<T> {
    /// A branch's threshold; a leaf's weight in a forest with one target.
    pub(super) value: T,
    /// Feature index, whether NaN is true, mode.
    word: u32,
    /// A branch's true child, behind which is the false one; a leaf's number.
    pub(super) next: u32,
}

impl<T: Number> Node<T> {
    fn new(mode: Mode, feature: u32, missing_is_true: bool, value: T, next: u32) -> Self {
        let missing = if missing_is_true { MISSING_IS_TRUE } else { 0 };
        Self {
            value,
            word: (mode as u32) << MODE_SHIFT | missing | feature,
            next,
        }
    }

    #[inline(always)]
    pub(super) fn feature(&self) -> usize {
        (self.word & FEATURE_MAX) as usize
    }

    #[inline(always)]
    pub(super) fn missing_is_true(&self) -> bool {
        self.word & MISSING_IS_TRUE != 0
    }

    #[inline(always)]
    pub(super) fn is(&self, mode: Mode) -> bool {
        self.word >> MODE_SHIFT == mode as u32
    }

    #[inline(always)]
    pub(super) fn is_leaf(&self) -> bool {
        self.is(Mode::Leaf)
    }
}

/// The arrays of a forest.
pub(super) struct Laid<T> {
    pub(super) nodes: Vec<Node<T>>,
    pub(super) roots: Vec<u32>,
    pub(super) leaf_starts: Vec<u32>,
    pub(super) weight_targets: Vec<u32>,
    pub(super) weight_values: Vec<T>,
    /// Least number of features of a row.
    pub(super) features: usize,
}

pub(super) fn lay_out<T: Number>(description: &Description) -> Result<Laid<T>, ForestError> {
    if description.nodes.len() > ENTRIES_MAX / 2 || description.weights.len() > ENTRIES_MAX {
        return Err(ForestError::TooMany {
            what: "nodes or weights",
            max: ENTRIES_MAX / 2,
            got: description.nodes.len().max(description.weights.len()),
        });
    }
    let index = Index::of(description)?;
    let weights = weights_by_node(description, &index)?;
    let mut laid = Laid {
        nodes: Vec::with_capacity(description.nodes.len()),
        roots: Vec::with_capacity(index.trees.len()),
        leaf_starts: Vec::new(),
        weight_targets: Vec::new(),
        weight_values: Vec::new(),
        // A leaf looks at feature 0 too, and ignores it.
        features: 1,
    };
    let numbers = number_leaves(description, &weights, &mut laid);
    for tree in &index.trees {
        lay_out_tree(description, &index, tree, &numbers, &mut laid)?;
    }
    Ok(laid)
}

/// Where nodes are in the file's list.
struct Index {
    trees: Vec<std::ops::Range<usize>>,
    places: HashMap<(i64, i64), usize>,
}

impl Index {
    fn of(description: &Description) -> Result<Self, ForestError> {
        let nodes = &description.nodes;
        let mut places = HashMap::with_capacity(nodes.len());
        for (at, node) in nodes.iter().enumerate() {
            if places.insert((node.tree, node.id), at).is_some() {
                return Err(ForestError::Duplicate {
                    tree: node.tree,
                    node: node.id,
                });
            }
        }
        let mut trees: Vec<std::ops::Range<usize>> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for (at, node) in nodes.iter().enumerate() {
            match trees.last_mut() {
                Some(last) if nodes[last.start].tree == node.tree => last.end = at + 1,
                _ if seen.insert(node.tree) => trees.push(at..at + 1),
                _ => return Err(ForestError::Scattered { tree: node.tree }),
            }
        }
        Ok(Self { trees, places })
    }

    fn child(&self, description: &Description, at: usize, which: u8) -> Result<usize, ForestError> {
        let node = &description.nodes[at];
        let id = if which == 0 {
            node.true_child
        } else {
            node.false_child
        };
        let place = self.places.get(&(node.tree, id)).copied();
        place.ok_or(ForestError::NoChild {
            tree: node.tree,
            node: node.id,
            child: id,
        })
    }
}

/// For each node of the file, the indices of its weights, in the file's order.
fn weights_by_node(
    description: &Description,
    index: &Index,
) -> Result<HashMap<usize, Vec<usize>>, ForestError> {
    let mut found: HashMap<usize, Vec<usize>> = HashMap::new();
    for (at, weight) in description.weights.iter().enumerate() {
        let place = index.places.get(&(weight.tree, weight.node));
        let place = *place.ok_or(ForestError::NoSuchLeaf {
            tree: weight.tree,
            node: weight.node,
        })?;
        found.entry(place).or_default().push(at);
    }
    Ok(found)
}

/// Gives each leaf a number and copies its weights; with one target, its value instead.
fn number_leaves<T: Number>(
    description: &Description,
    weights: &HashMap<usize, Vec<usize>>,
    laid: &mut Laid<T>,
) -> Vec<(T, u32)> {
    let many = description.targets > 1;
    let mut numbers = Vec::with_capacity(description.nodes.len());
    for (at, node) in description.nodes.iter().enumerate() {
        if node.mode != Mode::Leaf {
            // Weights of branches, which old converters wrote, count for nothing.
            numbers.push((T::from_f64(node.value), 0));
            continue;
        }
        let of_leaf = weights.get(&at).map_or(&[][..], Vec::as_slice);
        if many {
            numbers.push((T::default(), u32_of(laid.leaf_starts.len())));
            laid.leaf_starts.push(u32_of(laid.weight_values.len()));
            for &w in of_leaf {
                let weight = &description.weights[w];
                let target = u32::try_from(weight.target).unwrap_or(u32::MAX);
                laid.weight_targets.push(target);
                laid.weight_values.push(T::from_f64(weight.value));
            }
        } else {
            let value = of_leaf
                .first()
                .map_or(node.value, |&w| description.weights[w].value);
            numbers.push((T::from_f64(value), 0));
        }
    }
    if many {
        laid.leaf_starts.push(u32_of(laid.weight_values.len()));
    }
    numbers
}

/// How far the checking walk is with a node.
#[derive(Clone, Copy, PartialEq)]
enum Visit {
    Not,
    /// On the path from the root to where the walk is.
    Open,
    Done,
}

fn lay_out_tree<T: Number>(
    description: &Description,
    index: &Index,
    tree: &std::ops::Range<usize>,
    numbers: &[(T, u32)],
    laid: &mut Laid<T>,
) -> Result<(), ForestError> {
    let nodes = &description.nodes[tree.clone()];
    let first = laid.nodes.len();
    // One for the root, two for each branch.
    let branches = nodes.iter().filter(|n| n.mode != Mode::Leaf).count();
    let entries = 1 + 2 * branches;
    if first + entries > ENTRIES_MAX {
        return Err(ForestError::TooMany {
            what: "nodes",
            max: ENTRIES_MAX,
            got: first + entries,
        });
    }
    // Where the pair of each branch begins.
    let mut pairs = vec![0_u32; nodes.len()];
    let mut visits = vec![Visit::Not; nodes.len()];
    let mut next_pair = first + 1;
    let mut path: Vec<(usize, u8)> = vec![(0, 0)];
    while let Some((at, step)) = path.last_mut() {
        let (here, which) = (*at, *step);
        let node = &nodes[here];
        if which == 0 {
            visits[here] = Visit::Open;
            if node.mode != Mode::Leaf {
                pairs[here] = u32_of(next_pair);
                next_pair += 2;
            }
        }
        if node.mode == Mode::Leaf || which == 2 {
            visits[here] = Visit::Done;
            path.pop();
            continue;
        }
        *step += 1;
        let child = index.child(description, tree.start + here, which)? - tree.start;
        match visits[child] {
            Visit::Not => path.push((child, 0)),
            Visit::Done => {}
            Visit::Open => {
                return Err(ForestError::Cycle {
                    tree: node.tree,
                    node: nodes[child].id,
                });
            }
        }
    }
    if let Some(at) = visits.iter().position(|v| *v == Visit::Not) {
        return Err(ForestError::Unreachable {
            tree: nodes[at].tree,
            node: nodes[at].id,
        });
    }
    laid.roots.push(u32_of(first));
    let root = entry(description, tree.start, numbers, &pairs, tree)?;
    laid.nodes.resize(first + entries, root);
    for (at, node) in nodes.iter().enumerate() {
        if node.mode == Mode::Leaf {
            continue;
        }
        laid.features = laid
            .features
            .max(1 + feature(description, tree.start + at)? as usize);
        for which in 0..2 {
            let child = index.child(description, tree.start + at, which)?;
            laid.nodes[pairs[at] as usize + usize::from(which)] =
                entry(description, child, numbers, &pairs, tree)?;
        }
    }
    Ok(())
}

/// The entry of the node at this place of the file's list.
fn entry<T: Number>(
    description: &Description,
    at: usize,
    numbers: &[(T, u32)],
    pairs: &[u32],
    tree: &std::ops::Range<usize>,
) -> Result<Node<T>, ForestError> {
    let node = &description.nodes[at];
    let (value, leaf) = numbers[at];
    if node.mode == Mode::Leaf {
        return Ok(Node::new(Mode::Leaf, 0, false, value, leaf));
    }
    let feature = feature(description, at)?;
    let pair = pairs[at - tree.start];
    Ok(Node::new(
        node.mode,
        feature,
        node.missing_is_true,
        value,
        pair,
    ))
}

fn feature(description: &Description, at: usize) -> Result<u32, ForestError> {
    let node = &description.nodes[at];
    let feature = u32::try_from(node.feature).ok();
    feature
        .filter(|f| *f <= FEATURE_MAX)
        .ok_or(ForestError::Feature {
            tree: node.tree,
            node: node.id,
            feature: node.feature,
            max: FEATURE_MAX,
        })
}

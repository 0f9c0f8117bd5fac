//! From the roots to the leaves.
//!
//! Several walks go side by side (trees for one row, rows for one tree), because each waits for
//! memory most of the time, and no step branches on data: a walk that has arrived stays where it is.

use super::layout::Node;
use super::{Mode, Number};

/// Walks that go side by side.
pub(super) const LANES: usize = 8;

/// What all branches of a forest have in common, which makes steps cheaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uniform {
    /// All compare with `<=`, as scikit-learn does; NaN is never true.
    LessOrEqual,
    /// All compare with `<=`; some let NaN be true.
    LessOrEqualOrMissing,
    /// All compare with `<`, as XGBoost does; some let NaN be true.
    LessOrMissing,
    /// Nothing.
    Mixed,
}

impl Uniform {
    pub(super) fn of<T: Number>(nodes: &[Node<T>]) -> Self {
        let all = |mode| nodes.iter().all(|n| n.is_leaf() || n.is(mode));
        let missing = nodes.iter().any(Node::missing_is_true);
        if all(Mode::LessOrEqual) && !missing {
            Self::LessOrEqual
        } else if all(Mode::LessOrEqual) {
            Self::LessOrEqualOrMissing
        } else if all(Mode::Less) {
            Self::LessOrMissing
        } else {
            Self::Mixed
        }
    }
}

/// Whether a branch's condition holds for a feature.
trait Condition {
    fn holds<T: Number>(node: &Node<T>, x: T) -> bool;
}

struct LessOrEqual;
struct LessOrEqualOrMissing;
struct LessOrMissing;
struct Mixed;

impl Condition for LessOrEqual {
    #[inline(always)]
    fn holds<T: Number>(node: &Node<T>, x: T) -> bool {
        x <= node.value
    }
}

impl Condition for LessOrEqualOrMissing {
    #[inline(always)]
    fn holds<T: Number>(node: &Node<T>, x: T) -> bool {
        (x <= node.value) | (node.missing_is_true() & x.is_nan())
    }
}

impl Condition for LessOrMissing {
    #[inline(always)]
    fn holds<T: Number>(node: &Node<T>, x: T) -> bool {
        (x < node.value) | (node.missing_is_true() & x.is_nan())
    }
}

impl Condition for Mixed {
    #[inline(always)]
    fn holds<T: Number>(node: &Node<T>, x: T) -> bool {
        let t = node.value;
        (node.is(Mode::LessOrEqual) & (x <= t))
            | (node.is(Mode::Less) & (x < t))
            | (node.is(Mode::GreaterOrEqual) & (x >= t))
            | (node.is(Mode::Greater) & (x > t))
            | (node.is(Mode::Equal) & (x == t))
            | (node.is(Mode::NotEqual) & (x != t))
            | (node.missing_is_true() & x.is_nan())
    }
}

/// Moves every walk from its start to its leaf. `rows[lane]` is the row that a walk looks at.
#[inline(always)]
fn descend<T: Number, C: Condition>(
    nodes: &[Node<T>],
    rows: &[&[T]; LANES],
    at: &mut [u32; LANES],
) {
    loop {
        let mut arrived = true;
        for (at, row) in at.iter_mut().zip(rows) {
            let node = &nodes[*at as usize];
            let holds = C::holds(node, row[node.feature()]);
            let next = node.next.wrapping_add(u32::from(!holds));
            let leaf = node.is_leaf();
            *at = if leaf { *at } else { next };
            arrived &= leaf;
        }
        if arrived {
            return;
        }
    }
}

/// Walks to the leaves, by the cheapest way that the forest allows. Trees have no cycle, so that
/// every walk arrives.
pub(super) fn walk<T: Number>(
    uniform: Uniform,
    nodes: &[Node<T>],
    rows: &[&[T]; LANES],
    at: &mut [u32; LANES],
) {
    match uniform {
        Uniform::LessOrEqual => descend::<T, LessOrEqual>(nodes, rows, at),
        Uniform::LessOrEqualOrMissing => descend::<T, LessOrEqualOrMissing>(nodes, rows, at),
        Uniform::LessOrMissing => descend::<T, LessOrMissing>(nodes, rows, at),
        Uniform::Mixed => descend::<T, Mixed>(nodes, rows, at),
    }
}

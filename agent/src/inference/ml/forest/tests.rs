#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn branch(id: i64, feature: i64, value: f64, children: (i64, i64)) -> NodeDescription {
    NodeDescription {
        tree: 0,
        id,
        mode: Mode::LessOrEqual,
        feature,
        value,
        true_child: children.0,
        false_child: children.1,
        missing_is_true: false,
    }
}

fn leaf(id: i64) -> NodeDescription {
    NodeDescription {
        mode: Mode::Leaf,
        ..branch(id, 0, 0.0, (0, 0))
    }
}

fn weight(node: i64, target: i64, value: f64) -> Weight {
    Weight {
        tree: 0,
        node,
        target,
        value,
    }
}

fn regression(nodes: Vec<NodeDescription>, weights: Vec<Weight>) -> Description {
    Description {
        nodes,
        weights,
        targets: 1,
        base_values: vec![],
        aggregate: Aggregate::Sum,
        post_transform: PostTransform::None,
        task: Task::Regression,
    }
}

/// `x0 <= 1 ? 10 : x1 <= 2 ? 20 : 30`
fn small() -> Description {
    let nodes = vec![
        branch(0, 0, 1.0, (1, 2)),
        leaf(1),
        branch(2, 1, 2.0, (3, 4)),
        leaf(3),
        leaf(4),
    ];
    let weights = vec![weight(1, 0, 10.0), weight(3, 0, 20.0), weight(4, 0, 30.0)];
    regression(nodes, weights)
}

fn error_of(description: &Description) -> ForestError {
    Forest::<f32>::build(description).unwrap_err()
}

#[test]
fn a_row_goes_left_where_the_condition_holds() {
    let forest = Forest::<f32>::build(&small()).unwrap();
    let mut scores = [0.0; 4];
    let rows = [1.0, 9.0, 1.1, 2.0, 1.1, 2.1, f32::NAN, f32::NAN];
    forest.regress(&rows, 2, &mut scores).unwrap();
    assert_eq!(scores, [10.0, 20.0, 30.0, 30.0]);
}

#[test]
fn a_missing_value_goes_where_the_node_says() {
    let mut description = small();
    description.nodes[0].missing_is_true = true;
    let forest = Forest::<f32>::build(&description).unwrap();
    let mut scores = [0.0];
    forest.regress(&[f32::NAN, 0.0], 2, &mut scores).unwrap();
    assert_eq!(scores, [10.0]);
}

#[test]
fn two_branches_may_share_a_child() {
    let mut description = small();
    // x0 <= 1 or x1 <= 2 ? 10 : 30
    description.nodes[2].true_child = 1;
    description.nodes.remove(3);
    description.weights.remove(1);
    let forest = Forest::<f32>::build(&description).unwrap();
    let mut scores = [0.0; 3];
    let rows = [1.0, 9.0, 1.1, 2.0, 1.1, 2.1];
    forest.regress(&rows, 2, &mut scores).unwrap();
    assert_eq!(scores, [10.0, 10.0, 30.0]);
}

#[test]
fn weights_of_a_branch_count_for_nothing() {
    let mut description = small();
    description.weights.push(weight(0, 0, 1000.0));
    let forest = Forest::<f32>::build(&description).unwrap();
    let mut scores = [0.0];
    forest.regress(&[1.0, 0.0], 2, &mut scores).unwrap();
    assert_eq!(scores, [10.0]);
}

#[test]
fn a_walk_that_would_never_end_is_refused() {
    let mut description = small();
    description.nodes[2].false_child = 0;
    description.nodes.remove(4);
    description.weights.remove(2);
    assert_eq!(
        error_of(&description),
        ForestError::Cycle { tree: 0, node: 0 }
    );
}

#[test]
fn a_node_that_leads_to_itself_is_refused() {
    let nodes = vec![branch(0, 0, 0.0, (0, 1)), leaf(1)];
    assert_eq!(
        error_of(&regression(nodes, vec![])),
        ForestError::Cycle { tree: 0, node: 0 }
    );
}

#[test]
fn a_child_that_is_not_there_is_refused() {
    let mut description = small();
    description.nodes[2].true_child = 77;
    let expected = ForestError::NoChild {
        tree: 0,
        node: 2,
        child: 77,
    };
    assert_eq!(error_of(&description), expected);
}

#[test]
fn a_node_that_nothing_leads_to_is_refused() {
    let mut description = small();
    description.nodes.push(leaf(5));
    assert_eq!(
        error_of(&description),
        ForestError::Unreachable { tree: 0, node: 5 }
    );
}

#[test]
fn a_node_listed_twice_is_refused() {
    let mut description = small();
    description.nodes.push(leaf(4));
    assert_eq!(
        error_of(&description),
        ForestError::Duplicate { tree: 0, node: 4 }
    );
}

#[test]
fn a_tree_that_is_listed_in_pieces_is_refused() {
    let mut description = small();
    description
        .nodes
        .insert(3, NodeDescription { tree: 1, ..leaf(0) });
    assert_eq!(error_of(&description), ForestError::Scattered { tree: 0 });
}

#[test]
fn a_feature_out_of_range_is_refused() {
    for feature in [-1, i64::from(u32::MAX), i64::MIN] {
        let mut description = small();
        description.nodes[2].feature = feature;
        let error = error_of(&description);
        assert!(
            matches!(error, ForestError::Feature { feature: f, .. } if f == feature),
            "{error}"
        );
    }
}

#[test]
fn rows_that_are_too_narrow_are_refused() {
    let forest = Forest::<f32>::build(&small()).unwrap();
    let expected = ForestError::Width { needed: 2, got: 1 };
    assert_eq!(forest.check_width(1), Err(expected.clone()));
    assert_eq!(forest.regress(&[0.0], 1, &mut [0.0]), Err(expected));
    assert!(forest.regress(&[], 0, &mut []).is_err());
}

#[test]
fn weights_and_base_values_must_fit_the_targets() {
    let mut description = small();
    description.weights[0].target = 1;
    let expected = ForestError::Target {
        target: 1,
        targets: 1,
    };
    assert_eq!(error_of(&description), expected);
    let mut description = small();
    description.weights[0].node = 9;
    let expected = ForestError::NoSuchLeaf { tree: 0, node: 9 };
    assert_eq!(error_of(&description), expected);
    let mut description = small();
    description.base_values = vec![0.0; 2];
    assert!(matches!(
        error_of(&description),
        ForestError::BaseValues { got: 2, .. }
    ));
    assert_eq!(error_of(&regression(vec![], vec![])), ForestError::NoNode);
    let none = Description {
        targets: 0,
        weights: vec![],
        ..small()
    };
    assert_eq!(error_of(&none), ForestError::NoTarget("target"));
}

#[test]
fn a_deep_tree_needs_no_deep_stack() {
    let depth = 200_000;
    let mut nodes = Vec::new();
    for at in 0..depth {
        #[allow(clippy::cast_precision_loss)]
        nodes.push(branch(2 * at, 0, at as f64, (2 * at + 1, 2 * at + 2)));
        nodes.push(leaf(2 * at + 1));
    }
    nodes.push(leaf(2 * depth));
    let description = regression(nodes, vec![weight(2 * depth, 0, 5.0)]);
    let forest = Forest::<f64>::build(&description).unwrap();
    let mut scores = [0.0];
    forest.regress(&[1e9], 1, &mut scores).unwrap();
    assert_eq!(scores, [5.0]);
}

/// The plainest reading of a description: recursion over the file's list.
fn leaf_of<'a>(
    description: &'a Description,
    node: &'a NodeDescription,
    row: &[f64],
) -> &'a NodeDescription {
    let child = |id| {
        let mut nodes = description.nodes.iter();
        nodes.find(|n| (n.tree, n.id) == (node.tree, id)).unwrap()
    };
    let holds = |x: f64| match node.mode {
        Mode::LessOrEqual => x <= node.value,
        Mode::Less => x < node.value,
        Mode::GreaterOrEqual => x >= node.value,
        Mode::Greater => x > node.value,
        Mode::Equal => x == node.value,
        Mode::NotEqual => x != node.value,
        Mode::Leaf => unreachable!(),
    };
    if node.mode == Mode::Leaf {
        return node;
    }
    let x = row[usize::try_from(node.feature).unwrap()];
    if holds(x) || x.is_nan() && node.missing_is_true {
        leaf_of(description, child(node.true_child), row)
    } else {
        leaf_of(description, child(node.false_child), row)
    }
}

/// Sums of a row, tree by tree.
fn expected(description: &Description, row: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; description.targets];
    let mut seen = None;
    for node in &description.nodes {
        if seen.replace(node.tree) == Some(node.tree) {
            continue;
        }
        let leaf = leaf_of(description, node, row);
        for w in &description.weights {
            if (w.tree, w.node) == (leaf.tree, leaf.id) {
                sums[usize::try_from(w.target).unwrap()] += w.value;
            }
        }
    }
    sums
}

/// A tree as choices: each branch draws a mode, a feature, a threshold and whether NaN is true.
fn tree() -> impl Strategy<Value = Vec<(u8, i64, i8, bool)>> {
    proptest::collection::vec((0_u8..9, 0_i64..3, -2_i8..3, any::<bool>()), 1..40)
}

fn described(trees: &[Vec<(u8, i64, i8, bool)>], targets: usize) -> Description {
    let (mut nodes, mut weights) = (Vec::new(), Vec::new());
    for (number, choices) in trees.iter().enumerate() {
        let number = i64::try_from(number).unwrap();
        let mut open = vec![0_i64];
        let mut next = 1_i64;
        for &(mode, feature, value, missing_is_true) in choices {
            let Some(id) = open.pop() else { break };
            let mode = match mode {
                0 => Mode::Less,
                1 => Mode::GreaterOrEqual,
                2 => Mode::Greater,
                3 => Mode::Equal,
                4 => Mode::NotEqual,
                5..8 => Mode::LessOrEqual,
                _ => Mode::Leaf,
            };
            nodes.push(NodeDescription {
                tree: number,
                id,
                mode,
                feature,
                value: f64::from(value),
                true_child: next,
                false_child: next + 1,
                missing_is_true,
            });
            if mode == Mode::Leaf {
                weights.push((number, id, value));
            } else {
                open.extend([next, next + 1]);
                next += 2;
            }
        }
        for id in open {
            nodes.push(NodeDescription {
                tree: number,
                ..leaf(id)
            });
            weights.push((number, id, 1));
        }
    }
    let weights = weights.into_iter().flat_map(|(tree, node, value)| {
        (0..i64::try_from(targets).unwrap()).map(move |target| Weight {
            tree,
            node,
            target,
            // Exact in both element types, so that sums are too.
            value: f64::from(value) + 0.25 * f64::from(u8::try_from(target).unwrap()),
        })
    });
    Description {
        weights: weights.collect(),
        targets,
        ..regression(nodes, vec![])
    }
}

fn cell() -> impl Strategy<Value = f64> {
    prop_oneof![
        (-2_i8..3).prop_map(f64::from),
        -3.0..3.0_f64,
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(-0.0),
    ]
}

proptest! {
    #[test]
    fn walks_end_where_the_plain_reading_ends(
        trees in proptest::collection::vec(tree(), 1..20),
        targets in 1_usize..4,
        cells in proptest::collection::vec(cell(), 3..60),
    ) {
        let description = described(&trees, targets);
        let forest = Forest::<f64>::build(&description).unwrap();
        let rows = &cells[..cells.len() / 3 * 3];
        let mut scores = vec![0.0; rows.len() / 3 * targets];
        forest.regress(rows, 3, &mut scores).unwrap();
        for (row, scores) in rows.chunks(3).zip(scores.chunks(targets)) {
            let scores: Vec<f64> = scores.iter().map(|&s| f64::from(s)).collect();
            prop_assert_eq!(scores, expected(&description, row));
        }
    }

    #[test]
    fn rows_score_the_same_alone_and_together(
        trees in proptest::collection::vec(tree(), 1..20),
        targets in 1_usize..4,
        cells in proptest::collection::vec(cell(), 3..600),
    ) {
        let description = described(&trees, targets);
        let forest = Forest::<f32>::build(&description).unwrap();
        #[allow(clippy::cast_possible_truncation)]
        let rows: Vec<f32> = cells[..cells.len() / 3 * 3].iter().map(|&x| x as f32).collect();
        let mut together = vec![0.0; rows.len() / 3 * targets];
        forest.regress(&rows, 3, &mut together).unwrap();
        for (row, expected) in rows.chunks(3).zip(together.chunks(targets)) {
            let mut alone = vec![0.0; targets];
            forest.regress(row, 3, &mut alone).unwrap();
            prop_assert_eq!(&alone, expected);
        }
    }

    /// Whatever the numbers: an error or a forest whose walks end, never a panic.
    #[test]
    fn any_description_is_refused_or_walked(
        nodes in proptest::collection::vec(
            (0_i64..2, 0_i64..6, 0_i64..7, 0_i64..7, -1_i64..4, any::<bool>()), 0..12),
        weights in proptest::collection::vec((0_i64..2, 0_i64..6, -1_i64..4), 0..6),
        targets in 0_usize..4,
        bases in 0_usize..4,
        classify in any::<bool>(),
    ) {
        let nodes = nodes.into_iter().map(|(tree, id, t, f, feature, is_leaf)| NodeDescription {
            tree,
            id,
            mode: if is_leaf { Mode::Leaf } else { Mode::Less },
            feature,
            value: 0.5,
            true_child: t,
            false_child: f,
            missing_is_true: false,
        });
        let weights = weights.into_iter().map(|(tree, node, target)| Weight {
            tree,
            node,
            target,
            value: 1.0,
        });
        let description = Description {
            targets,
            base_values: vec![0.5; bases],
            task: if classify { Task::Classification } else { Task::Regression },
            ..regression(nodes.collect(), weights.collect())
        };
        if let Ok(forest) = Forest::<f32>::build(&description) {
            let mut scores = vec![0.0; 9 * targets];
            let rows = [0.3; 9 * 4];
            if classify {
                forest.classify(&rows, 4, &mut scores, |_, class| {
                    assert!(class < targets.max(2));
                }).unwrap();
            } else {
                forest.regress(&rows, 4, &mut scores).unwrap();
            }
        }
    }
}

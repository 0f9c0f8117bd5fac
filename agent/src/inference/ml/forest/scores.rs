//! From leaves to scores and classes, the way ONNX Runtime does it.

use super::walk::{LANES, walk};
use super::{Description, Forest, ForestError, Number, Task};

/// How the leaves of the trees become one score. A classifier adds always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inference::ml) enum Aggregate {
    Sum,
    /// The sum, divided by the number of trees.
    Average,
    Min,
    Max,
}

/// What is done to the scores of a row at last. Computed in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inference::ml) enum PostTransform {
    None,
    Softmax,
    Logistic,
    /// Softmax of the scores that are not zero; zeros stay.
    SoftmaxZero,
    /// The inverse of the normal distribution function, times 2 under ONNX Runtime's approximation.
    Probit,
}

/// How a classifier of two classes reads its scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    /// Weights for both classes, or not two classes. With two classes the second is chosen if its
    /// score is positive, and the labels are 0 and 1 whatever the file calls the classes: ONNX
    /// Runtime does so, and converters avoid it.
    No,
    /// One class has all weights and none is negative: a probability, chosen above one half.
    Probability,
    /// One class has all weights: a margin, chosen above zero.
    Margin,
}

impl Binary {
    pub(super) fn of(description: &Description) -> Self {
        let mut weights = description.weights.iter();
        let one_class = match weights.next() {
            Some(first) => weights.all(|w| w.target == first.target),
            None => false,
        };
        if description.task != Task::Classification || description.targets != 2 || !one_class {
            Self::No
        } else if description.weights.iter().any(|w| w.value < 0.0) {
            Self::Margin
        } else {
            Self::Probability
        }
    }
}

/// Sums of rows kept on the stack; forests with more targets than this allocate once a call.
const STACK_SUMS: usize = 512;
/// Rows that are walked together, so that a tree is fetched once for all of them.
const BLOCK_ROWS: usize = 64;

/// The sums of some rows, and which of them any leaf has added to.
struct Sums<'a, T> {
    score: &'a mut [T],
    seen: &'a mut [bool],
}

/// Makes scores of the sums of the row with this number.
type Finish<'a, T> = dyn FnMut(usize, Sums<'_, T>, &mut [f32]) + 'a;

impl<T: Number> Forest<T> {
    /// Scores of rows of `width` features, `targets` a row.
    ///
    /// # Errors
    /// Rows too narrow, or an output of another length.
    pub(in crate::inference::ml) fn regress(
        &self,
        rows: &[T],
        width: usize,
        scores: &mut [f32],
    ) -> Result<(), ForestError> {
        self.each_row(rows, width, scores, &mut |_, sums, out| {
            self.finish_regression(sums, out);
        })
    }

    /// Scores of rows of `width` features, `targets` a row, and for each row a call of `chosen`
    /// with the row's and the class's number. Which labels these numbers stand for,
    /// [`Self::labels_are_literal`] says.
    ///
    /// # Errors
    /// Rows too narrow, or an output of another length.
    pub(in crate::inference::ml) fn classify(
        &self,
        rows: &[T],
        width: usize,
        scores: &mut [f32],
        mut chosen: impl FnMut(usize, usize),
    ) -> Result<(), ForestError> {
        self.each_row(rows, width, scores, &mut |at, sums, out| {
            chosen(at, self.finish_classification(sums, out));
        })
    }

    /// Sums up the leaves of every row and lets `finish` make scores of them.
    fn each_row(
        &self,
        rows: &[T],
        width: usize,
        scores: &mut [f32],
        finish: &mut Finish<'_, T>,
    ) -> Result<(), ForestError> {
        self.check_width(width)?;
        let count = rows.len() / width;
        let expected = count * self.targets;
        if rows.len() != count * width || scores.len() != expected {
            return Err(ForestError::Length {
                what: "scores",
                expected,
                got: scores.len(),
            });
        }
        let (mut stack, mut stack_seen) = ([T::default(); STACK_SUMS], [false; STACK_SUMS]);
        let (mut heap, mut heap_seen);
        let (sums, seen): (&mut [T], &mut [bool]) = if self.targets <= STACK_SUMS {
            (&mut stack, &mut stack_seen)
        } else {
            heap = vec![T::default(); self.targets];
            heap_seen = vec![false; self.targets];
            (&mut heap, &mut heap_seen)
        };
        let block = (sums.len() / self.targets).min(BLOCK_ROWS);
        let blocks = rows.chunks(block * width);
        let outputs = scores.chunks_mut(block * self.targets);
        for ((number, rows), out) in blocks.enumerate().zip(outputs) {
            let sums = &mut sums[..out.len()];
            let seen = &mut seen[..out.len()];
            sums.fill(T::default());
            seen.fill(false);
            self.sum_block(rows, width, sums, seen);
            let parts = sums
                .chunks_mut(self.targets)
                .zip(seen.chunks_mut(self.targets))
                .zip(out.chunks_mut(self.targets));
            for (at, ((score, seen), out)) in parts.enumerate() {
                finish(number * block + at, Sums { score, seen }, out);
            }
        }
        Ok(())
    }

    /// Every sum adds the trees in their order, so that it is rounded as ONNX Runtime's is.
    fn sum_block(&self, rows: &[T], width: usize, sums: &mut [T], seen: &mut [bool]) {
        let targets = self.targets;
        let together = rows.len() / width / LANES * LANES;
        for &root in &self.roots {
            for first in (0..together).step_by(LANES) {
                let lanes: [&[T]; LANES] =
                    std::array::from_fn(|lane| &rows[(first + lane) * width..][..width]);
                let mut at = [root; LANES];
                walk(self.uniform, &self.nodes, &lanes, &mut at);
                for (lane, &leaf) in at.iter().enumerate() {
                    let range = (first + lane) * targets..(first + lane + 1) * targets;
                    self.add(leaf, &mut sums[range.clone()], &mut seen[range]);
                }
            }
        }
        for row in together..rows.len() / width {
            let lanes = [&rows[row * width..][..width]; LANES];
            let range = row * targets..(row + 1) * targets;
            let (sums, seen) = (&mut sums[range.clone()], &mut seen[range]);
            for roots in self.roots.chunks(LANES) {
                // Lanes without a tree of their own walk the first one's way.
                let mut at = [roots[0]; LANES];
                at[..roots.len()].copy_from_slice(roots);
                walk(self.uniform, &self.nodes, &lanes, &mut at);
                for &leaf in &at[..roots.len()] {
                    self.add(leaf, sums, seen);
                }
            }
        }
    }

    #[inline(always)]
    fn add(&self, leaf: u32, sums: &mut [T], seen: &mut [bool]) {
        let node = &self.nodes[leaf as usize];
        if self.targets == 1 {
            add_one(self.aggregate, node.value, &mut sums[0], &mut seen[0]);
            return;
        }
        let leaf = node.next as usize;
        let range = self.leaf_starts[leaf] as usize..self.leaf_starts[leaf + 1] as usize;
        let values = &self.weight_values[range.clone()];
        if self.dense && matches!(self.aggregate, Aggregate::Sum | Aggregate::Average) {
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum = *sum + value;
            }
            seen[0] = true;
            return;
        }
        for (&target, &value) in self.weight_targets[range].iter().zip(values) {
            let target = target as usize;
            add_one(self.aggregate, value, &mut sums[target], &mut seen[target]);
        }
    }

    fn finish_regression(&self, sums: Sums<'_, T>, out: &mut [f32]) {
        let based = self.base_values.len() == self.targets;
        for (at, sum) in sums.score.iter_mut().enumerate() {
            if self.aggregate == Aggregate::Average {
                #[allow(clippy::cast_precision_loss)]
                let trees = T::from_f64(self.roots.len() as f64);
                *sum = *sum / trees;
            }
            if based {
                *sum = *sum + self.base_values[at];
            }
            // A target that no leaf has spoken of is zero, base value or not.
            if self.targets > 1 && !self.dense && !sums.seen[at] {
                *sum = T::default();
            }
        }
        if self.targets == 1 {
            // ONNX Runtime leaves a single target alone, but for PROBIT.
            let score = sums.score[0].to_f32();
            out[0] = match self.post_transform {
                PostTransform::Probit => probit(score),
                _ => score,
            };
        } else {
            transform(self.post_transform, sums.score, out);
        }
    }

    fn finish_classification(&self, sums: Sums<'_, T>, out: &mut [f32]) -> usize {
        match self.targets {
            1 => self.finish_one_class(sums.score[0], out),
            2 => self.finish_two_classes(sums, out),
            _ => self.finish_classes(sums, out),
        }
    }

    fn finish_classes(&self, sums: Sums<'_, T>, out: &mut [f32]) -> usize {
        for (sum, &base) in sums.score.iter_mut().zip(&self.base_values) {
            *sum = *sum + base;
        }
        let all = self.dense || !self.base_values.is_empty();
        let mut best: Option<(usize, T)> = None;
        for (class, (&score, &seen)) in sums.score.iter().zip(&*sums.seen).enumerate() {
            if (all || seen) && best.is_none_or(|(_, most)| score > most) {
                best = Some((class, score));
            }
        }
        transform(self.post_transform, sums.score, out);
        best.map_or(0, |(class, _)| class)
    }

    fn finish_one_class(&self, sum: T, out: &mut [f32]) -> usize {
        let score = self.base_values.first().map_or(sum, |&base| sum + base);
        out[0] = match self.post_transform {
            PostTransform::Probit => probit(score.to_f32()),
            _ => score.to_f32(),
        };
        usize::from(score > T::default())
    }

    fn finish_two_classes(&self, sums: Sums<'_, T>, out: &mut [f32]) -> usize {
        let score = sums.score;
        let [first, second] = [0, 1].map(|class| self.dense || sums.seen[class]);
        match *self.base_values.as_slice() {
            [_, base] if second => {
                score[1] = base + score[0];
                score[0] = -score[1];
            }
            [base, _] | [base] => score[0] = score[0] + base,
            _ => {}
        }
        // A class that no leaf has spoken of has no score, base value or not.
        if !first {
            score[0] = T::default();
        }
        let deciding = if second { score[1] } else { score[0] };
        let class = match self.binary {
            Binary::Probability => deciding > T::HALF,
            Binary::No | Binary::Margin => deciding > T::default(),
        };
        if second || self.base_values.len() == 2 {
            transform(self.post_transform, score, out);
        } else {
            self.finish_single_score(score[0], out);
        }
        usize::from(class)
    }

    /// Two scores from one.
    fn finish_single_score(&self, score: T, out: &mut [f32]) {
        let pair = match (self.post_transform, self.binary) {
            (PostTransform::Probit, _) => [probit(score.to_f32()), 0.0],
            // Nothing says what the second score is.
            (_, Binary::No) if self.base_values.len() == 1 => [score.to_f32(), 0.0],
            (PostTransform::Logistic, _) => [logistic((-score).to_f32()), logistic(score.to_f32())],
            (_, Binary::Probability) => [(T::ONE - score).to_f32(), score.to_f32()],
            _ => [(-score).to_f32(), score.to_f32()],
        };
        out.copy_from_slice(&pair);
    }
}

#[inline(always)]
fn add_one<T: Number>(aggregate: Aggregate, value: T, sum: &mut T, seen: &mut bool) {
    let replaces = match aggregate {
        Aggregate::Sum | Aggregate::Average => {
            *sum = *sum + value;
            *seen = true;
            return;
        }
        Aggregate::Min => value < *sum,
        Aggregate::Max => value > *sum,
    };
    if replaces || !*seen {
        *sum = value;
    }
    *seen = true;
}

/// Scores of two or more targets.
pub(in crate::inference::ml) fn transform<T: Number>(
    how: PostTransform,
    scores: &[T],
    out: &mut [f32],
) {
    for (out, score) in out.iter_mut().zip(scores) {
        *out = score.to_f32();
    }
    match how {
        PostTransform::None => {}
        PostTransform::Logistic => out.iter_mut().for_each(|x| *x = logistic(*x)),
        PostTransform::Probit => out.iter_mut().for_each(|x| *x = probit(*x)),
        PostTransform::Softmax => softmax(out, |_| true),
        PostTransform::SoftmaxZero => softmax(out, |x| x.abs() > 1e-7),
    }
}

fn softmax(scores: &mut [f32], counts: impl Fn(f32) -> bool) {
    let most = scores
        .iter()
        .copied()
        .fold(f32::MIN, |m, x| if x > m { x } else { m });
    let scale = (-most).exp();
    let mut sum = 0.0;
    for x in &mut *scores {
        if counts(*x) {
            *x = (*x - most).exp();
            sum += *x;
        } else {
            *x *= scale;
        }
    }
    for x in scores {
        *x /= sum;
    }
}

fn logistic(x: f32) -> f32 {
    let p = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - p } else { p }
}

/// ONNX Runtime's approximation (Winitzki's, with a = 0.147).
fn probit(p: f32) -> f32 {
    let x = 2.0 * p - 1.0;
    let sign = if x < 0.0 { -1.0 } else { 1.0 };
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let v = 2.0 / (std::f32::consts::PI * 0.147) + 0.5 * log;
    let root = (-v + (v * v - 1.0 / 0.147 * log).sqrt()).sqrt();
    std::f32::consts::SQRT_2 * sign * root
}

//! From labelled rows to a calibration: isotonic regression of each class (pool adjacent violators;
//! Ayer et al. 1955).

use dunlin_protocol::calibration::{CLASSES_MAX, Calibration, Curve, POINTS_MAX};

/// Rows of one score, or several that had to be pooled.
#[derive(Debug, Clone, Copy)]
struct Block {
    first: f64,
    last: f64,
    rows: f64,
    hits: f64,
}

impl Block {
    fn share(&self) -> f64 {
        self.hits / self.rows
    }
}

/// Of rows of scores and the right class of each.
///
/// # Errors
/// Why there is none.
pub(super) fn calibration(
    labelled: &[(Vec<f64>, usize)],
    classes: usize,
) -> Result<Calibration, String> {
    if !(2..=CLASSES_MAX).contains(&classes) {
        return Err(format!(
            "expected 2 to {CLASSES_MAX} classes, the model has {classes}"
        ));
    }
    let is_whole = |(scores, _): &&(Vec<f64>, usize)| {
        scores.len() == classes && scores.iter().all(|score| score.is_finite())
    };
    let rows: Vec<_> = labelled.iter().filter(is_whole).collect();
    if rows.is_empty() {
        return Err(format!("no labelled row has {classes} finite scores"));
    }
    let right = rows
        .iter()
        .filter(|(scores, right)| largest(scores) == Some(*right));
    let right = right.count() as u64;
    let curves = (0..classes).map(|class| {
        let pairs = rows
            .iter()
            .map(|(scores, right)| (scores[class], *right == class));
        curve(pairs.collect())
    });
    Ok(Calibration {
        curves: curves.collect(),
        rows: rows.len() as u64,
        right,
    })
}

/// The first of the largest, as devices have it.
fn largest(scores: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, score) in scores.iter().enumerate() {
        if best.is_none_or(|(_, most)| *score > most) {
            best = Some((at, *score));
        }
    }
    best.map(|(at, _)| at)
}

/// The rising curve that is nearest to hits and misses, by the mean square. `pairs` is not empty.
fn curve(mut pairs: Vec<(f64, bool)>) -> Curve {
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut blocks: Vec<Block> = Vec::new();
    for same in pairs.chunk_by(|a, b| a.0 == b.0) {
        #[allow(clippy::cast_precision_loss)] // rows in memory
        let (rows, hits) = (
            same.len() as f64,
            same.iter().filter(|p| p.1).count() as f64,
        );
        let mut block = Block {
            first: same[0].0,
            last: same[0].0,
            rows,
            hits,
        };
        while let Some(before) = blocks.pop_if(|before| before.share() >= block.share()) {
            block = Block {
                first: before.first,
                last: block.last,
                rows: before.rows + block.rows,
                hits: before.hits + block.hits,
            };
        }
        blocks.push(block);
    }
    let points = blocks.iter().flat_map(|b| {
        let ends = [(b.first, b.share()), (b.last, b.share())];
        ends.into_iter().take(if b.first < b.last { 2 } else { 1 })
    });
    let points: Vec<(f64, f64)> = points.collect();
    // What is left out lies between its neighbours.
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len() - 1;
    let kept = points
        .iter()
        .enumerate()
        .filter(|(at, _)| at % step == 0 || *at == last);
    let kept: Vec<(f64, f64)> = kept.map(|(_, point)| *point).collect();
    let kept = &kept[kept.len().saturating_sub(POINTS_MAX)..];
    Curve {
        scores: kept.iter().map(|p| p.0 + 0.0).collect(),
        probabilities: kept.iter().map(|p| p.1).collect(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_falls_is_pooled() {
        // scikit-learn's IsotonicRegression gives the same for these.
        let pairs = [
            (0.1, false),
            (0.2, true),
            (0.3, false),
            (0.4, true),
            (0.5, true),
        ];
        let of = curve(pairs.to_vec());
        assert_eq!(of.scores, [0.1, 0.2, 0.3, 0.4, 0.5]);
        assert_eq!(of.probabilities, [0.0, 0.5, 0.5, 1.0, 1.0]);
        let of = curve(vec![(0.7, true), (0.7, false), (0.9, false), (0.2, true)]);
        assert_eq!(
            (of.scores, of.probabilities),
            (vec![0.2, 0.9], vec![0.5, 0.5])
        );
    }

    #[test]
    fn however_many_rows_it_stays_a_calibration() {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state) / 2_f64.powi(32)
        };
        let rows = (0..20_000).map(|_| {
            let p = next();
            let truth = usize::from(next() < p);
            (vec![1.0 - p, p], truth)
        });
        let rows: Vec<_> = rows.collect();
        let made = calibration(&rows, 2).unwrap();
        made.check(2).unwrap();
        let expected = made.probabilities([0.25, 0.75].into_iter()).unwrap();
        assert!((expected[1] - 0.75).abs() < 0.05, "{expected:?}");
        assert_eq!(made.rows, 20_000);
        assert!(calibration(&rows, 3).is_err() && calibration(&rows, 1).is_err());
    }
}

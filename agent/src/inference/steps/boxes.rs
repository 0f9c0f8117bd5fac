//! Steps on boxes, and where a picture's pixels went.

use super::Shaped;
use crate::inference::tensor::Values;
use dunlin_protocol::bundle::step::{BoxFormat, NonMaxSuppression};

/// How a step moves pixels: `new = old · scale + offset`, by column (x) and row (y).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Move {
    pub(crate) scale: [f64; 2],
    pub(crate) offset: [f64; 2],
}

/// Where an image's pixels are now, and how large it was when it was sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    width: usize,
    height: usize,
    moved: Move,
}

impl Geometry {
    /// Of an image [height, width, channels] that nothing has moved yet.
    pub(crate) fn of(shape: &[usize]) -> Option<Self> {
        let &[height, width, _] = shape else {
            return None;
        };
        Some(Self {
            width,
            height,
            moved: Move {
                scale: [1.0; 2],
                offset: [0.0; 2],
            },
        })
    }

    /// After one more step.
    pub(crate) fn then(self, next: Move) -> Self {
        let both = |f: fn(f64, f64, f64) -> f64, of: [f64; 2]| {
            [0, 1].map(|i| f(of[i], next.scale[i], next.offset[i]))
        };
        Self {
            moved: Move {
                scale: both(|old, scale, _| old * scale, self.moved.scale),
                offset: both(|old, scale, offset| old * scale + offset, self.moved.offset),
            },
            ..self
        }
    }
}

/// Boxes (left, top, right, bottom) in the pixels of the image that was sent, cut at its edges.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
pub(crate) fn to_image(value: Shaped, geometry: Geometry) -> Result<Shaped, String> {
    let (shape, mut boxes) = value.floats()?;
    let Geometry {
        width,
        height,
        moved,
    } = geometry;
    let ends = [width as f64, height as f64];
    for (at, x) in boxes.iter_mut().enumerate() {
        let axis = at % 2;
        let back = (f64::from(*x) - moved.offset[axis]) / moved.scale[axis];
        *x = back.clamp(0.0, ends[axis]) as f32;
    }
    Ok(Shaped::new(shape, Values::FP32(boxes)))
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    corners: [f32; 4],
    score: f32,
    class: usize,
    area: f32,
}

/// Greedy: the best candidate is kept, those that overlap it too much are dropped, and so on. Of equal
/// scores the first box counts first. Boxes and scores that are not finite never count.
pub(crate) fn non_max_suppression(
    s: &NonMaxSuppression,
    values: Vec<Shaped>,
) -> Result<Vec<Shaped>, String> {
    let [boxes, scores]: [Shaped; 2] = values
        .try_into()
        .map_err(|_| "expected boxes and scores".to_owned())?;
    let classes = scores.row();
    let (_, boxes) = boxes.floats()?;
    let (_, scores) = scores.floats()?;
    let rows = boxes
        .as_chunks::<4>()
        .0
        .iter()
        .zip(scores.chunks(classes.max(1)));
    let mut candidates: Vec<Candidate> = rows
        .filter_map(|(corners, scores)| candidate(s, *corners, scores))
        .collect();
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Candidate> = Vec::new();
    for one in candidates {
        if kept.len() == s.max_detections {
            break;
        }
        let same = |other: &&Candidate| !s.per_class || other.class == one.class;
        if kept
            .iter()
            .filter(same)
            .all(|k| overlap(k, &one) <= s.iou_threshold)
        {
            kept.push(one);
        }
    }
    let count = kept.len();
    let corners = kept.iter().flat_map(|k| k.corners).collect();
    let class = |k: &Candidate| i64::try_from(k.class).unwrap_or(i64::MAX);
    Ok(vec![
        Shaped::new(vec![count, 4], Values::FP32(corners)),
        Shaped::new(
            vec![count],
            Values::FP32(kept.iter().map(|k| k.score).collect()),
        ),
        Shaped::new(vec![count], Values::INT64(kept.iter().map(class).collect())),
    ])
}

fn candidate(s: &NonMaxSuppression, corners: [f32; 4], scores: &[f32]) -> Option<Candidate> {
    let mut best: Option<(usize, f32)> = None;
    for (class, &score) in scores.iter().enumerate() {
        if score.is_finite() && best.is_none_or(|(_, top)| score > top) {
            best = Some((class, score));
        }
    }
    let (class, score) = best.filter(|(_, score)| *score >= s.score_threshold)?;
    let [a, b, c, d] = corners;
    let corners = match s.format {
        BoxFormat::Xyxy => corners,
        BoxFormat::Cxcywh => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
    };
    corners.iter().all(|x| x.is_finite()).then(|| Candidate {
        corners,
        score,
        class,
        area: (corners[2] - corners[0]) * (corners[3] - corners[1]),
    })
}

/// Intersection over union; 0 where there is no union.
fn overlap(a: &Candidate, b: &Candidate) -> f32 {
    let side = |i: usize| {
        let start = a.corners[i].max(b.corners[i]);
        let end = a.corners[i + 2].min(b.corners[i + 2]);
        (end - start).max(0.0)
    };
    let common = side(0) * side(1);
    let union = a.area + b.area - common;
    if union > 0.0 { common / union } else { 0.0 }
}

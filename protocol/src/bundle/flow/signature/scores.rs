//! Signatures of the steps on scores and boxes.

use super::{Context, DType, Dim, TensorType, features, finite, misfit, needs, needs_number};
use crate::bundle::step::{BoxesToImage, NonMaxSuppression, Step, Threshold, TopK};

/// Most detections a bundle may give.
const MAX_DETECTIONS: usize = 100_000;

pub(super) fn arg_max(of: &TensorType) -> Result<TensorType, String> {
    needs_number(of)?;
    features(of)?;
    let mut shape = of.shape.clone();
    shape.pop();
    Ok(TensorType {
        dtype: DType::INT64,
        shape,
    })
}

pub(super) fn top_k(s: &TopK, of: &TensorType) -> Result<Vec<TensorType>, String> {
    needs(DType::FP32, of)?;
    let features = features(of)?;
    if s.k == 0 || s.k > features {
        return Err(format!("k must be 1 to {features}, got {}", s.k));
    }
    let mut shape = of.shape.clone();
    shape.pop();
    shape.push(Dim::Fixed(s.k));
    let given = |dtype| TensorType {
        dtype,
        shape: shape.clone(),
    };
    Ok(vec![given(DType::FP32), given(DType::INT64)])
}

pub(super) fn threshold(s: &Threshold, of: &TensorType) -> Result<TensorType, String> {
    super::numbers::bounds(&s.at, of)?;
    Ok(TensorType {
        dtype: DType::BOOL,
        shape: of.shape.clone(),
    })
}

pub(super) fn labels(of: &TensorType, context: &Context<'_>) -> Result<TensorType, String> {
    needs(DType::INT64, of)?;
    if context.manifest.labels.is_empty() {
        return Err("the manifest has no labels".to_owned());
    }
    Ok(TensorType {
        dtype: DType::BYTES,
        shape: of.shape.clone(),
    })
}

/// Rows and columns of [rows, columns] or [1, rows, columns].
fn rows(of: &TensorType) -> Option<(usize, usize)> {
    match of.shape.as_slice() {
        [Dim::Fixed(rows), Dim::Fixed(columns)]
        | [Dim::Fixed(1), Dim::Fixed(rows), Dim::Fixed(columns)] => Some((*rows, *columns)),
        _ => None,
    }
}

pub(super) fn non_max_suppression(
    s: &NonMaxSuppression,
    takes: &[TensorType],
) -> Result<Vec<TensorType>, String> {
    let [boxes, scores] = takes else {
        return Err(format!("expected boxes and scores, got {}", takes.len()));
    };
    needs(DType::FP32, boxes)?;
    needs(DType::FP32, scores)?;
    let count = match rows(boxes) {
        Some((count, 4)) => count,
        _ => return Err(misfit("boxes [n, 4] or [1, n, 4]", boxes)),
    };
    match rows(scores) {
        Some((n, classes)) if n == count && classes > 0 => {}
        _ => {
            let expected = format!("scores [{count}, classes] or [1, {count}, classes]");
            return Err(misfit(&expected, scores));
        }
    }
    let thresholds = [s.score_threshold, s.iou_threshold].map(f64::from);
    finite("score_threshold and iou_threshold", thresholds)?;
    if !(0.0..=1.0).contains(&s.iou_threshold) {
        let problem = format!("iou_threshold must be 0 to 1, got {}", s.iou_threshold);
        return Err(problem);
    }
    if s.max_detections == 0 || s.max_detections > MAX_DETECTIONS {
        return Err(format!(
            "max_detections must be 1 to {MAX_DETECTIONS}, got {}",
            s.max_detections
        ));
    }
    let kept = Dim::UpTo(s.max_detections.min(count));
    let given = |dtype, shape| TensorType { dtype, shape };
    Ok(vec![
        given(DType::FP32, vec![kept, Dim::Fixed(4)]),
        given(DType::FP32, vec![kept]),
        given(DType::INT64, vec![kept]),
    ])
}

pub(super) fn boxes_to_image(
    s: &BoxesToImage,
    of: &TensorType,
    context: &Context<'_>,
) -> Result<TensorType, String> {
    let Some(before) = context.before else {
        return Err("stands after the graph only".to_owned());
    };
    needs(DType::FP32, of)?;
    if of.shape.last() != Some(&Dim::Fixed(4)) {
        return Err(misfit("boxes [.., 4]", of));
    }
    let is_image = |step: &Step| {
        matches!(
            step,
            Step::DecodeImage(_)
                | Step::Resize(_)
                | Step::Crop(_)
                | Step::CenterCrop(_)
                | Step::Pad(_)
                | Step::Letterbox(_)
        )
    };
    let slot = before.slot(&s.image);
    let made = slot.is_some_and(|slot| {
        let mut writers = before.steps.iter().filter(|w| is_image(&w.step));
        writers.any(|w| w.writes.contains(&slot))
    });
    if !made {
        return Err(format!(
            "image: no step before the graph makes an image {:?}",
            s.image
        ));
    }
    Ok(of.clone())
}

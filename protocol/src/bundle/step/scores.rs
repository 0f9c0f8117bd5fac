//! Settings of the steps on scores and boxes.

use serde::{Deserialize, Serialize};

/// See [`Step::TopK`](super::Step::TopK). Largest first; of equals the lower index; NaN last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// Tensor read; stays.
    pub tensor: String,
    /// How many.
    pub k: usize,
    /// Name of the elements, `FP32` [.., k].
    pub scores: String,
    /// Name of their indices, `INT64` [.., k].
    pub indices: String,
}

/// See [`Step::Threshold`](super::Step::Threshold). `FP32` to `BOOL`: x ≥ at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// One bound, or one for each element of the last dimension.
    pub at: Vec<f32>,
}

/// What the four numbers of a box are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxFormat {
    /// Left, top, right, bottom.
    Xyxy,
    /// Centre, width and height.
    Cxcywh,
}

/// See [`Step::NonMaxSuppression`](super::Step::NonMaxSuppression). `FP32` boxes [n, 4] and scores [n, classes], each with or
/// without a leading 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NonMaxSuppression {
    /// Boxes; stay.
    pub boxes: String,
    /// Scores; stay. Of each box its best class counts.
    pub scores: String,
    /// What the boxes' numbers are.
    pub format: BoxFormat,
    /// Least score of a detection.
    pub score_threshold: f32,
    /// Two boxes whose intersection over union is above it are one thing.
    pub iou_threshold: f32,
    /// Most detections, the best ones.
    pub max_detections: usize,
    /// Whether only boxes of the same class are compared.
    #[serde(default = "yes")]
    pub per_class: bool,
    /// Name of the boxes kept, `FP32` [up to max_detections, 4], as left, top, right, bottom.
    pub kept_boxes: String,
    /// Name of their scores, `FP32` [up to max_detections].
    pub kept_scores: String,
    /// Name of their classes, `INT64` [up to max_detections].
    pub kept_classes: String,
}

fn yes() -> bool {
    true
}

/// See [`Step::BoxesToImage`](super::Step::BoxesToImage). Boxes are left, top, right, bottom; they are cut at the image's
/// edges. Only after the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxesToImage {
    /// Tensor read, `FP32` [.., 4].
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Name, before the graph, of the image that was decoded, resized, cropped or letterboxed.
    pub image: String,
}

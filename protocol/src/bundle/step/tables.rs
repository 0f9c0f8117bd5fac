//! Settings of the steps on tables of features.

use serde::{Deserialize, Serialize};

/// See [`Step::MinMax`](super::Step::MinMax). As scikit-learn's `MinMaxScaler`, over the last dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MinMax {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Least values in training, one for each feature.
    pub min: Vec<f64>,
    /// Greatest values in training, one for each feature.
    pub max: Vec<f64>,
    /// What `min` becomes.
    #[serde(default)]
    pub low: f64,
    /// What `max` becomes.
    #[serde(default = "one_f64")]
    pub high: f64,
    /// Whether what lies outside is set to the nearer end.
    #[serde(default)]
    pub clip: bool,
}

fn one_f64() -> f64 {
    1.0
}

/// See [`Step::Impute`](super::Step::Impute). As scikit-learn's `SimpleImputer` with its learned statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Impute {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// One value, or one for each element of the last dimension.
    pub values: Vec<f64>,
}

/// The categories of a feature, in the order of their columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Categories {
    /// For tensors of integers.
    Numbers(Vec<i64>),
    /// For `BYTES`, compared byte by byte.
    Texts(Vec<String>),
}

/// What to do with a category that training did not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// Refuse the request.
    #[default]
    Error,
    /// A row of zeros.
    Zeros,
}

/// See [`Step::OneHot`](super::Step::OneHot). As scikit-learn's `OneHotEncoder` for one column: `[n]` or `[n, 1]` to
/// `FP32` [n, categories].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneHot {
    /// Tensor read.
    pub tensor: String,
    /// Name of the result; without it, the tensor itself is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// Categories, all different.
    pub categories: Categories,
    /// What of others.
    #[serde(default)]
    pub unknown: Unknown,
}

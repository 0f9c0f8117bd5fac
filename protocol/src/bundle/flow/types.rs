//! Element types and shapes of values between steps.

use crate::bundle::manifest::DType;
use std::fmt;

/// A dimension of a value between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// Always this many.
    Fixed(usize),
    /// 0 up to this many, from call to call.
    UpTo(usize),
}

impl Dim {
    /// The largest it can be.
    #[must_use]
    pub fn max(self) -> usize {
        match self {
            Self::Fixed(n) | Self::UpTo(n) => n,
        }
    }

    /// As the Open Inference Protocol writes it: −1 if it varies.
    #[must_use]
    pub fn on_the_wire(self) -> i64 {
        match self {
            Self::Fixed(n) => i64::try_from(n).unwrap_or(i64::MAX),
            Self::UpTo(_) => -1,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::UpTo(n) => write!(f, "≤{n}"),
        }
    }
}

/// Element type and shape of a value between steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type whose dimensions are all known.
    #[must_use]
    pub fn fixed(dtype: DType, shape: &[usize]) -> Self {
        Self {
            dtype,
            shape: shape.iter().map(|&n| Dim::Fixed(n)).collect(),
        }
    }

    /// The dimensions, if none of them varies.
    #[must_use]
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        let fixed = self.shape.iter().map(|d| match d {
            Dim::Fixed(n) => Some(*n),
            Dim::UpTo(_) => None,
        });
        fixed.collect()
    }

    /// Most elements; `usize::MAX` if there is no such number.
    #[must_use]
    pub fn elements_max(&self) -> usize {
        let dims = self.shape.iter();
        dims.fold(1_usize, |n, d| n.saturating_mul(d.max()))
    }

    /// Whether a shape found while running is one of this type.
    #[must_use]
    pub fn admits(&self, shape: &[usize]) -> bool {
        let fits = |(dim, &n): (&Dim, &usize)| match dim {
            Dim::Fixed(want) => n == *want,
            Dim::UpTo(most) => n <= *most,
        };
        shape.len() == self.shape.len() && self.shape.iter().zip(shape).all(fits)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.shape.iter().map(Dim::to_string).collect();
        write!(f, "{} [{}]", self.dtype.as_str(), dims.join(", "))
    }
}

//! The two kinds of numbers that forests compute with.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A forest computes in the element type of its input: `f32` or `f64`. Scores are `f32` always.
pub(in crate::inference::ml) trait Number:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Send
    + Sync
    + 'static
{
    /// One.
    const ONE: Self;
    /// One half.
    const HALF: Self;
    /// Rounded to the nearest.
    fn from_f64(x: f64) -> Self;
    /// Rounded to the nearest.
    fn to_f32(self) -> f32;
    /// Not a number.
    fn is_nan(self) -> bool;
}

impl Number for f32 {
    const ONE: Self = 1.0;
    const HALF: Self = 0.5;
    #[allow(clippy::cast_possible_truncation)]
    fn from_f64(x: f64) -> Self {
        x as Self
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

impl Number for f64 {
    const ONE: Self = 1.0;
    const HALF: Self = 0.5;
    fn from_f64(x: f64) -> Self {
        x
    }
    #[allow(clippy::cast_possible_truncation)]
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

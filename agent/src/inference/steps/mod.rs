//! The manifest's processing steps, made ready once when a bundle is loaded: from what an application
//! sends to what the graph takes, and from what the graph gives to what the application gets. Pure.
//!
//! Types and shapes were worked out and checked by the protocol's `Flow`; here they are only looked at
//! where they vary from call to call. What each step computes, its reference and its tolerance:
//! `docs/processing-steps.md`.

pub(crate) mod audio;
pub(crate) mod boxes;
pub(crate) mod decode;
pub(crate) mod image;
pub(crate) mod numbers;
pub(crate) mod pixels;
mod plan;
pub(crate) mod resize;
mod run;
pub(crate) mod scores;
pub(crate) mod state;
pub(crate) mod tabular;

pub use boxes::Geometry;
pub use plan::{Finished, Observed, Plan, Prepared, StepError};
pub use state::{Sequence, SequenceError, State};

use super::tensor::Values;

/// Most elements a value between steps may have while running.
pub(crate) const MAX_ELEMENTS: usize = 1 << 26;

/// Values with the shape they have this time.
#[derive(Debug, Clone, PartialEq)]
pub struct Shaped {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Values,
}

impl Shaped {
    pub(crate) fn new(shape: Vec<usize>, values: Values) -> Self {
        Self { shape, values }
    }

    /// The length of the last dimension; 1 if there is none.
    pub(crate) fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The 32-bit floats that this is known to hold.
    pub(crate) fn floats(self) -> Result<(Vec<usize>, Vec<f32>), String> {
        match self.values {
            Values::FP32(v) => Ok((self.shape, v)),
            other => Err(format!("expected FP32, got {}", other.dtype().as_str())),
        }
    }
}

/// Runs `$body`, generic over the element type, on the typed vector, and wraps what it gives.
macro_rules! map_values {
    ($values:expr, $v:ident => $body:expr) => {
        match $values {
            Values::BOOL($v) => Values::BOOL($body),
            Values::UINT8($v) => Values::UINT8($body),
            Values::UINT16($v) => Values::UINT16($body),
            Values::UINT32($v) => Values::UINT32($body),
            Values::UINT64($v) => Values::UINT64($body),
            Values::INT8($v) => Values::INT8($body),
            Values::INT16($v) => Values::INT16($body),
            Values::INT32($v) => Values::INT32($body),
            Values::INT64($v) => Values::INT64($body),
            Values::FP16($v) => Values::FP16($body),
            Values::FP32($v) => Values::FP32($body),
            Values::FP64($v) => Values::FP64($body),
            Values::BYTES($v) => Values::BYTES($body),
        }
    };
}
pub(crate) use map_values;

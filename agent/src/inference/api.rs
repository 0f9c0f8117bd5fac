//! The Open Inference Protocol v2 (<https://github.com/open-inference/open-inference-protocol>) and its
//! binary tensor data extension, and nothing but it: values in, values out.

pub(super) mod binary;
pub(super) mod given;
pub(super) mod json;
pub(super) mod metadata;
mod object;
pub(super) mod route;
pub(super) mod signature;

use http::StatusCode;
use serde_json::json;

/// Longest request `id`, in bytes.
pub(crate) const ID_MAX_BYTES: usize = 256;

/// An answer that is no answer: `{"error": …}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub(crate) struct ApiError {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// What, where, expected and got.
    pub(crate) message: String,
    /// The method that would have been right, if that was wrong.
    pub(crate) allow: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            allow: None,
        }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        json!({ "error": self.message }).to_string().into_bytes()
    }
}

//! What the API knows of a model.

use dunlin_protocol::bundle::{Manifest, TensorSpec};

/// Bytes allowed for one element: a 64-bit float of JSON takes 24, the rest is for indentation.
const ELEMENT_MAX_BYTES: usize = 64;
/// Bytes allowed for all that is not data.
const REQUEST_HEAD_MAX_BYTES: usize = 64 * 1024;

/// A model as its clients see it: what it is called, what they send and what they get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signature<'a> {
    /// Family.
    pub(crate) name: &'a str,
    /// Version.
    pub(crate) version: u64,
    /// Tensors a request has to have.
    pub(crate) inputs: &'a [TensorSpec],
    /// Tensors an answer may have.
    pub(crate) outputs: &'a [TensorSpec],
}

impl<'a> From<&'a Manifest> for Signature<'a> {
    fn from(manifest: &'a Manifest) -> Self {
        Self {
            name: manifest.family.as_str(),
            version: manifest.version,
            inputs: &manifest.inputs,
            outputs: &manifest.outputs,
        }
    }
}

impl Signature<'_> {
    /// Most bytes that an honest request to this model needs, in any form.
    pub(crate) fn request_max_bytes(&self) -> usize {
        self.inputs.iter().fold(REQUEST_HEAD_MAX_BYTES, |n, t| {
            n.saturating_add(t.elements().saturating_mul(ELEMENT_MAX_BYTES))
        })
    }
}

//! What the API knows of a model.

use dunlin_protocol::bundle::flow::{Input, Output};

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
    pub(crate) inputs: &'a [Input],
    /// Tensors an answer may have.
    pub(crate) outputs: &'a [Output],
}

/// Bytes that JSON may take for one byte of `BYTES`: base64 writes three as four, a text each one as up to
/// six.
fn written_bytes(input: &Input) -> usize {
    input
        .bytes_max
        .saturating_mul(if input.base64 { 2 } else { 6 })
}

impl Signature<'_> {
    /// Most bytes that an honest request to this model needs, in any form.
    pub(crate) fn request_max_bytes(&self) -> usize {
        self.inputs.iter().fold(REQUEST_HEAD_MAX_BYTES, |n, t| {
            let element = written_bytes(t).saturating_add(ELEMENT_MAX_BYTES);
            n.saturating_add(t.spec.elements().saturating_mul(element))
        })
    }
}

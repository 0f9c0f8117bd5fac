//! The messages of `inference.GRPCInferenceService`, the gRPC flavour of the Open Inference Protocol v2:
//! values in, values out.
//!
//! Read and written here, field by field: a general decoder makes large structures of a few hostile bytes,
//! and copies what need not be copied. A field that is not known is skipped, as protocol buffers have it.

pub(super) mod contents;
pub(super) mod message;
pub(super) mod wire;

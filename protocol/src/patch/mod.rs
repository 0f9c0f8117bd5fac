//! Patches that know tensors: a new model as its difference to an installed one.
//!
//! [`apply`] rebuilds the new file from the old one and a patch, as a stream and in bounded
//! memory. [`make`] writes the patch: it takes both ONNX files apart, pairs their tensors and codes
//! each in the way that turned out smallest. `docs/patch-format.md` describes the bytes.
//!
//! A patch is not signed and never trusted. Whoever applies one checks the result against the
//! signed length and SHA-256 before anything else sees it.
//!
//! * `decode`: from patch and old file to new file.
//! * `encode`: from old and new file to patch; plans with `onnx`, `pairing` and `choose`.
//! * `planes`: numbers to byte planes and back.
//! * `wire`: integers, heads of segments, codings.
//! * `zstandard`: the only file that names zstd.

mod assemble;
mod choose;
mod decode;
mod encode;
mod error;
mod onnx;
mod pairing;
mod planes;
#[cfg(test)]
mod tests;
mod wire;
mod zstandard;

use std::io::Cursor;

pub use decode::{Applied, Limits, apply};
pub use encode::{Made, MakeError, Options, Share, make};
pub use error::PatchError;

/// First bytes of every patch; the digit is the format's version.
pub const MAGIC: [u8; 4] = *b"DLP1";

/// Most bytes of the new file that one block gives.
pub const BLOCK_MAX_BYTES: usize = 2 << 20;

/// Most bytes of the old file that one zstd frame may refer to.
pub const PREFIX_MAX_BYTES: usize = 4 << 20;

/// Longest description of a block's segments, in bytes.
pub const CONTROL_MAX_BYTES: usize = 16 << 10;

/// Most bytes that the scales of a block's tensors take.
pub const SCALES_MAX_BYTES: usize = 256 << 10;

/// Bytes of the old file that may be read for a new file of `target_bytes`: hostile patches could
/// else read the old file over and over.
#[must_use]
pub fn base_read_max_bytes(target_bytes: u64) -> u64 {
    target_bytes.saturating_mul(8).saturating_add(8 << 20)
}

/// Mode of a patch that is one zstd frame with the whole old file as its prefix.
const MODE_WHOLE: u8 = 1;
/// Mode of a patch made of records.
const MODE_RECORDS: u8 = 2;

/// Reads patch bytes of any kind against a small fixed old file and drops the result: the entry
/// for fuzzing. Panics and unbounded work are the only ways to fail.
pub fn fuzz_apply(patch: &[u8]) {
    let base: Vec<u8> = (0..4096_u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let limits = Limits {
        target_max_bytes: 1 << 20,
    };
    let mut rest = patch;
    let _ = apply(
        &mut Cursor::new(base),
        &mut rest,
        &mut std::io::sink(),
        &limits,
    );
}

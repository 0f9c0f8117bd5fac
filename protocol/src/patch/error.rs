//! Why a patch gives no file.

use super::MAGIC;
use std::io::Error;

/// Why a patch gives no file. What was written to the output by then is worthless.
///
/// For the caller there are three cases: [`PatchError::Output`] and [`PatchError::Base`] are the
/// device's own disk, [`PatchError::Patch`] is the place the patch is read from, and every other
/// error says that these bytes are no patch for this old file ([`PatchError::is_patch_at_fault`]):
/// fetching it again is useless, fetch the full file.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The old file cannot be read.
    #[error("patch: the old file cannot be read: {0}")]
    Base(Error),
    /// The patch cannot be read.
    #[error("patch: cannot be read: {0}")]
    Patch(Error),
    /// The new file cannot be written.
    #[error("patch: the new file cannot be written: {0}")]
    Output(Error),
    /// Not a patch, or of another version.
    #[error("patch: begins with {got:02x?}, expected {MAGIC:02x?}")]
    Magic {
        /// The first bytes.
        got: [u8; 4],
    },
    /// The patch ends where more must follow.
    #[error("patch: ends at byte {at}, in the middle of {what}")]
    Truncated {
        /// Offset in the patch.
        at: u64,
        /// What was read.
        what: &'static str,
    },
    /// The new file is complete and the patch goes on.
    #[error("patch: goes on at byte {at}, where the new file is complete")]
    Trailing {
        /// Offset in the patch.
        at: u64,
    },
    /// A number that means nothing here.
    #[error("patch: byte {at}: {what} {got} is unknown")]
    Unknown {
        /// Offset in the patch.
        at: u64,
        /// Which number.
        what: &'static str,
        /// Its value.
        got: u64,
    },
    /// A length beyond its limit.
    #[error("patch: byte {at}: {what} is {got}, at most {max} may be")]
    TooLarge {
        /// Offset in the patch.
        at: u64,
        /// Which length.
        what: &'static str,
        /// Limit.
        max: u64,
        /// Value found.
        got: u64,
    },
    /// A reference beyond the old file.
    #[error(
        "patch: byte {at}: refers to {length} bytes at {offset} of the old file, which has {base_bytes}"
    )]
    BaseRange {
        /// Offset in the patch.
        at: u64,
        /// Offset in the old file.
        offset: i128,
        /// Length in bytes.
        length: u64,
        /// Length of the old file in bytes.
        base_bytes: u64,
    },
    /// A compressed part that is damaged or has another length than declared.
    #[error("patch: before byte {at}: {what}: {problem}")]
    Frame {
        /// Offset in the patch where the part ends.
        at: u64,
        /// Which part.
        what: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
}

impl PatchError {
    /// Whether the bytes of the patch are at fault, so that reading them again cannot help.
    #[must_use]
    pub fn is_patch_at_fault(&self) -> bool {
        !matches!(self, Self::Base(_) | Self::Patch(_) | Self::Output(_))
    }
}

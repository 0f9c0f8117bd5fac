//! Files over MQTT, block by block, for networks that let nothing else through.
//!
//! The device asks on channel `fetch` with a [`Request`] (JSON) and is answered on `block` with an
//! [`Answer`] (binary). Every answer stands for itself: any server of the fleet can give it, and it
//! may be lost, late, doubled or out of order. Nothing here is trusted: what the blocks add up to is
//! verified like every other download.
//!
//! ```text
//! offset bytes
//!  0     4     "DBK1"
//!  4     1     kind: 0 data, 1 absent, 2 busy, 3 failed
//!  5     3     zero
//!  8     8     id of the request
//! 16     8     data: offset of the first byte · busy: milliseconds to wait · else zero
//! 24     8     data: length of the whole file · else zero
//! 32     8     data: first eight bytes of its SHA-256, against damage on the way · else zero
//! 40     …     the data, at most 65,536 bytes
//! ```
//! Numbers are big-endian.

use crate::id::Digest;
use crate::repository::RepositoryFile;
use serde::{Deserialize, Serialize};

/// Most data in one block, in bytes.
pub const BLOCK_MAX_BYTES: usize = 64 * 1024;
/// Longest answer on the wire, in bytes.
pub const ANSWER_MAX_BYTES: usize = HEADER_BYTES + BLOCK_MAX_BYTES;
/// Longest request on the wire, in bytes.
pub const REQUEST_MAX_BYTES: usize = 1024;
/// Content type of an answer.
pub const ANSWER_CONTENT_TYPE: &str = "application/octet-stream";

const HEADER_BYTES: usize = 40;
const MAGIC: [u8; 4] = *b"DBK1";

/// Asks for a block (channel `fetch`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Request {
    /// Comes back in the answer; the device's own, of no meaning to the server.
    pub id: u64,
    /// The file, by its path in the repository.
    pub file: RepositoryFile,
    /// First byte wanted.
    pub offset: u64,
    /// Bytes wanted, 1 to [`BLOCK_MAX_BYTES`]; fewer come only at the file's end.
    pub length: u32,
}

/// What a server says to a request (channel `block`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The bytes asked for, cut at the file's end; none if the offset is there or beyond.
    Data {
        /// As asked.
        offset: u64,
        /// Length of the whole file, in bytes.
        total: u64,
        /// At most [`BLOCK_MAX_BYTES`].
        bytes: Vec<u8>,
    },
    /// There is no such file.
    Absent,
    /// Too much was asked for in too short a time.
    Busy {
        /// Ask again after this time.
        retry_after_ms: u64,
    },
    /// The server could not read it; asking later may help.
    Failed,
}

/// Why bytes are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Shorter than a header, or longer than the largest block.
    #[error("block: {got} bytes, expected {HEADER_BYTES} to {ANSWER_MAX_BYTES}")]
    Length {
        /// Length found.
        got: usize,
    },
    /// Not this format, or not this version of it.
    #[error("block: {field} is {got}, expected {expected}")]
    Header {
        /// The part that is wrong.
        field: &'static str,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// The data are not those that the header was made for.
    #[error("block: data do not match their checksum")]
    Damaged,
}

impl Answer {
    /// As it goes over the wire, for the request of this id.
    ///
    /// # Errors
    /// More data than a block may have.
    pub fn encode(&self, id: u64) -> Result<Vec<u8>, BlockError> {
        let (kind, first, second, data): (u8, u64, u64, &[u8]) = match self {
            Self::Data {
                offset,
                total,
                bytes,
            } => (0, *offset, *total, bytes),
            Self::Absent => (1, 0, 0, &[]),
            Self::Busy { retry_after_ms } => (2, *retry_after_ms, 0, &[]),
            Self::Failed => (3, 0, 0, &[]),
        };
        let got = HEADER_BYTES + data.len();
        if got > ANSWER_MAX_BYTES {
            return Err(BlockError::Length { got });
        }
        let mut out = Vec::with_capacity(got);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[kind, 0, 0, 0]);
        for number in [id, first, second] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&checksum(kind, data));
        out.extend_from_slice(data);
        Ok(out)
    }

    /// Reads an answer and the id of its request.
    ///
    /// # Errors
    /// Not an answer, or damaged on the way.
    pub fn decode(message: &[u8]) -> Result<(u64, Self), BlockError> {
        let got = message.len();
        if !(HEADER_BYTES..=ANSWER_MAX_BYTES).contains(&got) {
            return Err(BlockError::Length { got });
        }
        let (header, data) = message.split_at(HEADER_BYTES);
        let bad = |field, expected, got: String| BlockError::Header {
            field,
            expected,
            got,
        };
        if header[..4] != MAGIC {
            return Err(bad("magic", "DBK1", hex::encode(&header[..4])));
        }
        if header[5..8] != [0; 3] {
            return Err(bad("reserved", "zero", hex::encode(&header[5..8])));
        }
        let (kind, id) = (header[4], number(header, 8));
        let (first, second) = (number(header, 16), number(header, 24));
        if header[32..40] != checksum(kind, data) {
            return Err(BlockError::Damaged);
        }
        if kind != 0 && !data.is_empty() {
            return Err(bad("data", "none", format!("{} bytes", data.len())));
        }
        let answer = match kind {
            0 => {
                let end = first.checked_add(data.len() as u64);
                if end.is_none_or(|end| end > second && !data.is_empty()) {
                    let got = format!("{} bytes at {first} of {second}", data.len());
                    return Err(bad("data", "within the file", got));
                }
                Self::Data {
                    offset: first,
                    total: second,
                    bytes: data.to_vec(),
                }
            }
            1 => Self::Absent,
            2 => Self::Busy {
                retry_after_ms: first,
            },
            3 => Self::Failed,
            other => return Err(bad("kind", "0 to 3", other.to_string())),
        };
        Ok((id, answer))
    }
}

fn number(header: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_be_bytes(bytes)
}

fn checksum(kind: u8, data: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    if kind == 0 {
        sum.copy_from_slice(&Digest::of(data).as_bytes()[..8]);
    }
    sum
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(offset: u64, total: u64, bytes: &[u8]) -> Answer {
        Answer::Data {
            offset,
            total,
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn every_answer_survives_the_round_trip() {
        for answer in [
            data(7, 10, b"abc"),
            data(10, 10, b""),
            data(99, 10, b""),
            Answer::Absent,
            Answer::Busy {
                retry_after_ms: 250,
            },
            Answer::Failed,
        ] {
            let bytes = answer.encode(42).unwrap();
            assert_eq!(Answer::decode(&bytes).unwrap(), (42, answer));
        }
    }

    #[test]
    fn the_format_is_as_it_is_drawn() {
        let bytes = data(258, 300, b"abc").encode(1).unwrap();
        assert_eq!(&bytes[..8], b"DBK1\0\0\0\0");
        assert_eq!(bytes[8..16], 1_u64.to_be_bytes());
        assert_eq!(bytes[16..24], 258_u64.to_be_bytes());
        assert_eq!(bytes[24..32], 300_u64.to_be_bytes());
        assert_eq!(hex::encode(&bytes[32..40]), "ba7816bf8f01cfea");
        assert_eq!(&bytes[40..], b"abc");
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let whole = data(0, 9, b"abcdefghi").encode(1).unwrap();
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            Answer::decode(&bytes).unwrap_err()
        };
        assert_eq!(refused(&|b| b.truncate(39)), BlockError::Length { got: 39 });
        assert_eq!(refused(&|b| b[44] ^= 1), BlockError::Damaged);
        assert_eq!(refused(&|b| b.truncate(48)), BlockError::Damaged);
        let field = |e| match e {
            BlockError::Header { field, .. } => field,
            other => panic!("{other}"),
        };
        assert_eq!(field(refused(&|b| b[0] = b'X')), "magic");
        assert_eq!(field(refused(&|b| b[6] = 1)), "reserved");
        assert_eq!(field(refused(&|b| b[31] = 8)), "data");
        assert_eq!(field(refused(&|b| b[16] = 0xff)), "data");
        let mut absent = Answer::Absent.encode(1).unwrap();
        absent[4] = 9;
        assert_eq!(field(Answer::decode(&absent).unwrap_err()), "kind");
        let long = data(0, 1 << 20, &vec![0; BLOCK_MAX_BYTES + 1]);
        assert!(long.encode(1).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), real in any::<bool>()) {
            let mut message = if real { b"DBK1\0\0\0\0".to_vec() } else { Vec::new() };
            message.extend(bytes);
            if let Ok((id, answer)) = Answer::decode(&message) {
                let again = answer.encode(id).unwrap();
                prop_assert_eq!(Answer::decode(&again).unwrap(), (id, answer));
            }
        }
    }
}

//! How many different values there were, without keeping one: HyperLogLog (Flajolet, Fusy, Gandouet &
//! Meunier 2007) with O. Ertl's estimator ("New cardinality estimation algorithms for HyperLogLog
//! sketches", 2017), which needs no table of corrections.
//!
//! A value's hash is the first 64 bits of its bytes' SHA-256, so it is the same in every release and on
//! every machine, and no secret goes into it: whoever chooses the values can choose what is counted.
//! Its first 10 bits say which of 1024 registers, and the register keeps the largest rank seen: one more
//! than the zeros that the other 54 bits begin with. Merging takes the larger of each two, so any
//! partition in any order gives the same sketch, and the same one twice changes nothing.
//!
//! On the wire a sketch is base64 (standard, no padding) of a byte that says the form and what follows:
//! 1, a big-endian 16-bit number `register·64 + rank` for each register that is not empty, rising; 2, all
//! registers, 6 bits each, the most significant first (768 bytes). A sender writes the shorter.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bits of the hash that say which register.
const INDEX_BITS: u32 = 10;
/// Registers.
const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of a register.
const RANK_BITS: u32 = 6;
/// Largest rank: all other bits of the hash are zero.
const RANK_MAX: u8 = 64 - 10 + 1;
const RANK_MASK: u16 = (1 << RANK_BITS) - 1;
const SPARSE: u8 = 1;
const DENSE: u8 = 2;
const DENSE_BYTES: usize = REGISTERS * 6 / 8;
/// Longest text of a sketch on the wire.
pub const TEXT_MAX_BYTES: usize = ((1 + DENSE_BYTES) * 4).div_ceil(3);
/// Standard error of an estimate of thousands or more, as a share of it: 1.04/√1024. Smaller ones are
/// closer.
pub const STANDARD_ERROR: f64 = 0.0325;

/// Why a text is no sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DistinctError {
    /// Longer than any.
    #[error("sketch: expected at most {TEXT_MAX_BYTES} bytes, got {got}")]
    Length {
        /// Bytes found.
        got: usize,
    },
    /// Not base64 without padding.
    #[error("sketch: {0}")]
    Base64(String),
    /// Of no known form, or with too many or too few bytes for it.
    #[error(
        "sketch: form {form:?} with {bytes} bytes: expected 1 with pairs or 2 with {DENSE_BYTES}"
    )]
    Form {
        /// The first byte.
        form: Option<u8>,
        /// Bytes after it.
        bytes: usize,
    },
    /// A register that comes twice, or not in its turn, or a rank that no hash has.
    #[error(
        "sketch: register {register} with rank {rank}: expected rising registers, and ranks 1 to {RANK_MAX}"
    )]
    Register {
        /// Which register.
        register: u16,
        /// Its rank.
        rank: u8,
    },
}

/// A sketch of different values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Distinct {
    /// `register·64 + rank` of each that is not empty, rising.
    registers: Vec<u16>,
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Distinct {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Distinct".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "maxLength": TEXT_MAX_BYTES,
            "contentEncoding": "base64",
            "description": "HyperLogLog of 1024 registers: base64 without padding of a byte and, if it is 1, a big-endian 16-bit number register*64+rank for each register that is not empty, rising; if it is 2, all registers, 6 bits each.",
        })
    }
}

/// The hash that a value is counted by.
#[must_use]
pub fn hash(value: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(value).into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl Distinct {
    /// Counts a value by its [`hash`].
    pub fn add(&mut self, hash: u64) {
        #[allow(clippy::cast_possible_truncation, reason = "ten bits, and at most 55")]
        let (register, rank) = (
            (hash >> (u64::BITS - INDEX_BITS)) as u16,
            ((hash << INDEX_BITS)
                .leading_zeros()
                .min(u64::BITS - INDEX_BITS)
                + 1) as u16,
        );
        self.raise((register << RANK_BITS) | rank);
    }

    fn raise(&mut self, entry: u16) {
        let register = |entry: u16| entry >> RANK_BITS;
        match self
            .registers
            .binary_search_by_key(&register(entry), |kept| register(*kept))
        {
            Ok(at) => self.registers[at] = self.registers[at].max(entry),
            Err(at) => self.registers.insert(at, entry),
        }
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        if self.registers.is_empty() {
            self.registers.clone_from(&other.registers);
            return;
        }
        other.registers.iter().for_each(|entry| self.raise(*entry));
    }

    /// Registers that are not empty: at most as many as values were counted.
    #[must_use]
    pub fn filled(&self) -> usize {
        self.registers.len()
    }

    /// The largest rank, 0 without any value: of n values it is beyond log₂ n + r with a probability of
    /// about 2⁻ʳ.
    #[must_use]
    pub fn rank_max(&self) -> u8 {
        self.ranks().max().unwrap_or(0)
    }

    fn ranks(&self) -> impl Iterator<Item = u8> + '_ {
        #[allow(clippy::cast_possible_truncation, reason = "six bits")]
        self.registers.iter().map(|entry| (entry & RANK_MASK) as u8)
    }

    /// About how many different values were counted (Ertl 2017, algorithm 6); its standard error is at most
    /// about [`STANDARD_ERROR`] of it.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "at most 1024")]
    pub fn estimate(&self) -> f64 {
        if self.registers.is_empty() {
            return 0.0;
        }
        let mut of_rank = [0_usize; RANK_MAX as usize + 1];
        self.ranks()
            .for_each(|rank| of_rank[usize::from(rank)] += 1);
        of_rank[0] = REGISTERS - self.registers.len();
        let m = REGISTERS as f64;
        let last = usize::from(RANK_MAX);
        let mut z = m * tau(1.0 - of_rank[last] as f64 / m);
        for count in of_rank[1..last].iter().rev() {
            z = 0.5 * (z + *count as f64);
        }
        z += m * sigma(of_rank[0] as f64 / m);
        m * m / (2.0 * std::f64::consts::LN_2 * z)
    }
}

/// x + Σ x^(2^k)·2^(k−1), k from 1.
fn sigma(mut x: f64) -> f64 {
    if x >= 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z <= before {
            return z;
        }
    }
}

/// (1 − x − Σ (1−x^(2^−k))²·2^(−k))/3, k from 1.
fn tau(mut x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x).powi(2) * y;
        if z >= before {
            return z / 3.0;
        }
    }
}

impl Distinct {
    /// The shorter of its two forms: a byte that says which, and what follows.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![SPARSE];
        if self.registers.len() * 2 <= DENSE_BYTES {
            let entries = self.registers.iter();
            bytes.extend(entries.flat_map(|entry| entry.to_be_bytes()));
            return bytes;
        }
        bytes = vec![DENSE];
        let mut ranks = [0_u8; REGISTERS];
        for (entry, rank) in self.registers.iter().zip(self.ranks()) {
            ranks[usize::from(entry >> RANK_BITS)] = rank;
        }
        for four in ranks.chunks_exact(4) {
            let bits = four
                .iter()
                .fold(0_u32, |bits, rank| (bits << RANK_BITS) | u32::from(*rank));
            bytes.extend(&bits.to_be_bytes()[1..]);
        }
        bytes
    }

    /// Reads either form.
    ///
    /// # Errors
    /// Neither, or registers that no values leave behind.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DistinctError> {
        let (form, rest) = bytes
            .split_first()
            .map_or((None, &[][..]), |(form, rest)| (Some(*form), rest));
        let registers: Vec<u16> = match form {
            Some(SPARSE) if rest.len() % 2 == 0 && rest.len() <= 2 * REGISTERS => {
                let pairs = rest.as_chunks::<2>().0;
                pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect()
            }
            Some(DENSE) if rest.len() == DENSE_BYTES => dense(rest),
            _ => {
                let bytes = rest.len();
                return Err(DistinctError::Form { form, bytes });
            }
        };
        let mut after = None;
        for entry in &registers {
            let register = entry >> RANK_BITS;
            let rank = (entry & RANK_MASK).to_be_bytes()[1];
            if !(1..=RANK_MAX).contains(&rank) || after.is_some_and(|last| register <= last) {
                return Err(DistinctError::Register { register, rank });
            }
            after = Some(register);
        }
        Ok(Self { registers })
    }
}

impl From<Distinct> for String {
    fn from(sketch: Distinct) -> Self {
        STANDARD_NO_PAD.encode(sketch.to_bytes())
    }
}

impl TryFrom<String> for Distinct {
    type Error = DistinctError;

    fn try_from(text: String) -> Result<Self, DistinctError> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(DistinctError::Length { got: text.len() });
        }
        let bytes = STANDARD_NO_PAD.decode(&text);
        Self::from_bytes(&bytes.map_err(|e| DistinctError::Base64(e.to_string()))?)
    }
}

/// Entries of the registers that are not empty.
fn dense(bytes: &[u8]) -> Vec<u16> {
    let fours = bytes.as_chunks::<3>().0.iter().flat_map(|[a, b, c]| {
        let bits = u32::from_be_bytes([0, *a, *b, *c]);
        [18, 12, 6, 0].map(|shift| bits >> shift)
    });
    #[allow(clippy::cast_possible_truncation, reason = "six bits")]
    let ranks = fours.map(|bits| bits as u16 & RANK_MASK);
    let entries = (0_u16..).zip(ranks).filter(|(_, rank)| *rank > 0);
    entries
        .map(|(register, rank)| (register << RANK_BITS) | rank)
        .collect()
}

#[cfg(test)]
#[path = "distinct/tests.rs"]
mod tests;

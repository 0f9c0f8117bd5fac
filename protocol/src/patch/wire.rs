//! Integers, heads of segments and codings, as bytes.
//!
//! Integers are LEB128: seven bits a byte, least significant first, the high bit set on all but
//! the last. Signed ones are folded first: 0, -1, 1, -2 become 0, 1, 2, 3.

/// Most bytes an integer has.
const VARINT_MAX_BYTES: usize = 10;

/// Appends an integer.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed integer.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Undoes the folding of signed integers.
pub(super) fn unfold(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

/// Why bytes are no integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadVarint<E> {
    /// Longer than 64 bits.
    TooLong,
    /// The bytes end or cannot be read.
    Source(E),
}

/// Reads an integer byte by byte.
pub(super) fn varint<E>(mut byte: impl FnMut() -> Result<u8, E>) -> Result<u64, BadVarint<E>> {
    let mut value = 0_u64;
    for index in 0..VARINT_MAX_BYTES {
        let next = byte().map_err(BadVarint::Source)?;
        let bits = u64::from(next & 0x7f);
        if index == VARINT_MAX_BYTES - 1 && bits > 1 {
            return Err(BadVarint::TooLong);
        }
        value |= bits << (7 * index);
        if next < 0x80 {
            return Ok(value);
        }
    }
    Err(BadVarint::TooLong)
}

/// Integers from a slice.
#[derive(Debug, Clone)]
pub(super) struct Slice<'a> {
    rest: &'a [u8],
}

impl<'a> Slice<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        varint(|| self.byte().ok_or(())).ok()
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        self.varint().map(unfold)
    }

    pub(super) fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(taken)
    }
}

/// How a number of the new tensor relates to the same of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relation {
    /// It stands alone.
    Alone,
    /// Bits that differ.
    Xor,
    /// Difference, folded.
    Difference,
}

/// How the numbers of a tensor are coded: one class of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Coding {
    /// Bytes of a number: 1, 2, 4 or 8.
    pub(super) width: usize,
    /// Relation to the old tensor.
    pub(super) relation: Relation,
    /// Floats (sign and magnitude) are mapped to integers in their order first.
    pub(super) is_ordered: bool,
    /// Numbers are sorted by the old number's magnitude shifted right so many bits.
    pub(super) sort_shift: Option<u8>,
}

impl Coding {
    /// The numbers as they are.
    pub(super) const fn alone(width: usize) -> Self {
        Self {
            width,
            relation: Relation::Alone,
            is_ordered: false,
            sort_shift: None,
        }
    }

    const IS_ORDERED: u8 = 1 << 4;
    const IS_SORTED: u8 = 1 << 5;

    pub(super) fn put(self, out: &mut Vec<u8>) {
        let mut byte = (self.width.ilog2() as u8) | (self.relation as u8) << 2;
        if self.is_ordered {
            byte |= Self::IS_ORDERED;
        }
        if self.sort_shift.is_some() {
            byte |= Self::IS_SORTED;
        }
        out.push(byte);
        out.extend(self.sort_shift);
    }

    /// Reads a coding; `Err` with the byte that means nothing, or `None` where bytes end.
    pub(super) fn read(from: &mut Slice<'_>) -> Result<Self, Option<u8>> {
        let byte = from.byte().ok_or(None)?;
        let width = 1_usize << (byte & 3);
        let relation = match byte >> 2 & 3 {
            0 => Relation::Alone,
            1 => Relation::Xor,
            2 => Relation::Difference,
            _ => return Err(Some(byte)),
        };
        let is_ordered = byte & Self::IS_ORDERED != 0;
        let is_sorted = byte & Self::IS_SORTED != 0;
        let is_alone = relation == Relation::Alone;
        if byte >> 6 != 0 || is_alone && (is_ordered || is_sorted) {
            return Err(Some(byte));
        }
        let mut coding = Self {
            width,
            relation,
            is_ordered,
            sort_shift: None,
        };
        if is_sorted {
            let shift = from.byte().ok_or(None)?;
            if !coding.may_sort_by(shift) {
                return Err(Some(shift));
            }
            coding.sort_shift = Some(shift);
        }
        Ok(coding)
    }

    /// Whether a magnitude shifted so far fits a byte and has bits left.
    pub(super) fn may_sort_by(self, shift: u8) -> bool {
        let magnitude_bits = self.width * 8 - 1;
        let shift = usize::from(shift);
        shift < magnitude_bits && magnitude_bits - shift <= 8
    }
}

/// Kinds of segments, in the lowest two bits of their heads.
pub(super) mod kind {
    pub(in super::super) const COPY: u64 = 0;
    pub(in super::super) const LITERAL: u64 = 1;
    pub(in super::super) const PAIRED: u64 = 2;
    pub(in super::super) const ALONE: u64 = 3;
}

/// How a stream of known length is stored.
pub(super) mod method {
    pub(in super::super) const ZERO: u8 = 0;
    pub(in super::super) const STORED: u8 = 1;
    pub(in super::super) const ZSTD: u8 = 2;
    /// zstd over groups of 4, 2 or 1 bits, for planes: the bits of a group are 8 >> (method - 2).
    pub(in super::super) const ZSTD_NIBBLES: u8 = 3;
    pub(in super::super) const ZSTD_BITS: u8 = 5;
}

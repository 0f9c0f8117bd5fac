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
    /// Difference of integers, folded.
    Difference,
    /// The same after floats (sign and magnitude) are mapped to integers in their order.
    FloatDifference,
}

/// How the numbers of a tensor are coded: one class of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Coding {
    /// Bytes of a number: 1, 2, 4 or 8.
    pub(super) width: usize,
    /// Relation to the old tensor.
    pub(super) relation: Relation,
    /// Residuals leave out their leading zero bytes; how many are left is a plane of its own.
    pub(super) is_sized: bool,
    /// What the expected size of a residual, by which they are sorted, is worked out from.
    pub(super) sort: Sort,
}

/// What the expected size of a residual depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Sort {
    /// On the old number's exponent: its magnitude shifted right so many bits.
    pub(super) exponent_shift: Option<u8>,
    /// On its column's scale.
    pub(super) has_columns: bool,
    /// On its row's scale.
    pub(super) has_rows: bool,
}

impl Sort {
    /// Whether residuals are sorted at all.
    pub(super) fn is_any(self) -> bool {
        self.exponent_shift.is_some() || self.has_scales()
    }

    /// Whether scales belong to the tensor.
    pub(super) fn has_scales(self) -> bool {
        self.has_columns || self.has_rows
    }
}

impl Coding {
    /// The numbers as they are.
    pub(super) const fn alone(width: usize) -> Self {
        Self {
            width,
            relation: Relation::Alone,
            is_sized: false,
            sort: Sort {
                exponent_shift: None,
                has_columns: false,
                has_rows: false,
            },
        }
    }

    const IS_SIZED: u8 = 1 << 4;
    const HAS_EXPONENT: u8 = 1 << 5;
    const HAS_COLUMNS: u8 = 1 << 6;
    const HAS_ROWS: u8 = 1 << 7;

    pub(super) fn put(self, out: &mut Vec<u8>) {
        let flags = [
            (self.is_sized, Self::IS_SIZED),
            (self.sort.exponent_shift.is_some(), Self::HAS_EXPONENT),
            (self.sort.has_columns, Self::HAS_COLUMNS),
            (self.sort.has_rows, Self::HAS_ROWS),
        ];
        let byte = (self.width.ilog2() as u8) | (self.relation as u8) << 2;
        let set = flags.iter().filter(|(is_set, _)| *is_set);
        out.push(set.fold(byte, |byte, (_, flag)| byte | flag));
        out.extend(self.sort.exponent_shift);
    }

    /// Reads a coding; `Err` with the byte that means nothing, or `None` where bytes end.
    pub(super) fn read(from: &mut Slice<'_>) -> Result<Self, Option<u8>> {
        let byte = from.byte().ok_or(None)?;
        let relation = match byte >> 2 & 3 {
            0 => Relation::Alone,
            1 => Relation::Xor,
            2 => Relation::Difference,
            _ => Relation::FloatDifference,
        };
        if relation == Relation::Alone && byte >> 4 != 0 {
            return Err(Some(byte));
        }
        let mut coding = Self {
            width: 1 << (byte & 3),
            relation,
            is_sized: byte & Self::IS_SIZED != 0,
            sort: Sort {
                exponent_shift: None,
                has_columns: byte & Self::HAS_COLUMNS != 0,
                has_rows: byte & Self::HAS_ROWS != 0,
            },
        };
        if byte & Self::HAS_EXPONENT != 0 {
            let shift = from.byte().ok_or(None)?;
            if !coding.may_sort_by(shift) {
                return Err(Some(shift));
            }
            coding.sort.exponent_shift = Some(shift);
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

/// A tensor, or a part of it, as rows and columns of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Numbers in a row.
    pub(super) row_length: usize,
    /// Column of the first number.
    pub(super) first_column: usize,
}

impl Grid {
    /// One row that never ends.
    pub(super) const FLAT: Self = Self {
        row_length: usize::MAX,
        first_column: 0,
    };

    /// How many column and row scales `count` numbers have under a coding.
    pub(super) fn scales(self, sort: Sort, count: usize) -> (usize, usize) {
        let columns = if sort.has_columns { self.row_length } else { 0 };
        let rows = (self.first_column + count).div_ceil(self.row_length);
        (columns, if sort.has_rows { rows } else { 0 })
    }
}

/// Most streams that one plane has.
pub(super) const PARTS_MAX: u64 = 256;

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
    /// Several streams one after the other, for planes.
    pub(in super::super) const PARTS: u8 = 6;
}

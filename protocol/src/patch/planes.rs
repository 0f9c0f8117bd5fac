//! Numbers to byte planes and back.
//!
//! Plane `p` holds byte `p` (least significant first) of every number's residual. Where a coding
//! sorts, all planes hold the residuals in the order of their expected sizes, so that those of like
//! size stand together and share a Huffman table. The expected size is worked out from the old
//! numbers, which both sides have, and from a scale for each row and column of the tensor.
//!
//! Where a coding is sized, a first plane says how many bytes of each residual are not leading
//! zeros, and the others hold those bytes only.

use super::wire::{Coding, Grid, Relation};

/// Expected sizes are 0 to 255.
pub(super) const KEYS: usize = 256;
/// A row scale that changes nothing.
pub(super) const ROW_NEUTRAL: u8 = 128;
/// A column scale where there are none.
const COLUMN_NEUTRAL: i32 = 255;

/// Numbers of one class, consecutive in the file, with the scales that belong to them.
#[derive(Debug)]
pub(super) struct Part<'a, B> {
    pub(super) numbers: B,
    pub(super) grid: Grid,
    /// For each column of the grid, or none.
    pub(super) columns: &'a [u8],
    /// For each row of the grid, or none.
    pub(super) rows: &'a [u8],
}

/// Appends the expected sizes of a row's residuals, given the old numbers' exponents.
fn row_keys(exponents: impl Iterator<Item = u8>, columns: &[u8], row: u8, keys: &mut Vec<u8>) {
    let shift = i32::from(row) - i32::from(ROW_NEUTRAL);
    let key = |exponent: u8, column: i32| match (column, row) {
        (0, _) | (_, 0) => 0,
        _ => (column + shift - i32::from(exponent)).clamp(1, 255) as u8,
    };
    if columns.is_empty() {
        keys.extend(exponents.map(|exponent| key(exponent, COLUMN_NEUTRAL)));
    } else {
        let columns = columns.iter().map(|column| i32::from(*column));
        keys.extend(exponents.zip(columns).map(|(e, column)| key(e, column)));
    }
}

fn load<const W: usize>(bytes: &[u8; W]) -> u64 {
    let mut wide = [0_u8; 8];
    for (wide, byte) in wide.iter_mut().zip(bytes) {
        *wide = *byte;
    }
    u64::from_le_bytes(wide)
}

fn store<const W: usize>(number: u64) -> [u8; W] {
    let wide = number.to_le_bytes();
    std::array::from_fn(|at| wide[at])
}

/// Numbers in a slice; a rest that is none is left out.
fn numbers<const W: usize>(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<W>().0.iter().map(load)
}

/// A coding with its constants worked out, for numbers of `W` bytes.
struct Numbers<const W: usize> {
    coding: Coding,
}

impl<const W: usize> Numbers<W> {
    const BITS: u32 = W as u32 * 8;
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    const SIGN: u64 = 1 << (Self::BITS - 1);

    /// Sign and magnitude to an integer in the floats' order.
    fn order(x: u64) -> u64 {
        match x & Self::SIGN {
            0 => x | Self::SIGN,
            _ => !x & Self::MASK,
        }
    }

    fn unorder(x: u64) -> u64 {
        match x & Self::SIGN {
            0 => !x & Self::MASK,
            _ => x & !Self::SIGN,
        }
    }

    fn fold(difference: u64) -> u64 {
        let d = difference & Self::MASK;
        let sign = if d & Self::SIGN == 0 { 0 } else { Self::MASK };
        (d << 1 & Self::MASK) ^ sign
    }

    fn unfold(folded: u64) -> u64 {
        let sign = if folded & 1 == 0 { 0 } else { Self::MASK };
        folded >> 1 ^ sign
    }

    fn residual(relation: Relation, old: u64, new: u64) -> u64 {
        match relation {
            Relation::Alone => new,
            Relation::Xor => new ^ old,
            Relation::Difference => Self::fold(new.wrapping_sub(old)),
            Relation::FloatDifference => {
                Self::fold(Self::order(new).wrapping_sub(Self::order(old)))
            }
        }
    }

    fn restore(relation: Relation, old: u64, residual: u64) -> u64 {
        match relation {
            Relation::Alone => residual,
            Relation::Xor => old ^ residual,
            Relation::Difference => old.wrapping_add(Self::unfold(residual)),
            Relation::FloatDifference => {
                let new = Self::order(old).wrapping_add(Self::unfold(residual));
                Self::unorder(new & Self::MASK)
            }
        }
    }

    fn exponent(&self, old: u64) -> u8 {
        let shift = self.coding.sort.exponent_shift;
        shift.map_or(0, |shift| (old & !Self::SIGN) >> shift) as u8
    }

    /// The expected sizes of all residuals; none if they are not sorted.
    fn keys<B: AsRef<[u8]>>(&self, parts: &[Part<'_, B>]) -> Vec<u8> {
        let mut keys = Vec::new();
        if !self.coding.sort.is_any() {
            return keys;
        }
        keys.reserve_exact(parts.iter().map(|p| p.numbers.as_ref().len() / W).sum());
        for part in parts {
            let mut old = part.numbers.as_ref();
            let mut column = part.grid.first_column;
            let mut rows = part.rows.iter();
            while !old.is_empty() {
                let left = (part.grid.row_length - column).saturating_mul(W);
                let (row, rest) = old.split_at(left.min(old.len()));
                let exponents = numbers::<W>(row).map(|old| self.exponent(old));
                let columns = part.columns.get(column..).unwrap_or_default();
                let scale = *rows.next().unwrap_or(&ROW_NEUTRAL);
                row_keys(exponents, columns, scale, &mut keys);
                (old, column) = (rest, 0);
            }
        }
        keys
    }

    /// Where the residuals of each expected size begin.
    fn starts(keys: &[u8]) -> [usize; KEYS] {
        let mut counts = [0; KEYS];
        for key in keys {
            counts[usize::from(*key)] += 1;
        }
        let mut next = 0;
        counts.map(|count| {
            let start = next;
            next += count;
            start
        })
    }

    fn residuals(&self, old: &[u8], new: &[u8], mut put: impl FnMut(u64)) {
        let relation = self.coding.relation;
        let new = numbers::<W>(new);
        match relation {
            Relation::Alone => new.for_each(put),
            _ => {
                let pairs = numbers::<W>(old).zip(new);
                pairs.for_each(|(old, new)| put(Self::residual(relation, old, new)));
            }
        }
    }

    fn split(&self, old: &[Part<'_, &[u8]>], new: &[&[u8]]) -> Vec<Plane> {
        let keys = self.keys(old);
        let starts = Self::starts(&keys);
        let mut residuals = vec![0_u64; new.iter().map(|part| part.len()).sum::<usize>() / W];
        let mut next = starts;
        let mut keys = keys.into_iter();
        for (old, new) in old.iter().zip(new) {
            self.residuals(old.numbers, new, |residual| {
                let next = &mut next[usize::from(keys.next().unwrap_or(0))];
                residuals[*next] = residual;
                *next += 1;
            });
        }
        let is_sized = self.coding.is_sized;
        let length = |residual: &u64| (64 - residual.leading_zeros()).div_ceil(8) as usize;
        let mut planes = Vec::with_capacity(W + 1);
        if is_sized {
            let bytes = residuals.iter().map(|r| length(r) as u8).collect();
            planes.push(Plane { bytes, starts });
        }
        for p in 0..W {
            let is_here = |residual: &u64| !is_sized || length(residual) > p;
            let count = |slice: &[u64]| slice.iter().filter(|r| is_here(r)).count();
            let bytes = residuals.iter().filter(|r| is_here(r));
            let bytes = bytes.map(|r| r.to_le_bytes()[p]).collect();
            let (mut from, mut before) = (0, 0);
            let starts = starts.map(|start| {
                before += count(&residuals[from..start]);
                from = start;
                before
            });
            planes.push(Plane { bytes, starts });
        }
        planes
    }

    /// Where each expected size's residuals begin in every plane of a sized coding.
    fn sized_starts(lengths: &[u8], starts: &[usize; KEYS]) -> Vec<[usize; W]> {
        let mut sum = [0; W];
        let mut from = 0;
        let mut all = Vec::with_capacity(KEYS);
        for start in starts {
            for length in &lengths[from..*start] {
                for before in sum.iter_mut().take(usize::from(*length)) {
                    *before += 1;
                }
            }
            from = *start;
            all.push(sum);
        }
        all
    }

    fn join(&self, lengths: Option<&[u8]>, planes: &[Vec<u8>], parts: &mut [Part<'_, &mut [u8]>]) {
        let keys = self.keys(parts);
        let mut next = Self::starts(&keys);
        let planes: [&[u8]; W] = std::array::from_fn(|p| &planes[p][..]);
        match lengths {
            None => self.join_with(&keys, parts, |key| {
                let at = next[key];
                next[key] += 1;
                load::<W>(&planes.map(|plane| plane[at]))
            }),
            Some(lengths) => {
                let mut nexts = Self::sized_starts(lengths, &next);
                self.join_with(&keys, parts, |key| {
                    let length = lengths[next[key]];
                    next[key] += 1;
                    let mut residual = [0; W];
                    let places = &mut nexts[key];
                    for p in 0..W {
                        if p < usize::from(length) {
                            residual[p] = planes[p][places[p]];
                            places[p] += 1;
                        }
                    }
                    load::<W>(&residual)
                });
            }
        }
    }

    /// Restores every number from the residual that is the next of its expected size.
    fn join_with(
        &self,
        keys: &[u8],
        parts: &mut [Part<'_, &mut [u8]>],
        mut residual: impl FnMut(usize) -> u64,
    ) {
        let relation = self.coding.relation;
        let mut restore = |number: &mut [u8; W], key: u8| {
            let residual = residual(usize::from(key));
            *number = store(Self::restore(relation, load(number), residual));
        };
        let mut keys = keys;
        for part in parts {
            let numbers = part.numbers.as_chunks_mut::<W>().0;
            if let Some((these, rest)) = keys.split_at_checked(numbers.len()) {
                let pairs = numbers.iter_mut().zip(these);
                pairs.for_each(|(number, key)| restore(number, *key));
                keys = rest;
            } else {
                numbers.iter_mut().for_each(|number| restore(number, 0));
            }
        }
    }

    /// Bits of each residual, and the exponent of the old number.
    fn sizes(&self, old: &[u8], new: &[u8]) -> Vec<(i32, i32)> {
        let mut exponents = numbers::<W>(old).map(|old| i32::from(self.exponent(old)));
        let mut sizes = Vec::with_capacity(new.len() / W);
        self.residuals(old, new, |residual| {
            let bits = u64::BITS - residual.leading_zeros();
            sizes.push((bits as i32, exponents.next().unwrap_or(0)));
        });
        sizes
    }
}

/// One byte of every residual that has it.
pub(super) struct Plane {
    pub(super) bytes: Vec<u8>,
    /// Where the residuals of each expected size begin; all zero if they are not sorted.
    pub(super) starts: [usize; KEYS],
}

/// Splits the residuals of `new` to `old` into `coding.width` planes, after the plane of their
/// lengths where the coding is sized. Each new part has as many bytes as its old one, a multiple
/// of the width; without a relation the old ones may be empty.
pub(super) fn split(coding: Coding, old: &[Part<'_, &[u8]>], new: &[&[u8]]) -> Vec<Plane> {
    match coding.width {
        1 => Numbers::<1> { coding }.split(old, new),
        2 => Numbers::<2> { coding }.split(old, new),
        4 => Numbers::<4> { coding }.split(old, new),
        _ => Numbers::<8> { coding }.split(old, new),
    }
}

/// Turns old numbers into new ones, in place. There are `coding.width` planes; each has a byte for
/// every number of the parts or, with `lengths`, for every one that is longer than the plane's
/// index. No length is more than the width.
pub(super) fn join(
    coding: Coding,
    lengths: Option<&[u8]>,
    planes: &[Vec<u8>],
    parts: &mut [Part<'_, &mut [u8]>],
) {
    match coding.width {
        1 => Numbers::<1> { coding }.join(lengths, planes, parts),
        2 => Numbers::<2> { coding }.join(lengths, planes, parts),
        4 => Numbers::<4> { coding }.join(lengths, planes, parts),
        _ => Numbers::<8> { coding }.join(lengths, planes, parts),
    }
}

/// Scales of the columns and rows that a coding asks for: means, over the residuals that are not
/// zero, of their bits and the old number's exponent. Zero stands for a column or row of zeros.
pub(super) fn scales(coding: Coding, grid: Grid, old: &[u8], new: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let sizes = match coding.width {
        1 => Numbers::<1> { coding }.sizes(old, new),
        2 => Numbers::<2> { coding }.sizes(old, new),
        4 => Numbers::<4> { coding }.sizes(old, new),
        _ => Numbers::<8> { coding }.sizes(old, new),
    };
    let (columns, rows) = grid.scales(coding.sort, sizes.len());
    let place = |index: usize| {
        let at = grid.first_column + index;
        (at % grid.row_length, at / grid.row_length)
    };
    let mut sums = vec![(0_i64, 0_i64); columns];
    if columns > 0 {
        for (index, (bits, exponent)) in sizes.iter().enumerate().filter(|(_, s)| s.0 > 0) {
            let sum = &mut sums[place(index).0];
            *sum = (sum.0 + i64::from(bits + exponent), sum.1 + 1);
        }
    }
    let columns = means(&sums, 0);
    let mut sums = vec![(0_i64, 0_i64); rows];
    if rows > 0 {
        for (index, (bits, exponent)) in sizes.iter().enumerate().filter(|(_, s)| s.0 > 0) {
            let (column, row) = place(index);
            let expected = columns
                .get(column)
                .map_or(COLUMN_NEUTRAL, |c| i32::from(*c));
            let sum = &mut sums[row];
            let size = bits + exponent - expected;
            *sum = (sum.0 + i64::from(size), sum.1 + 1);
        }
    }
    (columns, means(&sums, i64::from(ROW_NEUTRAL)))
}

fn means(sums: &[(i64, i64)], neutral: i64) -> Vec<u8> {
    let mean = |(sum, count): &(i64, i64)| match count {
        0 => 0,
        count => {
            let rounded = (2 * sum + count).div_euclid(2 * count);
            (rounded + neutral).clamp(1, 255) as u8
        }
    };
    sums.iter().map(mean).collect()
}

/// Cuts bytes into groups of `bits` (4, 2 or 1): first every byte's lowest group, packed from the
/// low end of each byte, then the next. Each group's run ends on a whole byte.
pub(super) fn cut_groups(plane: &[u8], bits: u32) -> Vec<u8> {
    let per_byte = 8 / bits as usize;
    let mask = (1_u8 << bits) - 1;
    let run = plane.len().div_ceil(per_byte);
    let mut cut = Vec::with_capacity(run * per_byte);
    for group in 0..per_byte as u32 {
        for bytes in plane.chunks(per_byte) {
            let packed = bytes.iter().rev().fold(0_u8, |packed, byte| {
                packed.unbounded_shl(bits) | (byte >> (group * bits) & mask)
            });
            cut.push(packed);
        }
    }
    cut
}

/// Length of `count` bytes cut into groups.
pub(super) fn cut_length(count: usize, bits: u32) -> usize {
    let per_byte = 8 / bits as usize;
    count.div_ceil(per_byte) * per_byte
}

/// Undoes [`cut_groups`]; `cut` has [`cut_length`] bytes.
pub(super) fn join_groups(cut: &[u8], bits: u32, count: usize) -> Vec<u8> {
    match bits {
        4 => join_groups_of::<2>(cut, bits, count),
        2 => join_groups_of::<4>(cut, bits, count),
        _ => join_groups_of::<8>(cut, bits, count),
    }
}

fn join_groups_of<const N: usize>(cut: &[u8], bits: u32, count: usize) -> Vec<u8> {
    let run = count.div_ceil(N);
    // For every packed byte its groups, the lowest first, each in a byte.
    let mask = (1_u64 << bits) - 1;
    let spread: [u64; 256] = std::array::from_fn(|packed| {
        let group = |group: usize| (packed as u64 >> (group as u32 * bits)) & mask;
        (0..N).fold(0, |all, at| all | group(at) << (8 * at))
    });
    let mut plane = vec![0; run * N];
    for (group, packed) in cut.chunks_exact(run.max(1)).enumerate() {
        let shift = group as u32 * bits;
        for (bytes, packed) in plane.as_chunks_mut::<N>().0.iter_mut().zip(packed) {
            if *packed != 0 {
                let mut wide = [0; 8];
                wide[..N].copy_from_slice(bytes);
                let wide = u64::from_le_bytes(wide) | spread[usize::from(*packed)] << shift;
                bytes.copy_from_slice(&wide.to_le_bytes()[..N]);
            }
        }
    }
    plane.truncate(count);
    plane
}

//! Numbers to byte planes and back.
//!
//! Plane `p` holds byte `p` (least significant first) of every number's residual. Where a coding
//! sorts, all planes hold the residuals in the order of the old numbers' magnitudes, so that
//! residuals of like size stand together: both sides know the old numbers, so the order costs
//! nothing.

use super::wire::{Coding, Relation};

const KEYS: usize = 256;

fn load<const W: usize>(bytes: &[u8]) -> u64 {
    let mut wide = [0_u8; 8];
    wide[..W].copy_from_slice(&bytes[..W]);
    u64::from_le_bytes(wide)
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
    fn order(&self, x: u64) -> u64 {
        match (self.coding.is_ordered, x & Self::SIGN) {
            (false, _) => x,
            (true, 0) => x | Self::SIGN,
            (true, _) => !x & Self::MASK,
        }
    }

    fn unorder(&self, x: u64) -> u64 {
        match (self.coding.is_ordered, x & Self::SIGN) {
            (false, _) => x,
            (true, 0) => !x & Self::MASK,
            (true, _) => x & !Self::SIGN,
        }
    }

    fn residual(&self, old: u64, new: u64) -> u64 {
        match self.coding.relation {
            Relation::Alone => new,
            Relation::Xor => self.order(new) ^ self.order(old),
            Relation::Difference => {
                let d = self.order(new).wrapping_sub(self.order(old)) & Self::MASK;
                let sign = if d & Self::SIGN == 0 { 0 } else { Self::MASK };
                (d << 1 & Self::MASK) ^ sign
            }
        }
    }

    fn restore(&self, old: u64, residual: u64) -> u64 {
        match self.coding.relation {
            Relation::Alone => residual,
            Relation::Xor => self.unorder(self.order(old) ^ residual),
            Relation::Difference => {
                let sign = if residual & 1 == 0 { 0 } else { Self::MASK };
                let d = residual >> 1 ^ sign;
                self.unorder(self.order(old).wrapping_add(d) & Self::MASK)
            }
        }
    }

    /// At most 255, since the coding's shift was checked.
    fn key(shift: u8, old: u64) -> usize {
        ((old & !Self::SIGN) >> shift) as usize & (KEYS - 1)
    }

    fn starts(shift: u8, parts: &[&[u8]]) -> [usize; KEYS] {
        let mut counts = [0_usize; KEYS];
        for part in parts {
            for old in part.chunks_exact(W) {
                counts[Self::key(shift, load::<W>(old))] += 1;
            }
        }
        let mut next = 0;
        counts.map(|count| {
            let start = next;
            next += count;
            start
        })
    }

    fn split(&self, old: &[u8], new: &[u8]) -> Vec<Vec<u8>> {
        let count = new.len() / W;
        let mut planes = vec![vec![0_u8; count]; W];
        let mut places = Places::new(&self.coding, |shift| Self::starts(shift, &[old]));
        for (index, new) in new.chunks_exact(W).enumerate() {
            let old = match self.coding.relation {
                Relation::Alone => 0,
                _ => load::<W>(&old[index * W..]),
            };
            let at = places.next(|shift| Self::key(shift, old));
            let residual = self.residual(old, load::<W>(new)).to_le_bytes();
            for (plane, byte) in planes.iter_mut().zip(residual) {
                plane[at] = byte;
            }
        }
        planes
    }

    fn join(&self, planes: &[Vec<u8>], parts: &mut [&mut [u8]]) {
        let mut places = Places::new(&self.coding, |shift| {
            let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
            Self::starts(shift, &parts)
        });
        let planes: [&[u8]; W] = std::array::from_fn(|p| &planes[p][..]);
        for part in parts {
            for number in part.chunks_exact_mut(W) {
                let old = load::<W>(number);
                let at = places.next(|shift| Self::key(shift, old));
                let mut residual = [0_u8; W];
                for (byte, plane) in residual.iter_mut().zip(planes) {
                    *byte = plane[at];
                }
                let new = self.restore(old, load::<W>(&residual)).to_le_bytes();
                number.copy_from_slice(&new[..W]);
            }
        }
    }
}

/// Where the next residual stands in the planes.
enum Places {
    InOrder(usize),
    Sorted { shift: u8, next: Box<[usize; KEYS]> },
}

impl Places {
    fn new(coding: &Coding, starts: impl FnOnce(u8) -> [usize; KEYS]) -> Self {
        match coding.sort_shift {
            None => Self::InOrder(0),
            Some(shift) => Self::Sorted {
                shift,
                next: Box::new(starts(shift)),
            },
        }
    }

    fn next(&mut self, key: impl FnOnce(u8) -> usize) -> usize {
        let next = match self {
            Self::InOrder(next) => next,
            Self::Sorted { shift, next } => &mut next[key(*shift)],
        };
        let at = *next;
        *next += 1;
        at
    }
}

/// Splits the residuals of `new` to `old` into `coding.width` planes. Both have the same length,
/// a multiple of the width; without a relation `old` may be empty.
pub(super) fn split(coding: Coding, old: &[u8], new: &[u8]) -> Vec<Vec<u8>> {
    match coding.width {
        1 => Numbers::<1> { coding }.split(old, new),
        2 => Numbers::<2> { coding }.split(old, new),
        4 => Numbers::<4> { coding }.split(old, new),
        _ => Numbers::<8> { coding }.split(old, new),
    }
}

/// Turns old numbers into new ones, in place. `parts` in order have as many numbers as each of
/// the `coding.width` planes.
pub(super) fn join(coding: Coding, planes: &[Vec<u8>], parts: &mut [&mut [u8]]) {
    match coding.width {
        1 => Numbers::<1> { coding }.join(planes, parts),
        2 => Numbers::<2> { coding }.join(planes, parts),
        4 => Numbers::<4> { coding }.join(planes, parts),
        _ => Numbers::<8> { coding }.join(planes, parts),
    }
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
    let per_byte = 8 / bits as usize;
    let mask = (1_u8 << bits) - 1;
    let run = count.div_ceil(per_byte);
    let mut plane = vec![0_u8; count];
    for (group, packed) in cut.chunks_exact(run.max(1)).enumerate() {
        let shift = group as u32 * bits;
        for (bytes, packed) in plane.chunks_mut(per_byte).zip(packed) {
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte |= (packed >> (index as u32 * bits) & mask) << shift;
            }
        }
    }
    plane
}

//! The best coding of a tensor, by trying them on a sample.

use super::BLOCK_MAX_BYTES;
use super::onnx::Kind;
use super::planes::{self, Part, Plane};
use super::wire::{self, Coding, Grid, Relation, Sort, method};
use super::zstandard;
use std::ops::Range;

/// Longest sample taken of a tensor, in bytes.
const SAMPLE_MAX_BYTES: usize = 256 << 10;
/// Below this a trial says more about frame heads than about numbers.
const TRIAL_MIN_BYTES: usize = 1 << 10;
/// Planes are tried with a quick level: Huffman tables, which are what counts, come out the same.
const TRIAL_LEVEL: i32 = 3;
/// A plane denser than this is not worth cutting into groups, in percent.
const DENSE_PERCENT: usize = 70;
/// A tensor has scales if it has at least so many numbers for each of them.
const NUMBERS_PER_SCALE: usize = 8;
/// What a stream of its own costs beside its codes, in bits: head, frame and Huffman table.
const PART_COST_BITS: f64 = 128.0;
/// And for each of the values that occur in it.
const VALUE_COST_BITS: f64 = 3.0;

/// Numbers of one tensor, new and old.
pub(super) struct Numbers<'a> {
    pub(super) new: &'a [u8],
    /// As many as the new ones, if there is a partner.
    pub(super) old: Option<&'a [u8]>,
    pub(super) kind: Kind,
}

/// The coding that makes these numbers smallest; `None` means as bytes.
pub(super) fn coding(numbers: &Numbers<'_>, level: i32) -> Option<(Coding, Grid)> {
    let candidates = candidates(numbers);
    if numbers.new.len() < TRIAL_MIN_BYTES {
        // The first is what is best as a rule.
        return candidates.first().copied();
    }
    let place = sample(numbers);
    let new = &numbers.new[place.clone()];
    let old = numbers.old.map_or(&[][..], |old| &old[place.clone()]);
    let as_bytes = match zstandard::pack(new, old, level) {
        Some(frame) => frame.len(),
        None => new.len(),
    };
    let trial = |(coding, grid)| {
        (
            size(coding, grid, old, new, numbers.new.len()),
            (coding, grid),
        )
    };
    let (size, best) = candidates.into_iter().map(trial).min_by_key(|(s, _)| *s)?;
    // Lengths cost more than they save where all residuals are long.
    let plain = Coding {
        is_sized: false,
        ..best.0
    };
    let (size, best) = [trial((plain, best.1)), (size, best)]
        .into_iter()
        .min_by_key(|(s, _)| *s)?;
    (size < as_bytes).then_some(best)
}

/// Bytes that a sample takes in a coding, with its share of the scales of a tensor so long.
fn size(coding: Coding, grid: Grid, old: &[u8], new: &[u8], tensor_bytes: usize) -> usize {
    let (columns, rows) = match coding.sort.has_scales() {
        true => planes::scales(coding, grid, old, new),
        false => Default::default(),
    };
    // Column scales serve the whole tensor, or all of it that is in one block.
    let serves = tensor_bytes.min(BLOCK_MAX_BYTES);
    let scales = stream(&columns, &[], TRIAL_LEVEL).len() * new.len() / serves
        + stream(&rows, &[], TRIAL_LEVEL).len();
    let part = Part {
        numbers: old,
        grid,
        columns: &columns,
        rows: &rows,
    };
    let planes = planes::split(coding, &[part], &[new]);
    let planes = planes
        .iter()
        .map(|plane| plane_stream(plane, TRIAL_LEVEL).len());
    scales + planes.sum::<usize>()
}

/// What may suit, the best as a rule first.
fn candidates(numbers: &Numbers<'_>) -> Vec<(Coding, Grid)> {
    let Kind {
        width,
        mantissa_bits,
        ..
    } = numbers.kind;
    let alone = Coding::alone(width);
    if numbers.old.is_none() {
        return vec![(alone, Grid::FLAT)];
    }
    let difference = Coding {
        relation: match mantissa_bits {
            Some(_) => Relation::FloatDifference,
            None => Relation::Difference,
        },
        is_sized: width > 1,
        ..alone
    };
    let xor = Coding {
        relation: Relation::Xor,
        ..difference
    };
    let exponent_shift = mantissa_bits.filter(|shift| difference.may_sort_by(*shift));
    // A double's exponent has more bits than a key: its finest is what is left of it.
    let exponent_shift = match mantissa_bits {
        Some(_) if exponent_shift.is_none() => Some((width * 8 - 9) as u8),
        _ => exponent_shift,
    };
    let sorted = |has_columns, has_rows| Coding {
        sort: Sort {
            exponent_shift,
            has_columns,
            has_rows,
        },
        ..difference
    };
    let mut all = Vec::new();
    if exponent_shift.is_some() {
        all.push((sorted(false, false), Grid::FLAT));
    }
    all.extend([difference, xor, alone].map(|coding| (coding, Grid::FLAT)));
    let count = numbers.new.len() / width;
    let mut rows = vec![numbers.kind.outer_row, numbers.kind.inner_row];
    rows.dedup();
    for row_length in rows.into_iter().filter(|length| *length > 0) {
        let grid = Grid {
            row_length,
            first_column: 0,
        };
        for (has_columns, has_rows) in [(true, true), (true, false), (false, true)] {
            let coding = sorted(has_columns, has_rows);
            let (columns, rows) = grid.scales(coding.sort, count);
            if (columns + rows) * NUMBERS_PER_SCALE <= count {
                all.push((coding, grid));
            }
        }
    }
    all
}

/// The middle of a tensor, beginning with a row.
fn sample(numbers: &Numbers<'_>) -> Range<usize> {
    let (bytes, kind) = (numbers.new.len(), numbers.kind);
    if bytes <= SAMPLE_MAX_BYTES {
        return 0..bytes;
    }
    let middle = (bytes - SAMPLE_MAX_BYTES) / 2;
    let row_bytes = kind.outer_row.max(kind.inner_row).max(1) * kind.width;
    let start = middle - middle % row_bytes;
    start..start + SAMPLE_MAX_BYTES
}

/// A stream as it stands in the patch: method, then what belongs to it.
pub(super) fn stream(bytes: &[u8], prefix: &[u8], level: i32) -> Vec<u8> {
    if bytes.iter().all(|byte| *byte == 0) {
        return vec![method::ZERO];
    }
    match zstandard::pack(bytes, prefix, level) {
        Some(frame) => framed(method::ZSTD, &frame),
        None => [&[method::STORED], bytes].concat(),
    }
}

/// The same for a plane. It may be cut into groups of bits: zstd's Huffman codes have at least one
/// bit for each byte, which is much where nearly all are zero. And it may be cut where other
/// expected sizes begin, so that each part has a Huffman table of its own.
pub(super) fn plane_stream(plane: &Plane, level: i32) -> Vec<u8> {
    let whole = part_stream(&plane.bytes, level);
    let parts = cut(plane);
    if parts.len() < 2 {
        return whole;
    }
    let mut out = vec![method::PARTS];
    wire::put(&mut out, parts.len() as u64);
    for (index, part) in parts.iter().enumerate() {
        if index + 1 < parts.len() {
            wire::put(&mut out, part.len() as u64);
        }
        out.extend(part_stream(part, level));
    }
    if out.len() < whole.len() { out } else { whole }
}

fn part_stream(plane: &[u8], level: i32) -> Vec<u8> {
    let mut best = stream(plane, &[], level);
    if best.len() * 100 > plane.len() * DENSE_PERCENT || best.len() < 16 {
        return best;
    }
    for (method, bits) in (method::ZSTD_NIBBLES..=method::ZSTD_BITS).zip([4, 2, 1]) {
        let cut = planes::cut_groups(plane, bits);
        if let Some(frame) = zstandard::pack(&cut, &[], level) {
            let cut = framed(method, &frame);
            if cut.len() < best.len() {
                best = cut;
            }
        }
    }
    best
}

/// Cuts a plane where expected sizes change, as long as what an own table saves is more than it
/// costs.
fn cut(plane: &Plane) -> Vec<&[u8]> {
    let Plane {
        bytes: plane,
        starts,
    } = plane;
    let ends = starts.iter().copied().skip(1).chain([plane.len()]);
    let places = starts.iter().zip(ends).map(|(start, end)| *start..end);
    let mut parts: Vec<Counted> = places
        .filter(|place| !place.is_empty())
        .map(|place| Counted::of(plane, place))
        .collect();
    // The two neighbours that gain most by sharing a table are joined, until none gain.
    loop {
        let gains = parts.windows(2).enumerate().map(|(at, pair)| {
            let joined = pair[0].joined(&pair[1]);
            (
                pair[0].cost_bits + pair[1].cost_bits - joined.cost_bits,
                at,
                joined,
            )
        });
        match gains.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((gain, at, joined)) if gain > 0.0 => {
                parts[at] = joined;
                parts.remove(at + 1);
            }
            _ => break,
        }
    }
    parts.into_iter().map(|part| &plane[part.place]).collect()
}

/// Part of a plane and what an own stream for it would cost.
struct Counted {
    place: Range<usize>,
    counts: [u32; 256],
    cost_bits: f64,
}

impl Counted {
    fn of(plane: &[u8], place: Range<usize>) -> Self {
        let mut counts = [0; 256];
        for byte in &plane[place.clone()] {
            counts[usize::from(*byte)] += 1;
        }
        Self::with(place, counts)
    }

    /// `self` and what stands behind it in the plane.
    fn joined(&self, next: &Self) -> Self {
        let counts = std::array::from_fn(|byte| self.counts[byte] + next.counts[byte]);
        Self::with(self.place.start..next.place.end, counts)
    }

    fn with(place: Range<usize>, counts: [u32; 256]) -> Self {
        let total = place.len() as f64;
        let present = counts.iter().filter(|count| **count > 0);
        let (codes, values) = present.fold((0.0, 0), |(codes, values), count| {
            let count = f64::from(*count);
            (codes + count * (total / count).log2(), values + 1)
        });
        // One value alone is hardly anything; beyond that a table must be written, unless codes
        // save so little that the bytes are stored.
        let coded = match values {
            1 => 0.0,
            values => codes + VALUE_COST_BITS * f64::from(values),
        };
        Self {
            place,
            counts,
            cost_bits: PART_COST_BITS + coded.min(total * 8.0),
        }
    }
}

fn framed(method: u8, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![method];
    wire::put(&mut out, frame.len() as u64);
    out.extend_from_slice(frame);
    out
}

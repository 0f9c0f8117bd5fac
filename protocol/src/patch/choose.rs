//! The best coding of a tensor, by trying them on samples.

use super::onnx;
use super::planes;
use super::wire::{Coding, Relation, method};
use super::zstandard;

/// Samples taken of a long tensor, and their length in bytes (a multiple of every width).
const SAMPLES: usize = 3;
const SAMPLE_BYTES: usize = 32 << 10;
/// Below this a trial says more about frame heads than about numbers.
const TRIAL_MIN_BYTES: usize = 1 << 10;
/// Planes are tried with a quick level: Huffman tables, which are what counts, come out the same.
const TRIAL_LEVEL: i32 = 3;
/// A plane denser than this is not worth cutting into groups, in percent.
const DENSE_PERCENT: usize = 70;

/// Numbers of one tensor, new and old.
pub(super) struct Numbers<'a> {
    pub(super) new: &'a [u8],
    /// As many as the new ones, if there is a partner.
    pub(super) old: Option<&'a [u8]>,
    pub(super) width: usize,
    pub(super) is_float: bool,
    pub(super) dtype: u64,
}

/// The coding that makes these numbers smallest; `None` means as bytes.
pub(super) fn coding(numbers: &Numbers<'_>, level: i32) -> Option<Coding> {
    let candidates = candidates(numbers);
    if numbers.new.len() < TRIAL_MIN_BYTES {
        // The first is what is best as a rule.
        return candidates.first().copied();
    }
    let samples = samples(numbers.new.len());
    let sampled = |bytes: &[u8]| -> Vec<u8> {
        samples
            .iter()
            .flat_map(|start| &bytes[*start..bytes.len().min(start + SAMPLE_BYTES)])
            .copied()
            .collect()
    };
    let new = sampled(numbers.new);
    let old = numbers.old.map(sampled).unwrap_or_default();
    let as_bytes = match zstandard::pack(&new, &old, level) {
        Some(frame) => frame.len(),
        None => new.len(),
    };
    let sizes = candidates.into_iter().map(|coding| {
        let streams = planes::split(coding, &old, &new);
        let sizes = streams.iter().map(|plane| plane_stream(plane, TRIAL_LEVEL));
        (sizes.map(|s| s.len()).sum::<usize>(), coding)
    });
    let (size, coding) = sizes.min_by_key(|(size, _)| *size)?;
    (size < as_bytes).then_some(coding)
}

/// What may suit, the best as a rule first.
fn candidates(numbers: &Numbers<'_>) -> Vec<Coding> {
    let alone = Coding::alone(numbers.width);
    if numbers.old.is_none() {
        return vec![alone];
    }
    let difference = Coding {
        relation: Relation::Difference,
        is_ordered: numbers.is_float,
        ..alone
    };
    let xor = Coding {
        relation: Relation::Xor,
        ..alone
    };
    let mut all = vec![difference, xor, alone];
    if numbers.is_float && numbers.width > 1 {
        let mantissa = onnx::mantissa_bits(numbers.dtype);
        // By the exponent, and where there is room in a byte by the leading mantissa bits too.
        let finest = (numbers.width * 8 - 9) as u8;
        for shift in [mantissa.max(finest), finest] {
            let sorted = Coding {
                sort_shift: Some(shift),
                ..difference
            };
            if !all.contains(&sorted) {
                all.insert(0, sorted);
            }
        }
    }
    all
}

/// Where samples begin.
fn samples(bytes: usize) -> Vec<usize> {
    if bytes <= SAMPLES * SAMPLE_BYTES {
        return (0..bytes).step_by(SAMPLE_BYTES).collect();
    }
    let last = bytes - SAMPLE_BYTES;
    let aligned = |at: usize| at - at % 8;
    (0..SAMPLES)
        .map(|n| aligned(last * n / (SAMPLES - 1)))
        .collect()
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

/// The same for a plane, which may also be cut into groups of bits: zstd's Huffman codes have
/// at least one bit for each byte, which is much where nearly all are zero.
pub(super) fn plane_stream(plane: &[u8], level: i32) -> Vec<u8> {
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

fn framed(method: u8, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![method];
    super::wire::put(&mut out, frame.len() as u64);
    out.extend_from_slice(frame);
    out
}

//! Convolutions with many numbers to sum for each result: channels of the result side by side in the
//! vectors, so that numbers of the image are read one by one where they lie and need no gathering.
//! Results come channels first and are turned.

use super::chain::{Chain, PIECE_MAX, Place};
use super::panels::{PackedColumns, Panel};
use super::simd::{Lanes, Vectorised, vectorised};
use pulp::Simd;
use std::ops::Range;

/// Most places of the result, and most channels, that are computed together.
const PLACES_MAX: usize = 12;
const CHANNELS_MAX: usize = 32;

/// How many places are computed together, where there are registers enough and where not.
const MANY: [usize; 7] = [1, 2, 4, 6, 7, 8, 12];
const FEW: [usize; 4] = [1, 2, 4, 6];

/// Kernels made ready.
#[derive(Debug)]
pub(super) struct Wide {
    kernels: PackedColumns,
    /// A row of the result in pieces: first place, places, how many are computed for them.
    pieces: Vec<(usize, usize, usize)>,
    lines: usize,
    length: usize,
    pitch: usize,
}

/// What is convolved, and where to.
pub(super) struct Image<'a> {
    /// The image, spread, and a dozen numbers more.
    pub(super) numbers: &'a [f32],
    /// Where each number of the inner dimension lies for the first place.
    pub(super) offsets: &'a [usize],
    pub(super) bias: &'a [f32],
    pub(super) chain: &'a Chain,
    pub(super) tensors: &'a [&'a [f32]],
    pub(super) out: &'a mut [f32],
}

struct Registers;

impl Vectorised for Registers {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd, const FUSED: bool>(self, _: Lanes<S, FUSED>) -> usize {
        S::REGISTER_COUNT
    }
}

impl Wide {
    /// Numbers behind the image that may be read.
    pub(super) const BEHIND: usize = PLACES_MAX;

    /// Whether this form is the quicker one: turning a tile costs about as much as gathering for two
    /// numbers of the inner dimension a kernel, five if gathering is plain copying.
    pub(super) fn pays(inner: usize, kernels: usize, is_plain: bool) -> bool {
        inner > kernels * if is_plain { 5 } else { 2 }
    }

    /// For results of `lines` rows of `length`, a `pitch` apart in the spread image; `behind` if there
    /// are numbers behind it that may be read.
    pub(super) fn new(
        weights: &[f32],
        inner: usize,
        (lines, length, pitch): (usize, usize, usize),
        behind: bool,
    ) -> Self {
        let kernels = weights.len() / inner.max(1);
        let at = |kernel: usize, at: usize| weights[kernel * inner + at];
        let kernels = PackedColumns::whole(kernels, inner, at);
        let sizes = if vectorised(Registers) >= 32 {
            MANY.as_slice()
        } else {
            &FEW
        };
        let pieces = pieces(length, sizes, behind);
        Self {
            kernels,
            pieces,
            lines,
            length,
            pitch,
        }
    }

    pub(super) fn run(&self, image: Image) {
        vectorised(Run { wide: self, image });
    }
}

/// Cuts a row into pieces of the given sizes so that the least is computed. Fewer than six at once take
/// about as long as six, and each piece reads the kernels again, which is worth two more.
fn pieces(length: usize, sizes: &[usize], behind: bool) -> Vec<(usize, usize, usize)> {
    let mut best = vec![(0, 0); length + 1];
    for end in 1..=length {
        let with = |&size: &usize| (best[end.saturating_sub(size)].0 + size.max(6) + 2, size);
        let fitting = sizes.iter().filter(|&&size| behind || size <= end);
        best[end] = fitting.map(with).min().unwrap_or_default();
    }
    let (mut pieces, mut end) = (Vec::new(), length);
    while end > 0 {
        let size = best[end].1.max(1);
        let first = end.saturating_sub(size);
        pieces.push((first, end - first, size));
        end = first;
    }
    pieces
}

struct Run<'a> {
    wide: &'a Wide,
    image: Image<'a>,
}

impl Vectorised for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const FUSED: bool>(self, lanes: Lanes<S, FUSED>) {
        let Self { wide, image } = self;
        let plane = wide.lines * wide.length;
        let mut kept = [0.0; PIECE_MAX];
        let mut turned = [0.0; PLACES_MAX * CHANNELS_MAX];
        for (at, panel) in wide.kernels.panels().iter().enumerate() {
            let kernels = wide.kernels.block(0..image.offsets.len(), at);
            let tile = Tile {
                kernels: &kernels[..panel.width * image.offsets.len()],
                offsets: image.offsets,
                bias: &image.bias[panel.first..panel.end],
            };
            let channels = &mut image.out[panel.first * plane..panel.end * plane];
            for line in 0..wide.lines {
                for &(first, places, size) in &wide.pieces {
                    let numbers = &image.numbers[line * wide.pitch + first..];
                    tile.compute(lanes, numbers, *panel, size, &mut turned);
                    let place = line * wide.length + first;
                    let to = place..place + places;
                    turn(&turned, panel.width, channels, plane, to);
                }
            }
            for (row, out) in (panel.first..panel.end).zip(channels.chunks_exact_mut(plane)) {
                let place = Place {
                    row,
                    column: 0,
                    offset: row * plane,
                };
                image
                    .chain
                    .apply(lanes, place, image.tensors, out, &mut kept);
            }
        }
    }
}

/// Puts a tile, place by place, into planes, channel by channel.
#[inline(always)]
fn turn(tile: &[f32], width: usize, channels: &mut [f32], plane: usize, to: Range<usize>) {
    for (channel, out) in channels.chunks_exact_mut(plane).enumerate() {
        let from = tile[channel..].iter().step_by(width);
        for (to, from) in out[to.clone()].iter_mut().zip(from) {
            *to = *from;
        }
    }
}

struct Tile<'a> {
    kernels: &'a [f32],
    offsets: &'a [usize],
    bias: &'a [f32],
}

impl Tile<'_> {
    #[inline(always)]
    fn compute<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        numbers: &[f32],
        panel: Panel,
        size: usize,
        out: &mut [f32],
    ) {
        if panel.width > Lanes::<S, FUSED>::WIDTH {
            self.sized::<S, FUSED, 2>(lanes, numbers, size, out);
        } else {
            self.sized::<S, FUSED, 1>(lanes, numbers, size, out);
        }
    }

    #[inline(always)]
    fn sized<S: Simd, const FUSED: bool, const COLUMNS: usize>(
        &self,
        lanes: Lanes<S, FUSED>,
        numbers: &[f32],
        size: usize,
        out: &mut [f32],
    ) {
        match size {
            1 => self.sum::<S, FUSED, 1, COLUMNS>(lanes, numbers, out),
            2 => self.sum::<S, FUSED, 2, COLUMNS>(lanes, numbers, out),
            4 => self.sum::<S, FUSED, 4, COLUMNS>(lanes, numbers, out),
            7 if S::REGISTER_COUNT >= 32 => self.sum::<S, FUSED, 7, COLUMNS>(lanes, numbers, out),
            8 if S::REGISTER_COUNT >= 32 => self.sum::<S, FUSED, 8, COLUMNS>(lanes, numbers, out),
            12 if S::REGISTER_COUNT >= 32 => self.sum::<S, FUSED, 12, COLUMNS>(lanes, numbers, out),
            _ => self.sum::<S, FUSED, 6, COLUMNS>(lanes, numbers, out),
        }
    }

    #[inline(always)]
    fn sum<S: Simd, const FUSED: bool, const PLACES: usize, const COLUMNS: usize>(
        &self,
        lanes: Lanes<S, FUSED>,
        numbers: &[f32],
        out: &mut [f32],
    ) {
        let width = Lanes::<S, FUSED>::WIDTH;
        let mut bias = [lanes.splat(0.0); COLUMNS];
        for (at, bias) in bias.iter_mut().enumerate() {
            *bias = lanes.load(self.bias.get(at * width..).unwrap_or_default());
        }
        let mut sums = [bias; PLACES];
        let kernels = S::as_simd_f32s(self.kernels).0.as_chunks::<COLUMNS>().0;
        for (kernels, offset) in kernels.iter().zip(self.offsets) {
            let numbers = &numbers[*offset..][..PLACES];
            for place in 0..PLACES {
                let number = lanes.splat(numbers[place]);
                for column in 0..COLUMNS {
                    sums[place][column] =
                        lanes.mul_add(number, kernels[column], sums[place][column]);
                }
            }
        }
        let out = S::as_mut_simd_f32s(out).0.as_chunks_mut::<COLUMNS>().0;
        for (out, sums) in out.iter_mut().zip(sums) {
            *out = sums;
        }
    }
}

//! Convolutions whose kernels see one channel each.

use super::chain::{Chain, PIECE_MAX, Place};
use super::simd::{Lanes, Vectorised, vectorised};
use super::spread::{Spread, copy};
use pulp::Simd;
use std::cell::RefCell;

/// Vectors of sums that are computed together.
const SUMS: usize = 4;

/// Room behind the spread channel: the last sums are computed as whole vectors.
const SLACK: usize = 2 * SUMS * 16;

thread_local! {
    static ROOM: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// A convolution made ready for images of one size.
#[derive(Debug)]
pub(super) struct Depthwise {
    spread: Spread,
    /// Kernels for each channel of the image.
    multiplier: usize,
    taps: Vec<usize>,
    /// One kernel a channel of the result, row by row.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Depthwise {
    pub(super) fn new(spread: Spread, multiplier: usize, weights: &[f32], bias: Vec<f32>) -> Self {
        let taps = spread.taps();
        Self {
            spread,
            multiplier,
            taps,
            weights: weights.to_vec(),
            bias,
        }
    }

    /// Numbers of an image.
    pub(super) fn input(&self) -> usize {
        let channels = self.bias.len() / self.multiplier;
        channels * self.spread.rows.input * self.spread.columns.input
    }

    /// Numbers of a result.
    pub(super) fn output(&self) -> usize {
        self.bias.len() * self.spread.rows.output * self.spread.columns.output
    }

    /// Whether it can compute from what stands where its result goes.
    pub(super) fn overwrites(&self) -> bool {
        self.multiplier == 1 && self.input() == self.output()
    }

    /// Convolves one image of [`input`](Self::input) numbers, or what stands in `out`.
    pub(super) fn run(
        &self,
        image: Option<&[f32]>,
        chain: &Chain,
        tensors: &[&[f32]],
        out: &mut [f32],
    ) {
        ROOM.with_borrow_mut(|[spread, sums]| {
            let (plane, rows) = (self.spread.plane(), self.spread.rows.output);
            spread.resize(plane + SLACK, 0.0);
            sums.resize(rows * self.spread.pitch() + SLACK, 0.0);
            let depthwise = self;
            vectorised(Run {
                depthwise,
                image,
                chain,
                tensors,
                out,
                spread,
                sums,
            });
        });
    }
}

struct Run<'a> {
    depthwise: &'a Depthwise,
    image: Option<&'a [f32]>,
    chain: &'a Chain,
    tensors: &'a [&'a [f32]],
    out: &'a mut [f32],
    spread: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Vectorised for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const FUSED: bool>(self, lanes: Lanes<S, FUSED>) {
        let Depthwise {
            spread,
            multiplier,
            taps,
            weights,
            bias,
        } = self.depthwise;
        let mut kept = [0.0; PIECE_MAX];
        let (rows, columns) = (spread.rows.output, spread.columns.output);
        let (pitch, plane) = (spread.pitch(), spread.plane());
        // As if rows ran on into each other; what lies between them is left out afterwards.
        let length = (rows - 1) * pitch + columns;
        let channel = spread.rows.input * spread.columns.input;
        let kernels = weights.chunks_exact(taps.len()).zip(bias);
        let outs = self.out.chunks_exact_mut(rows * columns);
        for (row, ((kernel, bias), out)) in kernels.zip(outs).enumerate() {
            if row % multiplier == 0 {
                let at = row / multiplier * channel;
                let image = self.image.map_or(&*out, |image| &image[at..][..channel]);
                spread.fill(lanes, image, &mut self.spread[..plane]);
            }
            convolve(
                lanes,
                self.spread,
                taps,
                kernel,
                *bias,
                &mut self.sums[..],
                length,
            );
            let lines = self.sums.chunks(pitch).zip(out.chunks_exact_mut(columns));
            for (from, to) in lines {
                copy(lanes, to, &from[..columns]);
            }
            let place = Place {
                row,
                column: 0,
                offset: row * rows * columns,
            };
            self.chain.apply(lanes, place, self.tensors, out, &mut kept);
        }
    }
}

#[inline(always)]
fn convolve<S: Simd, const FUSED: bool>(
    lanes: Lanes<S, FUSED>,
    spread: &[f32],
    taps: &[usize],
    kernel: &[f32],
    bias: f32,
    out: &mut [f32],
    length: usize,
) {
    let bias = lanes.splat(bias);
    let width = Lanes::<S, FUSED>::WIDTH;
    let mut at = 0;
    while at < length {
        let mut sums = [bias; SUMS];
        for (tap, weight) in taps.iter().zip(kernel) {
            let weight = lanes.splat(*weight);
            let numbers = &spread[tap + at..][..SUMS * width];
            for (sum, numbers) in sums.iter_mut().zip(S::as_simd_f32s(numbers).0) {
                *sum = lanes.mul_add(weight, *numbers, *sum);
            }
        }
        let to = &mut out[at..][..SUMS * width];
        for (to, sum) in S::as_mut_simd_f32s(to).0.iter_mut().zip(sums) {
            *to = sum;
        }
        at += SUMS * width;
    }
}

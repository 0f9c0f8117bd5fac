//! Convolutions whose kernels see all channels: a matrix product whose columns are gathered from
//! the image while it runs.

use super::chain::Chain;
use super::panels::PackedRows;
use super::product::{Columns, Gather, Product};
use super::simd::{Lanes, Vectorised, vectorised};
use super::spread::Spread;
use pulp::Simd;
use std::cell::RefCell;
use std::ops::Range;

/// Most columns that are gathered at once: two vectors of the widest instruction set.
const PANEL_MAX: usize = 32;

thread_local! {
    static SPREAD: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A convolution made ready for images of one size.
#[derive(Debug)]
pub(super) struct Convolution {
    spread: Spread,
    channels: usize,
    kernels: PackedRows,
    bias: Vec<f32>,
    /// Where the first column's number of the inner dimension lies in the spread image.
    offsets: Vec<usize>,
}

impl Convolution {
    /// `weights` are one kernel a channel of the result, each channel by channel, row by row.
    pub(super) fn new(spread: Spread, channels: usize, weights: &[f32], bias: Vec<f32>) -> Self {
        let taps = spread.taps();
        let inner = channels * taps.len();
        let plane = spread.plane();
        let offsets = (0..channels).flat_map(|c| taps.iter().map(move |t| c * plane + t));
        let kernels = PackedRows::new(bias.len(), inner, |kernel, at| weights[kernel * inner + at]);
        Self {
            spread,
            channels,
            kernels,
            bias,
            offsets: offsets.collect(),
        }
    }

    /// Numbers of an image.
    pub(super) fn input(&self) -> usize {
        self.channels * self.spread.rows.input * self.spread.columns.input
    }

    /// Numbers of a channel of the result.
    fn plane(&self) -> usize {
        self.spread.rows.output * self.spread.columns.output
    }

    /// Numbers of a result.
    pub(super) fn output(&self) -> usize {
        self.bias.len() * self.plane()
    }

    /// Convolves one image of [`input`](Self::input) numbers.
    pub(super) fn run(&self, image: &[f32], chain: &Chain, tensors: &[&[f32]], out: &mut [f32]) {
        if self.spread.is_idle() {
            return self.product(image, chain, tensors, out);
        }
        SPREAD.with_borrow_mut(|room| {
            let plane = self.spread.plane();
            if room.len() < plane * self.channels {
                room.resize(plane * self.channels, 0.0);
            }
            let (spread, to) = (self.spread, &mut room[..plane * self.channels]);
            vectorised(SpreadAll { spread, image, to });
            self.product(&room[..plane * self.channels], chain, tensors, out);
        });
    }

    fn product(&self, spread: &[f32], chain: &Chain, tensors: &[&[f32]], out: &mut [f32]) {
        let image = Image {
            numbers: spread,
            offsets: &self.offsets,
            pitch: self.spread.pitch(),
            columns: self.spread.columns.output,
            count: self.plane(),
        };
        let columns = Columns::Gathered {
            count: self.plane(),
            from: image,
        };
        let (rows, bias) = (&self.kernels, self.bias.as_slice());
        Product {
            rows,
            columns,
            bias,
            chain,
            tensors,
            out,
        }
        .compute();
    }
}

struct SpreadAll<'a> {
    spread: Spread,
    image: &'a [f32],
    to: &'a mut [f32],
}

impl Vectorised for SpreadAll<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const FUSED: bool>(self, lanes: Lanes<S, FUSED>) {
        let channel = self.spread.rows.input * self.spread.columns.input;
        let planes = self.to.chunks_exact_mut(self.spread.plane());
        for (from, to) in self.image.chunks_exact(channel).zip(planes) {
            self.spread.fill(lanes, from, to);
        }
    }
}

struct Image<'a> {
    numbers: &'a [f32],
    offsets: &'a [usize],
    pitch: usize,
    columns: usize,
    count: usize,
}

/// Columns whose numbers lie side by side.
#[derive(Clone, Copy, Default)]
struct Run {
    from: usize,
    to: usize,
    length: usize,
}

impl Image<'_> {
    #[inline(always)]
    fn runs(&self, first: usize, width: usize, runs: &mut [Run; PANEL_MAX]) -> usize {
        let end = self.count.min(first + width);
        if self.pitch == self.columns {
            runs[0] = Run {
                from: first,
                to: 0,
                length: end - first,
            };
            return 1;
        }
        let (mut at, mut count) = (first, 0);
        while at < end && count < PANEL_MAX {
            let (row, column) = (at / self.columns, at % self.columns);
            let length = (self.columns - column).min(end - at);
            let from = row * self.pitch + column;
            runs[count] = Run {
                from,
                to: at - first,
                length,
            };
            at += length;
            count += 1;
        }
        count
    }
}

impl Gather for Image<'_> {
    #[inline(always)]
    fn gather<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        inner: Range<usize>,
        first: usize,
        width: usize,
        out: &mut [f32],
    ) {
        let mut runs = [Run::default(); PANEL_MAX];
        let count = self.runs(first, width, &mut runs);
        for (at, offset) in self.offsets[inner].iter().enumerate() {
            let out = &mut out[at * width..];
            for run in &runs[..count] {
                let from = &self.numbers[offset + run.from..];
                let to = &mut out[run.to..];
                // Whole vectors: what is too much is written over by what follows.
                let mut done = 0;
                while done < run.length {
                    lanes.store(&mut to[done..], lanes.load(&from[done..]));
                    done += Lanes::<S, FUSED>::WIDTH;
                }
            }
        }
    }
}

//! Convolutions whose kernels see all channels: a matrix product whose columns are gathered from
//! the image while it runs.

use super::chain::Chain;
use super::panels::PackedRows;
use super::product::{Columns, Gather, Product};
use super::simd::{Lanes, Vectorised, vectorised};
use super::spread::Spread;
use super::wide::{self, Wide};
use pulp::Simd;
use std::cell::RefCell;
use std::ops::Range;

/// Most columns that are gathered at once: two vectors of the widest instruction set.
const PANEL_MAX: usize = 32;

const _: () = assert!(PANEL_MAX >= Wide::BEHIND);

thread_local! {
    static SPREAD: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The kernels in one of two forms.
#[derive(Debug)]
enum Kernels {
    Rows(PackedRows),
    Wide(Wide),
}

/// A convolution made ready for images of one size.
#[derive(Debug)]
pub(super) struct Convolution {
    spread: Spread,
    channels: usize,
    kernels: Kernels,
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
        let (lines, length) = (spread.rows.output, spread.columns.output);
        let is_plain = spread.pitch() == length;
        let kernels = if Wide::pays(inner, bias.len(), is_plain) {
            let row = (lines, length, spread.pitch());
            let row = if is_plain {
                (1, lines * length, lines * length)
            } else {
                row
            };
            Kernels::Wide(Wide::new(weights, inner, row, !spread.is_idle()))
        } else {
            let at = |kernel: usize, at: usize| weights[kernel * inner + at];
            Kernels::Rows(PackedRows::new(bias.len(), inner, at))
        };
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

    /// Whether it can compute from what stands where its result goes.
    pub(super) fn overwrites(&self) -> bool {
        !self.spread.is_idle() && self.input() == self.output()
    }

    /// Convolves one image of [`input`](Self::input) numbers, or what stands in `out`.
    pub(super) fn run(
        &self,
        image: Option<&[f32]>,
        chain: &Chain,
        tensors: &[&[f32]],
        out: &mut [f32],
    ) {
        if let Some(image) = image.filter(|_| self.spread.is_idle()) {
            return self.product(image, chain, tensors, out);
        }
        SPREAD.with_borrow_mut(|room| {
            let plane = self.spread.plane();
            // A panel of columns more, so that the last are read like all others.
            let length = plane * self.channels + PANEL_MAX;
            if room.len() < length {
                room.resize(length, 0.0);
            }
            let (spread, to) = (self.spread, &mut room[..plane * self.channels]);
            let image = image.unwrap_or(out);
            vectorised(SpreadAll { spread, image, to });
            self.product(&room[..length], chain, tensors, out);
        });
    }

    fn product(&self, spread: &[f32], chain: &Chain, tensors: &[&[f32]], out: &mut [f32]) {
        let rows = match &self.kernels {
            Kernels::Rows(rows) => rows,
            Kernels::Wide(wide) => {
                let (offsets, bias) = (self.offsets.as_slice(), self.bias.as_slice());
                let numbers = spread;
                return wide.run(wide::Image {
                    numbers,
                    offsets,
                    bias,
                    chain,
                    tensors,
                    out,
                });
            }
        };
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
        let bias = self.bias.as_slice();
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
        let offsets = &self.offsets[inner];
        let (lines, _) = S::as_mut_simd_f32s(&mut out[..offsets.len() * width]);
        match runs[..count] {
            [Run { from, length, .. }] if length == width => {
                if width == Lanes::<S, FUSED>::WIDTH {
                    self.copy::<S, 1>(offsets, from, lines);
                } else {
                    self.copy::<S, 2>(offsets, from, lines);
                }
            }
            _ => {
                for (at, offset) in offsets.iter().enumerate() {
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
    }
}

impl Image<'_> {
    /// Copies `COLUMNS` vectors for each offset.
    #[inline(always)]
    fn copy<S: Simd, const COLUMNS: usize>(
        &self,
        offsets: &[usize],
        from: usize,
        lines: &mut [S::f32s],
    ) {
        let lines = lines.as_chunks_mut::<COLUMNS>().0;
        for (offset, line) in offsets.iter().zip(lines) {
            let numbers = S::as_simd_f32s(&self.numbers[offset + from..]).0;
            if let Some(numbers) = numbers.first_chunk::<COLUMNS>() {
                *line = *numbers;
            }
        }
    }
}

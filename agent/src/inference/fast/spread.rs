//! Images with their borders, taken apart by the convolution's strides so that every tap of the
//! kernel reads numbers that lie side by side.

use super::simd::Lanes;
use pulp::Simd;

/// A convolution along one side of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    /// Of the image.
    pub(super) input: usize,
    /// Of the result.
    pub(super) output: usize,
    /// Of the kernel.
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) dilation: usize,
    /// Zeros before the first.
    pub(super) before: usize,
}

impl Side {
    /// One that changes nothing.
    pub(super) const ONE: Self = Self {
        input: 1,
        output: 1,
        kernel: 1,
        stride: 1,
        dilation: 1,
        before: 0,
    };

    /// How much of the image with its borders the kernel sees.
    fn seen(&self) -> usize {
        self.output.saturating_sub(1) * self.stride + (self.kernel - 1) * self.dilation + 1
    }

    /// Length of each of the parts.
    fn part(&self) -> usize {
        self.seen().div_ceil(self.stride)
    }
}

/// How one channel is spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    pub(super) rows: Side,
    pub(super) columns: Side,
}

impl Spread {
    /// Whether the image as it is would be the same.
    pub(super) fn is_idle(&self) -> bool {
        let plain = |side: &Side| side.stride == 1 && side.before == 0 && side.seen() <= side.input;
        plain(&self.rows) && plain(&self.columns)
    }

    /// Distance from a row of the result's first number to the next row's.
    pub(super) fn pitch(&self) -> usize {
        if self.is_idle() {
            self.columns.input
        } else {
            self.columns.part()
        }
    }

    /// Numbers of a spread channel.
    pub(super) fn plane(&self) -> usize {
        if self.is_idle() {
            return self.rows.input * self.columns.input;
        }
        self.rows.stride * self.columns.stride * self.part()
    }

    fn part(&self) -> usize {
        self.rows.part() * self.columns.part()
    }

    /// Where each tap reads for the result's first number, row by row of the kernel.
    pub(super) fn taps(&self) -> Vec<usize> {
        let mut taps = Vec::new();
        for y in 0..self.rows.kernel {
            for x in 0..self.columns.kernel {
                let (y, x) = (y * self.rows.dilation, x * self.columns.dilation);
                let part = (y % self.rows.stride) * self.columns.stride + x % self.columns.stride;
                let row = y / self.rows.stride * self.pitch();
                taps.push(part * self.part() + row + x / self.columns.stride);
            }
        }
        taps
    }

    /// Spreads one channel; `to` is [`plane`](Self::plane) numbers, all of which are written.
    #[inline(always)]
    pub(super) fn fill<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        image: &[f32],
        to: &mut [f32],
    ) {
        if self.is_idle() {
            copy(lanes, to, image);
            return;
        }
        let (rows, columns) = (&self.rows, &self.columns);
        let (pitch, lines) = (columns.part(), rows.part());
        let parts = to.chunks_exact_mut(self.part()).enumerate();
        for (at, part) in parts {
            let (line_phase, phase) = (at / columns.stride, at % columns.stride);
            // First of the image's columns that belongs to this part, and its place there.
            let skip = (phase + columns.stride - columns.before % columns.stride) % columns.stride;
            let start = ((skip + columns.before) / columns.stride).min(pitch);
            for (line, to) in part.chunks_exact_mut(pitch).enumerate().take(lines) {
                let row = (line * rows.stride + line_phase).checked_sub(rows.before);
                let row = row.filter(|&row| row < rows.input);
                let Some(row) = row else {
                    to.fill(0.0);
                    continue;
                };
                let row = &image[row * columns.input..][..columns.input];
                let (border, to) = to.split_at_mut(start);
                border.fill(0.0);
                let written = match columns.stride {
                    1 => copy(lanes, to, row.get(skip..).unwrap_or_default()),
                    2 => copy_second(to, row.get(skip..).unwrap_or_default()),
                    stride => copy_each(to, row.iter().skip(skip).step_by(stride)),
                };
                to[written..].fill(0.0);
            }
        }
    }
}

/// Copies as much as there is and as there is room for; gives how much that was.
#[inline(always)]
pub(super) fn copy<S: Simd, const FUSED: bool>(
    lanes: Lanes<S, FUSED>,
    to: &mut [f32],
    from: &[f32],
) -> usize {
    let count = to.len().min(from.len());
    let (to, to_rest) = S::as_mut_simd_f32s(&mut to[..count]);
    let (from, from_rest) = S::as_simd_f32s(&from[..count]);
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    if !to_rest.is_empty() {
        lanes.store(to_rest, lanes.load(from_rest));
    }
    count
}

#[inline(always)]
fn copy_second(to: &mut [f32], from: &[f32]) -> usize {
    let (pairs, last) = from.as_chunks::<2>();
    let count = to.len().min(pairs.len());
    for (to, from) in to[..count].iter_mut().zip(&pairs[..count]) {
        *to = from[0];
    }
    match (to.get_mut(count), last.first()) {
        (Some(to), Some(from)) => {
            *to = *from;
            count + 1
        }
        _ => count,
    }
}

#[inline(always)]
fn copy_each<'a>(to: &mut [f32], from: impl Iterator<Item = &'a f32>) -> usize {
    let mut count = 0;
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
        count += 1;
    }
    count
}

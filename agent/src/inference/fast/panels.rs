//! Matrices packed for [`product`](super::product): panels one after the other within a block of
//! the inner dimension, and within a panel number by number of the inner dimension.

use super::product::{LINE, aligned};
use super::simd::{Lanes, Vectorised, vectorised};
use pulp::Simd;
use std::ops::Range;

/// Longest block of the inner dimension.
const BLOCK_MAX: usize = 384;

/// Length of the blocks of an inner dimension: no short one at the end.
pub(super) fn block(inner: usize) -> usize {
    inner.div_ceil(inner.div_ceil(BLOCK_MAX).max(1)).max(1)
}

/// How large the panels are that the registers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    rows: usize,
    lanes: usize,
}

/// Rows or columns that are packed together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    pub(super) first: usize,
    /// Behind the last.
    pub(super) end: usize,
    /// How many there is room for.
    pub(super) width: usize,
    /// Sum of the widths before it.
    before: usize,
}

struct Ask;

impl Vectorised for Ask {
    type Output = Geometry;

    #[inline(always)]
    fn run<S: Simd, const FUSED: bool>(self, _: Lanes<S, FUSED>) -> Geometry {
        Geometry::of::<S>()
    }
}

impl Geometry {
    /// Of this processor.
    pub(super) fn here() -> Self {
        vectorised(Ask)
    }

    pub(super) fn of<S: Simd>() -> Self {
        // Two vectors of columns: 24 or 12 sums, and room for the factors.
        let rows = if S::REGISTER_COUNT >= 32 { 12 } else { 6 };
        Self {
            rows,
            lanes: S::F32_LANES,
        }
    }

    fn row_panels(self, count: usize) -> Vec<Panel> {
        panels(count, |left| {
            let sizes = [1, 2, 4, 6, 8].into_iter();
            let mut fitting = sizes.filter(|&size| size >= left && size < self.rows);
            fitting.next().unwrap_or(self.rows)
        })
    }

    pub(super) fn column_panels(self, count: usize) -> Vec<Panel> {
        let lanes = self.lanes;
        panels(count, |left| if left <= lanes { lanes } else { 2 * lanes })
    }
}

fn panels(count: usize, width: impl Fn(usize) -> usize) -> Vec<Panel> {
    let mut panels = Vec::new();
    let (mut first, mut before) = (0, 0);
    while first < count {
        let width = width(count - first);
        let end = (first + width).min(count);
        panels.push(Panel {
            first,
            end,
            width,
            before,
        });
        first = end;
        before += width;
    }
    panels
}

/// The rows of a matrix, packed.
#[derive(Debug)]
pub(super) struct PackedRows {
    inner: usize,
    panels: Vec<Panel>,
    padded: usize,
    numbers: Vec<f32>,
}

impl PackedRows {
    /// Packs `count` rows of `inner` numbers each; `at(row, inner)` gives them.
    pub(super) fn new(count: usize, inner: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let panels = Geometry::here().row_panels(count);
        let (padded, numbers) = packed(&panels, inner, block(inner), at);
        Self {
            inner,
            panels,
            padded,
            numbers,
        }
    }

    /// Packs `count` rows of `inner` numbers, one every `pitch` numbers; into the room of `old` ones.
    pub(super) fn of_rows(
        count: usize,
        inner: usize,
        pitch: usize,
        from: &[f32],
        old: Vec<f32>,
    ) -> Self {
        let panels = Geometry::here().row_panels(count);
        let padded: usize = panels.iter().map(|p| p.width).sum();
        let mut numbers = old;
        numbers.resize(padded * inner, 0.0);
        let mut at = 0;
        let step = block(inner);
        for start in (0..inner).step_by(step) {
            let block = start..(start + step).min(inner);
            for panel in &panels {
                let to = &mut numbers[at..][..block.len() * panel.width];
                at += to.len();
                for row in panel.first..panel.end {
                    let from = &from[row * pitch..][block.clone()];
                    let to = to[row - panel.first..].iter_mut().step_by(panel.width);
                    for (to, from) in to.zip(from) {
                        *to = *from;
                    }
                }
            }
        }
        Self {
            inner,
            panels,
            padded,
            numbers,
        }
    }

    /// The room, for other numbers.
    pub(super) fn into_room(self) -> Vec<f32> {
        self.numbers
    }

    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    pub(super) fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// A panel of one of the blocks.
    #[inline(always)]
    pub(super) fn panel(&self, inner: Range<usize>, panel: Panel) -> &[f32] {
        let at = inner.start * self.padded + inner.len() * panel.before;
        &self.numbers[at..][..inner.len() * panel.width]
    }
}

/// The columns of a matrix, packed.
#[derive(Debug)]
pub(super) struct PackedColumns {
    count: usize,
    panels: Vec<Panel>,
    padded: usize,
    numbers: Vec<f32>,
    /// The first number that begins a line of the cache: the numbers begin there.
    start: usize,
}

impl PackedColumns {
    /// Packs `count` columns of `inner` numbers each; `at(column, inner)` gives them.
    pub(super) fn new(count: usize, inner: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        Self::in_blocks(count, inner, block(inner), at)
    }

    /// As [`new`](Self::new), in one block.
    pub(super) fn whole(count: usize, inner: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        Self::in_blocks(count, inner, inner.max(1), at)
    }

    fn in_blocks(
        count: usize,
        inner: usize,
        block: usize,
        at: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let panels = Geometry::here().column_panels(count);
        let (padded, mut numbers) = packed(&panels, inner, block, at);
        let length = numbers.len();
        numbers.reserve_exact(LINE);
        let start = aligned(&numbers);
        numbers.resize(length + start, 0.0);
        numbers.copy_within(..length, start);
        Self {
            count,
            panels,
            padded,
            numbers,
            start,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// A block of the panels from `panel` on.
    #[inline(always)]
    pub(super) fn block(&self, inner: Range<usize>, panel: usize) -> &[f32] {
        let before = self.panels[panel].before;
        &self.numbers[self.start + inner.start * self.padded + inner.len() * before..]
    }
}

fn packed(
    panels: &[Panel],
    inner: usize,
    step: usize,
    at: impl Fn(usize, usize) -> f32,
) -> (usize, Vec<f32>) {
    let padded: usize = panels.iter().map(|p| p.width).sum();
    let mut numbers = Vec::with_capacity(padded * inner);
    let mut from = 0;
    while from < inner {
        let block = from..(from + step).min(inner);
        for panel in panels {
            for k in block.clone() {
                let given = (panel.first..panel.end).map(|i| at(i, k));
                let room = panel.width - (panel.end - panel.first);
                numbers.extend(given.chain(std::iter::repeat_n(0.0, room)));
            }
        }
        from = block.end;
    }
    (padded, numbers)
}

//! Matrix products: rows of one matrix, columns of another, both in panels that the registers hold.
//!
//! The result is row-major. A tile of it, a panel of rows by a panel of columns, is summed in
//! registers over a block of the inner dimension; the block of columns stays in the second cache
//! while all rows pass, and the steps that follow the product are done to each row of tiles while
//! it is still in the first.

use super::chain::{Chain, PIECE_MAX, Place};
use super::panels::{Geometry, PackedColumns, PackedRows, Panel, block};
use super::simd::{Lanes, Vectorised, vectorised};
use super::tile::Tile;
use pulp::Simd;
use std::cell::RefCell;
use std::ops::Range;

/// Numbers in a line of the cache.
pub(super) const LINE: usize = 16;

/// How many numbers lie before the first that begins a line of the cache.
pub(super) fn aligned(numbers: &[f32]) -> usize {
    numbers
        .as_ptr()
        .align_offset(LINE * size_of::<f32>())
        .min(LINE)
}

/// Panels of columns whose block stays in the second cache: 256 columns at 16 lanes.
const STRIP: usize = 8;

thread_local! {
    /// Room for a block of columns.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Where columns come from that are not packed beforehand.
pub(super) trait Gather {
    /// Writes numbers `inner` of the columns from `first` on, `width` to a row, to the front of
    /// `out`. May write over what follows; may leave what lies behind the last column as it was.
    fn gather<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        inner: Range<usize>,
        first: usize,
        width: usize,
        out: &mut [f32],
    );
}

/// Columns that are packed beforehand need no gathering.
pub(super) struct Nowhere;

impl Gather for Nowhere {
    #[inline(always)]
    fn gather<S: Simd, const FUSED: bool>(
        &self,
        _: Lanes<S, FUSED>,
        _: Range<usize>,
        _: usize,
        _: usize,
        _: &mut [f32],
    ) {
    }
}

/// The columns of a product.
pub(super) enum Columns<'a, G> {
    Packed(&'a PackedColumns),
    Gathered { count: usize, from: G },
}

/// A product and what is done to its result.
pub(super) struct Product<'a, G> {
    pub(super) rows: &'a PackedRows,
    pub(super) columns: Columns<'a, G>,
    /// One a row; none are zero.
    pub(super) bias: &'a [f32],
    pub(super) chain: &'a Chain,
    pub(super) tensors: &'a [&'a [f32]],
    /// Rows times columns, row-major.
    pub(super) out: &'a mut [f32],
}

impl<G: Gather> Product<'_, G> {
    pub(super) fn compute(self) {
        ROOM.with_borrow_mut(|room| {
            vectorised(Run {
                product: self,
                room,
            })
        });
    }
}

struct Run<'a, 'b, G> {
    product: Product<'a, G>,
    room: &'b mut Vec<f32>,
}

impl<G: Gather> Vectorised for Run<'_, '_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const FUSED: bool>(self, lanes: Lanes<S, FUSED>) {
        let Product {
            rows,
            columns,
            bias,
            chain,
            tensors,
            out,
        } = self.product;
        let mut kept = [0.0; PIECE_MAX];
        let step = block(rows.inner());
        let gathered;
        let (panels, count) = match &columns {
            Columns::Packed(packed) => (packed.panels(), packed.count()),
            Columns::Gathered { count, .. } => {
                gathered = Geometry::of::<S>().column_panels(*count);
                (gathered.as_slice(), *count)
            }
        };
        for (strip_at, strip) in panels.chunks(STRIP).enumerate() {
            let (first, width) = span(strip);
            let mut from = 0;
            loop {
                let inner = from..(from + step).min(rows.inner());
                let block = match &columns {
                    Columns::Packed(packed) => packed.block(inner.clone(), strip_at * STRIP),
                    Columns::Gathered { from: source, .. } => {
                        // A vector more at the end, which a gatherer may write over.
                        let needed = width * step + 2 * Lanes::<S, FUSED>::WIDTH + LINE;
                        if self.room.len() < needed {
                            self.room.resize(needed, 0.0);
                        }
                        let start = aligned(self.room);
                        let room = &mut self.room[start..];
                        let mut at = 0;
                        for panel in strip {
                            let room = &mut room[at..];
                            source.gather(lanes, inner.clone(), panel.first, panel.width, room);
                            at += panel.width * inner.len();
                        }
                        room
                    }
                };
                let last = inner.end == rows.inner();
                for panel in rows.panels() {
                    let strip = Strip {
                        panels: strip,
                        block,
                        bias,
                        count,
                    };
                    strip.tiles(lanes, rows, *panel, inner.clone(), out);
                    if !last {
                        continue;
                    }
                    let columns = width.min(count - first);
                    for row in panel.first..panel.end {
                        let offset = row * count + first;
                        let place = Place {
                            row,
                            column: first,
                            offset,
                        };
                        let out = &mut out[offset..][..columns];
                        chain.apply(lanes, place, tensors, out, &mut kept);
                    }
                }
                if last {
                    break;
                }
                from = inner.end;
            }
        }
    }
}

/// First column of panels that follow each other, and how many they are.
fn span(panels: &[Panel]) -> (usize, usize) {
    let first = panels.first().map_or(0, |p| p.first);
    (first, panels.iter().map(|p| p.width).sum())
}

struct Strip<'a> {
    panels: &'a [Panel],
    block: &'a [f32],
    bias: &'a [f32],
    /// Columns of the whole result.
    count: usize,
}

impl Strip<'_> {
    /// One row of tiles.
    #[inline(always)]
    fn tiles<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        rows: &PackedRows,
        panel: Panel,
        inner: Range<usize>,
        out: &mut [f32],
    ) {
        let a = rows.panel(inner.clone(), panel);
        let mut at = 0;
        let mut panels = self.panels;
        if panel.width == 1 {
            while let Some((four, rest)) = panels.split_first_chunk::<4>() {
                if four
                    .iter()
                    .any(|p| p.end - p.first != 2 * Lanes::<S, FUSED>::WIDTH)
                {
                    break;
                }
                let length = four[0].width * inner.len();
                let bias = (inner.start == 0).then(|| self.bias.get(panel.first).copied());
                let start = bias.map(|b| b.unwrap_or(0.0));
                let to = &mut out[panel.first * self.count..][four[0].first..four[3].end];
                row(lanes, a, &self.block[at..][..4 * length], start, to);
                at += 4 * length;
                panels = rest;
            }
        }
        for columns in panels {
            let b = &self.block[at..][..columns.width * inner.len()];
            at += b.len();
            let tile = Tile {
                a,
                b,
                bias: (inner.start == 0).then_some(self.bias),
                row: panel.first..panel.end,
                column: columns.first..columns.end,
                count: self.count,
            };
            tile.compute(lanes, panel.width, columns.width, out);
        }
    }
}

/// One row by four panels of columns, which are read side by side: memory answers several at once
/// sooner than one after the other.
#[inline(always)]
fn row<S: Simd, const FUSED: bool>(
    lanes: Lanes<S, FUSED>,
    a: &[f32],
    b: &[f32],
    start: Option<f32>,
    out: &mut [f32],
) {
    let (to, _) = S::as_mut_simd_f32s(out);
    let Some((to, [])) = to.split_first_chunk_mut::<8>() else {
        return;
    };
    let mut sums = match start {
        Some(start) => [lanes.splat(start); 8],
        None => *to,
    };
    let (first, second) = b.split_at(b.len() / 2);
    let (b0, b1) = first.split_at(first.len() / 2);
    let (b2, b3) = second.split_at(second.len() / 2);
    let b0 = S::as_simd_f32s(b0).0.as_chunks::<2>().0;
    let b1 = S::as_simd_f32s(b1).0.as_chunks::<2>().0;
    let b2 = S::as_simd_f32s(b2).0.as_chunks::<2>().0;
    let b3 = S::as_simd_f32s(b3).0.as_chunks::<2>().0;
    for ((((a, b0), b1), b2), b3) in a.iter().zip(b0).zip(b1).zip(b2).zip(b3) {
        let factor = lanes.splat(*a);
        for (at, b) in [b0, b1, b2, b3].into_iter().enumerate() {
            sums[2 * at] = lanes.mul_add(factor, b[0], sums[2 * at]);
            sums[2 * at + 1] = lanes.mul_add(factor, b[1], sums[2 * at + 1]);
        }
    }
    *to = sums;
}

//! The inner loop: a panel of rows by a panel of columns, summed in registers.

use super::simd::Lanes;
use pulp::Simd;
use std::ops::Range;

/// One tile of a result.
pub(super) struct Tile<'a> {
    /// The panel of rows.
    pub(super) a: &'a [f32],
    /// The panel of columns.
    pub(super) b: &'a [f32],
    /// What the sums begin with, one a row, none are zero; if there is none, what stands in the result.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) row: Range<usize>,
    pub(super) column: Range<usize>,
    /// Columns of the result.
    pub(super) count: usize,
}

impl Tile<'_> {
    /// Computes it; `rows` and `columns` are the panels' widths.
    #[inline(always)]
    pub(super) fn compute<S: Simd, const FUSED: bool>(
        &self,
        lanes: Lanes<S, FUSED>,
        rows: usize,
        columns: usize,
        out: &mut [f32],
    ) {
        if columns > Lanes::<S, FUSED>::WIDTH {
            self.sized::<S, FUSED, 2>(lanes, rows, out);
        } else {
            self.sized::<S, FUSED, 1>(lanes, rows, out);
        }
    }

    #[inline(always)]
    fn sized<S: Simd, const FUSED: bool, const COLUMNS: usize>(
        &self,
        lanes: Lanes<S, FUSED>,
        rows: usize,
        out: &mut [f32],
    ) {
        match rows {
            1 => self.sum::<S, FUSED, 1, COLUMNS>(lanes, out),
            2 => self.sum::<S, FUSED, 2, COLUMNS>(lanes, out),
            4 => self.sum::<S, FUSED, 4, COLUMNS>(lanes, out),
            8 if S::REGISTER_COUNT >= 32 => self.sum::<S, FUSED, 8, COLUMNS>(lanes, out),
            12 if S::REGISTER_COUNT >= 32 => self.sum::<S, FUSED, 12, COLUMNS>(lanes, out),
            _ => self.sum::<S, FUSED, 6, COLUMNS>(lanes, out),
        }
    }

    #[inline(always)]
    fn sum<S: Simd, const FUSED: bool, const ROWS: usize, const COLUMNS: usize>(
        &self,
        lanes: Lanes<S, FUSED>,
        out: &mut [f32],
    ) {
        let width = Lanes::<S, FUSED>::WIDTH;
        let zero = lanes.splat(0.0);
        let mut sums = [[zero; COLUMNS]; ROWS];
        for (row, sums) in self.row.clone().zip(&mut sums) {
            match self.bias {
                Some(bias) => *sums = [lanes.splat(bias.get(row).copied().unwrap_or(0.0)); COLUMNS],
                None => {
                    let from = &out[row * self.count..][self.column.clone()];
                    for (at, sum) in sums.iter_mut().enumerate() {
                        *sum = from.get(at * width..).map_or(zero, |from| lanes.load(from));
                    }
                }
            }
        }
        let a = self.a.as_chunks::<ROWS>().0;
        let b = S::as_simd_f32s(self.b).0.as_chunks::<COLUMNS>().0;
        for (a, b) in a.iter().zip(b) {
            for row in 0..ROWS {
                let factor = lanes.splat(a[row]);
                for column in 0..COLUMNS {
                    sums[row][column] = lanes.mul_add(factor, b[column], sums[row][column]);
                }
            }
        }
        for (row, sums) in self.row.clone().zip(&sums) {
            let to = &mut out[row * self.count..][self.column.clone()];
            for (at, sum) in sums.iter().enumerate() {
                if let Some(to) = to.get_mut(at * width..) {
                    lanes.store(to, *sum);
                }
            }
        }
    }
}

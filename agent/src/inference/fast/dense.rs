//! Products of what comes with a matrix of weights.

use super::chain::Chain;
use super::panels::{PackedColumns, PackedRows};
use super::product::{Columns, Nowhere, Product};
use std::cell::RefCell;

thread_local! {
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What comes: `rows` rows of `inner` numbers, one every `pitch` of the `given` numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) pitch: usize,
    pub(super) given: usize,
}

/// A matrix of weights made ready.
#[derive(Debug)]
pub(super) struct Dense {
    rows: Rows,
    weights: PackedColumns,
}

impl Dense {
    /// `weights` are a row of the inner dimension's numbers a column of the result.
    pub(super) fn new(rows: Rows, columns: usize, weights: &[f32]) -> Self {
        let inner = rows.inner;
        let weights = PackedColumns::new(columns, inner, |column, at| weights[column * inner + at]);
        Self { rows, weights }
    }

    pub(super) fn input(&self) -> usize {
        self.rows.given
    }

    pub(super) fn output(&self) -> usize {
        self.rows.rows * self.weights.count()
    }

    /// Multiplies what is given, or stands in `out`.
    pub(super) fn run(
        &self,
        given: Option<&[f32]>,
        chain: &Chain,
        tensors: &[&[f32]],
        out: &mut [f32],
    ) {
        let Rows {
            rows, inner, pitch, ..
        } = self.rows;
        ROOM.with_borrow_mut(|room| {
            let given = given.unwrap_or(out);
            let packed = PackedRows::of_rows(rows, inner, pitch, given, std::mem::take(room));
            let columns = Columns::<Nowhere>::Packed(&self.weights);
            Product {
                rows: &packed,
                columns,
                bias: &[],
                chain,
                tensors,
                out,
            }
            .compute();
            *room = packed.into_room();
        });
    }
}

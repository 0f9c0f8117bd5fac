//! `GridSample` by cubic convolution with `border` padding: ONNX Runtime moves only the pixels to the
//! border that lie outside, tract the point that is asked for.

use super::tracts::{Parsed, boxed, read};
use crate::inference::ml::plug::{Fact, Kernel, Operator, plugged};
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_ndarray::{ArrayD, ArrayView2, Axis, Ix4};

pub(super) fn grid_sample(ctx: &ParsingContext, node: &NodeProto) -> Parsed {
    let mode: &str = node.get_attr_opt("mode")?.unwrap_or("linear");
    let padding: &str = node.get_attr_opt("padding_mode")?.unwrap_or("zeros");
    if !matches!(mode, "cubic" | "bicubic") || padding != "border" {
        return Ok((boxed(read(ctx, node)?), vec![]));
    }
    let align_corners: i64 = node.get_attr_opt("align_corners")?.unwrap_or(0);
    Ok(plugged(CubicWithBorder {
        align_corners: align_corners != 0,
    }))
}

#[derive(Debug, Clone)]
struct CubicWithBorder {
    align_corners: bool,
}

impl Operator for CubicWithBorder {
    fn name(&self) -> &'static str {
        "GridSample"
    }

    fn inputs(&self) -> Option<usize> {
        Some(2)
    }

    fn facts(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let (image, grid) = (&inputs[0], &inputs[1]);
        ensure!(
            image.1.len() == 4 && grid.1.len() == 4 && grid.1[3] == 2.to_dim(),
            "cubic GridSample of {:?} at {:?}: expected [N, C, H, W] and [N, H, W, 2]",
            image.1,
            grid.1
        );
        ensure!(
            image.0 == DatumType::F32 && grid.0 == DatumType::F32,
            "cubic GridSample with padding_mode border of {:?} at {:?}: expected FP32",
            image.0,
            grid.0
        );
        let (image, grid) = (&image.1, &grid.1);
        let shape = [&image[0], &image[1], &grid[1], &grid[2]];
        Ok(tvec![(
            DatumType::F32,
            shape.into_iter().cloned().collect()
        )])
    }

    fn prepare(&self, _: &[Fact]) -> TractResult<Box<dyn Kernel>> {
        Ok(Box::new(self.clone()))
    }
}

impl Kernel for CubicWithBorder {
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<TValue>> {
        let image = inputs[0].to_plain_array_view::<f32>()?;
        let image = image.into_dimensionality::<Ix4>()?;
        let grid = inputs[1].to_plain_array_view::<f32>()?;
        let grid = grid.into_dimensionality::<Ix4>()?;
        let (batch, channels, height, width) = image.dim();
        let (of_grid, rows, columns, _) = grid.dim();
        ensure!(
            of_grid == batch && height * width > 0,
            "GridSample of {batch} images of {height}x{width} at {of_grid} grids"
        );
        let mut sampled = ArrayD::<f32>::zeros(vec![batch, channels, rows, columns]);
        for n in 0..batch {
            for row in 0..rows {
                for column in 0..columns {
                    let x = Taps::at(self.pixel(grid[[n, row, column, 0]], width), width);
                    let y = Taps::at(self.pixel(grid[[n, row, column, 1]], height), height);
                    for channel in 0..channels {
                        let plane = image.index_axis(Axis(0), n);
                        let plane = plane.index_axis(Axis(0), channel);
                        sampled[[n, channel, row, column]] = interpolated(&plane, &x, &y);
                    }
                }
            }
        }
        Ok(tvec![sampled.into_tensor().into_tvalue()])
    }
}

impl CubicWithBorder {
    /// The position in pixels of one between −1 and 1.
    fn pixel(&self, at: f32, length: usize) -> f32 {
        let length = length as f32;
        match self.align_corners {
            true => (at + 1.0) / 2.0 * (length - 1.0),
            false => ((at + 1.0) * length - 1.0) / 2.0,
        }
    }
}

/// The pixels around a position, and how much each counts.
struct Taps {
    pixels: [usize; 4],
    weights: [f32; 4],
}

impl Taps {
    fn at(position: f32, length: usize) -> Self {
        let below = position.floor();
        let last = length as f32 - 1.0;
        // Not a number becomes pixel 0; its weights are not numbers either.
        let pixel = |offset: f32| (below + offset).clamp(0.0, last) as usize;
        Self {
            pixels: [-1.0, 0.0, 1.0, 2.0].map(pixel),
            weights: weights(position - below),
        }
    }
}

/// Cubic convolution with a = −0.75, for pixels at −1, 0, 1 and 2 seen from `x` in 0 … 1.
fn weights(x: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let near = |s: f32| ((A + 2.0) * s - (A + 3.0)) * s * s + 1.0;
    let far = |s: f32| ((A * s - 5.0 * A) * s + 8.0 * A) * s - 4.0 * A;
    [far(x + 1.0), near(x), near(1.0 - x), far(2.0 - x)]
}

fn interpolated(plane: &ArrayView2<f32>, x: &Taps, y: &Taps) -> f32 {
    let rows = y.pixels.iter().zip(y.weights);
    let of_row = |row: usize| {
        let columns = x.pixels.iter().zip(x.weights);
        columns.map(|(&c, weight)| weight * plane[[row, c]]).sum()
    };
    rows.map(|(&row, weight)| {
        let sum: f32 = of_row(row);
        weight * sum
    })
    .sum()
}

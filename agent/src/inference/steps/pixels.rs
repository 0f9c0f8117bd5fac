//! Decoded images.

/// An image's pixels, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Image {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) pixels: Vec<u8>,
}

/// Pillow's `L`: 0.299, 0.587 and 0.114 in 16-bit fixed point, rounded.
pub(crate) fn luma(rgb: [u8; 3]) -> u8 {
    let [r, g, b] = rgb.map(u32::from);
    let sum = r * 19_595 + g * 38_470 + b * 7_471 + 0x8000;
    u8::try_from(sum >> 16).unwrap_or(u8::MAX)
}

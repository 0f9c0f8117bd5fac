//! Change detectors for streams of numbers. Pure: values in, detections out; the state is plain data
//! that can be kept and taken up again.

pub mod adwin;
mod bits;
pub mod page_hinkley;
pub mod watch;

#[cfg(test)]
mod fixture;

//! How long to wait after a failed fetch.

/// Longest pause between two attempts, in milliseconds.
pub(super) const BACKOFF_MAX_MS: i64 = 300_000;

/// 1 s doubled each time, at most five minutes, then spread over the upper half.
pub(super) fn backoff_ms(attempts: u32, seed: u64) -> i64 {
    let full = 1_000_i64
        .saturating_mul(1 << attempts.saturating_sub(1).min(16))
        .min(BACKOFF_MAX_MS);
    let mixed = (seed ^ u64::from(attempts)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
    let half = full / 2;
    half + i64::try_from(mixed).unwrap_or(0) % (half + 1)
}

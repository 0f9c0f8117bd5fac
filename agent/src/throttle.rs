//! The bandwidth limit, shared by every way that an update is fetched.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Clones share one limit.
#[derive(Debug, Clone)]
pub struct Throttle {
    bytes_s: u64,
    /// When the next byte may be taken.
    next_at: Arc<Mutex<Instant>>,
}

impl Throttle {
    /// At most `bytes_s` bytes a second; 0: no limit.
    #[must_use]
    pub fn new(bytes_s: u64) -> Self {
        Self {
            bytes_s,
            next_at: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// The limit; 0: none.
    #[must_use]
    pub fn bytes_s(&self) -> u64 {
        self.bytes_s
    }

    /// Books bytes that have come, and waits until they were due. Whoever reads no further
    /// meanwhile slows the sender down.
    pub async fn take(&self, bytes: usize) {
        if let Some(until) = self.book(bytes, Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }

    fn book(&self, bytes: usize, now: Instant) -> Option<Instant> {
        if self.bytes_s == 0 {
            return None;
        }
        let mut next = self.next_at.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = (bytes as u64).saturating_mul(1_000_000) / self.bytes_s;
        *next = (*next).max(now) + Duration::from_micros(micros);
        Some(*next)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_one_after_the_other() {
        let throttle = Throttle::new(1000);
        let now = Instant::now() + Duration::from_secs(1);
        let second = Duration::from_secs(1);
        assert_eq!(throttle.book(500, now).unwrap(), now + second / 2);
        assert_eq!(throttle.clone().book(500, now).unwrap(), now + second);
        // What was not used in a pause is not made up for.
        let later = now + 10 * second;
        assert_eq!(throttle.book(1000, later).unwrap(), later + second);
        assert_eq!(Throttle::new(0).book(1 << 30, now), None);
    }
}

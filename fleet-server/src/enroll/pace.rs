//! A bound on how often strangers may make the server work.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A token bucket as one moment: when the requests taken so far would have been due at the steady
/// rate. A request may be up to a burst early; beyond that it is refused.
#[derive(Debug)]
pub(super) struct Pace {
    step: Duration,
    burst: u32,
    due: Mutex<Option<Instant>>,
}

impl Pace {
    /// So many a second in the long run, so many at once.
    #[must_use]
    pub(super) fn new(a_second: u32, burst: u32) -> Self {
        Self {
            step: Duration::from_secs(1) / a_second.max(1),
            burst,
            due: Mutex::default(),
        }
    }

    /// Takes one request; `false`: it is one too many.
    pub(super) fn take(&self, now: Instant) -> bool {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.map_or(now, |due| due.max(now)) + self.step;
        if next.saturating_duration_since(now) > self.step * self.burst {
            return false;
        }
        *due = Some(next);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_a_flood_is_not() {
        let (pace, now) = (Pace::new(10, 20), Instant::now());
        let taken = (0..100).filter(|_| pace.take(now)).count();
        assert_eq!(taken, 20);
        let later = now + Duration::from_millis(550);
        let taken = (0..100).filter(|_| pace.take(later)).count();
        assert_eq!(taken, 5, "half a second's worth");
    }
}

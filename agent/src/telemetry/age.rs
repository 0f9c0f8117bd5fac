//! Which time records are aged by. Pure: both clocks are arguments.
//!
//! The device's wall clock may jump, and what is deleted for its age does not come back. So a time
//! counts only once it has been confirmed: by the server's stamp on an acknowledgement, or by a day on
//! which the clock ran on without a jump. Until then nothing ages after a start, and after a jump
//! forward the clock of before goes on.

/// Further than this from what is known, the clock has jumped; in milliseconds.
const JUMP_MS: i64 = 3_600_000;
/// So long a clock must have run without a jump to be believed, in milliseconds.
const STANDING_MS: u64 = 24 * 3_600_000;

/// The wall clock as far as it can be believed.
#[derive(Debug, Default)]
pub struct AgeClock {
    /// The wall clock at 0 of the one that does not go back, as last seen.
    seen: Option<(i64, u64)>,
    /// As confirmed.
    trusted_ms: Option<i64>,
    /// As it has been since when, unconfirmed.
    standing: Option<(i64, u64)>,
}

impl AgeClock {
    /// Takes both clocks' times: the wall's, in milliseconds since 1970, and one's that does not go back.
    pub fn see(&mut self, wall_ms: i64, clock_ms: u64) {
        let offset_ms = wall_ms.saturating_sub_unsigned(clock_ms);
        self.seen = Some((offset_ms, clock_ms));
        if let Some(trusted_ms) = self.trusted_ms
            && offset_ms.saturating_sub(trusted_ms) <= JUMP_MS
        {
            // Set back, or slowly forward: a jump made of small ones is one.
            self.trusted_ms = Some(trusted_ms.min(offset_ms));
            if offset_ms <= trusted_ms {
                self.standing = None;
                return;
            }
        }
        match self.standing {
            Some((at_ms, since_ms)) if offset_ms.abs_diff(at_ms) <= JUMP_MS.unsigned_abs() => {
                if clock_ms.saturating_sub(since_ms) >= STANDING_MS {
                    self.trusted_ms = Some(offset_ms);
                    self.standing = None;
                }
            }
            _ => self.standing = Some((offset_ms, clock_ms)),
        }
    }

    /// The server says what time it is, in milliseconds since 1970. A clock that agrees is right; of one
    /// that does not, nothing is learnt: the records carry its times.
    pub fn confirm(&mut self, server_ms: i64) {
        let Some((offset_ms, clock_ms)) = self.seen else {
            return;
        };
        let wall_ms = offset_ms.saturating_add_unsigned(clock_ms);
        if wall_ms.abs_diff(server_ms) <= JUMP_MS.unsigned_abs() {
            self.trusted_ms = Some(offset_ms);
            self.standing = None;
        }
    }

    /// The time to age by, in milliseconds since 1970; none if no clock is known to be right.
    #[must_use]
    pub fn now_ms(&self) -> Option<i64> {
        let (offset_ms, clock_ms) = self.seen?;
        let trusted_ms = self.trusted_ms?;
        let is_near = offset_ms.saturating_sub(trusted_ms) <= JUMP_MS;
        let offset_ms = if is_near { offset_ms } else { trusted_ms };
        Some(offset_ms.saturating_add_unsigned(clock_ms))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOON_MS: i64 = 1_800_000_000_000;
    const DAY_MS: i64 = 86_400_000;
    const HOUR: u64 = 3_600_000;

    fn confirmed() -> AgeClock {
        let mut clock = AgeClock::default();
        clock.see(NOON_MS, 5_000);
        assert_eq!(clock.now_ms(), None, "as it comes from a start");
        clock.confirm(NOON_MS + 200);
        assert_eq!(clock.now_ms(), Some(NOON_MS));
        clock
    }

    #[test]
    fn a_short_jump_forward_ages_nothing() {
        let mut clock = confirmed();
        for second in 1..4 {
            clock.see(
                NOON_MS + 31 * DAY_MS + second * 1000,
                5_000 + second.cast_unsigned() * 1000,
            );
            assert_eq!(clock.now_ms(), Some(NOON_MS + second * 1000));
        }
        clock.see(NOON_MS + 4000, 9_000);
        assert_eq!(clock.now_ms(), Some(NOON_MS + 4000));
    }

    #[test]
    fn a_clock_that_stands_for_a_day_is_believed() {
        let mut clock = AgeClock::default();
        for hour in 0..=24 {
            assert_eq!(clock.now_ms(), None);
            clock.see(NOON_MS + (hour * HOUR).cast_signed(), hour * HOUR);
        }
        assert_eq!(clock.now_ms(), Some(NOON_MS + DAY_MS));
        // Set forward by a month, for good.
        let month_ms = NOON_MS + 31 * DAY_MS;
        for hour in 25..49 {
            clock.see(month_ms + (hour * HOUR).cast_signed(), hour * HOUR);
            assert_eq!(clock.now_ms(), Some(NOON_MS + (hour * HOUR).cast_signed()));
        }
        clock.see(month_ms + (49 * HOUR).cast_signed(), 49 * HOUR);
        assert_eq!(clock.now_ms(), Some(month_ms + (49 * HOUR).cast_signed()));
    }

    #[test]
    fn the_server_confirms_a_jump_and_not_a_clock_that_is_wrong() {
        let mut clock = confirmed();
        clock.see(NOON_MS + 31 * DAY_MS, 6_000);
        clock.confirm(NOON_MS + 1000);
        assert_eq!(clock.now_ms(), Some(NOON_MS + 1000));
        clock.confirm(NOON_MS + 31 * DAY_MS - 60_000);
        assert_eq!(clock.now_ms(), Some(NOON_MS + 31 * DAY_MS));
    }

    #[test]
    fn a_jump_made_of_small_ones_is_one_and_set_back_is_younger() {
        let mut clock = confirmed();
        for step in 1..100 {
            clock.see(NOON_MS + step * 1_800_000, 5_000);
        }
        assert_eq!(clock.now_ms(), Some(NOON_MS));
        clock.see(NOON_MS - DAY_MS, 5_000);
        assert_eq!(clock.now_ms(), Some(NOON_MS - DAY_MS));
        for (wall_ms, clock_ms) in [(i64::MAX, 0), (i64::MIN, u64::MAX), (0, u64::MAX)] {
            clock.see(wall_ms, clock_ms);
            clock.confirm(wall_ms);
            let _ = clock.now_ms();
        }
    }
}

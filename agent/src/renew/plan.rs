//! When to renew, and how long to wait after a failure. Pure.

use crate::identity::Validity;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Longest wait before the clock is looked at again: it may jump.
const LOOK_MAX: Duration = Duration::from_secs(3600);
/// First wait after a failure; doubled with each.
const BACKOFF_MIN: Duration = Duration::from_secs(2);
/// Longest wait between two attempts of a device that is cut off, and of one that may take its time.
const CUT_OFF_MAX: Duration = Duration::from_secs(300);
const AT_EASE_MAX: Duration = Duration::from_secs(6 * 3600);
/// Of a life, the part that a device at ease lets pass between two attempts, at most.
const AT_EASE_PART: u32 = 50;

/// When a certificate is to be renewed: at two thirds of its life, up to a twelfth of it later, by a
/// number that is the certificate's own, so that a fleet that enrolled in one hour does not renew in
/// one.
#[must_use]
pub fn due(validity: Validity, spread: u32) -> Timestamp {
    let life_s = life(validity).as_secs();
    let after_s = life_s * 2 / 3 + life_s * u64::from(spread) / u64::from(u32::MAX) / 12;
    let after = SignedDuration::from_secs(i64::try_from(after_s).unwrap_or(i64::MAX));
    let due = validity.not_before.saturating_add(after);
    due.unwrap_or(validity.not_after)
}

/// What is known when the next look is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// The time.
    pub now: Timestamp,
    /// When the certificate is to be renewed.
    pub due: Timestamp,
    /// The certificate.
    pub validity: Validity,
    /// Attempts that failed since one succeeded.
    pub failures: u32,
    /// The connection is down and it is not known why.
    pub in_trouble: bool,
}

/// How long to wait before the next attempt or look. `random` spreads waits after failures.
#[must_use]
pub fn pause(at: Situation, random: u32) -> Duration {
    if at.failures == 0 {
        let until_due = at.due.duration_since(at.now);
        let until_due = Duration::try_from(until_due).unwrap_or(Duration::ZERO);
        return if at.in_trouble {
            Duration::ZERO
        } else {
            until_due.min(LOOK_MAX)
        };
    }
    let max = if at.in_trouble || at.now > at.validity.not_after {
        CUT_OFF_MAX
    } else {
        (life(at.validity) / AT_EASE_PART).clamp(BACKOFF_MIN, AT_EASE_MAX)
    };
    let full = BACKOFF_MIN
        .saturating_mul(1 << (at.failures - 1).min(20))
        .min(max);
    full / 2 + (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Whether a person should know that renewing fails: the last sixth of the certificate's life has
/// begun, two months of a year.
#[must_use]
pub(super) fn is_late(at: Situation) -> bool {
    let left = at.validity.not_after.duration_since(at.now);
    let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
    at.failures > 0 && left <= life(at.validity) / 6
}

fn life(validity: Validity) -> Duration {
    let life = validity.not_after.duration_since(validity.not_before);
    Duration::try_from(life).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DAY_S: i64 = 86_400;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn year() -> Validity {
        Validity {
            not_before: at(0),
            not_after: at(360 * DAY_S),
        }
    }

    fn situation(day: i64) -> Situation {
        Situation {
            now: at(day * DAY_S),
            due: due(year(), 0),
            validity: year(),
            failures: 0,
            in_trouble: false,
        }
    }

    #[test]
    fn a_certificate_is_due_between_two_thirds_and_three_quarters_of_its_life() {
        assert_eq!(due(year(), 0), at(240 * DAY_S));
        assert_eq!(due(year(), u32::MAX), at(270 * DAY_S));
        let middle = due(year(), u32::MAX / 2);
        assert!(at(254 * DAY_S) < middle && middle < at(256 * DAY_S));
        // One that ends before it begins is due at once.
        let nonsense = Validity {
            not_before: at(10),
            not_after: at(5),
        };
        assert_eq!(due(nonsense, u32::MAX), at(10));
    }

    #[test]
    fn a_person_is_told_two_months_before_the_end_if_renewing_fails() {
        let failed = |day| Situation {
            failures: 1,
            ..situation(day)
        };
        assert!(!is_late(failed(299)));
        assert!(is_late(failed(300)));
        assert!(is_late(failed(400)), "it has ended");
        assert!(!is_late(situation(359)), "nothing failed");
    }

    #[test]
    fn nothing_is_hurried_before_it_is_due_and_the_clock_is_looked_at_meanwhile() {
        assert_eq!(pause(situation(0), 0), LOOK_MAX);
        let just_before = Situation {
            now: at(240 * DAY_S - 10),
            ..situation(0)
        };
        assert_eq!(pause(just_before, 0), Duration::from_secs(10));
        assert_eq!(pause(situation(241), 0), Duration::ZERO);
        let in_trouble = Situation {
            in_trouble: true,
            ..situation(0)
        };
        assert_eq!(pause(in_trouble, 0), Duration::ZERO);
    }

    #[test]
    fn waits_double_up_to_a_bound_that_depends_on_the_need() {
        let longest = |at: Situation| {
            let waits = (1..=40).map(|failures| pause(Situation { failures, ..at }, u32::MAX));
            let waits: Vec<_> = waits.collect();
            assert!(waits.is_sorted());
            assert_eq!(waits[0], BACKOFF_MIN);
            *waits.last().unwrap()
        };
        assert_eq!(longest(situation(241)), AT_EASE_MAX);
        assert_eq!(longest(situation(400)), CUT_OFF_MAX);
        let in_trouble = Situation {
            in_trouble: true,
            ..situation(100)
        };
        assert_eq!(longest(in_trouble), CUT_OFF_MAX);
        let failed = Situation {
            failures: 3,
            ..situation(400)
        };
        assert_eq!(pause(failed, 0), Duration::from_secs(4), "half at least");
    }
}

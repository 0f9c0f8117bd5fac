//! How long something has been so. Pure.

use serde::{Deserialize, Serialize};

/// What one look says of one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is so.
    Bad,
    /// It is not so.
    Good,
    /// Between the limit and where it counts as over, or too little is known: nothing changes.
    Open,
    /// There is no such subject any more.
    Gone,
}

/// Where one subject of one rule stands. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Track {
    /// It is not so.
    #[default]
    Quiet,
    /// It has been so since then, and not for long enough.
    Rising {
        /// Since when.
        since_ms: i64,
    },
    /// It was told.
    Firing {
        /// Since when it has been so.
        since_ms: i64,
        /// Since when it has not been so any more, if it is.
        good_since_ms: Option<i64>,
    },
}

/// What has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It has been so for long enough; since when.
    Fired {
        /// Since when.
        since_ms: i64,
    },
    /// It is over.
    Resolved {
        /// Since when it had been so.
        since_ms: i64,
    },
}

/// How long it takes, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until it is told.
    pub for_ms: i64,
    /// Until it is over.
    pub clear_ms: i64,
}

/// One look.
#[must_use]
pub fn step(
    track: Track,
    verdict: Verdict,
    patience: Patience,
    now_ms: i64,
) -> (Track, Option<Change>) {
    match (track, verdict) {
        (_, Verdict::Open) => (track, None),
        (Track::Quiet | Track::Rising { .. }, Verdict::Good | Verdict::Gone) => {
            (Track::Quiet, None)
        }
        (Track::Firing { since_ms, .. }, Verdict::Gone) => {
            (Track::Quiet, Some(Change::Resolved { since_ms }))
        }
        (Track::Quiet, Verdict::Bad) => rise(now_ms, patience, now_ms),
        (Track::Rising { since_ms }, Verdict::Bad) => rise(since_ms, patience, now_ms),
        (Track::Firing { since_ms, .. }, Verdict::Bad) => {
            let good_since_ms = None;
            let firing = Track::Firing {
                since_ms,
                good_since_ms,
            };
            (firing, None)
        }
        (
            Track::Firing {
                since_ms,
                good_since_ms,
            },
            Verdict::Good,
        ) => {
            // A clock that was set back begins anew.
            let good_since_ms = good_since_ms.map_or(now_ms, |good| good.min(now_ms));
            if now_ms - good_since_ms >= patience.clear_ms {
                return (Track::Quiet, Some(Change::Resolved { since_ms }));
            }
            let good_since_ms = Some(good_since_ms);
            let falling = Track::Firing {
                since_ms,
                good_since_ms,
            };
            (falling, None)
        }
    }
}

fn rise(since_ms: i64, patience: Patience, now_ms: i64) -> (Track, Option<Change>) {
    let since_ms = since_ms.min(now_ms);
    if now_ms - since_ms >= patience.for_ms {
        let firing = Track::Firing {
            since_ms,
            good_since_ms: None,
        };
        return (firing, Some(Change::Fired { since_ms }));
    }
    (Track::Rising { since_ms }, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Patience = Patience {
        for_ms: 100,
        clear_ms: 50,
    };

    fn walk(looks: &[(i64, Verdict)]) -> Vec<(i64, Change)> {
        let mut track = Track::Quiet;
        let mut changes = Vec::new();
        for (now_ms, verdict) in looks {
            let (next, change) = step(track, *verdict, PATIENCE, *now_ms);
            track = next;
            changes.extend(change.map(|change| (*now_ms, change)));
        }
        changes
    }

    #[test]
    fn it_is_told_after_its_time_and_over_after_its_time() {
        use Verdict::{Bad, Good, Open};
        let changes = walk(&[
            (0, Bad),
            (50, Bad),
            (99, Good),
            (120, Bad),
            (200, Open),
            (219, Bad),
            (220, Bad),
            (230, Bad),
            (300, Good),
            (340, Bad),
            (350, Good),
            (390, Open),
            (400, Good),
        ]);
        let fired = (220, Change::Fired { since_ms: 120 });
        let resolved = (400, Change::Resolved { since_ms: 120 });
        assert_eq!(changes, [fired, resolved]);
    }

    #[test]
    fn what_is_gone_is_over_at_once() {
        use Verdict::{Bad, Gone};
        let changes = walk(&[(0, Bad), (100, Bad), (101, Gone), (102, Gone)]);
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[1], (101, Change::Resolved { since_ms: 0 }));
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            4 => Just(Verdict::Bad),
            4 => Just(Verdict::Good),
            1 => Just(Verdict::Open),
            1 => Just(Verdict::Gone),
        ]
    }

    proptest! {
        #[test]
        fn told_and_over_take_turns_whatever_the_clock_does(
            looks in proptest::collection::vec((-100_i64..400, verdict()), 0..60),
        ) {
            let mut fires = true;
            for (_, change) in walk(&looks) {
                prop_assert_eq!(matches!(change, Change::Fired { .. }), fires);
                fires = !fires;
            }
        }
    }
}

//! A served bundle's detectors, fed off the way of requests: a request leaves two numbers behind, the
//! worker's tick takes them up.

use crate::detect::watch::{Detection, Detector, Seen, Signal, Watch};
use std::collections::BTreeMap;

/// Answers that wait for the tick; beyond, they are not watched.
pub(super) const WAITING_MAX: usize = 8192;
/// Shortest time between two words about the same detector and signal.
const SAY_EVERY_MS: i64 = 60_000;

/// A change that is to be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Told {
    pub(crate) detection: Detection,
    /// Changes of the same kind since the last one told, which were not.
    pub(crate) untold: u64,
}

/// The detectors, and what was said of them.
#[derive(Debug, Default)]
pub(super) struct Watching {
    watch: Watch,
    is_resumed: bool,
    said: BTreeMap<(Detector, Signal), (i64, u64)>,
}

impl Watching {
    /// Takes up what was kept before a restart, once, unless more has been seen since.
    pub(super) fn resume(&mut self, kept: Watch) {
        if !self.is_resumed && kept.is_sound() && kept.answers() >= self.watch.answers() {
            self.watch = kept;
            self.is_resumed = true;
        }
    }

    /// What is to be kept.
    pub(super) fn state(&self) -> Watch {
        self.watch.clone()
    }

    /// Feeds the detectors; the changes that are to be told.
    pub(super) fn take(&mut self, now_ms: i64, seen: Vec<Seen>) -> Vec<Told> {
        let found: Vec<Detection> = seen.into_iter().flat_map(|s| self.watch.take(s)).collect();
        found
            .into_iter()
            .filter_map(|detection| self.told(now_ms, detection))
            .collect()
    }

    fn told(&mut self, now_ms: i64, detection: Detection) -> Option<Told> {
        let key = (detection.detector, detection.signal);
        let (last_ms, untold) = self.said.entry(key).or_insert((i64::MIN, 0));
        // The clock may be set back.
        if *last_ms <= now_ms && now_ms.saturating_sub(*last_ms) < SAY_EVERY_MS {
            *untold += 1;
            return None;
        }
        *last_ms = now_ms;
        let untold = std::mem::take(untold);
        Some(Told { detection, untold })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(watching: &mut Watching, now_ms: i64) -> Vec<Told> {
        let mut seen = Vec::new();
        for step in 0..40 {
            for _ in 0..200 {
                seen.push(Seen {
                    entropy: f64::NAN,
                    confidence: f64::from(step % 2) * 10.0,
                });
            }
        }
        watching.take(now_ms, seen)
    }

    #[test]
    fn a_restless_model_is_told_of_once_a_minute() {
        let mut watching = Watching::default();
        let told = steps(&mut watching, 1000);
        assert_eq!(told.len(), 2, "one a detector: {told:?}");
        assert!(told.iter().all(|t| t.untold == 0));
        assert_eq!(steps(&mut watching, 2000), []);
        let later = steps(&mut watching, 62_000);
        assert_eq!(later.len(), 2);
        assert!(later.iter().all(|t| t.untold > 10), "{later:?}");
    }

    #[test]
    fn what_was_kept_is_taken_up_once_and_never_over_more() {
        let mut kept = Watching::default();
        let one = Seen {
            entropy: 0.1,
            confidence: 0.9,
        };
        kept.take(0, vec![one; 100]);
        let mut watching = Watching::default();
        watching.take(0, vec![one; 3]);
        watching.resume(kept.state());
        assert_eq!(watching.state(), kept.state());
        watching.take(0, vec![one; 5]);
        watching.resume(kept.state());
        assert_eq!(watching.state().answers(), 105);
        let mut ahead = Watching::default();
        ahead.take(0, vec![one; 200]);
        ahead.resume(kept.state());
        assert_eq!(ahead.state().answers(), 200);
    }
}

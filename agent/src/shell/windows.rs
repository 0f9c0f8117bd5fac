//! Windows as the worker tells of them: what is open is kept beside what has closed, so that the worker's
//! death costs little of either. Pure.

use dunlin_protocol::id::Digest;
use dunlin_protocol::telemetry::{Body, Record, Window};
use std::collections::BTreeMap;

/// Bundle, segment and start: what a window is told apart by until it closes.
type Key = (Digest, Option<String>, i64);

fn key(window: &Window) -> Key {
    (window.bundle, window.segment.clone(), window.start_ms)
}

/// What was told and is not settled.
#[derive(Debug, Default)]
pub(super) struct Windows {
    closed: Vec<Window>,
    /// Open when all was told last.
    open: BTreeMap<Key, Window>,
    /// Open by what has been told since.
    coming: BTreeMap<Key, Window>,
}

impl Windows {
    pub(super) fn closed(&mut self, window: Window) {
        self.closed.push(window);
    }

    pub(super) fn open(&mut self, window: Window) {
        self.coming.insert(key(&window), window);
    }

    /// All was told: what has closed, and what is open.
    pub(super) fn counted(&mut self) -> (Vec<Record>, Vec<Record>) {
        self.open = std::mem::take(&mut self.coming);
        let closed = std::mem::take(&mut self.closed);
        let open = self.open.values().cloned();
        (
            closed.into_iter().map(record).collect(),
            open.map(record).collect(),
        )
    }

    /// The worker is gone: its open windows closed at `now_ms`. What is left of all; nothing is open.
    pub(super) fn died(&mut self, now_ms: i64) -> Vec<Record> {
        let mut open = std::mem::take(&mut self.open);
        open.append(&mut self.coming);
        let closed = std::mem::take(&mut self.closed);
        for window in &closed {
            open.remove(&key(window));
        }
        let cut = open.into_values().map(|mut window| {
            let end_ms = now_ms.max(window.start_ms.saturating_add(1));
            window.end_ms = window.end_ms.min(end_ms);
            window
        });
        closed.into_iter().chain(cut).map(record).collect()
    }
}

fn record(window: Window) -> Record {
    Record {
        time_ms: window.end_ms,
        body: Body::Window(Box::new(window)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use dunlin_protocol::sketch::{Histogram, Latency};

    fn window(start_ms: i64, inferences: u64) -> Window {
        Window {
            bundle: Digest::of(b"bundle"),
            family: "digits".parse().unwrap(),
            version: 1,
            start_ms,
            end_ms: start_ms + 60_000,
            inferences,
            errors: 0,
            confidence_sum_micro: 0,
            entropy_sum_micro: 0,
            outputs: Vec::new(),
            confidence: Histogram::default(),
            entropy: Histogram::default(),
            features: Vec::new(),
            profile: None,
            latency: Latency::default(),
            expected_confusion_nano: None,
            segment: None,
            refused: 0,
        }
    }

    fn seen(records: &[Record]) -> Vec<(i64, u64, i64)> {
        let windows = records.iter().map(|record| match &record.body {
            Body::Window(w) => (w.start_ms, w.inferences, w.end_ms),
            other => panic!("{other:?}"),
        });
        windows.collect()
    }

    #[test]
    fn a_death_closes_what_is_open_and_nothing_twice() {
        let mut windows = Windows::default();
        windows.open(window(0, 5));
        let (closed, open) = windows.counted();
        assert_eq!((seen(&closed), seen(&open)), (vec![], vec![(0, 5, 60_000)]));
        // It closes with more, the next one opens, and the worker dies before it has told all.
        windows.closed(window(0, 7));
        windows.open(window(60_000, 2));
        let left = windows.died(70_000);
        assert_eq!(seen(&left), [(0, 7, 60_000), (60_000, 2, 70_000)]);
        assert_eq!(windows.died(80_000), []);

        // The newest that was told of it counts.
        windows.open(window(0, 1));
        windows.counted();
        windows.open(window(0, 3));
        assert_eq!(seen(&windows.died(500)), [(0, 3, 500)]);
        // A clock that was set back before it began.
        windows.open(window(1000, 1));
        assert_eq!(seen(&windows.died(0)), [(1000, 1, 1001)]);
    }
}

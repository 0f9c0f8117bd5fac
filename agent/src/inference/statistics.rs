//! How often and how long a model's requests took, since it was activated.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time;

/// A count and a sum of times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Duration {
    /// Number of times.
    pub(crate) count: u64,
    /// Their sum, in nanoseconds.
    pub(crate) ns: u64,
}

/// All that was seen of a model's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// When the last request was answered, in milliseconds since 1970; 0: never.
    pub(crate) last_inference_ms: u64,
    /// Requests answered, from their last byte to the answer.
    pub(crate) success: Duration,
    /// Requests that the model failed.
    pub(crate) fail: Duration,
    /// Waiting for their turn.
    pub(crate) queue: Duration,
    /// Reading the tensors.
    pub(crate) compute_input: Duration,
    /// The model, its processing steps included.
    pub(crate) compute_infer: Duration,
    /// Writing the answer.
    pub(crate) compute_output: Duration,
}

#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Counter {
    fn add(&self, time: time::Duration) {
        self.count.fetch_add(1, Relaxed);
        self.ns.fetch_add(nanoseconds(time), Relaxed);
    }

    fn read(&self) -> Duration {
        Duration {
            count: self.count.load(Relaxed),
            ns: self.ns.load(Relaxed),
        }
    }
}

fn nanoseconds(time: time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How a request's tensors are written, which decides what reading them costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    /// As JSON.
    Text,
    /// As bytes of the machine's own kind.
    Binary,
}

/// How long each part of one request took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Phases {
    /// Waiting for its turn.
    pub(crate) queue: time::Duration,
    /// Reading the tensors.
    pub(crate) input: time::Duration,
    /// The model.
    pub(crate) infer: time::Duration,
    /// Writing the answer.
    pub(crate) output: time::Duration,
}

/// Counters that any number of threads add to. Each is right by itself; a reader may see them a few
/// requests apart.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    last_inference_ms: AtomicU64,
    success: Counter,
    fail: Counter,
    queue: Counter,
    compute_input: Counter,
    compute_infer: Counter,
    compute_output: Counter,
    /// Moving averages of the work on one request, in nanoseconds, by how it is written; 0: none was seen.
    work_ns: [AtomicU64; 2],
}

/// One new value moves the average of work by an eighth of its distance.
const WORK_SHARE: u64 = 8;

impl Statistics {
    /// Adds an answered request.
    pub(crate) fn answered(&self, writing: Writing, phases: &Phases, now_ms: i64) {
        let work = phases.input + phases.infer + phases.output;
        self.success.add(phases.queue + work);
        self.queue.add(phases.queue);
        self.compute_input.add(phases.input);
        self.compute_infer.add(phases.infer);
        self.compute_output.add(phases.output);
        let now_ms = u64::try_from(now_ms).unwrap_or(0);
        self.last_inference_ms.store(now_ms, Relaxed);
        let new = nanoseconds(work).max(1);
        // Two at once may lose one's share: it is an estimate.
        let work_ns = &self.work_ns[writing as usize];
        let average = match work_ns.load(Relaxed) {
            0 => new,
            old => old - old / WORK_SHARE + new / WORK_SHARE,
        };
        work_ns.store(average.max(1), Relaxed);
    }

    /// Adds a request that the model failed after this time.
    pub(crate) fn failed(&self, time: time::Duration) {
        self.fail.add(time);
    }

    /// Moving average of the time from a request's last byte to its answer, without waiting; none before
    /// the first answer.
    pub(crate) fn work(&self, writing: Writing) -> Option<time::Duration> {
        match self.work_ns[writing as usize].load(Relaxed) {
            0 => None,
            ns => Some(time::Duration::from_nanos(ns)),
        }
    }

    /// The counters as they are now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            last_inference_ms: self.last_inference_ms.load(Relaxed),
            success: self.success.read(),
            fail: self.fail.read(),
            queue: self.queue.read(),
            compute_input: self.compute_input.read(),
            compute_infer: self.compute_infer.read(),
            compute_output: self.compute_output.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(us: u64) -> Phases {
        let time = time::Duration::from_micros(us);
        Phases {
            queue: time,
            input: time,
            infer: time,
            output: time,
        }
    }

    #[test]
    fn counts_and_sums_go_by_part() {
        let statistics = Statistics::default();
        assert_eq!(statistics.snapshot(), Snapshot::default());
        statistics.answered(Writing::Binary, &phases(10), 7);
        statistics.answered(Writing::Binary, &phases(20), 8);
        statistics.failed(time::Duration::from_micros(5));
        let seen = statistics.snapshot();
        let duration = |count, ns| Duration { count, ns };
        assert_eq!(seen.last_inference_ms, 8);
        assert_eq!(seen.success, duration(2, 120_000));
        assert_eq!(seen.queue, duration(2, 30_000));
        assert_eq!(seen.compute_infer, duration(2, 30_000));
        assert_eq!(seen.fail, duration(1, 5_000));
    }

    #[test]
    fn the_average_of_work_follows_and_is_unknown_at_first() {
        let statistics = Statistics::default();
        assert_eq!(statistics.work(Writing::Binary), None);
        statistics.answered(Writing::Binary, &phases(1000), 0);
        assert_eq!(
            statistics.work(Writing::Binary),
            Some(time::Duration::from_micros(3000))
        );
        for _ in 0..60 {
            statistics.answered(Writing::Binary, &phases(10), 0);
        }
        let work = statistics.work(Writing::Binary).map(|w| w.as_micros());
        assert!(work.is_some_and(|us| (30..60).contains(&us)), "{work:?}");
        assert_eq!(statistics.work(Writing::Text), None);
    }
}

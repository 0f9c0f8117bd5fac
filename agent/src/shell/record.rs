//! Telemetry records made by the supervisor itself.

use super::pipelines::Tally;
use crate::device::{Count, State};
use crate::telemetry::Stats;
use dunlin_protocol::id::Digest;
use dunlin_protocol::telemetry::{Body, Event, Record, Scalar};
use std::collections::BTreeMap;
use std::time::Instant;

/// What is counted while the agent runs.
pub(super) struct Live {
    started: Instant,
    workers: u64,
    /// Of worker lives that ended, and of bundles served before.
    before: Count,
    /// Totals of the bundles that the worker serves now.
    now: BTreeMap<Digest, Count>,
    deaths: u64,
    records_dropped: u64,
    pub(super) pipelines: Tally,
}

impl Live {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            workers: 0,
            before: Count::default(),
            now: BTreeMap::new(),
            deaths: 0,
            records_dropped: 0,
            pipelines: Tally::default(),
        }
    }

    /// Whether the worker that started is the first one.
    pub(super) fn first_worker(&mut self) -> bool {
        self.workers += 1;
        self.workers == 1
    }

    pub(super) fn worker_died(&mut self) {
        self.deaths += 1;
        self.bank();
    }

    /// Counts a telemetry record that was lost, and says how many that makes.
    pub(super) fn record_dropped(&mut self) -> u64 {
        self.records_dropped += 1;
        self.records_dropped
    }

    /// Totals of a bundle since it was activated.
    pub(super) fn counted(&mut self, bundle: Digest, count: Count) {
        let before = self.now.insert(bundle, count).unwrap_or_default();
        // It was activated anew.
        if count.inferences < before.inferences || count.errors < before.errors {
            self.before = self.before.plus(before);
        }
    }

    fn bank(&mut self) {
        self.before = self.all();
        self.now.clear();
    }

    fn all(&self) -> Count {
        let now = self.now.values();
        now.fold(self.before, |sum, count| sum.plus(*count))
    }

    /// `health` is what the device says of itself, by name.
    pub(super) fn metrics(
        &self,
        time_ms: i64,
        state: &State,
        buffer: &Stats,
        health: BTreeMap<String, Scalar>,
    ) -> Record {
        let mut values = health;
        let mut put = |name: &str, n: u64| {
            let n = Scalar::Integer(i64::try_from(n).unwrap_or(i64::MAX));
            values.insert(name.to_owned(), n);
        };
        put("uptime_s", self.started.elapsed().as_secs());
        let all = self.all();
        put("inferences", all.inferences);
        put("errors", all.errors);
        put("worker_deaths", self.deaths);
        put("records_dropped", self.records_dropped);
        put("buffer_segments", buffer.segments);
        put("buffer_bytes", buffer.bytes_on_disk);
        put("buffer_evicted_records", buffer.evicted_records);
        for (name, n) in self.pipelines.metrics() {
            put(&name, n);
        }
        let active = state.active();
        put("models", u64::try_from(active.len()).unwrap_or(u64::MAX));
        for model in &active {
            put(&format!("version_{}", model.family), model.version);
        }
        // Whoever knows of one model reads these; of several they would be one's by chance.
        if let [active] = active.as_slice() {
            put("version", active.version);
            values.insert("family".to_owned(), Scalar::Text(active.family.to_string()));
            values.insert("bundle".to_owned(), Scalar::Text(active.digest.to_string()));
        }
        Record {
            time_ms,
            body: Body::Metrics { values },
        }
    }
}

/// Longest detail of an event, in characters.
const DETAIL_MAX_CHARS: usize = 500;

/// An event record, its detail cut.
pub(super) fn event(time_ms: i64, code: &str, detail: &str, bundle: Option<Digest>) -> Record {
    Record {
        time_ms,
        body: Body::Event(Event {
            code: code.to_owned(),
            detail: detail.chars().take(DETAIL_MAX_CHARS).collect(),
            bundle,
        }),
    }
}

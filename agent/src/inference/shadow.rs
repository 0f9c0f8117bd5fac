//! A challenger in the shadow of the version that serves: the same inputs, sampled, off the way of
//! requests and within its computing time. Its answers are compared and thrown away.

mod compare;

use super::at_work::AtWork;
use super::engine::{Engine, Inference};
use super::observe::Observation;
use super::steps::Sequence;
use super::tensor::Values;
use compare::{Answer, Label, compare};
use dunlin_protocol::bundle::Manifest;
use dunlin_protocol::command::Shadow;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::ShadowReport;
use dunlin_protocol::sketch::Latency;
use serde_json::{Map, Value};
use std::cmp::Ordering;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Samples that wait; beyond, they are passed over. Each holds a request's inputs.
const WAITING_MAX: usize = 4;
/// Computing time that may be saved up.
const BURST: Duration = Duration::from_secs(2);
/// Lowest priority of the scheduler.
const NICE: i32 = 19;

/// What was sent, and what the serving version made of it.
struct Sample {
    inputs: Vec<Values>,
    parameters: Option<Map<String, Value>>,
    served: Answer,
    latency: Duration,
}

#[derive(Debug, Default)]
struct Counts {
    report: ShadowReport,
    latency: Latency,
    serving: Latency,
}

/// A version in the shadow; its thread ends with the last of these.
#[derive(Debug)]
pub(crate) struct Challenger {
    family: Family,
    bundle: Digest,
    samples: SyncSender<Sample>,
    sample_permille: u64,
    /// Requests seen, or a seed for streams.
    seen: AtomicU64,
    counts: Arc<Mutex<Counts>>,
}

impl Challenger {
    /// Starts its thread.
    ///
    /// # Errors
    /// The system refuses one.
    pub(crate) fn start(
        engine: Engine,
        rules: Shadow,
        at_work: AtWork,
        stack_bytes: usize,
    ) -> std::io::Result<Self> {
        let (samples, waiting) = sync_channel(WAITING_MAX);
        let counts = Arc::<Mutex<Counts>>::default();
        let challenger = Self {
            family: engine.family().clone(),
            bundle: engine.bundle(),
            samples,
            sample_permille: rules.sample_permille.min(1000),
            seen: AtomicU64::new(0),
            counts: Arc::clone(&counts),
        };
        let run = Run {
            engine,
            counts,
            at_work,
            budget: Budget::new(rules.cpu_permille, Instant::now()),
        };
        std::thread::Builder::new()
            .name("shadow".to_owned())
            .stack_size(stack_bytes)
            .spawn(move || run.all(&waiting))?;
        Ok(challenger)
    }

    pub(crate) fn family(&self) -> &Family {
        &self.family
    }

    pub(crate) fn bundle(&self) -> Digest {
        self.bundle
    }

    /// What it did so far.
    pub(crate) fn report(&self) -> ShadowReport {
        lock(&self.counts).report()
    }

    /// Gives it what a request sent and got, if that is its turn; never waits.
    pub(crate) fn offer(
        &self,
        serving: &Engine,
        inputs: &[Values],
        parameters: Option<&Map<String, Value>>,
        answer: (&Inference<'_>, &Observation),
        latency: Duration,
    ) {
        if !self.samples(parameters) {
            return;
        }
        let sample = Sample {
            inputs: inputs.to_vec(),
            parameters: parameters.cloned(),
            served: answer_of(serving.manifest(), answer.0, answer.1),
            latency,
        };
        if self.samples.try_send(sample).is_err() {
            lock(&self.counts).report.passed_over += 1;
        }
    }

    /// Evenly spread over requests; of a stream all or none.
    fn samples(&self, parameters: Option<&Map<String, Value>>) -> bool {
        if let Ok(sequence) = Sequence::from_parameters(parameters) {
            let digest = Digest::of(sequence.name.as_bytes());
            let [a, b, ..] = digest.as_bytes();
            return u64::from(u16::from_be_bytes([*a, *b])) * 1000 < self.sample_permille << 16;
        }
        let n = self.seen.fetch_add(1, Relaxed) % 1000;
        (n + 1) * self.sample_permille / 1000 > n * self.sample_permille / 1000
    }
}

impl Counts {
    fn report(&self) -> ShadowReport {
        let median = |of: &Latency| of.quantile_us(0.5).map_or(0, |us| us as u64);
        ShadowReport {
            latency_us: median(&self.latency),
            serving_latency_us: median(&self.serving),
            ..self.report
        }
    }
}

/// Every count is written in one step, so a panic in another thread cannot have torn them.
fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer_of(manifest: &Manifest, inference: &Inference<'_>, seen: &Observation) -> Answer {
    match seen.class() {
        Some(index) => Answer::Class {
            name: manifest.labels.get(index).cloned(),
            index,
        },
        None => Answer::Numbers(
            inference
                .outputs()
                .iter()
                .map(|o| o.values.clone())
                .collect(),
        ),
    }
}

struct Run {
    engine: Engine,
    counts: Arc<Mutex<Counts>>,
    at_work: AtWork,
    budget: Budget,
}

impl Run {
    fn all(mut self, waiting: &Receiver<Sample>) {
        // Of this thread alone, as Linux counts it. Without it the budget still holds.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "the shadow runs at ordinary priority");
        }
        while let Ok(sample) = waiting.recv() {
            let begun = Instant::now();
            if !self.budget.allows(begun) {
                lock(&self.counts).report.passed_over += 1;
                continue;
            }
            self.one(&sample, begun);
            self.budget.spend(begun.elapsed());
        }
    }

    fn one(&self, sample: &Sample, begun: Instant) {
        let work = self.at_work.begin(self.engine.bundle());
        let infer = || {
            let parameters = sample.parameters.as_ref();
            let inference = self.engine.infer(&sample.inputs, parameters, begun).ok()?;
            let latency = begun.elapsed();
            let seen = Observation::of(&self.engine, &sample.inputs, &inference);
            Some((
                answer_of(self.engine.manifest(), &inference, &seen),
                latency,
            ))
        };
        let answer = catch_unwind(AssertUnwindSafe(infer)).ok().flatten();
        drop(work);
        let mut counts = lock(&self.counts);
        let Some((answer, latency)) = answer else {
            counts.report.failed += 1;
            // It did not agree.
            counts.report.compared += 1;
            return;
        };
        let label = Label::of(sample.parameters.as_ref());
        let comparison = compare(&sample.served, &answer, label.as_ref());
        counts.report.compared += 1;
        counts.report.agreed += u64::from(comparison.agree);
        counts.report.won += u64::from(comparison.better == Some(Ordering::Greater));
        counts.report.lost += u64::from(comparison.better == Some(Ordering::Less));
        counts.latency.add_us(microseconds(latency));
        counts.serving.add_us(microseconds(sample.latency));
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// So much computing time for so much time.
#[derive(Debug)]
struct Budget {
    permille: u32,
    /// Computing time left; below nothing after a long answer.
    left_ns: i128,
    at: Instant,
}

impl Budget {
    fn new(permille: u64, now: Instant) -> Self {
        let permille = u32::try_from(permille).unwrap_or(u32::MAX).min(1000);
        Self {
            permille,
            left_ns: Self::of(permille, BURST),
            at: now,
        }
    }

    fn of(permille: u32, time: Duration) -> i128 {
        i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / 1000) * i128::from(permille) / 1000
    }

    fn allows(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at);
        self.at = now;
        let most = Self::of(self.permille, BURST);
        self.left_ns = (self.left_ns + Self::of(self.permille, since)).min(most);
        self.left_ns > 0
    }

    fn spend(&mut self, time: Duration) {
        self.left_ns -= i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computing_time_is_a_share_of_time() {
        let start = Instant::now();
        let mut budget = Budget::new(100, start);
        let (mut spent, answer) = (Duration::ZERO, Duration::from_millis(30));
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            if budget.allows(now) {
                budget.spend(answer);
                spent += answer;
            }
        }
        // A tenth of a minute, what was saved up before it, and one answer over.
        let most = Duration::from_millis(6_000 + 200 + 30);
        assert!(
            spent <= most && spent > Duration::from_millis(5_900),
            "{spent:?}"
        );
        let mut none = Budget::new(0, start);
        assert!(!none.allows(start + Duration::from_secs(3600)));
    }
}

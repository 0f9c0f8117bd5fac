//! The bundles being served, found by their family, and their swap while requests are in flight.

use super::api::signature::Signature;
use super::at_work::AtWork;
use super::capture::{Batch, CaptureCharge, Recorder};
use super::engine::{Engine, EngineError, Inference};
use super::observe::{Observation, Totals, Windows};
use super::segment::Segment;
use super::shadow::Challenger;
use super::statistics::Statistics;
use super::steps::Shaped;
use super::tensor::Values;
use super::watching::{Told, Watching};
use crate::detect::watch::Watch;
use dunlin_protocol::capture::seal::Cause;
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::telemetry::Window;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Milliseconds since 1970 by the device's clock.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A bundle being served.
#[derive(Debug)]
pub(crate) struct Served {
    engine: Engine,
    windows: Mutex<Windows>,
    watching: Mutex<Watching>,
    /// Samples of its inputs, where they are kept.
    recorder: Option<Mutex<Recorder>>,
    statistics: Statistics,
    in_flight: watch::Sender<()>,
    at_work: AtWork,
    segments: Arc<BTreeMap<String, String>>,
}

impl Served {
    /// `segments` is what the device's owner says of all its requests, by key.
    pub(crate) fn new(
        engine: Engine,
        window_ms: i64,
        at_work: AtWork,
        segments: Arc<BTreeMap<String, String>>,
        capture: Option<&CaptureCharge>,
    ) -> Self {
        let recorder = Recorder::allowed(&engine, capture).map(Mutex::new);
        let windows = Mutex::new(Windows::new(&engine, window_ms));
        Self {
            engine,
            windows,
            watching: Mutex::default(),
            recorder,
            statistics: Statistics::default(),
            in_flight: watch::Sender::new(()),
            at_work,
            segments,
        }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What clients see of it.
    pub(crate) fn signature(&self) -> Signature<'_> {
        let (manifest, plan) = (self.engine.manifest(), self.engine.plan());
        Signature {
            name: manifest.family.as_str(),
            version: manifest.version,
            inputs: plan.inputs(),
            outputs: plan.outputs(),
        }
    }

    pub(crate) fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    pub(crate) fn bundle(&self) -> Digest {
        self.engine.bundle()
    }

    /// Counts a request that was answered: how long it took in all, and the model alone, as in a
    /// trial; keeps its input perhaps. The clock is read under the lock, so that times never go back
    /// by a race.
    fn answered(
        &self,
        segment: Segment,
        (sent, inference): (&[Values], &Inference<'_>),
        seen: &Observation,
        latency: Duration,
        computing: Duration,
    ) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let budget_ms = self.engine.manifest().limits.latency_budget_ms;
        let mut windows = self.windows();
        let now_ms = now_ms();
        let span = windows.answered(now_ms, segment, seen, latency_us);
        if computing > Duration::from_millis(budget_ms) {
            windows.was_slow();
        }
        drop(windows);
        if let Some(mut recorder) = self.recorder() {
            recorder.offer(now_ms, span, seen, &self.engine, sent, inference);
        }
    }

    /// Counts a request that the engine failed.
    fn failed(&self, segment: Segment) {
        self.windows().failed(now_ms(), segment);
    }

    /// Takes the samples of windows that have closed, of all of them if a detector saw a change now,
    /// and how many batches were lost before.
    pub(crate) fn take_samples(&self, alarmed: bool) -> (Vec<Batch>, u64) {
        let open = self.windows().open_span();
        let Some(mut recorder) = self.recorder() else {
            return (Vec::new(), 0);
        };
        recorder.settle(open);
        if alarmed {
            recorder.close(Cause::Detector);
        }
        recorder.take()
    }

    /// Every step on it leaves it sound.
    fn recorder(&self) -> Option<MutexGuard<'_, Recorder>> {
        let recorder = self.recorder.as_ref()?;
        Some(recorder.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a request that does not fit the manifest.
    pub(crate) fn refuse(&self, parameters: Option<&Map<String, Value>>) {
        let segment = self.segment(parameters);
        self.windows().refused(now_ms(), segment);
    }

    fn segment(&self, parameters: Option<&Map<String, Value>>) -> Segment {
        Segment::of(
            self.engine.profile().map(|(_, p)| p),
            parameters,
            &self.segments,
        )
    }

    /// Takes the windows whose time has passed, or all of them.
    pub(crate) fn take(&self, all: bool) -> Vec<Window> {
        let mut windows = self.windows();
        let now = now_ms();
        if all {
            windows.take_all(now)
        } else {
            windows.take_due(now)
        }
    }

    /// How many requests went into windows.
    pub(crate) fn counted(&self) -> u64 {
        self.windows().counted()
    }

    /// The windows that are open, and how many requests went into all.
    pub(crate) fn open(&self) -> (Vec<Window>, u64) {
        let windows = self.windows();
        (windows.untaken(), windows.counted())
    }

    /// Feeds the detectors with what was answered since the last time.
    pub(crate) fn detect(&self) -> Vec<Told> {
        let signals = self.windows().take_signals();
        self.watching().take(now_ms(), signals)
    }

    /// Takes up what the detectors knew before a restart.
    pub(crate) fn resume(&self, kept: Watch) {
        self.watching().resume(kept);
    }

    /// What the detectors know.
    pub(crate) fn detectors(&self) -> Watch {
        self.watching().state()
    }

    /// A panic amid an update leaves a state that is sound, if not the one it should be.
    fn watching(&self) -> MutexGuard<'_, Watching> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted since activation.
    pub(crate) fn totals(&self) -> Totals {
        self.windows().totals()
    }

    /// Waits until no request is in flight. Ends only after the bundle has been replaced, or when
    /// no more requests come.
    pub(crate) async fn idle(&self) {
        self.in_flight.closed().await;
    }

    /// Every count is written in one step, so a panic in another thread cannot have torn them.
    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bundle held for one request: it stays loaded, and its last window open, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    served: Arc<Served>,
    challenger: Option<Arc<Challenger>>,
    _in_flight: watch::Receiver<()>,
}

impl Held {
    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    /// What clients see of it.
    pub(crate) fn signature(&self) -> Signature<'_> {
        self.served.signature()
    }

    /// Computes and counts, also when the engine fails; what only the request is to blame for is not
    /// counted.
    pub(crate) fn infer(
        &self,
        inputs: &[Values],
        parameters: Option<&Map<String, Value>>,
        latency: impl FnOnce() -> Duration,
    ) -> Result<Vec<Shaped>, EngineError> {
        let start = Instant::now();
        let at_work = self.served.at_work.begin(self.served.bundle());
        let result = self.served.engine.infer(inputs, parameters, start);
        drop(at_work);
        let computing = start.elapsed();
        match &result {
            Ok(inference) => {
                let engine = &self.served.engine;
                let seen = Observation::of(engine, inputs, inference);
                if let Some(challenger) = &self.challenger {
                    challenger.offer(engine, inputs, parameters, (inference, &seen), computing);
                }
                let segment = self.served.segment(parameters);
                let answer = (inputs, inference);
                self.served
                    .answered(segment, answer, &seen, latency(), computing);
            }
            // A picture that is none says nothing about the bundle.
            Err(error) if error.is_of_request() => self.served.refuse(parameters),
            Err(_) => self.served.failed(self.served.segment(parameters)),
        }
        result.map(Inference::into_outputs)
    }
}

/// How long what does not come is expected.
const EXPECTED_FOR: Duration = Duration::from_secs(30);

/// Why there is no bundle to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotServed {
    /// It is being loaded.
    Yet,
    /// None of this family; these are served.
    Family(Vec<String>),
    /// Not this version; that one is.
    Version(u64),
}

/// Whether a text is this number, written plainly.
fn is_number(text: &str, number: u64) -> bool {
    !text.starts_with(['+', '0']) && text.parse() == Ok(number)
}

/// Every bundle being served.
#[derive(Debug, Default)]
pub(crate) struct Models {
    current: RwLock<BTreeMap<Family, Arc<Served>>>,
    /// What runs in their shadow.
    challengers: RwLock<BTreeMap<Family, Arc<Challenger>>>,
    /// What served before the worker was started and is not loaded yet, and since when.
    expected: Mutex<Option<(Instant, BTreeSet<Family>)>>,
}

impl Models {
    /// These families will be served soon.
    pub(crate) fn expect(&self, families: Vec<Family>, now: Instant) {
        *self.expected_mut() = Some((now, families.into_iter().collect()));
    }

    /// Families that are not loaded yet. Not for ever: what cannot be loaded is expected no more.
    pub(crate) fn expected(&self, now: Instant) -> Vec<Family> {
        let expected = self.expected_mut();
        let recent = expected
            .as_ref()
            .filter(|(since, _)| now.saturating_duration_since(*since) < EXPECTED_FOR);
        recent.map_or_else(Vec::new, |(_, families)| families.iter().cloned().collect())
    }

    fn expected_mut(&self) -> MutexGuard<'_, Option<(Instant, BTreeSet<Family>)>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_there(&self, family: &Family) {
        if let Some((_, families)) = self.expected_mut().as_mut() {
            families.remove(family);
        }
    }

    /// Serves this bundle of its family from now on; gives back the one that was served until now.
    pub(crate) fn swap(&self, served: Arc<Served>) -> Option<Arc<Served>> {
        let family = served.engine().family().clone();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let before = current.insert(family.clone(), served);
        self.is_there(&family);
        before
    }

    /// Serves nothing of a family from now on; gives back what was served until now.
    pub(crate) fn remove(&self, family: &Family) -> Option<Arc<Served>> {
        self.is_there(family);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.remove(family)
    }

    /// Runs a version in the shadow of its family, instead of the one that did.
    pub(crate) fn shadow(&self, challenger: Challenger) {
        let family = challenger.family().clone();
        self.challengers_mut().insert(family, Arc::new(challenger));
    }

    /// Runs nothing in the shadow of a family any more; what ran says no more.
    pub(crate) fn end_shadow(&self, family: &Family) {
        self.challengers_mut().remove(family);
    }

    /// Everything that runs in a shadow.
    pub(crate) fn challengers(&self) -> Vec<Arc<Challenger>> {
        let challengers = self.challengers.read();
        let challengers = challengers.unwrap_or_else(PoisonError::into_inner);
        challengers.values().cloned().collect()
    }

    fn challengers_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Family, Arc<Challenger>>> {
        let challengers = self.challengers.write();
        challengers.unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs in the shadow of a bundle; not in its own.
    fn challenger_of(&self, served: &Served) -> Option<Arc<Challenger>> {
        let challengers = self.challengers.read();
        let challengers = challengers.unwrap_or_else(PoisonError::into_inner);
        let challenger = challengers.get(served.engine.family());
        challenger
            .filter(|c| c.bundle() != served.bundle())
            .cloned()
    }

    /// The bundle of a family, for one request; of a certain version if one is named.
    pub(crate) fn hold(&self, family: &str, version: Option<&str>) -> Result<Held, NotServed> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let found = family.parse::<Family>().ok();
        let Some(served) = found.as_ref().and_then(|family| current.get(family)) else {
            if found.is_some_and(|family| self.expected(Instant::now()).contains(&family)) {
                return Err(NotServed::Yet);
            }
            let families = current.keys().map(ToString::to_string);
            return Err(NotServed::Family(families.collect()));
        };
        let serving = served.signature().version;
        if version.is_some_and(|version| !is_number(version, serving)) {
            return Err(NotServed::Version(serving));
        }
        // Under the lock: whoever swaps afterwards sees this request in flight.
        Ok(Held {
            challenger: self.challenger_of(served),
            served: Arc::clone(served),
            _in_flight: served.in_flight.subscribe(),
        })
    }

    /// All bundles being served, by family.
    pub(crate) fn all(&self) -> Vec<Arc<Served>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.values().cloned().collect()
    }
}

//! The device: its updater is real, its start-up is real; a worker and a server that answer at once
//! are played by code.

use super::disk::SimDisk;
use super::world::{FOLDER, World};
use dunlin_agent::device::window::Windows;
use dunlin_agent::device::{Count, Event, Model, Phase};
use dunlin_agent::files::Disk;
use dunlin_agent::ledger::Ledger;
use dunlin_agent::pipe::TrialReport;
use dunlin_agent::shell::updater::{Order, Parts, Updater};
use dunlin_protocol::command::{Desired, Probation};
use dunlin_protocol::id::{Digest, Revision};
use dunlin_protocol::report::Progress;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for a job of the updater, none of which waits for anything but this machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// More steps than any update takes.
const STEPS_MAX: u32 = 400;
const NEEDED: u64 = 3;

/// How a version does on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    FailsItsTrial,
    FailsInferences,
}

/// What the server asks for, and how it goes.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    generation: u64,
    version: u64,
    published: usize,
    health: Health,
    retry: bool,
}

impl Script {
    fn new(version: u64, health: Health) -> Self {
        Self {
            generation: version,
            version,
            published: version as usize,
            health,
            retry: false,
        }
    }

    pub(crate) fn install(version: u64) -> Self {
        Self::new(version, Health::Good)
    }

    pub(crate) fn rolls_back(version: u64) -> Self {
        Self::new(version, Health::FailsInferences)
    }

    pub(crate) fn fails_its_trial(version: u64) -> Self {
        Self::new(version, Health::FailsItsTrial)
    }

    /// To an older version, with all that is published by now.
    pub(crate) fn back_to(version: u64) -> Self {
        Self {
            generation: 10,
            published: 2,
            ..Self::install(version)
        }
    }

    /// Asked for anew, and now it is to be good.
    pub(crate) fn again(&self) -> Self {
        Self {
            generation: self.generation + 100,
            health: Health::Good,
            retry: true,
            ..self.clone()
        }
    }

    pub(crate) fn published(&self) -> usize {
        self.published
    }

    /// How it has to end if nothing breaks.
    fn ends_well(&self, progress: &Progress) -> bool {
        match (self.health, progress) {
            (Health::Good, Progress::Succeeded) => true,
            (Health::FailsItsTrial, Progress::Failed(f)) => f.code == "golden",
            (Health::FailsInferences, Progress::RolledBack(f)) => f.code == "errors",
            _ => false,
        }
    }

    /// Whether it ended as it has to; for a disk that failed on the way.
    pub(crate) fn is_end(&self, progress: &Progress) -> bool {
        self.ends_well(progress)
    }

    fn desired(&self, world: &World) -> Desired {
        let mut want = world.version(self.version);
        want.probation = Probation {
            inferences: NEEDED,
            time_ms: 0,
            errors_max: 0,
            retry_rolled_back: self.retry,
            ..Probation::default()
        };
        Desired {
            revision: Revision {
                epoch: 1,
                generation: self.generation,
            },
            bundles: vec![want],
        }
    }

    /// The end, and the disk, of an update that was allowed to end.
    pub(crate) fn check(&self, world: &World, disk: &SimDisk, end: &End, context: &str) {
        let ended = matches!(end, End::Settled(progress) if self.ends_well(progress));
        assert!(ended, "{context} it ends in {end:?}\n{}", disk.trace());
        let state = Ledger::new(&Disk::new(disk.clone()), Path::new(FOLDER)).load();
        let state = state.unwrap().unwrap();
        let model = state.models.into_values().next().unwrap_or_default();
        let kept = model.kept.as_ref().map(|h| h.bundle.version);
        let expected = match self.health {
            Health::Good => Some(self.version),
            _ => (self.version > 1).then(|| self.version - 1),
        };
        assert_eq!(kept, expected, "{context} {:?}", model.phase);
        world.nothing_is_left_over(disk, context, false);
        world.trust_holds(disk, context, self.published as u64);
    }
}

/// How a run ended.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    /// The power failed.
    Cut,
    /// The update ended, and what should serve does.
    Settled(Progress),
    /// The ledger cannot be written.
    Stuck,
}

pub(crate) struct Device<'a> {
    world: &'a World,
    disk: SimDisk,
    script: &'a Script,
    updater: Updater,
    serving: Option<Digest>,
    now_ms: i64,
    told: Vec<&'static str>,
    asked: bool,
    started: bool,
}

impl<'a> Device<'a> {
    /// Starts the agent on this disk; `None` if it cannot.
    pub(crate) fn boot(world: &'a World, disk: &SimDisk, script: &'a Script) -> Option<Self> {
        let handle = Disk::new(disk.clone());
        let sick = world.version(script.version).digest;
        let fails = script.health == Health::FailsItsTrial;
        let port = disk.clone();
        let trial = move |slot: std::path::PathBuf| {
            let found = dunlin_agent::bundle::stage::read(&Disk::new(port.clone()), &slot);
            let bad = fails && found.is_some_and(|f| f.digest == sick);
            let report = if bad {
                TrialReport::Failed {
                    code: "golden".to_owned(),
                    detail: "case 1".to_owned(),
                }
            } else {
                TrialReport::Passed {
                    cases: 1,
                    difference_max: 0.0,
                    latency_median_us: 1,
                }
            };
            let report: std::pin::Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(std::future::ready(report));
            report
        };
        let parts = Parts {
            receiver: world.receiver(&handle)?,
            disk: handle,
            clock: Arc::new(dunlin_agent::clock::Clock::open(FOLDER.as_ref())),
            state_dir: FOLDER.into(),
            trial: Arc::new(trial),
            windows: Windows::default(),
            jitter_seed: 7,
        };
        let now_ms = jiff::Timestamp::now().as_millisecond();
        Some(Self {
            world,
            disk: disk.clone(),
            script,
            updater: Updater::open(parts, now_ms).ok()?,
            serving: None,
            now_ms,
            told: Vec::new(),
            asked: false,
            started: false,
        })
    }

    /// Whether an event of this code was told.
    pub(crate) fn told(&self, code: &str) -> bool {
        self.told.contains(&code)
    }

    /// How the device stands with the one family of these tests.
    fn model(&self) -> Model {
        let models = &self.updater.state().models;
        models.values().next().cloned().unwrap_or_default()
    }

    async fn feed(&mut self, event: Event) {
        let orders = self.updater.feed(event, self.now_ms).await;
        Box::pin(self.obey(orders)).await;
    }

    async fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Activate { slot, bundle } => {
                    let version = self.world.whole_version(&self.disk, &slot);
                    if version.is_some_and(|v| self.world.version(v).digest == bundle) {
                        self.serving = Some(bundle);
                        self.feed(Event::Activated { digest: bundle }).await;
                    } else if !self.disk.is_dead() {
                        panic!("told to serve {}, which is not whole", slot.display());
                    }
                }
                Order::Deactivate { .. } => self.serving = None,
                Order::Report | Order::Shadow { .. } | Order::EndShadow { .. } => {}
                Order::Event { code, .. } => self.told.push(code),
            }
        }
    }

    /// Waits for the next word of a job.
    async fn hear(&mut self) {
        let done = tokio::time::timeout(PATIENCE, self.updater.done());
        let Ok(Some(done)) = done.await else {
            let phase = self.model().phase;
            panic!("no job ends in {phase:?}\n{}", self.disk.trace());
        };
        let orders = self.updater.finished(done, self.now_ms).await;
        self.obey(orders).await;
    }

    /// Ends the agent as a signal does.
    pub(crate) fn close(mut self) {
        self.updater.close();
    }

    async fn start(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.feed(Event::Started).await;
        }
    }

    /// Right after a start, before the server is heard: what serves is whole, and is what the ledger
    /// says. What has never served need not serve yet.
    pub(crate) async fn serves_a_whole_version(&mut self, context: &str) {
        self.start().await;
        let Some(wanted) = self.model().active() else {
            return assert_eq!(self.serving, None, "{context}");
        };
        for _ in 0..STEPS_MAX {
            if self.serving == Some(wanted.digest) {
                let slots = World::slot_folders();
                let mut whole = slots
                    .iter()
                    .map(|s| self.world.whole_version(&self.disk, s));
                assert!(whole.any(|v| v == Some(wanted.version)), "{context}");
                return;
            }
            if self.model().active() != Some(wanted.clone()) {
                // It went on meanwhile; then that one has to serve.
                return Box::pin(self.serves_a_whole_version(context)).await;
            }
            self.hear().await;
        }
        panic!("{context}: {wanted:?} does not serve");
    }

    /// Until the update has ended, in whatever way.
    pub(crate) async fn run(&mut self) -> End {
        self.start().await;
        for _ in 0..STEPS_MAX {
            if self.disk.is_dead() {
                return End::Cut;
            }
            if !std::mem::replace(&mut self.asked, true) {
                let desired = self.script.desired(self.world);
                self.feed(Event::Desired(desired)).await;
                continue;
            }
            self.now_ms += 1_000;
            if self.updater.is_stuck() {
                self.feed(Event::Tick).await;
                if self.updater.is_stuck() && !self.disk.is_dead() {
                    return End::Stuck;
                }
                continue;
            }
            let state = self.updater.state().clone();
            let model = self.model();
            let serves = self.serving == model.active().map(|a| a.digest);
            match &model.phase {
                Phase::Idle { last } => {
                    let is_heard = state.revision.generation == self.script.generation;
                    if is_heard && serves {
                        let last = last.clone();
                        self.updater.tidy().await;
                        // It may be that only tidying up was cut.
                        return if self.disk.is_dead() {
                            End::Cut
                        } else {
                            End::Settled(last)
                        };
                    }
                    self.hear().await;
                }
                Phase::Receiving { busy: true, .. } | Phase::Trial { .. } => self.hear().await,
                Phase::Receiving { retry_at_ms, .. } => {
                    self.now_ms = self.now_ms.max(*retry_at_ms);
                    self.feed(Event::Tick).await;
                }
                Phase::Shadow { .. } | Phase::Waiting { .. } => self.feed(Event::Tick).await,
                Phase::Probation {
                    activated: false, ..
                } => self.hear().await,
                Phase::Probation { want, live, .. } => {
                    let errors = u64::from(self.script.health == Health::FailsInferences);
                    let count = Count {
                        inferences: live.inferences + 1,
                        errors,
                        slow: 0,
                    };
                    let digest = want.digest;
                    self.feed(Event::Counted { digest, count }).await;
                    self.feed(Event::Tick).await;
                }
                Phase::RollingBack { .. } => self.feed(Event::Tick).await,
            }
        }
        let phase = self.model().phase;
        panic!("no end in {phase:?}\n{}", self.disk.trace());
    }
}

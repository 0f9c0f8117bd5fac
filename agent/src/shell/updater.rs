//! The part of the supervisor that decides about updates, and all of it that touches the disk for
//! one: ledger, slots, fetches, garbage. What goes to the worker or the server it hands back as
//! [`Order`]s, so that it knows no process and no connection.
//!
//! The state is persisted before its effects are carried out.

pub use super::job::Done;

mod brought;

use super::deferred::Deferred;
use super::job::Job;
use super::slots::{Slots, slot_of};
use crate::bundle::receive::Spent;
use crate::bundle::{Kind, Receiver, UpdateError};
use crate::clock::Clock;
use crate::device::window::Windows;
use crate::device::{
    self, Consent, Effect, Event, Model, ReceiveFailure, ReceiveFailureKind, Slot, State,
};
use crate::files::Disk;
use crate::hold::HoldFile;
use crate::inbox::Inbox;
use crate::ledger::{Ledger, LedgerError};
use crate::pipe::TrialReport;
use dunlin_protocol::command::{DesiredBundle, Shadow};
use dunlin_protocol::id::{Digest, Family};
use dunlin_protocol::report::Failure;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

/// Most jobs' words that wait to be heard.
const QUEUE: usize = 64;
/// How often the counters of a probation are persisted: every write wears flash.
const COUNTERS_EVERY_MS: u64 = 5_000;

/// Runs the golden cases of the bundle staged in a folder, in a process of its own.
pub type Trial =
    Arc<dyn Fn(PathBuf) -> Pin<Box<dyn Future<Output = TrialReport> + Send>> + Send + Sync>;

/// What the rest of the supervisor has to do, in order. Every order may come twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Tell the worker to serve the bundle in this folder, which was found whole.
    Activate {
        /// The folder.
        slot: PathBuf,
        /// The bundle.
        bundle: Digest,
    },
    /// Tell the worker to run the bundle in this folder, which was found whole, in the shadow of the
    /// one of its family that serves.
    Shadow {
        /// The folder.
        slot: PathBuf,
        /// The bundle.
        bundle: Digest,
        /// How.
        rules: Shadow,
    },
    /// Tell the worker to drop what runs in the shadow of this family.
    EndShadow {
        /// The family.
        family: Family,
    },
    /// Tell the worker to serve nothing of this family.
    Deactivate {
        /// The family.
        family: Family,
    },
    /// Publish [`State::reported`].
    Report,
    /// Record an event for the server.
    Event {
        /// Short and stable.
        code: &'static str,
        /// For people.
        detail: String,
        /// The bundle it is about.
        bundle: Option<Digest>,
    },
}

/// What an [`Updater`] is made of.
pub struct Parts {
    /// Where everything lies.
    pub disk: Disk,
    /// In this folder.
    pub state_dir: PathBuf,
    /// Fetches and stages.
    pub receiver: Receiver,
    /// What time trust counts from.
    pub clock: Arc<Clock>,
    /// Tries out.
    pub trial: Trial,
    /// When versions may be activated.
    pub windows: Windows,
    /// Spreads the retries of a fleet.
    pub jitter_seed: u64,
}

/// Work under way for one family.
#[derive(Debug, Default)]
struct Jobs {
    /// A fetch or a trial.
    update: Job,
    /// The check of the slot that is to be served.
    check: Job,
    /// The check of the slot that is to run in the shadow.
    shadow: Job,
}

/// See the module's text.
pub struct Updater {
    ledger: Ledger,
    slots: Slots,
    hold: HoldFile,
    /// What was brought by hand.
    inbox: Inbox,
    windows: Windows,
    receiver: Arc<Receiver>,
    clock: Arc<Clock>,
    trial: Trial,
    state: State,
    /// When the ledger was last written, by the clock events are fed with.
    stored_at_ms: i64,
    /// Whether the ledger could not be written last time.
    unwritten: bool,
    deferred: Deferred,
    jobs: BTreeMap<Family, Jobs>,
    /// One trial at a time: each may take as much memory as the worker.
    trials: Arc<Semaphore>,
    done: mpsc::Receiver<Done>,
    done_sender: mpsc::Sender<Done>,
    garbage: Option<JoinHandle<()>>,
    /// What [`State::in_use`] says now: a fetch may outlast what was so when it began.
    in_use: watch::Sender<Vec<Digest>>,
    /// Fetches begun so far.
    fetches: Arc<AtomicU64>,
    orders: Vec<Order>,
}

impl Updater {
    /// Takes up the persisted state, or begins anew; what is to be told about that comes as orders
    /// with the first event.
    ///
    /// # Errors
    /// The ledger is there and cannot be read: what it says still holds.
    pub fn open(parts: Parts, now_ms: i64) -> Result<Self, LedgerError> {
        let (disk, state_dir) = (&parts.disk, &parts.state_dir);
        let (ledger, slots) = (Ledger::new(disk, state_dir), Slots::new(disk, state_dir));
        sweep(disk, state_dir, &slots);
        let mut orders = Vec::new();
        let state = match load(&ledger, &mut orders)? {
            Some(state) => state,
            None => begin(&slots, parts.jitter_seed, now_ms, &mut orders),
        };
        let in_use = state.in_use();
        let (done_sender, done) = mpsc::channel(QUEUE);
        let mut updater = Self {
            ledger,
            slots,
            hold: HoldFile::new(disk, state_dir),
            inbox: Inbox::new(disk, state_dir),
            windows: parts.windows,
            receiver: Arc::new(parts.receiver),
            clock: parts.clock,
            trial: parts.trial,
            state,
            stored_at_ms: now_ms,
            unwritten: false,
            deferred: Deferred::default(),
            jobs: BTreeMap::new(),
            trials: Arc::new(Semaphore::new(1)),
            done,
            done_sender,
            garbage: None,
            in_use: watch::Sender::new(in_use),
            fetches: Arc::default(),
            orders,
        };
        updater.collect_garbage();
        Ok(updater)
    }

    /// Where the device is; what is told was persisted.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// One step of the state machine: decide, persist, then act.
    pub async fn feed(&mut self, event: Event, now_ms: i64) -> Vec<Order> {
        let ticks = event == Event::Tick;
        self.step(event, now_ms);
        if ticks {
            self.look_into_inbox(now_ms);
        }
        let waits = self.state.waits();
        if ticks || waits {
            // A clock that was never set knows no windows.
            let known_ms = now_ms.max(self.clock.now().as_millisecond());
            let consent = Consent {
                hold: self.hold.read(known_ms),
                window_opens_ms: self.windows.opens_ms(known_ms),
            };
            if waits || consent.hold != self.state.hold {
                self.step(Event::Consent(consent), now_ms);
            }
        }
        std::mem::take(&mut self.orders)
    }

    fn step(&mut self, event: Event, now_ms: i64) {
        if let Some(dropped) = self.deferred.push(event) {
            tracing::error!(event = ?dropped, "too much happened while the ledger cannot be written: dropped");
        }
        while let Some(event) = self.deferred.pop() {
            let (next, effects) = device::step(self.state.clone(), event.clone(), now_ms);
            if let Err(error) = self.store(&next, now_ms) {
                let first = !std::mem::replace(&mut self.unwritten, true);
                if first {
                    self.not_written(&error);
                }
                // What the ledger says already may be served, however full the disk is.
                if first && event == Event::Started {
                    self.serve_persisted();
                }
                self.deferred.put_back(event);
                break;
            }
            let before = std::mem::replace(&mut self.state, next);
            self.in_use.send_replace(self.state.in_use());
            for effect in effects {
                self.carry_out(effect);
            }
            let ended = |(family, before): (&Family, &Model)| {
                let now = self.state.models.get(family);
                let fetched = before.is_receiving() && !now.is_some_and(Model::is_receiving);
                let under_way = now.and_then(Model::under_way);
                fetched || (before.under_way().is_some() && under_way.is_none())
            };
            if before.models.iter().any(ended) {
                self.collect_garbage();
            }
        }
    }

    /// Whether the ledger could not be written last time, so that nothing is done until it can.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.unwritten
    }

    /// What a worker that was just started has to be told.
    pub fn worker_started(&mut self) -> Vec<Order> {
        self.serve_persisted();
        std::mem::take(&mut self.orders)
    }

    /// The families of which a version serves, or will when a worker has loaded it.
    #[must_use]
    pub fn served(&self) -> Vec<Family> {
        let models = self.state.models.iter();
        let served = models.filter(|(_, model)| model.active().is_some());
        served.map(|(family, _)| family.clone()).collect()
    }

    fn serve_persisted(&mut self) {
        for effect in self.state.serve() {
            self.carry_out(effect);
        }
    }

    fn jobs(&mut self, family: &Family) -> &mut Jobs {
        self.jobs.entry(family.clone()).or_default()
    }

    /// The next word of a fetch, a trial or a check.
    pub async fn done(&mut self) -> Option<Done> {
        self.done.recv().await
    }

    /// Deals with a job's word; that of one that was given up meanwhile counts for nothing.
    pub async fn finished(&mut self, done: Done, now_ms: i64) -> Vec<Order> {
        match done {
            Done::Update {
                family,
                number,
                event,
            } if self.jobs(&family).update.is_present(number) => self.feed(event, now_ms).await,
            Done::Checked {
                family,
                number,
                slot,
                digest,
                shadow,
                whole,
            } if self.is_present(&family, shadow.is_some(), number) => match whole {
                Ok(()) => vec![self.serve_whole(&family, slot, digest, shadow)],
                Err(detail) => {
                    tracing::error!(%digest, %detail, "bundle cannot be served");
                    let damaged = Event::SlotDamaged {
                        slot,
                        digest,
                        detail,
                    };
                    self.feed(damaged, now_ms).await
                }
            },
            Done::Fetched { digest, detail } => vec![Order::Event {
                code: "bundle_fetched",
                detail,
                bundle: Some(digest),
            }],
            late => {
                tracing::debug!(?late, "given up meanwhile");
                Vec::new()
            }
        }
    }

    /// The slot a folder that the worker speaks of belongs to.
    #[must_use]
    pub fn slot_of(folder: &Path) -> Option<Slot> {
        slot_of(folder)
    }

    /// Gives up what is under way and writes down the newest counters, and that it ended cleanly.
    pub fn close(&mut self) {
        self.jobs.clear();
        self.state.ended_cleanly = true;
        if let Err(e) = tokio::task::block_in_place(|| self.ledger.store(&self.state)) {
            tracing::error!(error = %e, "the ledger cannot be written");
        }
    }

    /// Waits until garbage is collected, if it is being.
    pub async fn tidy(&mut self) {
        if let Some(garbage) = self.garbage.take() {
            let _ = garbage.await;
        }
    }

    /// Persists a state, unless it differs in counters alone and the last write was a moment ago.
    fn store(&mut self, next: &State, now_ms: i64) -> Result<(), LedgerError> {
        let soon = now_ms.abs_diff(self.stored_at_ms) < COUNTERS_EVERY_MS;
        if *next == self.state || (soon && next.equals_but_for_counters(&self.state)) {
            return Ok(());
        }
        tokio::task::block_in_place(|| self.ledger.store(next))?;
        (self.stored_at_ms, self.unwritten) = (now_ms, false);
        Ok(())
    }

    /// Told once until it can be written again.
    fn not_written(&mut self, error: &LedgerError) {
        tracing::error!(%error, "the ledger cannot be written: nothing is done until it can");
        let code = if error.is_disk_full() {
            "disk_full"
        } else {
            "ledger_unwritten"
        };
        self.orders.push(Order::Event {
            code,
            detail: format!("{error}; what serves goes on, nothing else is done until it can"),
            bundle: None,
        });
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Receive { want, slot } => self.receive(want, slot),
            Effect::Cancel { family } => self.jobs(&family).update.cancel(),
            Effect::Trial {
                family,
                slot,
                digest,
            } => self.try_out(family, slot, digest),
            Effect::Serve {
                family,
                slot,
                digest,
            } => self.serve(family, slot, digest),
            Effect::Shadow {
                family,
                slot,
                digest,
                rules,
            } => self.shadow(family, slot, digest, rules),
            Effect::EndShadow { family } => {
                self.jobs(&family).shadow.cancel();
                self.orders.push(Order::EndShadow { family });
            }
            Effect::ServeNothing { family } => {
                self.jobs(&family).check.cancel();
                self.switch(&family, None, None);
                self.orders.push(Order::Deactivate { family });
            }
            Effect::Report => self.orders.push(Order::Report),
            Effect::Event {
                code,
                detail,
                bundle,
            } => self.orders.push(Order::Event {
                code,
                detail,
                bundle,
            }),
        }
    }

    fn receive(&mut self, want: DesiredBundle, slot: Slot) {
        let (receiver, sender) = (Arc::clone(&self.receiver), self.done_sender.clone());
        let clock = Arc::clone(&self.clock);
        let family = want.family.clone();
        let dir = self.slots.folder(&family, slot);
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let in_use = self.in_use.subscribe();
        let way = self.way_of(&want);
        self.jobs(&family.clone())
            .update
            .start(|number| async move {
                tracing::info!(target_path = %want.target, ?way, "fetching");
                let (mut first, mut progressed) = (None, false);
                let progress = |done: u64, _| progressed |= done > *first.get_or_insert(done);
                let result = way
                    .fetch(&receiver, &want, clock.now(), &dir, progress)
                    .await;
                match &result {
                    Ok(spent) => {
                        let (digest, detail) = (want.digest, cost(&want, spent));
                        let _ = sender.send(Done::Fetched { digest, detail }).await;
                    }
                    // Room for the ledger and the telemetry is worth more than a resumed download.
                    Err(e) if e.is_disk_full() => {
                        let mut others = in_use.borrow().clone();
                        others.retain(|digest| *digest != want.digest);
                        receiver.tidy(&others, &[dir], || false).await;
                    }
                    Err(_) => {}
                }
                let result = result.map(drop).map_err(|e| {
                    tracing::warn!(code = e.code, detail = %e.detail, "fetching failed");
                    in_events_terms(e, progressed)
                });
                let digest = want.digest;
                let event = Event::Received { digest, result };
                let done = Done::Update {
                    family,
                    number,
                    event,
                };
                let _ = sender.send(done).await;
            });
    }

    fn try_out(&mut self, family: Family, slot: Slot, digest: Digest) {
        let (slots, trial) = (self.slots.clone(), Arc::clone(&self.trial));
        let (sender, trials) = (self.done_sender.clone(), Arc::clone(&self.trials));
        self.jobs(&family.clone())
            .update
            .start(|number| async move {
                let turn = trials.acquire_owned().await;
                let report = match slots.whole(&family, slot, &digest).await {
                    Ok(()) => trial(slots.folder(&family, slot)).await,
                    Err(detail) => TrialReport::Failed {
                        code: "staged".to_owned(),
                        detail,
                    },
                };
                drop(turn);
                let event = Event::TrialDone { digest, report };
                let done = Done::Update {
                    family,
                    number,
                    event,
                };
                let _ = sender.send(done).await;
            });
    }

    /// A slot is served only if it is whole, whatever happened to the disk since. Reading it may
    /// take minutes, so a job does.
    fn serve(&mut self, family: Family, slot: Slot, digest: Digest) {
        self.switch(&family, Some(slot), Some(digest));
        let (slots, sender) = (self.slots.clone(), self.done_sender.clone());
        self.jobs(&family.clone()).check.start(|number| async move {
            let whole = slots.whole(&family, slot, &digest).await;
            let done = Done::Checked {
                family,
                number,
                slot,
                digest,
                shadow: None,
                whole,
            };
            let _ = sender.send(done).await;
        });
    }

    fn shadow(&mut self, family: Family, slot: Slot, digest: Digest, rules: Shadow) {
        let (slots, sender) = (self.slots.clone(), self.done_sender.clone());
        self.jobs(&family.clone())
            .shadow
            .start(|number| async move {
                let whole = slots.whole(&family, slot, &digest).await;
                let done = Done::Checked {
                    family,
                    number,
                    slot,
                    digest,
                    shadow: Some(rules),
                    whole,
                };
                let _ = sender.send(done).await;
            });
    }

    fn is_present(&mut self, family: &Family, is_shadow: bool, number: u64) -> bool {
        let jobs = self.jobs(family);
        let job = if is_shadow { &jobs.shadow } else { &jobs.check };
        job.is_present(number)
    }

    fn serve_whole(
        &self,
        family: &Family,
        slot: Slot,
        bundle: Digest,
        shadow: Option<Shadow>,
    ) -> Order {
        let slot = self.slots.folder(family, slot);
        match shadow {
            None => Order::Activate { slot, bundle },
            Some(rules) => Order::Shadow {
                slot,
                bundle,
                rules,
            },
        }
    }

    /// The link tells people, and a lost ledger, what serves; nothing else reads it.
    fn switch(&mut self, family: &Family, to: Option<Slot>, bundle: Option<Digest>) {
        if let Err(error) = self.slots.switch(family, to) {
            self.orders.push(Order::Event {
                code: "link_failed",
                detail: error.to_string(),
                bundle,
            });
        }
    }

    /// Removes, beside the loop, what no bundle here or on its way needs.
    fn collect_garbage(&mut self) {
        // What is half fetched is resumed.
        let is_half = |model: &Model| model.is_receiving() || model.is_resumable();
        if self.state.models.values().any(is_half) {
            return;
        }
        let in_use = self.state.in_use();
        let models = self.state.models.iter();
        let spares: Vec<PathBuf> = models
            .map(|(family, model)| self.slots.folder(family, model.spare()))
            .collect();
        self.remove_unknown();
        let receiver = Arc::clone(&self.receiver);
        // A fetch that begins meanwhile has a use for more.
        let (fetches, number) = (
            Arc::clone(&self.fetches),
            self.fetches.load(Ordering::SeqCst),
        );
        let before = self.garbage.take();
        self.garbage = Some(tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            let is_stale = || fetches.load(Ordering::SeqCst) != number;
            receiver.tidy(&in_use, &spares, is_stale).await;
        }));
    }

    /// Removes the folders of families of which nothing is known any more. That it fails is only
    /// logged.
    fn remove_unknown(&self) {
        let found = self.slots.families().unwrap_or_default();
        for family in found {
            if self.state.models.contains_key(&family) {
                continue;
            }
            if let Err(error) = self.slots.remove(&family) {
                tracing::warn!(%family, %error, "the folder of a family that is not known stays");
            }
        }
    }
}

/// Removes what writes left that were cut off half way. That it fails is only logged.
fn sweep(disk: &Disk, state_dir: &Path, slots: &Slots) {
    let folders = [Path::new(""), Path::new("trust")];
    let swept = folders.map(|folder| disk.remove_half_written(&state_dir.join(folder)));
    for result in swept.into_iter().chain([slots.sweep(), slots.take_over()]) {
        if let Err(error) = result {
            tracing::warn!(%error, "what was half written or of before stays");
        }
    }
}

/// The persisted state. A damaged ledger is set aside and begun anew; one that cannot be read is
/// left alone, for what it says still holds.
fn load(ledger: &Ledger, orders: &mut Vec<Order>) -> Result<Option<State>, LedgerError> {
    match ledger.load() {
        Err(e @ LedgerError::Damaged { .. }) => {
            let aside = ledger.set_aside()?;
            orders.push(Order::Event {
                code: "ledger_damaged",
                detail: format!("{e}; kept as {}", aside.display()),
                bundle: None,
            });
            Ok(None)
        }
        other => other,
    }
}

/// A new ledger. Its reports are numbered from the time on, so that the server takes them as newer
/// than those of a ledger that was lost.
fn begin(slots: &Slots, jitter_seed: u64, now_ms: i64, orders: &mut Vec<Order>) -> State {
    let mut state = State {
        sequence: u64::try_from(now_ms).unwrap_or_default(),
        ..State::new(jitter_seed)
    };
    for held in slots.served_last() {
        let (family, version) = (held.bundle.family.clone(), held.bundle.version);
        let slot = held.slot.name();
        orders.push(Order::Event {
            code: "ledger_rebuilt",
            detail: format!("slot {slot} of {family} served last: version {version} is kept"),
            bundle: Some(held.bundle.digest),
        });
        let kept = Some(held);
        let model = Model {
            kept,
            ..Model::default()
        };
        state.models.insert(family, model);
    }
    state
}

/// What a fetch cost, in words.
fn cost(want: &DesiredBundle, spent: &Spent) -> String {
    let patched = match (spent.patches, spent.patches_failed) {
        (0, 0) => "",
        (_, 0) => ", by a patch",
        _ => ", a patch was of no use",
    };
    format!(
        "version {}: {} bytes fetched of {}, {} saved{patched}",
        want.version,
        spent.fetched_bytes,
        spent.whole_bytes,
        spent.saved_bytes()
    )
}

fn in_events_terms(error: UpdateError, progressed: bool) -> ReceiveFailure {
    ReceiveFailure {
        progressed,
        kind: match error.kind {
            Kind::Refused => ReceiveFailureKind::Refused,
            Kind::Failed => ReceiveFailureKind::Failed,
            Kind::Transient => ReceiveFailureKind::Transient,
        },
        failure: Failure::new(error.code, error.detail),
    }
}

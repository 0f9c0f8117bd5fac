//! Carries out what the planner decides, one tick after the other:
//!
//! ```text
//! stored rollout + devices' reports ─observe─▶ plan (pure) ─▶ gate due? periods ─▶ plan again
//!        ▲                                                                            │
//!        └───────── one transaction: states, desired states, verdict, report ◀────────┘
//! ```
//! Nothing is kept between ticks but what is in the database, so a server killed at any moment
//! goes on at its next tick. Every verdict is stored with its input and policy: [`Judged`].
//!
//! Wiring: `tokio::spawn(execute::run(store, wake, mqtt.listening(), ExecuteSettings { .. }, stop))`.

use super::model::{Action, DeviceObservation, DeviceState, RolloutState, WayBack};
use super::observe::observe;
use super::pairs;
use super::plan::{PlanInput, plan};
use super::policy::{GatePolicy, Policy};
use super::report::{GateRequest, Reason, ReasonCode, Report};
use crate::clock;
use crate::command::deliver::Wake;
use crate::drift::early::{EarlyDecision, EarlyInput, EarlyVerdict};
use crate::drift::gate::{Decision, GateInput, Verdict};
use crate::mqtt::Listening;
use crate::store::{
    BundleRow, DesiredChange, DeviceFilter, DeviceRow, PlanApplication, RolloutDeviceRow,
    RolloutRow, Store, StoreError,
};
use dunlin_protocol::command::{DesiredBundle, Probation};
use dunlin_protocol::id::{DeviceId, Digest, RolloutId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

mod early;
mod gate;

/// How the planner is run.
#[derive(Debug, Clone, Copy)]
pub struct ExecuteSettings {
    /// Time between ticks.
    pub tick: Duration,
    /// How far back a device's time on the version before counts, in milliseconds.
    pub baseline_ms: i64,
}

impl Default for ExecuteSettings {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            baseline_ms: 7 * 24 * 3_600_000,
        }
    }
}

/// Why a rollout's tick did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored document is not what this version wrote, or cannot be written.
    #[error("rollout {rollout}: {what}: {problem}")]
    Document {
        /// The rollout.
        rollout: RolloutId,
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The version's manifest is not known.
    #[error("rollout {rollout}: the bundle with manifest digest {digest} is not in the database")]
    NoBundle {
        /// The rollout.
        rollout: RolloutId,
        /// The digest.
        digest: Digest,
    },
}

/// A gate's verdict with all it rests on: [`judge`](crate::drift::gate::judge) of `policy` and
/// `input` gives `verdict` again, byte for byte.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Stage judged.
    pub stage: usize,
    /// Which devices and spans of time.
    pub request: GateRequest,
    /// The policy's gate.
    pub policy: GatePolicy,
    /// The sums read from telemetry.
    pub input: GateInput,
    /// The verdict.
    pub verdict: Verdict,
}

/// An early look that stopped a rollout, with all it rests on: [`judge`](crate::drift::early::judge)
/// of `policy` and `input` gives `verdict` again, byte for byte.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JudgedEarly {
    /// Stage judged.
    pub stage: usize,
    /// The policy's gate.
    pub policy: GatePolicy,
    /// What its pairs had shown.
    pub input: EarlyInput,
    /// The verdict.
    pub verdict: EarlyVerdict,
}

/// What a tick knows of the world outside the database.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Now, unix ms.
    pub now_ms: i64,
    /// Since when devices can be heard, unix ms; `None`: they cannot.
    pub listening_since_ms: Option<i64>,
}

/// Ticks until `stop` becomes true.
pub async fn run(
    store: Store,
    wake: Wake,
    listening: watch::Receiver<Listening>,
    settings: ExecuteSettings,
    mut stop: watch::Receiver<bool>,
) {
    let mut told = BTreeMap::<String, String>::new();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(settings.tick) => {}
        }
        let moment = Moment {
            now_ms: clock::now_ms(),
            listening_since_ms: listening.borrow().since_ms(),
        };
        let failures = tick(&store, &wake, settings, moment).await;
        for (what, problem) in &failures {
            // Once, not at every tick.
            if told.get(what) != Some(problem) {
                tracing::error!(rollout = %what, "rollout does not move: {problem}");
            }
        }
        told = failures;
    }
}

/// One look at every running rollout; what failed, by rollout. One that fails does not hold up
/// the others.
pub async fn tick(
    store: &Store,
    wake: &Wake,
    settings: ExecuteSettings,
    moment: Moment,
) -> BTreeMap<String, String> {
    let mut failures = BTreeMap::new();
    let running = match store.running_rollouts().await {
        Ok(running) if running.is_empty() => return failures,
        Ok(running) => running,
        Err(error) => return [("all".to_owned(), error.to_string())].into(),
    };
    for rollout in &running {
        match step(store, rollout, settings, moment).await {
            Ok(true) => wake.wake(),
            Ok(false) => {}
            Err(error) => {
                if let Err(error) = show_failure(store, rollout, &error).await {
                    tracing::warn!(rollout = %rollout.id, %error, "why it does not move is not stored");
                }
                failures.insert(rollout.id.to_string(), error.to_string());
            }
        }
    }
    failures
}

/// Puts the failure before the report's other reasons, so that whoever looks at the rollout sees
/// it; the next look that works replaces it.
async fn show_failure(
    store: &Store,
    rollout: &RolloutRow,
    error: &ExecuteError,
) -> Result<(), ExecuteError> {
    let state = read(rollout, "state", &rollout.state)?;
    let mut report: Report = serde_json::from_value(rollout.report.clone()).unwrap_or(Report {
        state,
        stages: Vec::new(),
        reasons: Vec::new(),
        gate_request: None,
        verdict: None,
        early: None,
    });
    let reason = Reason {
        code: ReasonCode::StepFailed,
        sentence: format!("does not move: {error}"),
    };
    if report.reasons.first() == Some(&reason) {
        return Ok(());
    }
    report.reasons.retain(|other| other.code != reason.code);
    report.reasons.insert(0, reason);
    let report = write(rollout, "report", &report)?;
    Ok(store.set_rollout_report(&rollout.id, &report).await?)
}

/// One look at one rollout; whether desired states have changed.
///
/// # Errors
/// The database failed, or holds what it should not; nothing is changed then.
pub async fn step(
    store: &Store,
    rollout: &RolloutRow,
    settings: ExecuteSettings,
    moment: Moment,
) -> Result<bool, ExecuteError> {
    let now_ms = moment.now_ms;
    let mut view = View::load(store, rollout, now_ms).await?;
    let joined = view.joined();
    let early = early::look(store, &view, settings.baseline_ms, now_ms).await?;
    let input = |gate| PlanInput {
        policy: &view.policy,
        state: &view.state,
        fleet: &view.fleet,
        joined: &joined,
        gate,
        early: early.as_ref(),
        listening_since_ms: moment.listening_since_ms,
        now_ms,
    };
    let (mut next, mut report) = plan(&input(None));
    let mut judged = None;
    if let (Some(request), Some(policy)) = (report.gate_request.clone(), view.policy.gate.clone()) {
        let fed = gate::input(store, &view, &request, settings.baseline_ms).await?;
        (next, report) = plan(&input(Some(&fed)));
        // A hold looks at counts alone and is followed by another look: only decisions are kept.
        judged = report
            .verdict
            .clone()
            .filter(|verdict| verdict.decision != Decision::Hold)
            .map(|verdict| Judged {
                stage: request.stage,
                policy: policy.at_fixed_look(pairs::drawn(&view.fleet, request.stage)),
                request,
                input: fed,
                verdict,
            });
    }
    let kept = match (&judged, judged_early(&view, early.as_ref(), &report)) {
        (Some(judged), _) => Some(write(rollout, "verdict", judged)?),
        (None, Some(early)) => Some(write(rollout, "verdict", &early)?),
        (None, None) => None,
    };
    let bundle = version_to_give(store, rollout, &next.actions).await?;
    let changes = view.carry_out(&next.actions, bundle.as_ref(), now_ms);
    let running =
        !next.next_state.has_ended() || view.is_anybody_coming_back(&next.next_state, moment);
    let application =
        view.application(changes, &next.next_state, &report, kept, running, now_ms)?;
    let Some(application) = application else {
        return Ok(false);
    };
    let has_desired = !application.desired.is_empty();
    match store.apply_plan(&rollout.id, &application).await {
        // Ended, aborted, resumed or pinned by somebody else meanwhile: the next look sees it.
        Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => return Ok(false),
        done => done?,
    }
    if application.new_state != rollout.state {
        tracing::info!(rollout = %rollout.id, state = %report.state, "rollout: {}", report.headline());
    }
    Ok(has_desired)
}

/// The early look, if it stopped the rollout: others are followed by further looks.
fn judged_early(
    view: &View<'_>,
    input: Option<&EarlyInput>,
    report: &Report,
) -> Option<JudgedEarly> {
    let verdict = report.early.clone()?;
    let is_stop = verdict.decision == EarlyDecision::Stop && report.state.has_ended();
    is_stop.then_some(JudgedEarly {
        stage: view.stage()?,
        policy: view.policy.gate.clone()?,
        input: input?.clone(),
        verdict,
    })
}

/// The bundle, if the actions give it to anybody: taking it back must work without.
async fn version_to_give(
    store: &Store,
    rollout: &RolloutRow,
    actions: &[Action],
) -> Result<Option<BundleRow>, ExecuteError> {
    let is_assign = |action: &Action| matches!(action, Action::Assign { .. });
    if !actions.iter().any(is_assign) {
        return Ok(None);
    }
    match store.bundle_by_digest(&rollout.digest).await? {
        Some(bundle) => Ok(Some(bundle)),
        None => Err(ExecuteError::NoBundle {
            rollout: rollout.id.clone(),
            digest: rollout.digest,
        }),
    }
}

/// What the version before must go through on the way back: nothing. It has served already, and a
/// device that waits for inferences or counts old errors would stay on the version to be left.
const WAY_BACK: Probation = Probation {
    inferences: 0,
    time_ms: 0,
    // The largest number that every JSON reader keeps.
    errors_max: (1 << 53) - 1,
    deadline_ms: (1 << 53) - 1,
    errors_permille_max: None,
    slow_permille_max: Some(1000),
    // One try that did not hold must not close the way.
    retry_rolled_back: true,
    shadow: None,
};

/// Everything one step looks at, typed.
struct View<'a> {
    rollout: &'a RolloutRow,
    policy: Policy,
    state: RolloutState,
    rows: Vec<RolloutDeviceRow>,
    /// One for each row, in the same order, brought up to date.
    fleet: Vec<DeviceObservation>,
    index: BTreeMap<String, usize>,
    devices: BTreeMap<DeviceId, DeviceRow>,
}

/// New desired states, by device.
type Wanted = BTreeMap<DeviceId, DesiredChange>;

impl<'a> View<'a> {
    async fn load(
        store: &Store,
        rollout: &'a RolloutRow,
        now_ms: i64,
    ) -> Result<Self, ExecuteError> {
        let policy: Policy = read(rollout, "policy", &rollout.policy)?;
        let mut state: RolloutState = read(rollout, "state", &rollout.state)?;
        if rollout.abort_requested_ms.is_some() {
            state = state.aborted("requested").unwrap_or(state);
        } else if rollout.resume_requested_ms.is_some() {
            state = state.resumed().unwrap_or(state);
        }
        let rows = store.rollout_devices(&rollout.id).await?;
        let everybody = DeviceFilter {
            with_revoked: true,
            ..DeviceFilter::default()
        };
        let devices: BTreeMap<DeviceId, DeviceRow> = store
            .list_devices(&everybody)
            .await?
            .into_iter()
            .map(|row| (row.device.clone(), row))
            .collect();
        let mut fleet = Vec::with_capacity(rows.len());
        for row in &rows {
            let noted: DeviceObservation = read(rollout, "device state", &row.state)?;
            fleet.push(observe(
                rollout,
                row,
                &noted,
                devices.get(&row.device),
                now_ms,
            ));
        }
        let index = rows
            .iter()
            .enumerate()
            .map(|(at, row)| (row.device.to_string(), at))
            .collect();
        Ok(Self {
            rollout,
            policy,
            state,
            rows,
            fleet,
            index,
            devices,
        })
    }

    /// Devices that the selector matches and that are not in the rollout.
    fn joined(&self) -> Vec<String> {
        let is_known = |device: &DeviceId| self.index.contains_key(device.as_str());
        let matches = |row: &DeviceRow| {
            self.rollout
                .selector
                .iter()
                .all(|(key, value)| row.labels.get(key) == Some(value))
        };
        let new = self
            .devices
            .values()
            .filter(|row| !row.revoked && matches(row) && !is_known(&row.device));
        new.map(|row| row.device.to_string()).collect()
    }

    /// The stage that runs or is paused; none once the rollout has ended.
    fn stage(&self) -> Option<usize> {
        match self.state {
            RolloutState::Running { stage } | RolloutState::Paused { stage, .. } => Some(stage),
            RolloutState::Stopped { .. }
            | RolloutState::Finished
            | RolloutState::Aborted { .. } => None,
        }
    }

    fn index_of(&self, device: &str) -> Option<usize> {
        self.index.get(device).copied()
    }

    /// Applies the actions to the view; gives the desired states they set.
    fn carry_out(&mut self, actions: &[Action], bundle: Option<&BundleRow>, now_ms: i64) -> Wanted {
        let mut wanted = Wanted::new();
        for action in actions {
            match action {
                Action::Join { device, stage } => self.join(device, *stage, now_ms),
                Action::Assign { device, .. } => {
                    if let Some(bundle) = bundle {
                        self.assign(device, bundle, now_ms, &mut wanted);
                    }
                }
                Action::MarkTimedOut { device, .. } => {
                    self.enter(device, DeviceState::TimedOut, now_ms)
                }
                Action::MarkNotStarted { device, .. } => {
                    self.enter(device, DeviceState::NotStarted, now_ms)
                }
                Action::RollBack { devices } => {
                    devices
                        .iter()
                        .for_each(|device| self.take_back(device, &mut wanted));
                }
                // The next state says it.
                Action::Advance { .. }
                | Action::Pause { .. }
                | Action::Stop { .. }
                | Action::Finish => {}
            }
        }
        wanted
    }

    fn enter(&mut self, device: &str, state: DeviceState, now_ms: i64) {
        if let Some(at) = self.index_of(device) {
            self.fleet[at].state = state;
            self.fleet[at].state_since_ms = now_ms;
        }
    }

    fn join(&mut self, device: &str, stage: usize, now_ms: i64) {
        let Some(row) = device
            .parse::<DeviceId>()
            .ok()
            .and_then(|id| self.devices.get(&id))
        else {
            return;
        };
        let before = row
            .desired
            .iter()
            .flat_map(|d| &d.bundles)
            .find(|b| b.family == self.rollout.family);
        let position = self
            .rows
            .iter()
            .map(|row| row.position.saturating_add(1))
            .max()
            .unwrap_or(0);
        self.rows.push(RolloutDeviceRow {
            device: row.device.clone(),
            stage: u32::try_from(stage).unwrap_or(u32::MAX),
            position,
            before: before.cloned(),
            state: Value::Null,
        });
        self.index.insert(device.to_owned(), self.fleet.len());
        self.fleet.push(DeviceObservation {
            device: device.to_owned(),
            stage,
            state: DeviceState::Waiting,
            state_since_ms: now_ms,
            last_seen_ms: row.last_seen_ms,
            assigned_at_ms: None,
            had_version: false,
            waits_for: None,
            way_back: None,
        });
    }

    fn assign(&mut self, device: &str, bundle: &BundleRow, now_ms: i64, wanted: &mut Wanted) {
        let Some(at) = self.index_of(device) else {
            return;
        };
        let asked = DesiredBundle {
            family: self.rollout.family.clone(),
            version: self.rollout.version,
            target: bundle.target.clone(),
            digest: self.rollout.digest,
            rollout: Some(self.rollout.id.clone()),
            probation: self.rollout.probation,
            asked: None,
        };
        self.want(at, Some(asked), wanted);
        self.fleet[at].assigned_at_ms = Some(now_ms);
        self.enter(device, DeviceState::Assigned, now_ms);
    }

    fn take_back(&mut self, device: &str, wanted: &mut Wanted) {
        let Some(at) = self.index_of(device) else {
            return;
        };
        let before = self.rows[at].before.clone();
        self.want(
            at,
            before.map(|before| DesiredBundle {
                rollout: None,
                probation: WAY_BACK,
                asked: None,
                ..before
            }),
            wanted,
        );
        let seen = &mut self.fleet[at];
        seen.assigned_at_ms = None;
        if seen.is_on_the_way_back() {
            let back = seen.way_back.get_or_insert_with(WayBack::default);
            back.tries = back.tries.saturating_add(1);
            back.retry_at_ms = None;
        }
    }

    /// Replaces the family's bundle in a device's desired state, and leaves the others.
    fn want(&self, at: usize, bundle: Option<DesiredBundle>, wanted: &mut Wanted) {
        let device = &self.rows[at].device;
        let row = self.devices.get(device);
        let change = DesiredChange {
            device: device.clone(),
            family: self.rollout.family.clone(),
            bundle,
            seen: row.and_then(|row| Some(row.desired.as_ref()?.revision)),
        };
        wanted.insert(device.clone(), change);
    }

    /// After an end with a roll-back: whether to go on looking, so that the devices' return is
    /// noted. Silent ones are not waited for beyond the policy's deadline.
    fn is_anybody_coming_back(&self, next: &RolloutState, moment: Moment) -> bool {
        let Some(listening_ms) = moment.listening_since_ms else {
            return *next != RolloutState::Finished;
        };
        let deadline_ms = i64::try_from(self.policy.silence_ms).unwrap_or(i64::MAX);
        let is_heard = |seen: &DeviceObservation| {
            let heard_ms = seen.last_seen_ms.unwrap_or(seen.state_since_ms);
            moment.now_ms.saturating_sub(heard_ms.max(listening_ms)) <= deadline_ms
        };
        *next != RolloutState::Finished
            && self
                .fleet
                .iter()
                .any(|seen| seen.is_on_the_way_back() && is_heard(seen))
    }

    /// What to write; `None` if nothing is new.
    fn application(
        &self,
        wanted: Wanted,
        next: &RolloutState,
        report: &Report,
        verdict: Option<Value>,
        running: bool,
        now_ms: i64,
    ) -> Result<Option<PlanApplication>, ExecuteError> {
        let mut device_updates = Vec::new();
        for (row, seen) in self.rows.iter().zip(&self.fleet) {
            let noted: Option<DeviceObservation> = serde_json::from_value(row.state.clone()).ok();
            // That a device was heard of again is not worth a write: its own row says it.
            let noted = noted.map(|noted| DeviceObservation {
                last_seen_ms: seen.last_seen_ms,
                ..noted
            });
            if noted.as_ref() != Some(seen) {
                let state = write(self.rollout, "device state", seen)?;
                device_updates.push(RolloutDeviceRow {
                    state,
                    ..row.clone()
                });
            }
        }
        let application = PlanApplication {
            now_ms,
            running,
            new_state: write(self.rollout, "state", next)?,
            report: write(self.rollout, "report", report)?,
            device_updates,
            desired: wanted.into_values().collect(),
            ended: next.has_ended(),
            abort_requested_ms: self.rollout.abort_requested_ms,
            resume_requested_ms: self.rollout.resume_requested_ms,
            verdict,
        };
        let is_new = application.new_state != self.rollout.state
            || application.report != self.rollout.report
            || !application.device_updates.is_empty()
            || !application.desired.is_empty()
            || application.resume_requested_ms.is_some()
            || !running;
        Ok(is_new.then_some(application))
    }
}

fn read<T: serde::de::DeserializeOwned>(
    rollout: &RolloutRow,
    what: &'static str,
    value: &Value,
) -> Result<T, ExecuteError> {
    serde_json::from_value(value.clone()).map_err(|e| document(rollout, what, &e))
}

fn write<T: Serialize>(
    rollout: &RolloutRow,
    what: &'static str,
    value: &T,
) -> Result<Value, ExecuteError> {
    serde_json::to_value(value).map_err(|e| document(rollout, what, &e))
}

fn document(rollout: &RolloutRow, what: &'static str, error: &serde_json::Error) -> ExecuteError {
    ExecuteError::Document {
        rollout: rollout.id.clone(),
        what,
        problem: error.to_string(),
    }
}

#[cfg(test)]
#[path = "execute_tests.rs"]
mod tests;

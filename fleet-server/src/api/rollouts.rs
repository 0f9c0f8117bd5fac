//! Rollouts: creating, looking, aborting. What happens in between is the planner's.

use super::devices::published_bundle;
use super::error::{ApiError, ErrorBody, Input, parse};
use super::tokens::check_labels;
use super::{Admin, App};
use crate::clock;
use crate::rollout::draw;
use crate::rollout::model::{DeviceObservation, DeviceState, RolloutState};
use crate::rollout::policy::{Policy, PolicyProblem};
use crate::rollout::shadowed::{Shadowed, shadowed};
use crate::store::{BundleRow, DeviceFilter, DeviceRow, RolloutDeviceRow, RolloutRow};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use dunlin_protocol::command::Probation;
use dunlin_protocol::id::{Family, RolloutId};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use utoipa::ToSchema;

/// A rollout to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRollout {
    /// The family.
    pub family: String,
    /// The published version to bring.
    pub version: u64,
    /// Stages, thresholds, deadline, gate; defaults where left out, also for the seed.
    #[serde(default)]
    #[schema(value_type = Option<Policy>)]
    pub policy: Option<Value>,
    /// Labels of the devices it is for; every device if empty.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// What the version must go through on each device.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub probation: Option<Probation>,
    /// Also begin if devices could not go back, since the version before is below the rollback
    /// floor or no longer on the signed list.
    #[serde(default)]
    pub allow_no_way_back: bool,
}

/// A rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutView {
    /// Its id.
    pub id: String,
    /// The family.
    pub family: String,
    /// The version it brings.
    pub version: u64,
    /// Digest of that version's manifest.
    pub digest: String,
    /// Where it stands: `state` is running, paused, stopped, finished or aborted.
    pub state: RolloutState,
    /// Why it moves or does not, in one sentence.
    pub why: String,
    /// Whether the planner still looks at it (also while devices go back).
    pub running: bool,
    /// When somebody asked to abort it.
    pub abort_requested_ms: Option<i64>,
    /// When somebody asked to go on with it, until the planner has looked.
    pub resume_requested_ms: Option<i64>,
    /// When it was created.
    pub created_ms: i64,
    /// Whose token created it.
    pub created_by: String,
    /// Labels of the devices it is for.
    pub selector: BTreeMap<String, String>,
    /// The frozen policy.
    #[schema(value_type = Policy)]
    pub policy: Value,
    /// What the version must go through on each device.
    #[schema(value_type = Object)]
    pub probation: Value,
    /// The planner's newest report: counts by stage and state, and its reasons; null until it
    /// has looked for the first time.
    #[schema(value_type = Option<crate::rollout::report::Report>)]
    pub report: Value,
    /// Verdicts with everything they rest on, the oldest first; only when one rollout is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<Vec<VerdictView>>,
    /// How the version does in the shadow of what serves, if it is compared; only when one rollout is
    /// asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadowed>,
    /// Its devices in the order drawn; only when one rollout is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<RolloutDeviceView>>,
}

/// A verdict.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerdictView {
    /// When it was given.
    pub at_ms: i64,
    /// Stage, request, policy, input and verdict: enough to replay it.
    #[schema(value_type = Object)]
    pub judged: Value,
}

/// One device of a rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutDeviceView {
    /// Its id.
    pub device: String,
    /// Index of its stage.
    pub stage: u32,
    /// Place in the draw.
    pub position: u32,
    /// Version it was asked to run before.
    pub before_version: Option<u64>,
    /// What the planner knows of it.
    #[schema(value_type = DeviceObservation)]
    pub observation: Value,
}

/// Rollouts.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutList {
    /// The newest first.
    pub rollouts: Vec<RolloutView>,
}

fn to_value<T: Serialize>(value: &T) -> Result<Value, ApiError> {
    serde_json::to_value(value).map_err(|e| ApiError::internal(&e))
}

fn view(row: RolloutRow) -> Result<RolloutView, ApiError> {
    let state = serde_json::from_value(row.state).map_err(|e| ApiError::internal(&e))?;
    let sentence = row.report["reasons"][0]["sentence"].as_str();
    let waits = "the planner has not looked at it yet";
    Ok(RolloutView {
        id: row.id.to_string(),
        family: row.family.to_string(),
        version: row.version,
        digest: row.digest.to_string(),
        state,
        why: sentence.unwrap_or(waits).to_owned(),
        running: row.running,
        abort_requested_ms: row.abort_requested_ms,
        resume_requested_ms: row.resume_requested_ms,
        created_ms: row.created_ms,
        created_by: row.created_by,
        selector: row.selector,
        policy: row.policy,
        probation: to_value(&row.probation)?,
        report: row.report,
        verdicts: None,
        shadow: None,
        devices: None,
    })
}

/// Fills in the seed if the operator left it out; fewer than 2^53, so that every JSON reader
/// keeps it.
fn read_policy(given: Option<Value>) -> Result<Policy, ApiError> {
    let mut given = given.unwrap_or_else(|| json!({}));
    if let Some(fields) = given.as_object_mut()
        && !fields.contains_key("seed")
    {
        let mut raw = [0_u8; 8];
        getrandom::fill(&mut raw).map_err(|e| ApiError::internal(&e))?;
        let seed = u64::from_le_bytes(raw) >> 11;
        fields.insert("seed".to_owned(), Value::from(seed));
    }
    let policy: Policy =
        Policy::of_new(given).map_err(|e| ApiError::bad_request(format!("policy: {e}")))?;
    let valid = policy.validate();
    valid.map_err(|e| ApiError::refused("policy", e.to_string()))?;
    Ok(policy)
}

/// Whether the gate, if wanted, can ever compare anything.
fn check_gate(
    policy: &Policy,
    family: &Family,
    version: u64,
    devices: &[DeviceRow],
    sizes: &[u32],
) -> Result<(), ApiError> {
    if policy.gate.is_none() {
        return Ok(());
    }
    let runs_another = |device: &DeviceRow| {
        let model = device.reported.as_ref().and_then(|r| r.of(family));
        let active = model.and_then(|model| model.active);
        active.is_some_and(|a| a.version != version)
    };
    if !devices.iter().any(runs_another) {
        let message = format!(
            "no device runs another version of {family}, so the gate has nothing to compare with: create the rollout with its gate off (--no-gate, \"gate\": null in the policy)"
        );
        return Err(ApiError::refused("gate_without_control", message));
    }
    let problems = policy.check_feasible(sizes);
    if problems.is_empty() {
        return Ok(());
    }
    let listed: Vec<String> = problems.iter().map(PolicyProblem::to_string).collect();
    let message = format!(
        "the gate could never decide on {} devices: {}",
        devices.len(),
        listed.join("; ")
    );
    Err(ApiError::refused("gate_infeasible", message))
}

/// Whether every device could go back to what it runs now.
async fn check_way_back(
    app: &App,
    bundle: &BundleRow,
    rows: &[RolloutDeviceRow],
) -> Result<(), ApiError> {
    let floor = app.store.floor(&bundle.family).await?;
    let before = rows.iter().filter_map(|row| row.before.as_ref());
    let versions: BTreeSet<u64> = before
        .filter(|before| before.digest != bundle.digest)
        .map(|before| before.version)
        .collect();
    for version in versions {
        let listed = app.store.bundle(&bundle.family, version).await?.is_some();
        let problem = match (version < floor, listed) {
            (true, _) => format!("is below the rollback floor {floor}"),
            (false, false) => "is no longer on the signed list".to_owned(),
            (false, true) => continue,
        };
        let message = format!(
            "there would be no way back: devices run {} version {version}, which {problem}; create the rollout with \"allow_no_way_back\": true (--no-way-back) if they may be left without one",
            bundle.family
        );
        return Err(ApiError::refused("no_way_back", message));
    }
    Ok(())
}

/// Devices of each stage that can show something about the version: those that do not have it.
fn without_version(sizes: &[u32], bundle: &BundleRow, rows: &[RolloutDeviceRow]) -> Vec<u32> {
    let has_it = |row: &&RolloutDeviceRow| {
        let before = row.before.as_ref();
        before.is_some_and(|before| before.digest == bundle.digest)
    };
    let mut sizes = sizes.to_vec();
    for row in rows.iter().filter(has_it) {
        if let Some(size) = sizes.get_mut(row.stage as usize) {
            *size = size.saturating_sub(1);
        }
    }
    sizes
}

/// One row a device, in the order drawn.
fn draw_devices(
    policy: &Policy,
    family: &Family,
    devices: &[DeviceRow],
    now_ms: i64,
) -> Result<(Vec<RolloutDeviceRow>, Vec<u32>), ApiError> {
    let by_id: BTreeMap<&str, &DeviceRow> =
        devices.iter().map(|d| (d.device.as_str(), d)).collect();
    let ids: Vec<String> = by_id.keys().map(|id| (*id).to_owned()).collect();
    let cohorts = draw::cohorts(policy, &ids);
    let mut rows = Vec::with_capacity(ids.len());
    for (stage, cohort) in cohorts.stages.iter().enumerate() {
        for id in &cohort.devices {
            let Some(device) = by_id.get(id.as_str()) else {
                continue;
            };
            let observation = DeviceObservation {
                device: id.clone(),
                stage,
                state: DeviceState::Waiting,
                state_since_ms: now_ms,
                last_seen_ms: device.last_seen_ms,
                assigned_at_ms: None,
                had_version: false,
                waits_for: None,
                way_back: None,
            };
            let mut desired = device.desired.iter().flat_map(|d| &d.bundles);
            rows.push(RolloutDeviceRow {
                device: device.device.clone(),
                stage: u32::try_from(stage).unwrap_or(u32::MAX),
                position: u32::try_from(rows.len()).unwrap_or(u32::MAX),
                before: desired.rfind(|b| b.family == *family).cloned(),
                state: to_value(&observation)?,
            });
        }
    }
    Ok((rows, cohorts.sizes()))
}

fn rollout_row(
    id: RolloutId,
    bundle: &BundleRow,
    policy: &Policy,
    new: NewRollout,
    created_by: String,
    created_ms: i64,
) -> Result<RolloutRow, ApiError> {
    Ok(RolloutRow {
        id,
        family: bundle.family.clone(),
        version: bundle.version,
        digest: bundle.digest,
        policy: to_value(policy)?,
        selector: new.selector,
        probation: new.probation.unwrap_or_default(),
        created_ms,
        created_by,
        running: true,
        abort_requested_ms: None,
        resume_requested_ms: None,
        state: to_value(&RolloutState::START)?,
        report: Value::Null,
    })
}

/// Creates a rollout and starts it.
#[utoipa::path(post, path = "/api/v1/rollouts", tag = "rollouts", security(("token" = [])),
    request_body = NewRollout,
    responses((status = 201, body = RolloutView), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the family has a rollout that has not ended, or no device matches"),
        (status = 422, body = ErrorBody, description = "the policy or its gate cannot work, or there would be no way back")))]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(Admin(admin)): Extension<Admin>,
    Input(new): Input<NewRollout>,
) -> Result<(StatusCode, Json<RolloutView>), ApiError> {
    let family: Family = parse("family", &new.family)?;
    check_labels(&new.selector)?;
    let policy = read_policy(new.policy.clone())?;
    let bundle = published_bundle(&app, &family, new.version).await?;
    let filter = DeviceFilter {
        labels: new.selector.clone(),
        ..DeviceFilter::default()
    };
    let devices = app.store.list_devices(&filter).await?;
    if devices.is_empty() {
        return Err(ApiError::conflict(
            "no_devices",
            "no enrolled device matches the selector",
        ));
    }
    let now_ms = clock::now_ms();
    let (rows, sizes) = draw_devices(&policy, &family, &devices, now_ms)?;
    let sizes = without_version(&sizes, &bundle, &rows);
    check_gate(&policy, &family, new.version, &devices, &sizes)?;
    if !new.allow_no_way_back {
        check_way_back(&app, &bundle, &rows).await?;
    }
    let random = super::tokens::random_hex::<6>().map_err(|e| ApiError::internal(&e))?;
    let id: RolloutId = parse("rollout id", &format!("ro-{random}"))?;
    let row = rollout_row(id, &bundle, &policy, new, admin, now_ms)?;
    app.store.insert_rollout(&row, &rows).await?;
    tracing::info!(rollout = %row.id, %family, version = row.version, devices = rows.len(), "rollout created");
    Ok((StatusCode::CREATED, Json(view(row)?)))
}

/// Rollouts, the newest first.
#[utoipa::path(get, path = "/api/v1/rollouts", tag = "rollouts", security(("token" = [])),
    responses((status = 200, body = RolloutList)))]
pub async fn list(State(app): State<Arc<App>>) -> Result<Json<RolloutList>, ApiError> {
    let rows = app.store.list_rollouts().await?;
    let rollouts = rows.into_iter().map(view).collect::<Result<_, _>>()?;
    Ok(Json(RolloutList { rollouts }))
}

/// One rollout: counts by stage, why it is not moving, verdicts with their numbers, devices.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}", tag = "rollouts", security(("token" = [])),
    params(("id" = String, Path)),
    responses((status = 200, body = RolloutView), (status = 404, body = ErrorBody)))]
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<RolloutView>, ApiError> {
    let id: RolloutId = parse("rollout", &id)?;
    let Some(row) = app.store.rollout(&id).await? else {
        return Err(ApiError::not_found(format!("no rollout {id}")));
    };
    let (family, bundle) = (row.family.clone(), row.digest);
    let mut shown = view(row)?;
    let verdicts = app.store.rollout_verdicts(&id).await?.into_iter();
    let verdicts = verdicts.map(|v| VerdictView {
        at_ms: v.at_ms,
        judged: v.verdict,
    });
    shown.verdicts = Some(verdicts.collect());
    let devices = app.store.rollout_devices(&id).await?;
    let mut all = app.store.list_devices(&DeviceFilter::default()).await?;
    all.retain(|row| devices.iter().any(|d| d.device == row.device));
    shown.shadow = shadowed(&all, &family, bundle);
    let devices = devices.into_iter().map(|row| RolloutDeviceView {
        device: row.device.to_string(),
        stage: row.stage,
        position: row.position,
        before_version: row.before.map(|b| b.version),
        observation: row.state,
    });
    shown.devices = Some(devices.collect());
    Ok(Json(shown))
}

/// Aborts a rollout: every device that was given the version goes back to the one before.
#[utoipa::path(post, path = "/api/v1/rollouts/{id}/abort", tag = "rollouts", security(("token" = [])),
    params(("id" = String, Path)),
    responses((status = 202, body = RolloutView), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "it has ended already")))]
pub async fn abort(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<RolloutView>), ApiError> {
    let id: RolloutId = parse("rollout", &id)?;
    let is_running = app.store.request_abort(&id, clock::now_ms()).await?;
    let Some(row) = app.store.rollout(&id).await? else {
        return Err(ApiError::not_found(format!("no rollout {id}")));
    };
    if !is_running {
        return Err(ApiError::conflict(
            "ended",
            format!("rollout {id} has ended already"),
        ));
    }
    tracing::info!(rollout = %id, "abort requested");
    Ok((StatusCode::ACCEPTED, Json(view(row)?)))
}

/// Goes on with a paused rollout: the same stage is looked at again, and pauses again if it still
/// is below its threshold.
#[utoipa::path(post, path = "/api/v1/rollouts/{id}/resume", tag = "rollouts", security(("token" = [])),
    params(("id" = String, Path)),
    responses((status = 202, body = RolloutView), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "it is not paused")))]
pub async fn resume(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<RolloutView>), ApiError> {
    let id: RolloutId = parse("rollout", &id)?;
    let is_paused = app.store.request_resume(&id, clock::now_ms()).await?;
    let Some(row) = app.store.rollout(&id).await? else {
        return Err(ApiError::not_found(format!("no rollout {id}")));
    };
    let shown = view(row)?;
    if !is_paused {
        let message = format!("rollout {id} is not paused, it is {}", shown.state);
        return Err(ApiError::conflict("not_paused", message));
    }
    tracing::info!(rollout = %id, "resumption requested");
    Ok((StatusCode::ACCEPTED, Json(shown)))
}

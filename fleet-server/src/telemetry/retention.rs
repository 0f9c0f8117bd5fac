//! What becomes of telemetry as it ages: windows are added up, first by the hour, then by the day, without
//! a difference to any question that asks for whole units ([`crate::drift::rollup`]); in the end all goes.
//!
//! The windows of a family whose rollout has not ended stay as they came: its gate's periods begin and end
//! whenever devices changed. One that has ended and still takes its version back from devices, one of
//! which may never be heard of again, holds nothing up: no gate and no early look is asked then, and what
//! they were asked is kept with their verdicts.

use crate::blobs::Blobs;
use crate::clock;
use crate::config::{CaptureSettings, TelemetrySettings};
use crate::drift::query::{Reference, reference_if_any};
use crate::drift::rollup::{Rolled, roll_up};
use crate::store::{BundleRow, Kept, RollupRight, Store, StoreError, WindowGroup};
use dunlin_protocol::id::{Digest, Family};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;

const FIRST_WAIT: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(3600);
/// Wait for those who read windows.
const BUSY_WAIT: Duration = Duration::from_millis(500);
const BUSY_TRIES: u32 = 600;
/// Windows in one transaction, about.
const BATCH_ROWS: u32 = 1000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Rows that were looked at.
    pub rows: u64,
    /// Rows that are in sums now.
    pub added_up: u64,
    /// Whether it ended before all was looked at: `stop` came, or windows were read all the time.
    pub stopped: bool,
}

/// Runs until `stop` becomes true.
pub async fn run(
    store: Store,
    blobs: Blobs,
    telemetry: TelemetrySettings,
    captures: CaptureSettings,
    mut stop: watch::Receiver<bool>,
) {
    // Soon after a start, so that a server that is restarted often gets to it, too.
    let mut wait = FIRST_WAIT;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(wait) => wait = INTERVAL,
        }
        let now_ms = clock::now_ms();
        match add_up(&store, &blobs, telemetry, now_ms, &mut stop).await {
            Ok(Pass { added_up: 0, .. }) => {}
            Ok(pass) => tracing::info!(rows = pass.added_up, "old windows added up"),
            Err(error) => tracing::warn!(%error, "old windows not added up, will try again"),
        }
        if let Err(error) = store.fold_segments(now_ms.saturating_sub(DAY_MS)).await {
            tracing::warn!(%error, "numbers of old segments not put together, will try again");
        }
        delete(&store, telemetry, captures, now_ms).await;
    }
}

async fn delete(
    store: &Store,
    telemetry: TelemetrySettings,
    captures: CaptureSettings,
    now_ms: i64,
) {
    let before = |days: u32| now_ms.saturating_sub(i64::from(days) * DAY_MS);
    let kept = Kept {
        records_since_ms: before(telemetry.retention_days),
        windows_since_ms: before(telemetry.windows_days),
    };
    match store.prune(kept).await {
        Ok(0) => {}
        Ok(rows) => tracing::info!(rows, "old telemetry deleted"),
        Err(error) => tracing::warn!(%error, "old telemetry not deleted, will try again"),
    }
    if let Err(error) = store.prune_alerts(kept.records_since_ms).await {
        tracing::warn!(%error, "old alerts not deleted, will try again");
    }
    let (old, audited) = (before(captures.retention_days), before(captures.audit_days));
    if let Err(error) = store.prune_captures(old, audited).await {
        tracing::warn!(%error, "old captured samples not deleted, will try again");
    }
}

/// Adds up what is old enough, by the hour and then by the day.
///
/// # Errors
/// The database failed; what was written until then is whole.
pub async fn add_up(
    store: &Store,
    blobs: &Blobs,
    telemetry: TelemetrySettings,
    now_ms: i64,
    stop: &mut watch::Receiver<bool>,
) -> Result<Pass, StoreError> {
    let mut pass = Pass::default();
    let mut versions = Versions::of(store, blobs).await?;
    let tiers = [
        ((0, HOUR_MS), telemetry.hourly_after_days),
        ((HOUR_MS, DAY_MS), telemetry.daily_after_days),
    ];
    for (units, days) in tiers {
        let before_ms = now_ms.saturating_sub(i64::from(days) * DAY_MS);
        let mut after = None;
        loop {
            let (groups, last) = store
                .groups_due(units, before_ms, after, BATCH_ROWS)
                .await?;
            if last.is_none() {
                break;
            }
            after = last;
            let tier = Tier {
                unit_ms: units.1,
                before_ms,
            };
            tier.add_up(store, &mut versions, groups, &mut pass, stop)
                .await?;
            if pass.stopped {
                return Ok(pass);
            }
        }
    }
    Ok(pass)
}

struct Tier {
    unit_ms: i64,
    before_ms: i64,
}

impl Tier {
    async fn add_up(
        &self,
        store: &Store,
        versions: &mut Versions<'_>,
        groups: BTreeSet<WindowGroup>,
        pass: &mut Pass,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let Some(right) = right(store, stop).await else {
            pass.stopped = true;
            return Ok(());
        };
        let mut all = Vec::new();
        for group in &groups {
            let rolled = self.of_group(store, versions, group).await?;
            let (gone, kept) = (rolled.gone.len(), rolled.sums.len() + rolled.left.len());
            pass.rows += (gone + kept) as u64;
            pass.added_up += gone as u64;
            all.push(rolled);
        }
        store.write_rollups(&right, self.unit_ms, &all).await?;
        pass.stopped = *stop.borrow();
        Ok(())
    }

    async fn of_group(
        &self,
        store: &Store,
        versions: &mut Versions<'_>,
        group: &WindowGroup,
    ) -> Result<Rolled, StoreError> {
        let published = match versions.find(&group.family, group.version).await {
            Known::NotNow => return Ok(Rolled::default()),
            Known::Unpublished => None,
            Known::Published(bundle, reference) => Some((*bundle, reference.as_deref())),
        };
        let (unit_ms, before_ms) = (self.unit_ms, self.before_ms);
        let rows = store.windows_of(group, unit_ms, before_ms).await?;
        Ok(match published {
            Some((bundle, reference)) => roll_up(rows, unit_ms, bundle, reference),
            // Nobody can say yet what they count towards.
            None => Rolled {
                left: rows.into_iter().map(|(id, _)| id).collect(),
                ..Rolled::default()
            },
        })
    }
}

/// Waits until nobody reads windows, though not so long that nothing is deleted meanwhile.
async fn right(store: &Store, stop: &mut watch::Receiver<bool>) -> Option<RollupRight> {
    for _ in 0..BUSY_TRIES {
        if let Some(right) = store.may_roll_up() {
            return Some(right);
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return None,
            () = tokio::time::sleep(BUSY_WAIT) => {}
        }
    }
    tracing::info!("windows are read all the time; they will be added up another time");
    None
}

/// What is known of a version.
enum Known {
    /// Not to be touched in this pass.
    NotNow,
    /// No bundle of it was ever published here.
    Unpublished,
    /// Its bundle, and the bundle's reference profile.
    Published(Digest, Option<Box<Reference>>),
}

/// Versions, read as they are needed.
struct Versions<'a> {
    blobs: &'a Blobs,
    bundles: Vec<BundleRow>,
    /// Families with a rollout that has not ended.
    held: BTreeSet<Family>,
    known: BTreeMap<(Family, u64), Known>,
}

impl<'a> Versions<'a> {
    async fn of(store: &Store, blobs: &'a Blobs) -> Result<Self, StoreError> {
        Ok(Self {
            blobs,
            bundles: store.list_bundles().await?,
            held: store.families_in_rollout().await?,
            known: BTreeMap::new(),
        })
    }

    async fn find(&mut self, family: &Family, version: u64) -> &Known {
        let key = (family.clone(), version);
        if !self.known.contains_key(&key) {
            let known = self.read(family, version).await;
            self.known.insert(key.clone(), known);
        }
        self.known.get(&key).unwrap_or(&Known::NotNow)
    }

    async fn read(&self, family: &Family, version: u64) -> Known {
        if self.held.contains(family) {
            return Known::NotNow;
        }
        let mut bundles = self.bundles.iter();
        let Some(bundle) = bundles.find(|b| b.family == *family && b.version == version) else {
            return Known::Unpublished;
        };
        match reference_if_any(bundle, self.blobs).await {
            Ok(reference) => Known::Published(bundle.digest, reference.map(Box::new)),
            Err(problem) => {
                tracing::warn!(%family, version, problem, "windows of this version are not added up: its reference profile cannot be read");
                Known::NotNow
            }
        }
    }
}

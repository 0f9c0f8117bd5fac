//! Drift of a version in a cohort: its windows merged exactly, then scored against the reference
//! profile of the signed bundle.
//!
//! A window counts towards the scores only if it was computed by the published bundle, over the
//! bundle's own profile, with the profile's number of bins; the others are named in `left_out`.
//! Scores of features share alpha among them (Bonferroni), so that fifty quiet features do not
//! make an alarm.

use super::statistics::{Comparison, Score, Sensitivity, Status, pool_rare};
use crate::blobs::Blobs;
use crate::store::{BundleRow, Store, StoreError, WindowQuery};
use dunlin_protocol::bundle::{Manifest, OutputProfile, Profile};
use dunlin_protocol::id::{DeviceId, Digest, Family};
use dunlin_protocol::sketch::{Histogram, Latency, MICRO, add_counts};
use dunlin_protocol::telemetry::Window;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Bins of the reference that a score compares: about a tenth of its rows each.
const GROUPS: u64 = 10;

/// What to score.
#[derive(Debug, Clone, PartialEq)]
pub struct DriftQuery {
    /// The family.
    pub family: Family,
    /// One version; `None`: each that has windows.
    pub version: Option<u64>,
    /// Name of the cohort, for the answer: `canary`, `control` or `all`.
    pub cohort: String,
    /// Its devices; `None`: all.
    pub devices: Option<BTreeSet<DeviceId>>,
    /// Windows that begin at or after this, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Windows that end at or before this, in milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// Alpha and practical margin of every score.
    pub sensitivity: Sensitivity,
}

/// Five percent, and a PSI of at least .1.
pub const SENSITIVITY: Sensitivity = Sensitivity {
    alpha: 0.05,
    margin: 0.1,
};

/// One version in one cohort.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Drift {
    /// The family.
    pub family: String,
    /// The version.
    pub version: u64,
    /// `canary`, `control` or `all`.
    pub cohort: String,
    /// Devices with windows.
    pub devices: u64,
    /// Windows merged.
    pub windows: u64,
    /// Windows that count towards no score, by reason.
    pub left_out: BTreeMap<String, u64>,
    /// Start of the earliest window, in milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// End of the latest window, in milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// Inferences that gave an answer.
    pub inferences: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Mean top-1 confidence, 0 to 1.
    pub confidence_mean: Option<f64>,
    /// Mean output entropy, in nats.
    pub entropy_mean: Option<f64>,
    /// Time from request to answer.
    pub latency: LatencyQuantiles,
    /// Alarm if any score alarms; insufficient if none could be given.
    pub status: Status,
    /// Why there are no scores at all, if so.
    pub note: Option<String>,
    /// Predicted classes against the reference.
    pub output_mix: Option<Mix>,
    /// Top-1 confidence against the reference.
    pub confidence: Option<HistogramScore>,
    /// Output entropy against the reference.
    pub entropy: Option<HistogramScore>,
    /// Input features, in the profile's order.
    pub features: Vec<HistogramScore>,
}

/// Latency in microseconds; each off by less than 9.1 %.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct LatencyQuantiles {
    /// Half of the requests were at least this fast.
    pub p50_us: Option<f64>,
    /// Nine of ten.
    pub p90_us: Option<f64>,
    /// Ninety-nine of a hundred.
    pub p99_us: Option<f64>,
}

/// Predicted classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Mix {
    /// Class names.
    pub classes: Vec<String>,
    /// Reference rows by class.
    pub reference: Vec<u64>,
    /// Answers by class.
    pub current: Vec<u64>,
    /// PSI, rare classes pooled.
    pub psi: Option<Score>,
    /// Total-variation distance.
    pub total_variation: Option<Score>,
}

/// One histogram against its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistogramScore {
    /// The feature's name, `confidence` or `entropy`.
    pub name: String,
    /// PSI over about ten groups of bins; `None` if the reference fills fewer than two.
    pub psi: Option<Score>,
    /// Values below the lowest or above the highest reference edge.
    pub outside: u64,
    /// NaN, infinite or missing values.
    pub unusable: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Windows of one version, merged.
#[derive(Debug, Clone, PartialEq, Default)]
struct Pool {
    devices: BTreeSet<DeviceId>,
    windows: u64,
    left_out: BTreeMap<String, u64>,
    from_ms: Option<i64>,
    until_ms: Option<i64>,
    inferences: u64,
    errors: u64,
    confidence_sum_micro: u64,
    entropy_sum_micro: u64,
    latency: Latency,
    scored: Option<Scored>,
}

/// Counts over the profile's bins.
#[derive(Debug, Clone, PartialEq)]
struct Scored {
    outputs: Vec<u64>,
    confidence: Histogram,
    entropy: Histogram,
    features: Vec<Histogram>,
}

/// Scores what the query asks for, a version each.
///
/// # Errors
/// The database failed. A profile that cannot be read is no error: it is said in `note`.
pub async fn drift(
    store: &Store,
    blobs: &Blobs,
    query: &DriftQuery,
) -> Result<Vec<Drift>, DriftError> {
    let windows = store
        .windows(&WindowQuery {
            family: query.family.clone(),
            version: query.version,
            devices: query.devices.clone(),
            since_ms: query.since_ms,
            until_ms: query.until_ms,
        })
        .await?;
    let bundles = store.list_bundles().await?;
    let mut by_version = BTreeMap::<u64, Vec<(DeviceId, Window)>>::new();
    for (device, window) in windows {
        by_version
            .entry(window.version)
            .or_default()
            .push((device, window));
    }
    let mut all = Vec::new();
    for (version, windows) in by_version {
        let bundle = bundles
            .iter()
            .find(|bundle| bundle.family == query.family && bundle.version == version);
        let reference = match bundle {
            Some(bundle) => reference(bundle, blobs).await,
            None => Err("no bundle of this version was ever published here".to_owned()),
        };
        let (reference, note) = match reference {
            Ok(reference) => (Some(reference), None),
            Err(note) => (None, Some(note)),
        };
        let pool = pool(
            &windows,
            bundle.map(|bundle| bundle.digest),
            reference.as_ref(),
        );
        all.push(scores(query, version, &pool, reference.as_ref(), note));
    }
    Ok(all)
}

/// The frozen profile and its digest.
struct Reference {
    profile: Profile,
    digest: Digest,
}

async fn reference(bundle: &BundleRow, blobs: &Blobs) -> Result<Reference, String> {
    let manifest = Manifest::parse(bundle.manifest_json.as_bytes()).map_err(|e| e.to_string())?;
    let blob = manifest
        .files
        .profile
        .as_ref()
        .ok_or("the bundle has no reference profile")?;
    let bytes = blobs
        .document(blob)
        .await
        .map_err(|e| format!("the reference profile: {e}"))?;
    let profile = Profile::parse(&bytes, &manifest).map_err(|e| e.to_string())?;
    Ok(Reference {
        profile,
        digest: blob.sha256,
    })
}

fn pool(
    windows: &[(DeviceId, Window)],
    bundle: Option<Digest>,
    reference: Option<&Reference>,
) -> Pool {
    let mut pool = Pool::default();
    for (device, window) in windows {
        if bundle.is_some_and(|bundle| bundle != window.bundle) {
            pool.leave_out("computed by another bundle of this version");
            continue;
        }
        pool.devices.insert(device.clone());
        pool.add_sums(window);
        let fits = reference.map_or(Ok(()), |reference| pool.add_counts(window, reference));
        if let Err(why) = fits {
            pool.leave_out(why);
        }
    }
    pool
}

impl Pool {
    fn leave_out(&mut self, why: &str) {
        *self.left_out.entry(why.to_owned()).or_default() += 1;
    }

    fn add_sums(&mut self, window: &Window) {
        self.windows += 1;
        self.from_ms = Some(
            self.from_ms
                .map_or(window.start_ms, |from_ms| from_ms.min(window.start_ms)),
        );
        self.until_ms = self.until_ms.max(Some(window.end_ms));
        for (sum, n) in [
            (&mut self.inferences, window.inferences),
            (&mut self.errors, window.errors),
            (&mut self.confidence_sum_micro, window.confidence_sum_micro),
            (&mut self.entropy_sum_micro, window.entropy_sum_micro),
        ] {
            *sum = sum.saturating_add(n);
        }
        if self.latency.merge(&window.latency).is_err() {
            self.leave_out("latency buckets beyond the last (the rest of the window counts)");
        }
    }

    fn add_counts(&mut self, window: &Window, reference: &Reference) -> Result<(), &'static str> {
        match window.profile {
            None => return Err("no reference profile named"),
            Some(digest) if digest != reference.digest => {
                return Err("over another reference profile");
            }
            Some(_) => {}
        }
        let misfit = "other bins than the reference profile's";
        let profile = &reference.profile;
        let mut sum = self
            .scored
            .clone()
            .unwrap_or_else(|| Scored::empty(profile));
        if window.features.len() != sum.features.len() {
            return Err(misfit);
        }
        add_counts(&mut sum.outputs, &window.outputs).map_err(|_| misfit)?;
        sum.confidence
            .merge(&window.confidence)
            .map_err(|_| misfit)?;
        sum.entropy.merge(&window.entropy).map_err(|_| misfit)?;
        for (feature, new) in sum.features.iter_mut().zip(&window.features) {
            feature.merge(new).map_err(|_| misfit)?;
        }
        self.scored = Some(sum);
        Ok(())
    }
}

impl Scored {
    fn empty(profile: &Profile) -> Self {
        Self {
            outputs: vec![0; profile.outputs.counts.len()],
            confidence: Histogram::new(profile.confidence.edges.bins()),
            entropy: Histogram::new(profile.entropy.edges.bins()),
            features: profile
                .features
                .iter()
                .map(|feature| Histogram::new(feature.edges.bins()))
                .collect(),
        }
    }
}

fn scores(
    query: &DriftQuery,
    version: u64,
    pool: &Pool,
    reference: Option<&Reference>,
    note: Option<String>,
) -> Drift {
    let mut drift = Drift {
        family: query.family.to_string(),
        version,
        cohort: query.cohort.clone(),
        devices: pool.devices.len() as u64,
        windows: pool.windows,
        left_out: pool.left_out.clone(),
        from_ms: pool.from_ms,
        until_ms: pool.until_ms,
        inferences: pool.inferences,
        errors: pool.errors,
        confidence_mean: mean(pool.confidence_sum_micro, pool.inferences),
        entropy_mean: mean(pool.entropy_sum_micro, pool.inferences),
        latency: LatencyQuantiles {
            p50_us: pool.latency.quantile_us(0.5),
            p90_us: pool.latency.quantile_us(0.9),
            p99_us: pool.latency.quantile_us(0.99),
        },
        status: Status::Insufficient,
        note,
        output_mix: None,
        confidence: None,
        entropy: None,
        features: Vec::new(),
    };
    let (Some(Reference { profile, .. }), Some(counts)) = (reference, &pool.scored) else {
        return drift;
    };
    let whole = query.sensitivity;
    drift.output_mix = Some(mix(profile, &counts.outputs, whole));
    let one = |name: &str, reference: &OutputProfile, current: &Histogram| {
        Some(histogram(name, &reference.counts, current, whole))
    };
    drift.confidence = one("confidence", &profile.confidence, &counts.confidence);
    drift.entropy = one("entropy", &profile.entropy, &counts.entropy);
    #[allow(
        clippy::cast_precision_loss,
        reason = "a few thousand features at most"
    )]
    let share = Sensitivity {
        alpha: whole.alpha / profile.features.len().max(1) as f64,
        ..whole
    };
    drift.features = profile
        .features
        .iter()
        .zip(&counts.features)
        .map(|(reference, current)| histogram(&reference.name, &reference.counts, current, share))
        .collect();
    drift.status = overall(&drift);
    drift
}

fn overall(drift: &Drift) -> Status {
    let mix = drift
        .output_mix
        .iter()
        .flat_map(|mix| [mix.psi, mix.total_variation]);
    let histograms = drift
        .confidence
        .iter()
        .chain(&drift.entropy)
        .chain(&drift.features)
        .map(|h| h.psi);
    let statuses: Vec<Status> = mix
        .chain(histograms)
        .flatten()
        .map(|score| score.status)
        .collect();
    if statuses.contains(&Status::Alarm) {
        Status::Alarm
    } else if statuses.contains(&Status::Quiet) {
        Status::Quiet
    } else {
        Status::Insufficient
    }
}

fn mix(profile: &Profile, current: &[u64], sensitivity: Sensitivity) -> Mix {
    let (pooled_reference, pooled_current) = pool_rare(&profile.outputs.counts, current);
    let comparison = Comparison::new(&pooled_reference, &pooled_current).ok();
    Mix {
        classes: profile.outputs.classes.clone(),
        reference: profile.outputs.counts.clone(),
        current: current.to_vec(),
        psi: comparison
            .as_ref()
            .map(|comparison| comparison.psi(sensitivity)),
        total_variation: comparison
            .as_ref()
            .map(|comparison| comparison.total_variation(sensitivity)),
    }
}

fn histogram(
    name: &str,
    reference: &[u64],
    current: &Histogram,
    sensitivity: Sensitivity,
) -> HistogramScore {
    let (reference, grouped) = group(reference, &current.with_tails());
    HistogramScore {
        name: name.to_owned(),
        psi: Comparison::new(&reference, &grouped)
            .ok()
            .map(|comparison| comparison.psi(sensitivity)),
        outside: current.under.saturating_add(current.over),
        unusable: [
            current.nan,
            current.pos_inf,
            current.neg_inf,
            current.missing,
        ]
        .into_iter()
        .fold(0, u64::saturating_add),
    }
}

/// Joins neighbouring bins until each group holds a tenth of the reference, so that the fine bins
/// (whose edges include the deciles) become about deciles again; a heavy atom stays by itself.
fn group(reference: &[u64], current: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let total = reference
        .iter()
        .fold(0_u64, |sum, n| sum.saturating_add(*n));
    let (mut groups, mut grouped) = (Vec::new(), Vec::new());
    let (mut open_reference, mut open_current, mut is_open) = (0_u64, 0_u64, false);
    for (r, c) in reference.iter().zip(current) {
        open_reference = open_reference.saturating_add(*r);
        open_current = open_current.saturating_add(*c);
        is_open = true;
        if u128::from(open_reference) * u128::from(GROUPS) >= u128::from(total)
            && open_reference > 0
        {
            groups.push(open_reference);
            grouped.push(open_current);
            (open_reference, open_current, is_open) = (0, 0, false);
        }
    }
    if is_open {
        match (groups.last_mut(), grouped.last_mut()) {
            (Some(r), Some(c)) => {
                *r = r.saturating_add(open_reference);
                *c = c.saturating_add(open_current);
            }
            _ => {
                groups.push(open_reference);
                grouped.push(open_current);
            }
        }
    }
    (groups, grouped)
}

#[allow(clippy::cast_precision_loss, reason = "a mean to six digits")]
fn mean(sum_micro: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum_micro as f64 / MICRO / count as f64)
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;

//! Drift of a version in a cohort: its windows merged exactly, then scored against the reference
//! profile of the signed bundle.
//!
//! A window counts only if an honest device could have sent it ([`super::plausible`]) and the published
//! bundle computed it, over the bundle's own profile if it has one, with the profile's number of bins.
//! The others are named in `left_out`. What a broken sensor sent is kept
//! out of its feature's scores and named in `isolated`.
//!
//! What decides is the PSI and, of ordered features, the share of values outside the reference's range;
//! the other scores are published beside them. Those that decide are held against each other
//! (Benjamini–Hochberg): `p_adjusted` is compared with alpha, and every bound is the one at the level
//! that this amounts to, so that fifty quiet features do not make an alarm.

mod picture;
pub(crate) mod pool;
mod publish;

use super::statistics::estimated::EstimatedAccuracy;
use super::statistics::ordered::{KolmogorovSmirnov, Wasserstein};
use super::statistics::range::OutOfRange;
use super::statistics::{ChiSquared, Score, Sensitivity, Status};
use crate::blobs::Blobs;
use crate::store::{BundleRow, ReceivedWindow, Store, StoreError, WINDOW_ROWS_MAX, WindowQuery};
use dunlin_protocol::bundle::{Manifest, Profile};
use dunlin_protocol::id::{DeviceId, Digest, Family};
pub use picture::{Bins, Picture};
use pool::Pool;
pub use pool::Soundness;
use publish::scores;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// What to score.
#[derive(Debug, Clone, PartialEq)]
pub struct DriftQuery {
    /// The family.
    pub family: Family,
    /// One version; `None`: each that was published and has windows.
    pub version: Option<u64>,
    /// Name of the cohort, for the answer: `canary`, `control` or `all`.
    pub cohort: String,
    /// Its devices; `None`: all.
    pub devices: Option<BTreeSet<DeviceId>>,
    /// One segment; `None`: all, and what belongs to none.
    pub segment: Option<String>,
    /// Windows that begin at or after this, in milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Windows that end at or before this, in milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// Alpha of every score, and the PSI's practical margin.
    pub sensitivity: Sensitivity,
    /// Share of values outside the reference's range, beyond what it allows itself, that matters.
    pub out_of_range_margin: f64,
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
    /// The only segment that was added up; none: all.
    #[serde(default)]
    pub segment: Option<String>,
    /// Inferences of the time asked for by segment, those of other segments than the one that was
    /// added up too. What belongs to none is not among them.
    #[serde(default)]
    pub segments: BTreeMap<String, u64>,
    /// Devices with windows.
    pub devices: u64,
    /// Windows merged.
    pub windows: u64,
    /// Windows that count towards nothing, by reason.
    pub left_out: BTreeMap<String, u64>,
    /// Start of the earliest window, in milliseconds since 1970.
    pub from_ms: Option<i64>,
    /// End of the latest window, in milliseconds since 1970.
    pub until_ms: Option<i64>,
    /// Inferences that gave an answer.
    pub inferences: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests that did not fit the manifest, and were refused.
    #[serde(default)]
    pub refused: u64,
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
    /// Accuracy by the bundle's calibration, without labels; none without a calibration.
    #[serde(default)]
    pub estimated_accuracy: Option<EstimatedAccuracy>,
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

/// Scores over bins or categories whose order does not matter; none where the reference fills fewer
/// than two.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct BinScores {
    /// Population stability index: the score that decides.
    pub psi: Option<Score>,
    /// Total-variation distance, 0 to 1.
    pub total_variation: Option<Score>,
    /// Jensen–Shannon divergence in bits; its root is the distance.
    pub jensen_shannon: Option<Score>,
    /// Hellinger distance, 0 to 1.
    pub hellinger: Option<Score>,
    /// Largest difference of a share, 0 to 1.
    pub l_infinity: Option<Score>,
    /// Contingency test of homogeneity.
    pub chi_squared: Option<ChiSquared>,
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
    /// Answers of classes that the reference has none of.
    #[serde(default)]
    pub unseen: u64,
    /// Their share, judged.
    #[serde(default)]
    pub out_of_range: Option<OutOfRange>,
    /// Scores, rare classes pooled.
    #[serde(flatten)]
    pub scores: BinScores,
}

/// One histogram against its reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistogramScore {
    /// The feature's name, `confidence` or `entropy`.
    pub name: String,
    /// Scores over about ten groups of bins.
    #[serde(flatten)]
    pub scores: BinScores,
    /// Probability of so large a PSI when nothing has drifted; none if the score is insufficient.
    #[serde(default)]
    pub p_value: Option<f64>,
    /// The smallest alpha at which this would be among what drifted, everything that decides looked
    /// at together (Benjamini–Hochberg).
    #[serde(default)]
    pub p_adjusted: Option<f64>,
    /// Kolmogorov–Smirnov over the fine bins.
    #[serde(default)]
    pub kolmogorov_smirnov: Option<KolmogorovSmirnov>,
    /// Wasserstein-1 over the fine bins.
    #[serde(default)]
    pub wasserstein: Option<Wasserstein>,
    /// Values below the lowest or above the highest reference edge.
    pub outside: u64,
    /// Their share, judged; of categories, with those that the reference names and has none of.
    #[serde(default)]
    pub out_of_range: Option<OutOfRange>,
    /// How many different values were none of the categories; none of other features, and where no
    /// device says so.
    #[serde(default)]
    pub new_values: Option<NewValues>,
    /// NaN, infinite or missing values.
    pub unusable: u64,
    /// What was kept out of the scores.
    #[serde(default)]
    pub isolated: Isolated,
}

/// An estimate of how many different values were none of a feature's categories, by HyperLogLog. It
/// decides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewValues {
    /// About so many.
    pub distinct: f64,
    /// Standard error of that, in values.
    pub standard_error: f64,
    /// Of so many values: those that devices sketched. Where these are fewer than `outside`, `distinct`
    /// is of a part.
    pub values: u64,
}

/// Windows whose values of one feature say more about a sensor than about the world: named here, and
/// in no score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Isolated {
    /// Windows with one value in twenty or more NaN, infinite or missing.
    pub unusable_windows: u64,
    /// Windows whose values all fell into one bin, though the reference spreads them.
    pub constant_windows: u64,
    /// Devices that sent them.
    pub devices: u64,
    /// Values in them.
    pub values: u64,
    /// Alarm if they are more than a tenth of all values.
    pub status: Status,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    let versions = merged(store, blobs, query).await?;
    Ok(versions.iter().map(|v| v.scores(query)).collect())
}

/// The newest version that the query finds, and the picture of one of its signals: none if it has no
/// such signal, or no reference.
///
/// # Errors
/// The database failed.
pub async fn picture(
    store: &Store,
    blobs: &Blobs,
    query: &DriftQuery,
    signal: &str,
) -> Result<Option<(Drift, Option<Picture>)>, DriftError> {
    let versions = merged(store, blobs, query).await?;
    Ok(versions.last().map(|version| {
        let drift = version.scores(query);
        let reference = version.reference.as_ref();
        let picture = picture::picture(&drift, &version.pool, reference, signal);
        (drift, picture)
    }))
}

/// The windows that a query finds, added up by version, the lowest first.
async fn merged(
    store: &Store,
    blobs: &Blobs,
    query: &DriftQuery,
) -> Result<Vec<Version>, DriftError> {
    let wanted = WindowQuery {
        family: query.family.clone(),
        version: query.version,
        devices: query.devices.clone(),
        since_ms: query.since_ms,
        until_ms: query.until_ms,
    };
    let bundles = store.list_bundles().await?;
    let mut versions: Vec<Version> = Vec::new();
    let mut scan = store.scan_windows(wanted).await;
    if query.version.is_none() {
        // What a device says it runs makes no version.
        let own = bundles.iter().filter(|b| b.family == query.family);
        scan = scan.of_versions(own.map(|b| b.version).collect());
    }
    loop {
        // A page at a time: a fleet's windows of a day do not fit into memory.
        let windows = scan.page(PAGE_ROWS).await?;
        let mut is_last = windows.len() < PAGE_ROWS as usize;
        for received in &windows {
            let number = received.window.version;
            if versions.last().is_none_or(|v| v.number != number) {
                let mut versions_bundles = bundles.iter();
                let bundle =
                    versions_bundles.find(|b| b.family == query.family && b.version == number);
                versions.push(Version::begin(number, bundle, blobs, query).await);
            }
            let Some(version) = versions.last_mut() else {
                continue;
            };
            if version.take(received) {
                continue;
            }
            // Beyond the last that is added up: on with the next version.
            scan.skip_past(number);
            is_last = false;
            break;
        }
        if is_last {
            break;
        }
    }
    Ok(versions)
}

/// Windows in memory at once.
const PAGE_ROWS: u32 = 500;
pub(crate) const UNPUBLISHED: &str = "no bundle of this version was ever published here";
const TOO_MANY: &str = "more windows than one question adds up (ask for a shorter time)";

/// One version while its windows are added up.
struct Version {
    number: u64,
    bundle: Option<Digest>,
    reference: Option<Reference>,
    note: Option<String>,
    taken: u32,
    pool: Pool,
}

impl Version {
    async fn begin(
        number: u64,
        bundle: Option<&BundleRow>,
        blobs: &Blobs,
        query: &DriftQuery,
    ) -> Self {
        let found = match bundle {
            Some(bundle) => reference(bundle, blobs).await,
            None => Err(UNPUBLISHED.to_owned()),
        };
        let (reference, note) = match found {
            Ok(reference) => {
                let note = no_such_segment(&reference.profile, query.segment.as_deref());
                (Some(reference), note)
            }
            Err(note) => (None, Some(note)),
        };
        Self {
            number,
            bundle: bundle.map(|bundle| bundle.digest),
            reference,
            note,
            taken: 0,
            pool: Pool::of_segment(query.segment.clone()),
        }
    }

    /// Whether it took the window; sums are certain not to overflow up to [`WINDOW_ROWS_MAX`].
    fn take(&mut self, received: &ReceivedWindow) -> bool {
        if self.taken >= WINDOW_ROWS_MAX {
            self.pool.leave_out(TOO_MANY);
            return false;
        }
        self.taken += 1;
        self.pool
            .take(received, self.bundle, self.reference.as_ref());
        true
    }

    fn scores(&self, query: &DriftQuery) -> Drift {
        let reference = self.reference.as_ref();
        let mut drift = scores(query, self.number, &self.pool, reference, None);
        drift.note = self.note.clone();
        drift
    }
}

/// What is wrong with the segment that was asked for, if the profile has none of that name.
fn no_such_segment(profile: &Profile, asked: Option<&str>) -> Option<String> {
    let asked = asked?;
    let signed = profile.segments.as_ref();
    let Some(signed) = signed.filter(|signed| !signed.values.is_empty()) else {
        return Some("its profile has no segments".to_owned());
    };
    let is_known = signed.values.iter().any(|value| value == asked);
    let expected = signed.values.join(", ");
    let asked: String = asked.chars().take(200).collect();
    (!is_known).then(|| format!("its profile has no segment {asked:?}: expected one of {expected}"))
}

/// Adds up the windows of a version that `bundle` computed, and scores the sum. Pure; any order of the
/// windows gives the same.
pub fn of_windows<'a>(
    query: &DriftQuery,
    version: u64,
    windows: impl IntoIterator<Item = &'a ReceivedWindow>,
    bundle: Option<Digest>,
    reference: Option<&Reference>,
) -> Drift {
    let pool = Pool::of(query.segment.clone(), windows, bundle, reference);
    scores(query, version, &pool, reference, None)
}

/// The frozen profile and its digest.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// The profile.
    pub profile: Profile,
    /// Digest of its document.
    pub digest: Digest,
}

/// The frozen profile of a published bundle, or why there is none.
pub(crate) async fn reference(bundle: &BundleRow, blobs: &Blobs) -> Result<Reference, String> {
    let found = reference_if_any(bundle, blobs).await?;
    found.ok_or_else(|| "the bundle has no reference profile".to_owned())
}

/// The frozen profile of a published bundle, if it has one; or why it cannot be read.
pub(crate) async fn reference_if_any(
    bundle: &BundleRow,
    blobs: &Blobs,
) -> Result<Option<Reference>, String> {
    let manifest = Manifest::parse(bundle.manifest_json.as_bytes()).map_err(|e| e.to_string())?;
    let Some(blob) = manifest.files.profile.as_ref() else {
        return Ok(None);
    };
    let bytes = blobs
        .document(blob)
        .await
        .map_err(|e| format!("the reference profile: {e}"))?;
    let profile = Profile::parse(&bytes, &manifest).map_err(|e| e.to_string())?;
    Ok(Some(Reference {
        profile,
        digest: blob.sha256,
    }))
}

#[cfg(test)]
#[path = "query/quiet_tests.rs"]
mod quiet_tests;
#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;

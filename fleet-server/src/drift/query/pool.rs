//! Windows of one version, added up. Only integers, each bounded by [`plausible`], and what is left out
//! is decided by each window alone: any order gives the same.

use super::Reference;
use crate::drift::plausible;
use crate::store::ReceivedWindow;
use dunlin_protocol::bundle::{OutputProfile, Profile};
use dunlin_protocol::calibration::{self, ExpectedConfusion};
use dunlin_protocol::id::{DeviceId, Digest};
use dunlin_protocol::sketch::{Histogram, Latency};
use dunlin_protocol::telemetry::Window;
use std::collections::{BTreeMap, BTreeSet};

/// A window's feature is kept out of the scores when one value in so many is unusable.
const UNUSABLE_ONE_IN: u64 = 20;
/// Fewest values in one bin that make a constant.
const CONSTANT_MIN: u64 = 30;
/// ln 10⁻⁹: how unlikely it must be that the reference gave all values of a window in one bin.
const CONSTANT_LN: f64 = -20.7;

/// Histograms of outputs, which come before those of features.
pub(crate) const OUTPUTS: usize = 2;

const UNDECLARED: &str = "a segment that the reference profile does not name";
const OTHER_BUNDLE: &str = "computed by another bundle of this version";
const MISFIT: &str = "other bins than the reference profile's";

/// The sums.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Pool {
    /// The only segment that is added up.
    pub(super) segment: Option<String>,
    /// Inferences by segment.
    pub(super) segments: BTreeMap<String, u64>,
    pub(super) devices: BTreeSet<DeviceId>,
    pub(super) windows: u64,
    pub(super) left_out: BTreeMap<String, u64>,
    pub(super) from_ms: Option<i64>,
    pub(super) until_ms: Option<i64>,
    pub(super) inferences: u64,
    pub(super) errors: u64,
    pub(super) refused: u64,
    pub(super) confidence_sum_micro: u128,
    pub(super) entropy_sum_micro: u128,
    pub(super) latency: Latency,
    pub(super) scored: Option<Scored>,
}

/// Counts over the profile's bins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scored {
    pub(super) outputs: Vec<u64>,
    pub(super) confidence: Column,
    pub(super) entropy: Column,
    pub(super) features: Vec<Column>,
    pub(super) expected: Option<ExpectedConfusion>,
}

/// One histogram, and what was kept out of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    pub(super) sound: Histogram,
    /// Values that are no category and went into the sound histogram's sketch.
    pub(super) sketched: u64,
    /// NaN, infinite or missing values, those of isolated windows included.
    pub(super) unusable: u64,
    pub(super) unusable_windows: u64,
    pub(super) constant_windows: u64,
    pub(super) isolated_values: u64,
    pub(super) isolated_devices: BTreeSet<DeviceId>,
}

/// What a window's histogram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Soundness {
    /// Counts.
    Sound,
    /// One value in twenty or more is NaN, infinite or missing.
    Unusable,
    /// All in one bin, which the reference makes next to impossible.
    Constant,
}

/// What a window counts towards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Judged<'a> {
    /// Nothing.
    Refused(String),
    /// The sums and means; there is no reference to score it against.
    Unreferenced,
    /// The sums, the means and, over this profile's bins, the scores.
    Scored(&'a Profile),
}

/// Judges a window of a version that `bundle` computed: by itself alone, so that any order of windows
/// gives the same.
pub(crate) fn judge<'a>(
    received: &ReceivedWindow,
    bundle: Option<Digest>,
    reference: Option<&'a Reference>,
) -> Judged<'a> {
    let window = &received.window;
    if bundle.is_some_and(|bundle| bundle != window.bundle) {
        return Judged::Refused(OTHER_BUNDLE.to_owned());
    }
    if received.soundness.is_none()
        && let Err(why) = plausible::clock(window, received.received_ms)
    {
        return Judged::Refused(why.to_string());
    }
    match contents(window, received.soundness.is_some(), reference) {
        Err(why) => Judged::Refused(why),
        Ok(None) => Judged::Unreferenced,
        Ok(Some(profile)) => Judged::Scored(profile),
    }
}

/// The profile that a window is over, none without a reference, if its contents can be an honest
/// device's, whenever it was. A bundle's digest fixes its profile, so an honest device names no other.
///
/// # Errors
/// Why they cannot.
pub(crate) fn contents<'a>(
    window: &Window,
    was_judged: bool,
    reference: Option<&'a Reference>,
) -> Result<Option<&'a Profile>, String> {
    if !was_judged {
        plausible::numbers(window).map_err(|why| why.to_string())?;
    }
    // Without a profile nobody says which there may be.
    let declared = reference.and_then(|r| r.profile.segments.as_ref());
    let is_declared = |segment: &String| declared.is_some_and(|declared| declared.has(segment));
    if !window.segment.as_ref().is_none_or(is_declared) {
        return Err(UNDECLARED.to_owned());
    }
    let Some(reference) = reference else {
        return Ok(None);
    };
    let profile = own_profile(window, reference)?;
    // What was added up was judged before.
    if !was_judged {
        sums_fit(window, profile).map_err(|why| why.to_string())?;
    }
    Ok(Some(profile))
}

/// The reference's profile, if the window is over it.
///
/// # Errors
/// What it is over instead.
fn own_profile<'a>(window: &Window, reference: &'a Reference) -> Result<&'a Profile, &'static str> {
    match window.profile {
        None => Err("no reference profile named"),
        Some(digest) if digest != reference.digest => Err("over another reference profile"),
        Some(_) if !fits(window, &reference.profile) => Err(MISFIT),
        Some(_) => Ok(&reference.profile),
    }
}

/// Judges a window's confidences or entropies by themselves: a model that says the same to everything
/// has drifted, a sensor that does is broken.
pub(crate) fn of_output(new: &Histogram) -> Soundness {
    match of_input(&[], new) {
        Soundness::Constant => Soundness::Sound,
        other => other,
    }
}

impl Pool {
    /// Nothing yet; of this segment alone, if there is one.
    pub(super) fn of_segment(segment: Option<String>) -> Self {
        Self {
            segment,
            ..Self::default()
        }
    }

    /// Adds up the windows of a version that `bundle` computed.
    pub(super) fn of<'a>(
        segment: Option<String>,
        windows: impl IntoIterator<Item = &'a ReceivedWindow>,
        bundle: Option<Digest>,
        reference: Option<&Reference>,
    ) -> Self {
        let mut pool = Self::of_segment(segment);
        for received in windows {
            pool.take(received, bundle, reference);
        }
        pool
    }

    /// Adds one window, or says why it is left out.
    pub(super) fn take(
        &mut self,
        received: &ReceivedWindow,
        bundle: Option<Digest>,
        reference: Option<&Reference>,
    ) {
        let profile = match judge(received, bundle, reference) {
            Judged::Refused(why) => return self.leave_out(&why),
            Judged::Unreferenced => None,
            Judged::Scored(profile) => Some(profile),
        };
        let window = &received.window;
        if let Some(segment) = &window.segment {
            let inferences = self.segments.entry(segment.clone()).or_default();
            *inferences = inferences.saturating_add(window.inferences);
        }
        if self.segment.is_some() && self.segment != window.segment {
            return;
        }
        if !self.devices.contains(&received.device) {
            self.devices.insert(received.device.clone());
        }
        self.add_sums(received);
        if let Some(profile) = profile {
            self.add_counts(received, profile);
        }
    }

    pub(super) fn leave_out(&mut self, why: &str) {
        *self.left_out.entry(why.to_owned()).or_default() += 1;
    }

    fn add_sums(&mut self, received: &ReceivedWindow) {
        let window = &received.window;
        self.windows = self.windows.saturating_add(received.parts);
        let from_ms = self.from_ms.unwrap_or(window.start_ms);
        self.from_ms = Some(from_ms.min(window.start_ms));
        self.until_ms = self.until_ms.max(Some(window.end_ms));
        self.inferences = self.inferences.saturating_add(window.inferences);
        self.errors = self.errors.saturating_add(window.errors);
        self.refused = self.refused.saturating_add(window.refused);
        self.confidence_sum_micro += u128::from(window.confidence_sum_micro);
        self.entropy_sum_micro += u128::from(window.entropy_sum_micro);
        if self.latency.merge(&window.latency).is_err() {
            self.leave_out("latency buckets beyond the last (the rest of the window counts)");
        }
    }

    fn add_counts(&mut self, received: &ReceivedWindow, profile: &Profile) {
        let window = &received.window;
        let sum = self.scored.get_or_insert_with(|| Scored::empty(profile));
        add(&mut sum.outputs, &window.outputs);
        let known = received.soundness.as_deref();
        let known = |at: usize| known.and_then(|known| known.get(at).copied());
        let outputs = [
            (&mut sum.confidence, &window.confidence),
            (&mut sum.entropy, &window.entropy),
        ];
        for (at, (column, new)) in outputs.into_iter().enumerate() {
            let soundness = known(at).unwrap_or_else(|| of_output(new));
            column.add(received, new, soundness);
        }
        let references = profile.features.iter().zip(&window.features);
        let columns = sum.features.iter_mut().zip(references);
        for (at, (column, (reference, new))) in columns.enumerate() {
            let soundness = known(OUTPUTS + at).unwrap_or_else(|| of_input(&reference.counts, new));
            column.add(received, new, soundness);
        }
        if let (Some(sum), Some(new)) = (&mut sum.expected, &window.expected_confusion_nano) {
            // Cells that are none were refused with their window.
            let _ = sum.add(new);
        }
    }
}

impl Scored {
    fn empty(profile: &Profile) -> Self {
        let output = |output: &OutputProfile| Column::new(output.edges.bins());
        Self {
            outputs: vec![0; profile.outputs.counts.len()],
            confidence: output(&profile.confidence),
            entropy: output(&profile.entropy),
            features: profile
                .features
                .iter()
                .map(|feature| Column::new(feature.edges.bins()))
                .collect(),
            expected: profile
                .calibration
                .as_ref()
                .map(|calibration| ExpectedConfusion::new(calibration.curves.len())),
        }
    }
}

impl Column {
    pub(super) fn new(bins: usize) -> Self {
        Self {
            sound: Histogram::new(bins),
            sketched: 0,
            unusable: 0,
            unusable_windows: 0,
            constant_windows: 0,
            isolated_values: 0,
            isolated_devices: BTreeSet::new(),
        }
    }

    fn add(&mut self, received: &ReceivedWindow, new: &Histogram, soundness: Soundness) {
        self.unusable = self.unusable.saturating_add(unusable(new));
        match soundness {
            Soundness::Sound => {
                let sum = &mut self.sound;
                add(&mut sum.counts, &new.counts);
                sum.under = sum.under.saturating_add(new.under);
                sum.over = sum.over.saturating_add(new.over);
                if let Some(sketch) = &new.distinct {
                    sum.distinct.get_or_insert_default().merge(sketch);
                    self.sketched = self.sketched.saturating_add(new.over);
                }
                return;
            }
            Soundness::Unusable => self.unusable_windows += received.parts,
            Soundness::Constant => self.constant_windows += received.parts,
        }
        self.isolated_values = self.isolated_values.saturating_add(new.total());
        if !self.isolated_devices.contains(&received.device) {
            self.isolated_devices.insert(received.device.clone());
        }
    }
}

/// Of equal length, and too small to overflow: both were checked.
fn add(sum: &mut [u64], new: &[u64]) {
    for (slot, n) in sum.iter_mut().zip(new) {
        *slot = slot.saturating_add(*n);
    }
}

fn unusable(histogram: &Histogram) -> u64 {
    [
        histogram.nan,
        histogram.pos_inf,
        histogram.neg_inf,
        histogram.missing,
    ]
    .into_iter()
    .fold(0, u64::saturating_add)
}

/// Judges a window's values of one input by themselves.
#[allow(clippy::cast_precision_loss, reason = "against a rough limit")]
pub(crate) fn of_input(reference: &[u64], new: &Histogram) -> Soundness {
    let total = new.total();
    let unusable = unusable(new);
    if unusable > 0 && unusable.saturating_mul(UNUSABLE_ONE_IN) >= total {
        return Soundness::Unusable;
    }
    let usable = total - unusable;
    let Some(bin) = new.counts.iter().position(|n| *n > 0) else {
        return Soundness::Sound;
    };
    if usable < CONSTANT_MIN || new.counts[bin] != usable {
        return Soundness::Sound;
    }
    let rows: f64 = reference.iter().map(|n| *n as f64).sum();
    let share = reference
        .get(bin)
        .map_or(0.0, |n| *n as f64 / rows.max(1.0));
    if usable as f64 * share.ln() < CONSTANT_LN {
        Soundness::Constant
    } else {
        Soundness::Sound
    }
}

fn fits(window: &Window, profile: &Profile) -> bool {
    let fits = |histogram: &Histogram, bins: usize| {
        histogram.counts.len() == bins && histogram.total() == window.inferences
    };
    let mut features = window.features.iter().zip(&profile.features);
    window.outputs.len() == profile.outputs.counts.len()
        && window.features.len() == profile.features.len()
        && fits(&window.confidence, profile.confidence.edges.bins())
        && fits(&window.entropy, profile.entropy.edges.bins())
        && features.all(|(new, feature)| fits(new, feature.edges.bins()))
}

fn sums_fit(window: &Window, profile: &Profile) -> Result<(), plausible::Implausible> {
    if let Some(cells) = &window.expected_confusion_nano {
        let classes = profile.outputs.classes.len();
        if !calibration::answers(classes, cells).is_ok_and(|n| n <= window.inferences) {
            return Err(plausible::Implausible::Sums);
        }
    }
    plausible::sum(
        window.confidence_sum_micro,
        &profile.confidence.edges,
        &window.confidence,
    )?;
    plausible::sum(
        window.entropy_sum_micro,
        &profile.entropy.edges,
        &window.entropy,
    )
}

//! Old windows of one device added up by the hour or the day, such that every later question gets the
//! answer it would have got, as long as it does not ask for less than a unit.
//!
//! A window is judged before it is added up (`pool::judge`), by itself alone as in every question, and
//! never again; only windows whose histograms were all judged alike make one sum. So windows that count as
//! one broken sensor's stay apart from sound ones, and the sum says how many windows it is. What counts in
//! no sum is left as it came.

use super::plausible::COUNT_MAX;
use super::query::pool::{self, Judged};
use super::query::{Reference, Soundness};
use crate::store::ReceivedWindow;
use dunlin_protocol::bundle::Profile;
use dunlin_protocol::id::Digest;
use dunlin_protocol::sketch::add_counts;
use dunlin_protocol::telemetry::Window;
use std::collections::BTreeMap;

/// What becomes of some rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rolled {
    /// Rows that are written anew, by their ids.
    pub sums: Vec<(i64, ReceivedWindow)>,
    /// Rows that are in one of those.
    pub gone: Vec<i64>,
    /// Rows that stay as they are.
    pub left: Vec<i64>,
}

/// What the sums of one key have in common.
type Key = (Option<String>, Option<Digest>, i64, Vec<Soundness>);

/// Adds up rows of one device and one version, whose bundle and reference these are, by `unit_ms`.
#[must_use]
pub fn roll_up(
    rows: Vec<(i64, ReceivedWindow)>,
    unit_ms: i64,
    bundle: Digest,
    reference: Option<&Reference>,
) -> Rolled {
    let mut sums: BTreeMap<Key, Vec<(i64, ReceivedWindow)>> = BTreeMap::new();
    let mut rolled = Rolled::default();
    for (id, mut received) in rows {
        let window = &received.window;
        let unit = window.start_ms.div_euclid(unit_ms);
        let is_within = window.end_ms.saturating_sub(1).div_euclid(unit_ms) == unit;
        let soundness = received
            .soundness
            .take()
            .or_else(|| judged(&received, bundle, reference));
        let Some(soundness) = soundness else {
            rolled.left.push(id);
            continue;
        };
        let key = (
            window.segment.clone(),
            window.profile,
            unit,
            soundness.clone(),
        );
        received.soundness = Some(soundness);
        let of_key = sums.entry(key).or_default();
        let taken = is_within && of_key.iter_mut().any(|(_, sum)| add(sum, &received));
        if taken {
            rolled.gone.push(id);
        } else {
            of_key.push((id, received));
        }
    }
    rolled.sums = sums.into_values().flatten().collect();
    rolled
}

/// How its histograms are judged; none if it must stay as it came.
fn judged(
    received: &ReceivedWindow,
    bundle: Digest,
    reference: Option<&Reference>,
) -> Option<Vec<Soundness>> {
    match pool::judge(received, Some(bundle), reference) {
        Judged::Refused(_) => None,
        Judged::Unreferenced => Some(Vec::new()),
        Judged::Scored(profile) => Some(soundness(&received.window, profile)),
    }
}

fn soundness(window: &Window, profile: &Profile) -> Vec<Soundness> {
    let outputs = [&window.confidence, &window.entropy].map(pool::of_output);
    let features = profile.features.iter().zip(&window.features);
    let features = features.map(|(reference, new)| pool::of_input(&reference.counts, new));
    outputs.into_iter().chain(features).collect()
}

/// Whether it was added. A sum stays within one unit, and within what an honest window may count, so that
/// nothing that adds up sums overflows.
fn add(sum: &mut ReceivedWindow, other: &ReceivedWindow) -> bool {
    let Some(window) = added(&sum.window, &other.window) else {
        return false;
    };
    sum.window = window;
    sum.parts = sum.parts.saturating_add(other.parts);
    sum.received_ms = sum.received_ms.max(other.received_ms);
    true
}

fn added(sum: &Window, other: &Window) -> Option<Window> {
    let mut window = sum.clone();
    window.start_ms = window.start_ms.min(other.start_ms);
    window.end_ms = window.end_ms.max(other.end_ms);
    let counters = [
        (&mut window.inferences, other.inferences),
        (&mut window.errors, other.errors),
        (&mut window.refused, other.refused),
        (&mut window.confidence_sum_micro, other.confidence_sum_micro),
        (&mut window.entropy_sum_micro, other.entropy_sum_micro),
    ];
    for (slot, n) in counters {
        *slot = slot.checked_add(n)?;
    }
    let requests = window.inferences.checked_add(window.errors)?;
    if requests.checked_add(window.refused)? > COUNT_MAX {
        return None;
    }
    add_counts(&mut window.outputs, &other.outputs).ok()?;
    window.confidence.merge(&other.confidence).ok()?;
    window.entropy.merge(&other.entropy).ok()?;
    if window.features.len() != other.features.len() {
        return None;
    }
    for (slot, new) in window.features.iter_mut().zip(&other.features) {
        // A sketch speaks of the values of its own windows alone.
        if slot.distinct.is_some() != new.distinct.is_some() {
            return None;
        }
        slot.merge(new).ok()?;
    }
    window.latency.merge(&other.latency).ok()?;
    match (
        &mut window.expected_confusion_nano,
        &other.expected_confusion_nano,
    ) {
        (None, None) => {}
        (Some(cells), Some(new)) => add_counts(cells, new).ok()?,
        _ => return None,
    }
    Some(window)
}

#[cfg(test)]
#[path = "rollup_tests.rs"]
mod tests;

//! Which canary the early look compares with which control. Pure.
//!
//! The draw alone decides: the stage's devices in the order drawn, against as many of those drawn
//! behind the stage. A pair one of which shows nothing (it failed, is off, had the version, has no
//! time on the version before) is never complete and counts for nothing; it is not made up of
//! others, since then what a device does would decide whom it is compared with.

use super::model::{DeviceObservation, DeviceState};
use crate::drift::early::{EarlyInput, PairChange};
use std::collections::BTreeMap;

/// A canary and its control.
pub type Pair<'a> = (&'a DeviceObservation, &'a DeviceObservation);

/// What a device showed, once and for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Device id.
    pub device: String,
    /// Its change of mean confidence, after − before, in 10⁻⁹; `None`: it never will have enough.
    pub change_nano: Option<i64>,
}

/// A device that has not shown anything yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenMember<'a> {
    /// Device id.
    pub device: &'a str,
    /// Whether it is a canary (else a control).
    pub is_canary: bool,
    /// From when on it is measured, unix ms: the canary's success, for both of a pair.
    pub from_ms: i64,
}

/// The stage's pairs, from devices in the order drawn.
#[must_use]
pub fn of_stage(fleet: &[DeviceObservation], stage: usize) -> Vec<Pair<'_>> {
    let canaries = fleet.iter().filter(|device| device.stage == stage);
    canaries
        .zip(fleet.iter().filter(|device| device.stage > stage))
        .collect()
}

/// How many pairs the draw gives the stage. Never falls, since no device leaves its stage.
#[must_use]
pub fn drawn(fleet: &[DeviceObservation], stage: usize) -> u64 {
    let canaries = fleet.iter().filter(|device| device.stage == stage).count();
    let controls = fleet.iter().filter(|device| device.stage > stage).count();
    canaries.min(controls) as u64
}

/// The members to be measured: of pairs whose canary has succeeded while the control still waits.
#[must_use]
pub fn open<'a>(pairs: &[Pair<'a>], entries: &[Entry]) -> Vec<OpenMember<'a>> {
    let entered = by_device(entries);
    let is_due = |(canary, control): &&Pair<'_>| {
        canary.state == DeviceState::Succeeded
            && control.state == DeviceState::Waiting
            && !canary.had_version
            && !control.had_version
    };
    let is_void = |device: &str| matches!(entered.get(device), Some((_, None)));
    pairs
        .iter()
        .filter(is_due)
        // Whoever is in a pair with one that never shows anything need not be measured.
        .filter(|(canary, control)| !is_void(&canary.device) && !is_void(&control.device))
        .flat_map(|(canary, control)| {
            [(*canary, true), (*control, false)].map(|(device, is_canary)| OpenMember {
                device: &device.device,
                is_canary,
                from_ms: canary.state_since_ms,
            })
        })
        .filter(|member| !entered.contains_key(member.device))
        .collect()
}

/// What the pairs show. `entries` in the order in which they were written.
#[must_use]
pub fn input(pairs: &[Pair<'_>], entries: &[Entry]) -> EarlyInput {
    let entered = by_device(entries);
    let shown = |device: &DeviceObservation| {
        let (at, change) = entered.get(device.device.as_str())?;
        change.map(|nano| (*at, nano))
    };
    let mut input = EarlyInput {
        drawn: pairs.len() as u64,
        ..EarlyInput::default()
    };
    let mut complete = Vec::new();
    for (canary, control) in pairs {
        let (first, second) = (shown(canary), shown(control));
        input.canaries += u64::from(first.is_some());
        input.controls += u64::from(second.is_some());
        if let (Some((first_at, canary_nano)), Some((second_at, control_nano))) = (first, second) {
            let pair = PairChange {
                canary: canary.device.clone(),
                control: control.device.clone(),
                canary_nano,
                control_nano,
            };
            complete.push((first_at.max(second_at), pair));
        }
    }
    complete.sort_by_key(|(at, _)| *at);
    input.pairs = complete.into_iter().map(|(_, pair)| pair).collect();
    input
}

fn by_device(entries: &[Entry]) -> BTreeMap<&str, (usize, Option<i64>)> {
    let numbered = entries.iter().enumerate();
    numbered
        .map(|(at, entry)| (entry.device.as_str(), (at, entry.change_nano)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, stage: usize, state: DeviceState) -> DeviceObservation {
        DeviceObservation {
            device: name.to_owned(),
            stage,
            state,
            state_since_ms: 1000 + i64::from(name.as_bytes()[0]),
            last_seen_ms: None,
            assigned_at_ms: None,
            had_version: false,
            waits_for: None,
            way_back: None,
        }
    }

    fn entry(device: &str, change_nano: Option<i64>) -> Entry {
        Entry {
            device: device.to_owned(),
            change_nano,
        }
    }

    use DeviceState::{Probation, Succeeded, Waiting};

    /// Drawn: stage 0 is c, a, b; then y, x, z, w.
    fn fleet() -> Vec<DeviceObservation> {
        vec![
            device("c", 0, Succeeded),
            device("a", 0, Succeeded),
            device("b", 0, Probation),
            device("y", 1, Waiting),
            device("x", 1, Waiting),
            device("z", 2, Waiting),
            device("w", 2, Waiting),
        ]
    }

    #[test]
    fn the_draw_pairs_and_nothing_else() {
        let fleet = fleet();
        let pairs = of_stage(&fleet, 0);
        let named: Vec<String> = pairs
            .iter()
            .map(|(canary, control)| format!("{}{}", canary.device, control.device))
            .collect();
        assert_eq!(named, ["cy", "ax", "bz"]);
        assert_eq!(
            (drawn(&fleet, 0), drawn(&fleet, 1), drawn(&fleet, 2)),
            (3, 2, 0)
        );
    }

    #[test]
    fn both_of_a_pair_are_measured_from_the_canarys_success() {
        let fleet = fleet();
        let pairs = of_stage(&fleet, 0);
        let open_now: Vec<_> = open(&pairs, &[entry("x", Some(5))])
            .iter()
            .map(|member| (member.device, member.is_canary, member.from_ms))
            .collect();
        assert_eq!(
            open_now,
            [("c", true, 1099), ("y", false, 1099), ("a", true, 1097)],
            "b is on probation, x has entered"
        );
        let void = open(&pairs, &[entry("y", None)]);
        assert!(void.iter().all(|member| member.device != "c"));
        let mut had = fleet.clone();
        had[4].had_version = true;
        assert_eq!(open(&of_stage(&had, 0), &[]).len(), 2);
    }

    #[test]
    fn a_pair_counts_once_both_have_entered_in_that_order() {
        let fleet = fleet();
        let pairs = of_stage(&fleet, 0);
        let entries = [
            entry("c", Some(-7)),
            entry("a", Some(-9)),
            entry("x", Some(1)),
            entry("b", None),
            entry("z", Some(3)),
            entry("y", Some(2)),
        ];
        let input = input(&pairs, &entries);
        assert_eq!((input.drawn, input.canaries, input.controls), (3, 2, 3));
        let shown: Vec<_> = input
            .pairs
            .iter()
            .map(|p| (p.canary.as_str(), p.canary_nano, p.control_nano))
            .collect();
        assert_eq!(shown, [("a", -9, 1), ("c", -7, 2)]);
    }
}

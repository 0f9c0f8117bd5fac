//! Which device goes into which stage: drawn at random, by a seed that is committed to when the
//! rollout is created, so that nobody can choose canaries after the fact and everybody can check
//! the draw. The permutation test of the gate is valid *because* of this draw.

use super::policy::{Policy, StageSize};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use utoipa::ToSchema;

const DRAW_DOMAIN: &[u8] = b"dunlin-draw-v1";
const COMMITMENT_DOMAIN: &[u8] = b"dunlin-draw-commitment-v1";

/// The fleet of one rollout, drawn into stages and frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cohorts {
    /// See [`commitment`]; published when the rollout is created.
    pub commitment: String,
    /// One entry per effective stage of the policy, in order; may be empty.
    pub stages: Vec<Cohort>,
}

/// The devices of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cohort {
    /// The stage's name.
    pub stage: String,
    /// Device ids in the order drawn.
    pub devices: Vec<String>,
}

/// Devices ordered by SHA-256(`"dunlin-draw-v1"` ‖ seed as 8 bytes big-endian ‖ device id),
/// duplicates dropped. Independent of the order given.
#[must_use]
pub fn order(seed: u64, devices: &[String]) -> Vec<String> {
    let mut keyed: Vec<([u8; 32], &String)> = devices
        .iter()
        .map(|device| {
            let hash = Sha256::new()
                .chain_update(DRAW_DOMAIN)
                .chain_update(seed.to_be_bytes())
                .chain_update(device.as_bytes());
            (hash.finalize().into(), device)
        })
        .collect();
    keyed.sort();
    keyed.dedup();
    keyed
        .into_iter()
        .map(|(_, device)| device.clone())
        .collect()
}

/// Lower-case hexadecimal SHA-256 of `"dunlin-draw-commitment-v1"`, the seed (8 bytes
/// big-endian), and for each distinct device id in byte order its length (4 bytes big-endian)
/// and its bytes.
#[must_use]
pub fn commitment(seed: u64, devices: &[String]) -> String {
    let distinct: BTreeSet<&String> = devices.iter().collect();
    let mut hash = Sha256::new();
    hash.update(COMMITMENT_DOMAIN);
    hash.update(seed.to_be_bytes());
    for device in distinct {
        let length = u32::try_from(device.len()).unwrap_or(u32::MAX);
        hash.update(length.to_be_bytes());
        hash.update(device.as_bytes());
    }
    hex::encode(hash.finalize())
}

/// Draws the stages of a new rollout. Every device lands in exactly one of them.
#[must_use]
pub fn cohorts(policy: &Policy, devices: &[String]) -> Cohorts {
    let mut drawn = order(policy.seed, devices).into_iter();
    let fleet = u32::try_from(drawn.len()).unwrap_or(u32::MAX);
    let mut reached = 0_u32;
    let stages = policy
        .effective_stages()
        .into_iter()
        .map(|stage| {
            let left = fleet - reached;
            let size = match stage.size {
                StageSize::Count(count) => count.min(left),
                StageSize::Percent(share) => share.ceil_of(fleet).saturating_sub(reached).min(left),
                StageSize::Rest => left,
            };
            reached += size;
            let members = drawn
                .by_ref()
                .take(usize::try_from(size).unwrap_or(usize::MAX));
            Cohort {
                stage: stage.name,
                devices: members.collect(),
            }
        })
        .collect();
    Cohorts {
        commitment: commitment(policy.seed, devices),
        stages,
    }
}

impl Cohorts {
    /// Devices per stage.
    #[must_use]
    pub fn sizes(&self) -> Vec<u32> {
        let size = |cohort: &Cohort| u32::try_from(cohort.devices.len()).unwrap_or(u32::MAX);
        self.stages.iter().map(size).collect()
    }

    /// Puts later comers into the last stage; those already drawn are left where they are.
    pub fn join(&mut self, devices: &[String]) {
        let known: BTreeSet<String> = self
            .stages
            .iter()
            .flat_map(|cohort| cohort.devices.iter().cloned())
            .collect();
        let new: BTreeSet<&String> = devices
            .iter()
            .filter(|device| !known.contains(*device))
            .collect();
        if let Some(last) = self.stages.last_mut() {
            last.devices.extend(new.into_iter().cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::rollout::policy::Stage;
    use crate::rollout::ratio::Ratio;
    use proptest::prelude::*;

    fn devices(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("edge-{index:02}")).collect()
    }

    #[test]
    fn the_draw_and_its_commitment_never_change() {
        assert_eq!(order(42, &devices(6)), DRAWN_42);
        assert_eq!(commitment(42, &devices(2)), COMMITTED_42);
        assert_ne!(commitment(43, &devices(2)), COMMITTED_42);
        assert_ne!(commitment(42, &devices(3)), COMMITTED_42);
    }
    /// Computed apart, with Python's hashlib.
    const DRAWN_42: [&str; 6] = [
        "edge-05", "edge-01", "edge-04", "edge-02", "edge-03", "edge-00",
    ];
    const COMMITTED_42: &str = "c4b2b8b2277e6f6cf6c86a0dff2b2d38fc52a98d45d3dcef1553270bddbc0c53";

    #[test]
    fn every_device_is_about_equally_often_a_canary() {
        let fleet = devices(12);
        let mut drawn = std::collections::BTreeMap::<String, u32>::new();
        for seed in 0..4000 {
            for canary in order(seed, &fleet).into_iter().take(3) {
                *drawn.entry(canary).or_default() += 1;
            }
        }
        // Expected 1000 each, standard deviation sqrt(4000 * 1/4 * 3/4) = 27.
        for (device, count) in drawn {
            assert!(
                (880..=1120).contains(&count),
                "{device} was drawn {count} times"
            );
        }
    }

    #[test]
    fn a_percentage_is_cumulative_and_a_count_is_not() {
        let stage = |name: &str, size| Stage {
            name: name.into(),
            size,
            soak_ms: 0,
        };
        let mut policy = Policy::with_seed(1);
        policy.stages = vec![
            stage("a", StageSize::Count(3)),
            stage("b", StageSize::Percent(Ratio::percent(10))),
            stage("c", StageSize::Percent(Ratio::percent(50))),
            stage("d", StageSize::Count(2)),
        ];
        assert_eq!(cohorts(&policy, &devices(12)).sizes(), [3, 0, 3, 2, 4]);
        assert_eq!(cohorts(&policy, &devices(2)).sizes(), [2, 0, 0, 0, 0]);
        assert_eq!(cohorts(&policy, &[]).sizes(), [0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn each_device_lands_in_exactly_one_stage(seed: u64, count in 0usize..200, percent in 1u16..100) {
            let mut policy = Policy::with_seed(seed);
            policy.stages[1].size = StageSize::Percent(Ratio::percent(percent));
            let fleet = devices(count);
            let drawn = cohorts(&policy, &fleet);
            let mut all: Vec<String> = drawn.stages.iter().flat_map(|c| c.devices.clone()).collect();
            all.sort();
            let mut expected = fleet.clone();
            expected.sort();
            prop_assert_eq!(all, expected);
            let mut reversed = fleet;
            reversed.reverse();
            prop_assert_eq!(cohorts(&policy, &reversed), drawn);
        }

        #[test]
        fn joining_twice_is_joining_once(seed: u64, late in 0usize..30) {
            let mut drawn = cohorts(&Policy::with_seed(seed), &devices(12));
            drawn.join(&devices(late));
            let once = drawn.clone();
            drawn.join(&devices(late));
            prop_assert_eq!(drawn, once);
        }
    }
}

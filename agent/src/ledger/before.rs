//! The ledger of agents that ran one model family.

use crate::device::{self, ByHand, Held, Model, NotHeld, Phase};
use dunlin_protocol::command::DesiredBundle;
use dunlin_protocol::id::{Family, Revision, RolloutId};
use dunlin_protocol::report::{Hold, Installed};
use serde::Deserialize;
use std::collections::BTreeMap;

pub(super) const SCHEMA: &str = "dunlin.ledger/1";

#[derive(Deserialize)]
pub(super) struct State {
    revision: Revision,
    target: Option<Installed>,
    rollout: Option<RolloutId>,
    #[serde(default)]
    wanted: Option<DesiredBundle>,
    kept: Option<Held>,
    #[serde(default)]
    previous: Option<Held>,
    #[serde(default)]
    not_held: Vec<NotHeld>,
    #[serde(default)]
    hold: Option<Hold>,
    phase: Phase,
    #[serde(default)]
    install: Option<String>,
    #[serde(default)]
    by_hand: Option<ByHand>,
    #[serde(default)]
    ended_cleanly: bool,
    sequence: u64,
    jitter_seed: u64,
}

impl State {
    pub(super) fn into_state(self) -> device::State {
        let kept = self.kept.as_ref().map(|held| held.bundle.family.clone());
        let mut model = Model {
            asked: self.target.as_ref().map(|_| self.revision),
            target: self.target,
            rollout: self.rollout,
            wanted: self.wanted,
            kept: None,
            previous: None,
            not_held: self.not_held,
            phase: self.phase,
            by_hand: self.by_hand,
            shadowed: None,
        };
        let on_its_way = model.under_way().map(|want| want.family.clone());
        let target = model.target.as_ref().map(|t| t.family.clone());
        let family = on_its_way.or(target).or_else(|| kept.clone());
        let mut models = BTreeMap::new();
        let of_previous = |family: &Family| {
            let held = self.previous.clone();
            held.filter(|held| held.bundle.family == *family)
        };
        if let Some(family) = family {
            if kept.as_ref().is_none_or(|kept| *kept == family) {
                model.kept = self.kept;
                model.previous = of_previous(&family);
            } else {
                // It went from one family to another, into the other one's slot.
                if let Some(want) = model.under_way().cloned() {
                    model.phase = Phase::Receiving {
                        want,
                        attempts: 0,
                        retry_at_ms: 0,
                        busy: false,
                    };
                }
                if let Some(kept) = kept {
                    let of_kept = Model {
                        kept: self.kept,
                        previous: of_previous(&kept),
                        ..Model::default()
                    };
                    models.insert(kept, of_kept);
                }
            }
            models.insert(family, model);
        }
        device::State {
            revision: self.revision,
            models,
            hold: self.hold,
            install: self.install,
            ended_cleanly: self.ended_cleanly,
            deaths: device::Deaths::default(),
            sequence: self.sequence,
            jitter_seed: self.jitter_seed,
        }
    }
}
